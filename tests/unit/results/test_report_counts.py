"""The report beside counted database requests: only where this deployment was counted, else nothing is said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest

from discovery_deploy.bench.request_counts import CountedAction, CountedScenario, CountRecord
from tests.synthetic_campaign import ACTIONS, Campaign, campaign
from tests.unit.results.test_report import files_of, prose, undrawn

__all__ = ["undrawn"]
pytestmark = pytest.mark.usefixtures("undrawn")  # figures know nothing of counts

TASK = "keystone/create_and_list_users"
GALERA = ("galera, 0 ms", "galera, 25 ms")
ONE = ("mariadb@nantes, 0 ms", "mariadb@nantes, 25 ms")


@pytest.fixture(scope="module")
def small() -> Campaign:
    return campaign(tasks=(TASK,))


def record(deployed: str, more: int = 0, args: Mapping[str, object] | None = None) -> CountRecord:
    """The requests that the synthetic campaign is made of, and some more, which vary."""
    actions = tuple(
        CountedAction(
            name=name, requests=requests + more, write_commits=commits, kinds={"SELECT": requests, "PING": 3},
            users={"keystone": requests}, per_iteration=(requests, requests + more, requests + more),
        )
        for name, (_, requests, commits) in ACTIONS[TASK].items()
    )  # fmt: skip
    scenario = CountedScenario(task=TASK, args=dict(args or {}), actions=actions)
    return CountRecord(
        deployed=deployed, setting="", bench_site="lyon", databases=("nantes-1",), warm_up=2, clock_error_s=0.0,
        counted_at="2026-03-01T12:00:00Z", scenarios=(scenario,),
    )  # fmt: skip


def beside(files: dict[str, bytes], backend: str, step: str) -> str:
    """What stands in the column "counted" of a fit."""
    cells = re.search(rf"\| {backend} \| lyon \| {step} \|(.*)\|\n", files["report.md"].decode())
    assert cells
    return cells[1].split("|")[2].strip()


def test_what_was_counted_in_this_deployment_stands_beside_its_fit_and_nothing_beside_others(small: Campaign) -> None:
    files = files_of(small, counts=dict.fromkeys(ONE, record("m")))
    assert re.search(r"mariadb@nantes create\\?_user [\d.]+ [\d.]+ to [\d.]+ 9 ", prose(files["report.html"]))
    assert beside(files, "mariadb@nantes", r"create\\_user") == "9"
    assert beside(files, "mariadb@nantes", r"list\\_users") == "5"
    assert beside(files, "galera", r"create\\_user") == "–"
    assert len(json.loads(files["records.json"])["counts"]) == 1


def test_against_the_commit_rtt_stand_commits_that_write(small: Campaign) -> None:
    files = files_of(small, counts={**dict.fromkeys(ONE, record("m")), **dict.fromkeys(GALERA, record("g", 70))})
    assert beside(files, "galera", r"create\\_user") == "1"
    assert beside(files, "galera", r"list\\_users") == "0"
    words = prose(files["report.html"])
    assert "mariadb@nantes, 0 ms; mariadb@nantes, 25 ms create_user 9 1 SELECT 9, PING 3 keystone 9" in words
    assert "galera, 0 ms; galera, 25 ms create_user 79 (9 to 79) 1" in words


def test_where_nothing_was_counted_nothing_is_shown(small: Campaign) -> None:
    others = record("m", args={"domain_name": "other"})
    for counts in ({}, dict.fromkeys(ONE, others)):
        files = files_of(small, counts=counts)
        for page in (prose(files["report.html"]), files["report.md"].decode()):
            assert "ounted on the wire" not in page
            assert " counted " not in page.replace("iterations counted", "").replace("does not count", "")


def test_a_deployment_of_which_one_setting_was_not_counted_has_no_number(small: Campaign) -> None:
    files = files_of(small, counts={ONE[0]: record("m")})
    assert beside(files, "mariadb@nantes", r"create\\_user") == "–"
