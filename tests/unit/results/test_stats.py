"""Statistics against known answers: textbook intervals, and fits of data made from known numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from discovery_deploy.bench import rally
from discovery_deploy.bench.records import RunRecord, SettingRecord
from discovery_deploy.results import rtts, stats
from tests.synthetic_campaign import BASE_RTT_S, Campaign, campaign, report_of

MARIADB = {"type": "mariadb", "site": "nantes"}
GALERA = {"type": "galera"}


def frame(made: Campaign) -> pd.DataFrame:
    return stats.with_other(made.table.to_pandas())


def retabled(made: Campaign, runs: list[RunRecord], reports: list[tuple[RunRecord, str, object]]) -> Campaign:
    factors = [factor.path for factor in made.experiment.campaign.factors]
    return made._replace(runs=runs, reports=reports, table=rally.table(reports, factors))


def with_run(made: Campaign, index: int, **changes: object) -> Campaign:
    """The campaign with one run changed."""
    runs, reports = list(made.runs), list(made.reports)
    runs[index] = runs[index].model_copy(update=changes)
    reports[index] = (runs[index], *reports[index][1:])
    return retabled(made, runs, reports)


def with_report(made: Campaign, index: int, report: object) -> Campaign:
    """The campaign with what Rally said of one run replaced."""
    reports = list(made.reports)
    reports[index] = (*reports[index][:2], report)
    return retabled(made, made.runs, reports)


@pytest.fixture(scope="module")
def quick() -> Campaign:
    return campaign()


# intervals


@pytest.mark.parametrize(
    ("failures", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 40, 0, 0.0876)],
)
def test_wilson_gives_the_published_intervals(failures: int, count: int, low: float, high: float) -> None:
    assert stats.wilson(failures, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in stats.wilson(0, 0))


@pytest.mark.parametrize(("count", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (40, (14, 27))])
def test_the_interval_of_a_median_has_the_ranks_of_the_sign_test(count: int, ranks: tuple[int, int]) -> None:
    values = np.random.default_rng(1).permutation(np.arange(1, count + 1)).astype(float)
    assert stats.median_interval(values) == ranks


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_values_give_no_interval(count: int) -> None:
    assert all(math.isnan(bound) for bound in stats.median_interval(np.ones(count)))


def test_the_interval_of_a_median_covers_it_often_enough() -> None:
    generator = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        low, high = stats.median_interval(generator.lognormal(0, 1, 15))
        inside += low <= 1.0 <= high
    assert inside >= 0.93 * 400


def test_an_empirical_distribution_ends_at_one() -> None:
    x, y = stats.ecdf(np.array([3.0, 1.0, 2.0, 2.0]))
    assert x.tolist() == [1.0, 2.0, 2.0, 3.0]
    assert y.tolist() == [0.25, 0.5, 0.75, 1.0]


# summaries


def test_a_summary_counts_and_measures(quick: Campaign) -> None:
    table = frame(quick)
    row = stats.summarise(table).iloc[0]
    mine = table[(table["run_id"] == quick.runs[0].id) & (table["atomic_action"] == "")]["duration_s"]
    assert row["setting"] == "mariadb@nantes, 0 ms"
    assert (row["runs"], row["count"], row["failures"], row["failure_rate"]) == (1, 20, 0, 0.0)
    assert row["median_s"] == mine.median()
    assert row["p95_s"] == pytest.approx(np.percentile(mine, 95))
    assert row["mad_s"] == pytest.approx((mine - mine.median()).abs().median())
    assert row["median_low_s"] < row["median_s"] < row["median_high_s"]
    assert (row["run_median_min_s"], row["run_median_max_s"]) == (mine.median(), mine.median())


def test_rows_stand_in_the_order_of_the_campaign(quick: Campaign) -> None:
    summary = stats.summarise(frame(quick))
    assert list(summary["setting"].drop_duplicates()) == [
        "mariadb@nantes, 0 ms", "mariadb@nantes, 25 ms", "galera, 0 ms", "galera, 25 ms",
    ]  # fmt: skip
    first = summary[(summary["setting"] == "galera, 0 ms") & summary["scenario"].str.contains("authenticate")]
    assert list(first["atomic_action"]) == [
        rally.TOTAL, "keystone_v3.fetch_token", "keystone_v3.validate_token", rally.OTHER,
    ]  # fmt: skip


def test_what_lies_outside_the_actions_makes_up_the_whole(quick: Campaign) -> None:
    table = frame(quick)
    keys = ["run_id", "site", "iteration"]
    whole = table[table["atomic_action"] == rally.TOTAL].set_index(keys)["duration_s"]
    parts = table[table["atomic_action"] != rally.TOTAL].groupby(keys)["duration_s"].sum()
    assert (whole - parts.reindex(whole.index)).abs().max() < 1e-9


def test_failed_iterations_count_in_the_rate_and_not_in_the_median(quick: Campaign) -> None:
    report = report_of("keystone/authenticate_user_and_validate_token", 20, 0.0, 0.0, "x", failing=5)
    for iteration in report["tasks"][0]["subtasks"][0]["workloads"][0]["data"][:5]:
        iteration["duration"] = 1000.0
    row = stats.summarise(frame(with_report(quick, 0, report))).iloc[0]
    assert (row["count"], row["failures"], row["failure_rate"]) == (20, 5, 0.25)
    assert row["max_s"] < 2
    assert (row["failure_rate_low"], row["failure_rate_high"]) == stats.wilson(5, 20)


def test_invalid_runs_are_never_averaged_in(quick: Campaign) -> None:
    slow = report_of("keystone/authenticate_user_and_validate_token", 20, 9.0, 0.0, "slow")
    made = campaign(repetitions=2)
    index = next(i for i, run in enumerate(made.runs) if run.repetition == 2)
    clean = stats.summarise(frame(made))
    spoiled = with_report(with_run(made, index, problems=("WAN out of tolerance",)), index, slow)
    row = stats.summarise(frame(spoiled)).iloc[0]
    assert (row["runs"], row["excluded_runs"], row["count"]) == (1, 1, 20)
    assert row["max_s"] < 2
    assert clean.iloc[0]["runs"] == 2
    assert all(
        level.median_s < 10 for fit in stats.regressions(frame(spoiled), spoiled.runs)[0] for level in fit.levels
    )


def test_nothing_but_invalid_runs_leaves_numbers_unknown(quick: Campaign) -> None:
    row = stats.summarise(frame(with_run(quick, 0, problems=("no",)))).iloc[0]
    assert (row["runs"], row["count"], row["excluded_runs"]) == (0, 0, 1)
    assert math.isnan(row["median_s"])
    assert math.isnan(row["failure_rate"])


def test_no_iterations_give_an_empty_summary() -> None:
    empty = stats.with_other(rally.table([]).to_pandas())
    assert stats.summarise(empty).empty
    assert "median_s" in stats.summarise(empty).columns
    assert stats.regressions(empty, []) == ([], [])


# fits


def fit_of(made: Campaign, action: str, group: str = "") -> stats.Fit:
    fits, _ = stats.regressions(frame(made), made.runs)
    [fit] = [fit for fit in fits if fit.atomic_action == action and fit.group == group]
    return fit


def linear(delays_s: tuple[float, ...], n: float, base_s: float, times: int = 20, noise_s: float = 0.003) -> Campaign:
    """A campaign of one MariaDB whose fetch_token takes base_s + n x RTT, within noise."""
    made = campaign(backends=(MARIADB,), delays_s=delays_s, tasks=("keystone/authenticate_user_and_validate_token",),
                    times=times)  # fmt: skip
    generator = np.random.default_rng(3)
    for run, site, report in made.reports:
        delay_s = run.placements[0].database_rtt_s / 2
        rtt_s = rtts.measured_rtts(run, run.placements[0])
        assert rtt_s is not None
        assert site == "lyon"
        for iteration in report["tasks"][0]["subtasks"][0]["workloads"][0]["data"]:
            fetch = iteration["atomic_actions"][0]
            fetch["finished_at"] = fetch["started_at"] + base_s + n * rtt_s[0] + generator.normal(0, noise_s)
        assert delay_s in delays_s
    return retabled(made, made.runs, made.reports)


@pytest.mark.parametrize("delays_s", [(0.0, 0.025), (0.0, 0.01, 0.0375, 0.15)])
def test_known_numbers_are_found_again(delays_s: tuple[float, ...]) -> None:
    fit = fit_of(linear(delays_s, n=9.3, base_s=0.35), "keystone_v3.fetch_token")
    assert fit.round_trips == pytest.approx(9.3, abs=0.1)
    assert fit.base_s == pytest.approx(0.35, abs=0.003)
    assert fit.round_trips_low is not None
    assert fit.round_trips_high is not None
    assert fit.round_trips_low < 9.3 < fit.round_trips_high
    assert fit.round_trips_high - fit.round_trips_low < 0.3
    assert fit.significant
    assert fit.r2 is not None
    assert fit.r2 > 0.99
    assert [level.count for level in fit.levels] == [20] * len(delays_s)


def test_two_round_trip_times_claim_no_linearity() -> None:
    assert fit_of(linear((0.0, 0.025), 9.3, 0.35), "keystone_v3.fetch_token").largest_residual_s is None
    three = fit_of(linear((0.0, 0.01, 0.025), 9.3, 0.35), "keystone_v3.fetch_token")
    assert three.largest_residual_s is not None
    assert three.largest_residual_s < 0.003


def test_a_few_slow_iterations_do_not_bend_the_line() -> None:
    made = linear((0.0, 0.025), 9.3, 0.35)
    for _, _, report in made.reports[1:]:
        for iteration in report["tasks"][0]["subtasks"][0]["workloads"][0]["data"][:4]:
            iteration["atomic_actions"][0]["finished_at"] += 30.0
    fit = fit_of(retabled(made, made.runs, made.reports), "keystone_v3.fetch_token")
    assert fit.round_trips == pytest.approx(9.3, abs=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        samples = [(rtt, 0.35 + 9.3 * rtt + generator.lognormal(-4, 0.7, 20)) for rtt in (0.0, 0.05)]
        common = {"scenario": "s", "group": str(seed), "site": "lyon"}
        fit = stats._fit(samples, "asked", "database", "a", 1, common)
        assert fit.round_trips_low is not None
        assert fit.round_trips_high is not None
        inside += fit.round_trips_low <= 9.3 <= fit.round_trips_high
    assert 0.85 * 60 <= inside < 60


def test_few_iterations_give_a_line_without_an_interval() -> None:
    fit = fit_of(linear((0.0, 0.025), 9.3, 0.35, times=5), "keystone_v3.fetch_token")
    assert fit.round_trips == pytest.approx(9.3, abs=0.3)
    assert (fit.round_trips_low, fit.round_trips_high, fit.base_low_s) == (None, None, None)
    assert not fit.significant


def test_equal_data_give_equal_fits(quick: Campaign) -> None:
    assert stats.regressions(frame(quick), quick.runs) == stats.regressions(frame(quick), quick.runs)


def test_mariadb_is_fitted_on_the_way_to_the_database_and_galera_on_the_commit(quick: Campaign) -> None:
    fits, refused = stats.regressions(frame(quick), quick.runs)
    assert refused == []
    found = {(fit.group, fit.atomic_action): fit for fit in fits if fit.scenario == "keystone/create_and_list_users"}
    mariadb, galera = (found[group, "keystone_v3.create_user"] for group in ("mariadb@nantes", "galera"))
    assert (mariadb.against, galera.against) == ("database", "commit")
    assert mariadb.round_trips == pytest.approx(9, abs=0.15)
    assert galera.round_trips == pytest.approx(1, abs=0.15)
    reads = found["galera", "keystone_v3.list_users"]
    assert reads.at_most_half
    assert reads.base_s == pytest.approx(0.025, abs=0.003)


def test_the_round_trip_times_are_those_that_were_measured(quick: Campaign) -> None:
    fit = fit_of(quick, "keystone_v3.fetch_token", "mariadb@nantes")
    assert fit.rtt_from == "measured"
    assert [level.rtt_s for level in fit.levels] == pytest.approx([BASE_RTT_S, 0.05 + BASE_RTT_S], abs=2e-4)


def test_without_a_measurement_the_asked_times_serve_for_the_whole_group(quick: Campaign) -> None:
    made = with_run(quick, 0, wan_before=None, wan_after=None)
    fit = fit_of(made, "keystone_v3.fetch_token", "mariadb@nantes")
    assert fit.rtt_from == "asked"
    assert [level.rtt_s for level in fit.levels] == [0.0, 0.05]


def test_a_client_beside_the_only_database_is_never_fitted_nor_mixed() -> None:
    made = campaign(bench_site="nantes")
    fits, refused = stats.regressions(frame(made), made.runs)
    assert {fit.group for fit in fits} == {"galera"}
    assert {(no.group, no.reason) for no in refused} == {("mariadb@nantes", "the client sits beside the only database")}
    assert set(stats.summarise(frame(made)).query("setting == 'mariadb@nantes, 0 ms'")["beside_only_database"]) == {
        True
    }


def test_one_delay_cannot_be_fitted() -> None:
    made = campaign(delays_s=(0.025,))
    fits, refused = stats.regressions(frame(made), made.runs)
    assert fits == []
    assert {no.reason for no in refused} == {"its valid runs have one round-trip time only"}
    assert refused[0].settings == ("mariadb@nantes",)


def test_an_action_that_never_succeeded_at_a_delay_is_left_out(quick: Campaign) -> None:
    report = report_of("keystone/authenticate_user_and_validate_token", 20, 0.05, 0.0, "x", failing=20)
    made = with_report(quick, 2, report)
    fits, _ = stats.regressions(frame(made), made.runs)
    mine = {fit.atomic_action for fit in fits if fit.group == "mariadb@nantes" and "authenticate" in fit.scenario}
    assert mine == {"keystone_v3.fetch_token"}


def setting(**values: object) -> SettingRecord:
    paths = {path.replace("__", "."): value for path, value in values.items()}
    labels = {path: str(value) for path, value in paths.items()}
    return SettingRecord(label=", ".join(labels.values()), values=paths, labels=labels)


def test_settings_are_compared_when_only_delays_of_the_wan_differ() -> None:
    def key(**values: object) -> str:
        return stats.delay_group(setting(**values))[0]

    assert key(network__default__delay="0 ms") == key(network__default__delay="9 ms")
    assert key(network__default__delay="0 ms", deployment__cache="none") != key(network__default__delay="0 ms")
    assert key(network__default__loss="1 %") != key(network__default__loss="2 %")
    one = {"delay": "1 ms", "loss": "1 %"}
    assert key(network__default=one) == key(network__default={**one, "delay": "7 ms"})
    assert key(network__default=one) != key(network__default={**one, "loss": "2 %"})
    pair = {"between": ["a", "b"], "delay": "1 ms"}
    assert key(network__constraints=[pair]) == key(network__constraints=[{**pair, "delay": "2 ms"}])
    assert stats.delay_group(setting(deployment__cache="none", network__default__delay="0 ms"))[1] == "none"


# more services than Keystone


def booted(delays_s: tuple[float, ...], n: float) -> Campaign:
    """Boots from the site of the only database, whose computes are away: 5 s + n x the largest RTT."""
    made = campaign(backends=({"type": "mariadb", "site": "lyon"},), delays_s=delays_s,
                    tasks=("keystone/create_and_list_users",))  # fmt: skip
    runs, reports = [], []
    for run, site, report in made.reports:
        scenario = run.scenario.model_copy(update={"task": "nova/boot_and_delete_server"})
        run = run.model_copy(update={"scenario": scenario})
        widest = rtts.widest_rtt(run)
        assert widest is not None
        assert widest[1] is not None
        for number, iteration in enumerate(report["tasks"][0]["subtasks"][0]["workloads"][0]["data"]):
            [boot, *_] = iteration["atomic_actions"]
            boot["name"] = "nova.boot_server"
            boot["finished_at"] = boot["started_at"] + 5.0 + n * widest[1] + 0.001 * (number % 3)
            iteration["atomic_actions"] = [boot]
        runs.append(run)
        reports.append((run, site, report))
    return retabled(made, runs, reports)


def test_what_asks_more_than_keystone_is_fitted_on_the_largest_rtt_between_sites_wherever_its_client_is() -> None:
    made = booted((0.01, 0.025, 0.1), n=40)
    assert all(run.placements[0].beside_only_database for run in made.runs)
    assert not frame(made)["beside_only_database"].any()
    fit = fit_of(made, "nova.boot_server")
    assert (fit.against, fit.rtt_from) == ("sites", "measured")
    assert fit.round_trips == pytest.approx(40, abs=0.1)
    assert fit.base_s == pytest.approx(5.0, abs=0.01)
    assert [level.rtt_s for level in fit.levels] == pytest.approx([0.02, 0.05, 0.2], abs=5e-4)


def test_keystone_alone_beside_its_only_database_still_says_nothing() -> None:
    made = campaign(backends=({"type": "mariadb", "site": "lyon"},))
    fits, refused = stats.regressions(frame(made), made.runs)
    assert fits == []
    assert {no.reason for no in refused} == {"the client sits beside the only database"}


def test_a_client_away_from_its_keystone_is_fitted_on_the_rtt_between_sites() -> None:
    made = campaign(backends=(MARIADB,), tasks=("keystone/create_and_list_users",))
    moved = []
    for run in made.runs:
        [place] = run.placements
        update = {"api_site": "nantes", "api_rtt_s": place.database_rtt_s, "database_rtt_s": 0.0}
        moved.append(run.model_copy(update={"placements": (place.model_copy(update=update),)}))
    reports = [(run, site, report) for run, (_, site, report) in zip(moved, made.reports, strict=True)]
    fits, _ = stats.regressions(frame(retabled(made, moved, reports)), moved)
    assert {fit.against for fit in fits} == {"sites"}


def test_a_run_whose_wan_was_not_measured_is_fitted_on_nothing() -> None:
    made = booted((0.01, 0.025), n=4)
    bare = [run.model_copy(update={"wan_before": None, "wan_after": None}) for run in made.runs]
    fits, [refused] = stats.regressions(frame(made), bare)
    assert (fits, refused.reason) == ([], "its valid runs have one round-trip time only")
