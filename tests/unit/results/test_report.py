"""The report: what it says comes from the data, what does not count is shown apart, odd inputs do no harm."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from discovery_deploy.bench import rally
from discovery_deploy.bench.records import RunRecord, SettingRecord
from discovery_deploy.experiment.model import Factor
from discovery_deploy.results import report, stats
from discovery_deploy.results.report import figures, text, wan_figures
from tests.synthetic_campaign import Campaign, campaign, provenance, report_of, wan_report

TASKS = rally.load_tasks()


def files_of(made: Campaign, **options: Any) -> dict[str, bytes]:
    return report.build(made.experiment, made.runs, made.table, made.provenance, TASKS, **options)


def retabled(made: Campaign, runs: list[RunRecord], reports: list[tuple[RunRecord, str, Any]]) -> Campaign:
    factors = [factor.path for factor in made.experiment.campaign.factors]
    return made._replace(runs=runs, reports=reports, table=rally.table(reports, factors))


def changed(made: Campaign, index: int, report_: Any = "same", **changes: Any) -> Campaign:
    """The campaign with one run changed, and perhaps what Rally said of it."""
    runs, reports = list(made.runs), list(made.reports)
    runs[index] = runs[index].model_copy(update=changes)
    reports[index] = (runs[index], reports[index][1], reports[index][2] if report_ == "same" else report_)
    return retabled(made, runs, reports)


def prose(html: bytes) -> str:
    """What a reader of the HTML sees, without figures."""
    found = re.sub(r"<(svg|style)\b.*?</\1>", " ", html.decode(), flags=re.DOTALL)
    found = re.sub(r"<[^>]+>", " ", found)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'"), ("&#34;", '"'), ("&amp;", "&")):
        found = found.replace(entity, character)
    return re.sub(r"\s+", " ", found)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of data that other tests draw are put together, but not drawn: that takes most of a report's time."""
    for module in (figures, wan_figures):
        monkeypatch.setattr(module, "svg", lambda figure, name, title: "<svg></svg>")


@pytest.fixture(scope="module")
def quick() -> Campaign:
    return campaign()


@pytest.fixture(scope="module")
def small() -> Campaign:
    """One scenario: four runs, faster to report."""
    return campaign(tasks=("keystone/create_and_list_users",))


@pytest.fixture(scope="module")
def files(quick: Campaign) -> dict[str, bytes]:
    return files_of(quick, source="name: quickstart\n")


def test_sites_and_clients_that_vary_are_shown_per_setting(small: Campaign) -> None:
    """Two sites, then three; the third has no place in the first setting's matrix."""
    two = ("paris", "nantes")
    levels = [[{"name": site} for site in sites] for sites in (two, (*two, "lyon"))]
    few = campaign(tasks=("keystone/create_and_list_users",), sites=two, bench_site="paris")
    varied = few.experiment.campaign.model_copy(update={"factors": (Factor(path="sites", levels=tuple(levels)),)})
    asked = few.experiment.model_copy(update={"campaign": varied})
    runs, reports = [], []
    for made, label, level in ((few, "sites paris+nantes", levels[0]), (small, "three sites", levels[1])):
        setting = SettingRecord(label=label, values={"sites": level}, labels={"sites": label})
        run = made.runs[0].model_copy(update={"setting": setting, "id": label.replace(" ", "-")})
        runs.append(run)
        reports.append((run, made.reports[0][1], made.reports[0][2]))
    page = prose(files_of(retabled(small._replace(experiment=asked), runs, reports))["report.html"])
    first = page.index("from \\ to paris nantes paris")
    assert first < page.index("from \\ to paris nantes lyon paris")
    assert "Sites 2 (varied, see settings)" in page
    assert "light, from paris, lyon (varied" not in page, "no factor varies the client: the sites do"
    assert "light, from paris, lyon" in page


# what it is made of


