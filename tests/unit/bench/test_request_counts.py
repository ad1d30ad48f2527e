"""Database requests per atomic action: which belong to which step of an iteration, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from discovery_deploy.bench import rally
from discovery_deploy.bench.request_counts import (
    ITERATIONS,
    WARM_UP,
    CountedAction,
    CountRecord,
    SqlRequest,
    counted,
    counting_task,
    table,
)
from discovery_deploy.driver.count_acts import Clock, clock_apart, sql_requests
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.system.errors import MeasurementError

TASK = "keystone/create_and_list_users"
SCENARIO = Scenario(task=TASK, times=20, concurrency=3)
START_S = 1_800_000_000.0
BEGINS = [START_S + 10 * number for number in range(WARM_UP + ITERATIONS)]


def iteration(start_s: float, failed: bool = False) -> dict[str, Any]:
    """Of 8 s: create_user from second 2 to 4, list_users from 5 to 6."""
    actions = [
        {"name": "create_user", "started_at": start_s + 2, "finished_at": start_s + 4},
        {"name": "list_users", "started_at": start_s + 5, "finished_at": start_s + 6, "failed": failed},
    ]
    error = ["Conflict", "there is one", "Traceback"] if failed else []
    return {"timestamp": start_s, "duration": 8.0, "error": error, "atomic_actions": actions}


def report(data: Sequence[dict[str, Any]], title: str = TASK) -> dict[str, Any]:
    other = {"title": "another", "workloads": [{"data": [iteration(START_S)]}]}
    return {"tasks": [{"subtasks": [other, {"title": title, "workloads": [{"data": list(data)}]}]}]}


def request(at_s: float, kind: str = "SELECT", commits: bool = False, user: str = "keystone") -> SqlRequest:
    return SqlRequest(at_s, user, kind, kind != "QUIT", commits)


def of_an_iteration(start_s: float, more: int = 0) -> list[SqlRequest]:
    return [
        request(start_s + 1, "PING"),
        *[request(start_s + 2.5) for _ in range(3 + more)],
        request(start_s + 3, "INSERT", user="nova"),
        request(start_s + 3.5, "COMMIT", commits=True),
        request(start_s + 3.6, "QUIT"),
        request(start_s + 5.5),
        request(start_s + 9),  # after it
    ]


def test_requests_belong_to_the_step_in_whose_time_they_came() -> None:
    made = report([iteration(start_s) for start_s in reversed(BEGINS)])
    [found] = counted(made, [SCENARIO], [one for start_s in BEGINS for one in of_an_iteration(start_s)])
    assert [(action.name, action.requests, action.write_commits) for action in found.actions] == [
        ("", 7, 1), ("create_user", 5, 1), ("list_users", 1, 0), ("(other)", 1, 0),
    ]  # fmt: skip
    step = found.action("create_user")
    assert step is not None
    assert step.kinds == {"COMMIT": 1, "INSERT": 1, "QUIT": 1, "SELECT": 3}
    assert step.users == {"keystone": 4, "nova": 1}
    assert step.per_iteration == (5,) * ITERATIONS


def test_what_workers_do_while_they_are_cold_is_not_counted() -> None:
    requests = [one for place, start_s in enumerate(BEGINS) for one in of_an_iteration(start_s, 40 * (place < WARM_UP))]
    [found] = counted(report([iteration(start_s) for start_s in BEGINS]), [SCENARIO], requests)
    assert [action.text for action in found.actions] == ["7", "5", "1", "1"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [((5, 5, 5), "5"), ((5, 7, 5), "5 (5 to 7)"), ((5, 6, 9), "6 (grows: 5 to 9)"), ((0, 0, 0), "0")],
)
def test_a_count_that_varies_or_grows_says_so(counts: tuple[int, ...], said: str) -> None:
    middle = sorted(counts)[1]
    action = CountedAction(name="a", requests=middle, write_commits=0, kinds={}, users={}, per_iteration=counts)
    assert action.text == said


def test_what_cannot_be_counted_is_refused() -> None:
    requests = [one for start_s in BEGINS for one in of_an_iteration(start_s)]
    with pytest.raises(MeasurementError, match="Rally made 6 of 7 iterations"):
        counted(report([iteration(start_s) for start_s in BEGINS[1:]]), [SCENARIO], requests)
    with pytest.raises(MeasurementError, match="an iteration failed, so nothing is counted: Conflict: there is one"):
        counted(report([iteration(start_s, failed=True) for start_s in BEGINS]), [SCENARIO], requests)
    unread = [*requests, request(BEGINS[-1] + 1, "?")]
    with pytest.raises(MeasurementError, match="could not be read as requests"):
        counted(report([iteration(start_s) for start_s in BEGINS]), [SCENARIO], unread)


def test_times_are_those_of_rallys_host() -> None:
    seen = {"users": ["keystone"], "kinds": ["PING"], "requests": [[5_250_000, 0, 0, 1, 0]], "dropped": 0}
    assert sql_requests(seen, ahead_s=0.25) == [SqlRequest(5.0, "keystone", "PING", True, False)]


def test_clocks_that_are_not_known_well_enough_are_refused() -> None:
    assert clock_apart("a-1", Clock(0.5, 0.002), Clock(0.25, 0.001)) == Clock(0.25, 0.003)
    with pytest.raises(MeasurementError, match=r"a-1: its clock is known to 6\.0 ms only"):
        clock_apart("a-1", Clock(0.5, 0.004), Clock(0.25, 0.002))


def test_all_scenarios_are_one_task_of_rally_one_iteration_at_a_time() -> None:
    experiment = Experiment.model_validate({
        "name": "x",
        "sites": [{"name": "a"}],
        "deployment": {"backend": {"type": "mariadb", "site": "a"}},
        "campaign": {"scenarios": [
            {"task": TASK, "times": 100, "concurrency": 8, "args": {"domain_name": "a"}},
            {"task": "keystone/get_entities"},
        ]},
    })  # fmt: skip
    subtasks = counting_task(experiment, rally.load_tasks())["subtasks"]
    assert [one["title"] for one in subtasks] == [TASK, "keystone/get_entities"]
    assert {json.dumps(one["runner"]) for one in subtasks} == {'{"constant": {"times": 7, "concurrency": 1}}'}


def record() -> CountRecord:
    made = report([iteration(start_s) for start_s in BEGINS])
    found = counted(made, [SCENARIO], [one for start_s in BEGINS for one in of_an_iteration(start_s)])
    return CountRecord(
        deployed="d", setting="", bench_site="a", databases=("a-1",), warm_up=WARM_UP, clock_error_s=0.0,
        counted_at="2026-03-01T12:00:00Z", scenarios=found,
    )  # fmt: skip


def test_the_record_says_its_form_and_another_form_is_refused() -> None:
    text = record().model_dump_json(by_alias=True)
    assert json.loads(text)["schema"] == 1
    assert CountRecord.model_validate_json(text) == record()
    with pytest.raises(ValidationError):
        CountRecord.model_validate_json(text.replace('"schema":1', '"schema":2'))


def test_a_scenario_with_other_arguments_was_not_counted() -> None:
    assert record().scenario(SCENARIO) is not None
    assert record().scenario(SCENARIO.model_copy(update={"args": {"enabled": False}})) is None


def test_the_table_has_a_step_a_line() -> None:
    lines = table(record()).splitlines()
    assert lines[0].split("\t")[2] == "database requests"
    assert lines[2].split("\t") == [
        TASK, "create_user", "5", "1", "SELECT 3, COMMIT 1, INSERT 1, QUIT 1", "keystone 4, nova 1",
    ]  # fmt: skip
