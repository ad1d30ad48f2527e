"""What a report says first of runs that are not valid, and what its figures call their axes."""

from __future__ import annotations

import pytest

from discovery_deploy.results import stats
from discovery_deploy.results.report.content import why_not_valid
from discovery_deploy.results.report.figures import against_rtt
from tests.synthetic_campaign import Campaign, campaign
from tests.unit.results.test_report import files_of, prose, retabled


@pytest.fixture(scope="module")
def small() -> Campaign:
    return campaign(tasks=("keystone/create_and_list_users",))


def test_the_reason_of_runs_that_are_not_valid_stands_at_the_top(small: Campaign) -> None:
    reason = "every iteration at lyon failed; the first error: NotFound: no domain |nosuch|"
    runs = [run.model_copy(update={"problems": (reason,)}) for run in small.runs]
    reports = [(run, site, told) for run, (_, site, told) in zip(runs, small.reports, strict=True)]
    files = files_of(retabled(small, runs, reports))
    head = prose(files["report.html"]).split("there is no answer yet")[0]
    assert f"create_and_list_users, 4 runs: {reason}" in head
    assert "no domain \\|nosuch\\|" in files["report.md"].decode().split("## Answer")[0]


def test_at_most_five_reasons_stand_at_the_top(small: Campaign) -> None:
    runs = [small.runs[0].model_copy(update={"problems": (f"reason {number}",)}) for number in range(7)]
    lines = why_not_valid(runs)
    assert lines[0].endswith("1 run: reason 0")
    assert lines[5:] == ["2 more reasons: see runs that do not count"]


def test_the_axis_of_a_fit_names_what_it_shows(small: Campaign) -> None:
    fits = stats.regressions(stats.with_other(small.table.to_pandas()), small.runs)[0]
    for against, name in (("database", "RTT to the database"), ("commit", "RTT that a commit waits for"),
                          ("sites", "Largest RTT between two sites")):  # fmt: skip
        mine = [fit.model_copy(update={"against": against}) for fit in fits[:1]]
        figure = against_rtt(mine, small.table.to_pandas(), {}, "x")
        assert figure is not None
        assert f"{name}, {mine[0].rtt_from} (ms)" in figure