def test_a_report_has_a_page_a_text_and_the_data(files: dict[str, bytes], tmp_path: Path) -> None:
    assert list(files) == [
        *("report.html", "report.md", "iterations.parquet", "iterations.csv", "summary.csv", "regression.csv"),
        *("wan.csv", "records.json", "experiment.yaml"),
    ]
    page = report.write(files, tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == files


def test_equal_inputs_give_equal_bytes(quick: Campaign, files: dict[str, bytes]) -> None:
    assert files_of(quick, source="name: quickstart\n") == files


def test_the_page_asks_nothing_of_anybody(files: dict[str, bytes]) -> None:
    html = files["report.html"].decode()
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert not re.search(r'\b(src|srcset)="', html)
    references = set(re.findall(r'href="([^"#]*)', html)) | set(re.findall(r"url\(([^)]*)\)", html))
    assert {name for name in references if not name.startswith("#")} <= {"", *files}
    assert set(re.findall(r'"(https?://[^"]*)"', html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_and_every_reference_inside_the_page_leads_somewhere(files: dict[str, bytes]) -> None:
    html = files["report.html"].decode()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    inside = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    assert set(inside) <= set(ids)


def test_data_files_are_listed_with_size_and_hash(files: dict[str, bytes]) -> None:
    page = prose(files["report.html"])
    for name, octets in files.items():
        if name not in ("report.html", "report.md"):
            assert name in page
            assert hashlib.sha256(octets).hexdigest() in page
            assert text.size(len(octets)) in page


def test_the_data_can_be_read_back(quick: Campaign, files: dict[str, bytes]) -> None:
    parquet = pd.read_parquet(io.BytesIO(files["iterations.parquet"]))
    csv = pd.read_csv(io.BytesIO(files["iterations.csv"]), keep_default_na=False)
    assert len(parquet) == len(csv) == quick.table.num_rows
    assert parquet["duration_s"].to_numpy() == pytest.approx(csv["duration_s"].astype(float).to_numpy())
    records = json.loads(files["records.json"])
    assert [RunRecord.model_validate(run) for run in records["runs"]] == quick.runs
    assert len(pd.read_csv(io.BytesIO(files["wan.csv"]))) == len(quick.runs) * 2 * 6
    assert len(pd.read_csv(io.BytesIO(files["regression.csv"]))) == 16


# what it says


def test_the_answer_is_the_fits_in_sentences(quick: Campaign, files: dict[str, bytes]) -> None:
    page = prose(files["report.html"])
    fits, _ = stats.regressions(stats.with_other(quick.table.to_pandas()), quick.runs)
    [fit] = [f for f in fits if f.group == "mariadb@nantes" and f.atomic_action == "keystone_v3.fetch_token"]
    expected = f"fetch_token {text.seconds(fit.base_s)} + {text.count_of(fit.round_trips)} × RTT"
    assert f"With mariadb@nantes, from lyon: {expected}" in page
    assert "RTT to the database; 40 iterations at 2 RTTs." in page
    assert "With galera, from lyon: create_user" in page
    assert re.search(r"list_users [\d.]+ ms at any RTT \(0\.0 × RTT, 95 % CI", page)
    assert "so that it is one is not tested" in page
    assert expected.replace("_", "\\_") in files["report.md"].decode()


def test_every_number_of_the_tables_comes_from_the_data(quick: Campaign, files: dict[str, bytes]) -> None:
    page, markdown = prose(files["report.html"]), files["report.md"].decode()
    summary = pd.read_csv(io.BytesIO(files["summary.csv"]), keep_default_na=False, na_values=[""])
    summary["atomic_action"] = summary["atomic_action"].fillna("")
    for _, row in summary.iterrows():
        expected = [text.seconds(row["median_s"]), text.seconds_range(row["median_low_s"], row["median_high_s"]),
                    text.seconds_range(row["q1_s"], row["q3_s"]), text.seconds(row["p95_s"])]  # fmt: skip
        assert f"{text.failure_rate(row)} {' '.join(expected)}" in page
        if row["atomic_action"] == rally.TOTAL:
            assert " | ".join([text.failure_rate(row), *expected]) in markdown
    for _, row in pd.read_csv(io.BytesIO(files["regression.csv"])).iterrows():
        trips = text.count_of(row["round_trips"])
        interval = text.count_range(row["round_trips_low"], row["round_trips_high"])
        assert f"{trips} {interval}" in page
        assert text.seconds(row["base_s"]) in page
    for _, row in pd.read_csv(io.BytesIO(files["wan.csv"])).iterrows():
        assert f"asked {text.milliseconds(row['asked_rtt_s'])}" in page


@pytest.mark.usefixtures("undrawn")
def test_a_number_that_changes_in_the_data_changes_in_the_report(small: Campaign) -> None:
    slow = report_of("keystone/create_and_list_users", 20, 0.123, 0.0, "slow")
    before, after = (prose(files_of(made)["report.html"]) for made in (small, changed(small, 1, slow)))
    row = stats.summarise(changed(small, 1, slow).table.to_pandas()).query("setting == 'mariadb@nantes, 25 ms'").iloc[0]
    assert text.seconds(row["median_s"]) in after
    assert text.seconds(row["median_s"]) not in before


def test_invalid_and_failed_runs_stand_apart_with_their_reasons(quick: Campaign) -> None:
    slow = report_of("keystone/authenticate_user_and_validate_token", 20, 77.0, 0.0, "slow")
    made = changed(quick, 0, slow, problems=("WAN after the run: lyon -> nantes: RTT 3.31 ms instead of 0.00 ms",),
                   wan_after=wan_report(0.0, off_s=0.003))  # fmt: skip
    made = changed(made, 1, None, status="failed", problems=("Rally at lyon failed: exit 1",))
    html = files_of(made)["report.html"]
    page = prose(html)
    assert "6 of 8 runs valid" in page
    assert "1 not valid" in page
    assert "1 failed" in page
    assert "RTT 3.31 ms instead of 0.00 ms" in page
    assert "Rally at lyon failed: exit 1" in page
    assert "1 run of it does not count" in page
    assert "6 ordered pairs out of tolerance" in page
    assert html.count(b'<td class="bad">') == 6
    slowest = made.table.to_pandas().query("not valid")["duration_s"].max()
    shown = [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) s\b", page)]
    assert slowest > 1000
    assert max(shown) < 1000


def test_errors_of_iterations_are_grouped_and_their_rate_stands_beside_the_number(small: Campaign) -> None:
    failing = report_of("keystone/create_and_list_users", 20, 0.05, 0.0, "x", failing=7)
    made = changed(small, 1, failing)
    html = files_of(made)["report.html"]
    page = prose(html)
    assert "35 % (7/20, 18 % to 57 %)" in page
    message = "ConnectFailure : Unable to establish connection to http://10.131.2.10:5000/v3/"
    assert f"7 create_and_list_users mariadb@nantes, 25 ms lyon list_users {message}" in page
    assert "7/20 failed" in html.decode()


def test_a_client_beside_the_only_database_is_named_in_tables_and_figures() -> None:
    files = files_of(campaign(bench_site="nantes"))
    html = files["report.html"].decode()
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    stacks = [figure for figure in figures if "stacked by atomic action" in figure]
    curves = [figure for figure in figures if "Distribution of the duration" in figure]
    assert len(stacks) == len(curves) == 2
    assert all(text.BESIDE in figure for figure in stacks + curves)
    page = prose(html.encode())
    assert page.count(text.BESIDE) >= 2 * (1 + 4 + 2 * 4)
    assert "no fit, because the client sits beside the only database" in page
    assert text.BESIDE in files["report.md"].decode()


@pytest.mark.usefixtures("undrawn")
def test_an_api_at_another_site_than_the_client_is_named_with_its_distance(small: Campaign) -> None:
    place = small.runs[0].placements[0]
    away = place.model_copy(update={"api_site": "lyon", "api_rtt_s": 0.0437, "compute_rtt_s": 0.0519})
    told = files_of(changed(small, 0, placements=(away,)))
    rows = [line for line in told["report.md"].decode().splitlines() if "43.70" in line or "43.7 " in line]
    assert [("lyon" in row, "51.9" in row) for row in rows] == [(True, True)]
    assert "43.7" in prose(told["report.html"])
    assert "regions" in prose(told["report.html"])


def test_provenance_is_there(files: dict[str, bytes], quick: Campaign) -> None:
    page = prose(files["report.html"])
    facts = quick.provenance
    for value in (
        facts.tool_commit,
        facts.wan_router,
        *facts.machine.values(),
        *facts.hashes.values(),
        facts.finished_at,
    ):
        assert str(value) in page
    for host in facts.hosts:
        assert f"{host.name} {host.site} {host.os} {host.kernel} {host.cpu}" in page
    assert "keystone 27.1.0" in page
    assert "name: quickstart" in page


@pytest.mark.usefixtures("undrawn")
def test_packages_that_differ_between_hosts_are_seen(small: Campaign) -> None:
    other = small.provenance.hosts[0].model_copy(update={"packages": {"keystone": "27.0.0"}})
    mixed = small.provenance.model_copy(update={"hosts": (other, *small.provenance.hosts[1:])})
    page = prose(files_of(small._replace(provenance=mixed))["report.html"])
    assert "keystone 27.0.0 (paris-1)" in page
    assert "keystone 27.1.0 (nantes-1, lyon-1)" in page


# odd inputs

HOSTILE = "Is <script>alert(1)</script> & \"quotes\" 'and' $x^2$ | `code` escaped?"


def test_names_with_markup_are_text(small: Campaign) -> None:
    error = ["<b>Bad</b>", "<img src=x onerror=alert(1)> & $y$", ""]
    rally_report = report_of("keystone/create_and_list_users", 20, 0.0, 0.0, "x", failing=1)
    rally_report["tasks"][0]["subtasks"][0]["workloads"][0]["data"][0]["error"] = error
    made = changed(small, 2, rally_report)
    setting = made.runs[0].setting.model_copy(update={"label": "<i>a</i> & $b$"})
    made = changed(made, 0, setting=setting, problems=("<u>why</u>",))
    made = changed(made, 1, setting=setting)
    made = made._replace(experiment=made.experiment.model_copy(update={"question": HOSTILE}))
    files = files_of(made, source="# </code><script>x</script>\n")
    html = files["report.html"].decode()
    assert not re.search(r"<(script|img|i|u|b>Bad)\b", html)
    assert HOSTILE in prose(files["report.html"])
    assert "&lt;i&gt;a&lt;/i&gt; &amp; $b$" in html
    assert "<i>a</i>" not in files["report.md"].decode().replace(f"`{made.runs[0].id}`", "")


def test_no_runs_at_all(small: Campaign) -> None:
    files = files_of(retabled(small, [], []))
    page = prose(files["report.html"])
    assert "0 of 4 runs valid" in page
    assert "4 not done" in page
    assert "there is no answer yet" in page
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)


def test_all_runs_failed(small: Campaign) -> None:
    runs = [run.model_copy(update={"status": "failed", "problems": ("Rally failed",)}) for run in small.runs]
    page = prose(files_of(retabled(small, runs, [(run, "lyon", None) for run in runs]))["report.html"])
    assert "4 failed" in page
    assert "there is no answer yet" in page


def test_every_iteration_failed(small: Campaign) -> None:
    reports = [(run, site, report_of(run.scenario.task, 20, 0, 0, "x", failing=20)) for run, site, _ in small.reports]
    page = prose(files_of(retabled(small, small.runs, reports))["report.html"])
    assert "100 % (20/20, 84 % to 100 %)" in page
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)


def test_a_high_load_is_shown_site_by_site() -> None:
    made = campaign(load="high", bench_site=None, tasks=("keystone/create_and_list_users",), times=8)
    files = files_of(made)
    page = prose(files["report.html"])
    assert "high, from paris, nantes, lyon" in page
    assert "With mariadb@nantes, from lyon:" in page
    assert "mariadb@nantes, from nantes: no fit, because the client sits beside the only database" in page
    assert "mariadb@nantes, from paris: no fit, because its valid runs have one round-trip time only" in page
    summary = pd.read_csv(io.BytesIO(files["summary.csv"]))
    beside = summary[summary["beside_only_database"]]
    assert set(beside["site"]) == {"nantes"}
    assert set(beside["setting"]) == {"mariadb@nantes, 0 ms", "mariadb@nantes, 25 ms"}
    assert "mariadb@nantes, 0 ms · paris" in files["report.html"].decode()


def test_a_single_setting_and_no_factors() -> None:
    made = campaign(backends=({"type": "galera"},), delays_s=(0.025,), tasks=("keystone/create_and_list_users",))
    page = prose(files_of(made)["report.html"])
    assert "the one setting" in page
    assert "1 of 1 runs valid" in page
    assert "no fit, because its valid runs have one round-trip time only" in page
    assert "The one setting, from lyon: a whole iteration takes" in page


def test_twelve_settings_and_repetitions() -> None:
    made = campaign(delays_s=(0.0, 0.005, 0.0125, 0.025, 0.05, 0.15), repetitions=2,
                    tasks=("keystone/create_and_list_users",), times=8)  # fmt: skip
    html = files_of(made)["report.html"]
    page = prose(html)
    assert "24 of 24 runs valid" in page
    assert "Medians lie at most" in page
    assert html.decode().count('class="matrix"') == 12
    assert "Not measured, only read back from the router: one-way delay (6 of 6 pairs)." in html.decode()


def test_an_unknown_task_and_missing_measurements(small: Campaign) -> None:
    runs = [run.model_copy(update={"wan_before": None, "wan_after": None}) for run in small.runs]
    made = retabled(small, runs, [(run, "lyon", told) for run, (_, _, told) in zip(runs, small.reports, strict=True)])
    files = report.build(made.experiment, made.runs, made.table, made.provenance, {})
    page = prose(files["report.html"])
    assert "The WAN has not been measured." in page
    assert "keystone/create_and_list_users" in page
    assert "RTT to the database, asked (ms)" in files["report.html"].decode()


def test_a_valid_run_without_iterations_is_pointed_at(small: Campaign) -> None:
    page = prose(files_of(changed(small, 0, None))["report.html"])
    assert f"yet brought no iteration: {small.runs[0].id}" in page


@pytest.mark.usefixtures("undrawn")
def test_an_earlier_attempt_is_listed_and_not_counted(small: Campaign) -> None:
    earlier = small.runs[0].model_copy(update={"id": small.runs[0].id + "~1", "problems": ("WAN out of tolerance",)})
    page = prose(files_of(small._replace(runs=[*small.runs, earlier]))["report.html"])
    assert "4 of 4 runs valid" in page
    assert earlier.id in page


def test_unmeasured_pairs_and_missing_rtts_are_no_numbers(small: Campaign) -> None:
    measured = small.runs[0].wan_before
    assert measured is not None
    pair = measured.pairs[0]
    lost = pair.model_copy(update={
        "measured": pair.measured.model_copy(update={"rtt_median_s": None, "received": 0}),
        "problems": ("paris -> nantes: no answer",),
    })  # fmt: skip
    broken = measured.model_copy(update={"pairs": (lost, *measured.pairs[1:])})
    page = prose(files_of(changed(small, 0, wan_before=broken, wan_after=broken, problems=("x",)))["report.html"])
    assert "1 ordered pairs out of tolerance" in page
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)


def test_many_sites_get_heat_maps_and_stay_small() -> None:
    sites = tuple(f"site-{number:02d}" for number in range(40))
    made = campaign(sites=sites, bench_site="site-03", backends=({"type": "mariadb", "site": "site-10"},),
                    tasks=("keystone/create_and_list_users",), times=6)  # fmt: skip
    bad = wan_report(0.025, sites, off_s=0.01)
    files = files_of(changed(made, 1, wan_after=bad, problems=("WAN",)))
    html = files["report.html"].decode()
    assert html.count("Measured minus asked round-trip time") == 2
    assert 'class="matrix"' not in html
    assert len(html) < 1_000_000
    assert "site-39" in html


@pytest.mark.usefixtures("undrawn")
def test_provenance_without_hosts(small: Campaign) -> None:
    bare = provenance(small.experiment).model_copy(update={"hosts": (), "tool_commit": None})
    page = prose(files_of(small._replace(provenance=bare))["report.html"])
    assert "not known (no checkout)" in page
    assert "Not collected." in page


# numbers as text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.3542, "354 ms"), (0.0226, "22.6 ms"), (1.1304, "1.13 s"), (0.9999, "1.00 s"), (123.4, "123 s"),
     (1234.0, "1234 s"), (0.0, "0 ms"), (float("nan"), "–"), (None, "–"), (-0.02, "-20.0 ms")],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(value: float | None, expected: str) -> None:
    assert text.seconds(value) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.34, 0.361, "340 to 361 ms"), (0.98, 1.02, "0.98 to 1.02 s"), (0.0, 0.0, "0 to 0 ms"), (float("nan"), 1, "–")],
)
def test_ranges_have_one_unit(low: float, high: float, expected: str) -> None:
    assert text.seconds_range(low, high) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(9.27, "9.3"), (119.8, "120"), (-0.04, "0.0"), (99.96, "100"), (None, "–")]
)
def test_round_trips_have_a_tenth_below_a_hundred(value: float | None, expected: str) -> None:
    assert text.count_of(value) == expected
