"""Database requests that were seen on the wire, per atomic action of Rally, and what is written down of them. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from pydantic import Field

from discovery_deploy.bench.rally import OTHER, TOTAL, TaskTemplate, iteration_rows, rally_task, workloads
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.system.strict import Strict

WARM_UP, ITERATIONS = 2, 5
"""Iterations made first and not counted (workers open connections, caches fill), and those that are counted."""
UNREADABLE = "?"
"""`sql_capture.UNREADABLE`."""
MOST_CLOCK_ERROR_S = 0.005
"""Between a client and the first request that reaches a database there is more than this."""


class SqlRequest(NamedTuple):
    """A command of the MySQL protocol that a database got."""

    at_s: float
    """By the clock of the host where Rally runs, since the epoch."""
    user: str
    """The database's user: that of the service."""
    kind: str
    """First word of the SQL, or the command's name (PING)."""
    answered: bool
    commits: bool
    """Whether it ends a transaction that changed rows."""


class CountedAction(Strict):
    """What one step of an iteration asks of the databases; all commands of the protocol, by all services together."""

    name: str
    """As in Rally's report; "" for the whole iteration, `(other)` for what lies outside its atomic actions."""
    requests: int
    """Median of `per_iteration`."""
    write_commits: int
    """Median of commits that write: transactions that changed rows, which Galera replicates."""
    kinds: dict[str, int]
    """Kind -> how many in an iteration that has the median; also those that are not answered (QUIT)."""
    users: dict[str, int]
    """Database user -> requests, likewise."""
    per_iteration: tuple[int, ...] = Field(min_length=1)
    """Requests that the database answers."""

    @property
    def grows(self) -> bool:
        """Whether each iteration asks more than the one before it."""
        counts = self.per_iteration
        return len(counts) > 1 and all(one < other for one, other in pairwise(counts))

    @property
    def text(self) -> str:
        """ "10", "9 (9 to 11)" when iterations differ, "96 (grows: 88 to 104)"."""
        least, most = min(self.per_iteration), max(self.per_iteration)
        if least == most:
            return str(self.requests)
        return f"{self.requests} ({'grows: ' if self.grows else ''}{least} to {most})"


class CountedScenario(Strict):
    """A scenario, with each of its steps."""

    task: str
    args: dict[str, Any] = {}
    actions: tuple[CountedAction, ...]
    """The whole iteration, then the steps in their order, then `(other)`."""

    def action(self, name: str) -> CountedAction | None:
        """A step by its name in Rally's report."""
        return next((action for action in self.actions if action.name == name), None)


class CountRecord(Strict):
    """What the scenarios of a campaign ask of the databases of one deployment, counted once, without any WAN."""

    form: Literal[1] = Field(1, alias="schema")
    """Number of this form of the record."""
    deployed: str
    """Hash of the deploy phase."""
    setting: str
    """Label of the setting in which it was counted."""
    bench_site: str
    """Where Rally ran."""
    databases: tuple[str, ...]
    """Hosts with a database that were listened at."""
    warm_up: int
    """Iterations before those that are counted."""
    clock_error_s: float
    """How far the clocks of those hosts and Rally's may be apart, after correction; 0.0 where it is the same clock."""
    counted_at: str
    scenarios: tuple[CountedScenario, ...]

    def scenario(self, asked: Scenario) -> CountedScenario | None:
        """What was counted of a scenario, if its task was counted with these arguments."""
        return next((one for one in self.scenarios if (one.task, one.args) == (asked.task, asked.args)), None)


def counting_task(experiment: Experiment, tasks: Mapping[str, TaskTemplate]) -> dict[str, Any]:
    """One Rally task with every scenario of a campaign, one iteration at a time.

    Args:
        tasks: templates, by name.
    """
    asked = [
        one.model_copy(update={"times": WARM_UP + ITERATIONS, "concurrency": 1})
        for one in experiment.campaign.scenarios
    ]
    made = [rally_task(tasks[scenario.task], scenario) for scenario in asked]
    title = f"requests of {experiment.name}"
    subtasks = [subtask for task in made for subtask in task["subtasks"]]
    return {"version": 2, "title": title, "description": "", "subtasks": subtasks}


def counted(report: Any, scenarios: Sequence[Scenario], requests: Sequence[SqlRequest]) -> tuple[CountedScenario, ...]:
    """Requests of each scenario and atomic action.

    Args:
        report: parsed JSON of `rally task report --json`, of a `counting_task`.
        scenarios: those of the task.
        requests: that reached any of the databases meanwhile.
    Raises:
        MeasurementError: an iteration failed or is missing, or what a database got during one could not be read.
    """
    ordered = sorted(requests)
    found = []
    for scenario in scenarios:
        data = [one for each in workloads(report, scenario.task) for one in each.get("data") or []]
        data.sort(key=lambda one: float(one.get("timestamp") or 0))
        if len(data) != WARM_UP + ITERATIONS:
            raise MeasurementError(
                f"{scenario.task}: Rally made {len(data)} of {WARM_UP + ITERATIONS} iterations, so nothing is counted",
                "Look at its log in the workspace, then count again.",
            )
        steps = [_steps(scenario.task, iteration, ordered) for iteration in data[WARM_UP:]]
        names = list(dict.fromkeys(name for step in steps for name in step))
        actions = tuple(_action(name, [step[name] for step in steps if name in step]) for name in names)
        found.append(CountedScenario(task=scenario.task, args=dict(scenario.args), actions=actions))
    return tuple(found)


def _steps(task: str, iteration: Mapping[str, Any], ordered: Sequence[SqlRequest]) -> dict[str, list[SqlRequest]]:
    """Step -> its requests, of one iteration; the whole first, `(other)` last."""
    rows = iteration_rows(iteration)
    if any(row["failed"] for row in rows):
        raise MeasurementError(
            f"{task}: an iteration failed, so nothing is counted: {rows[0]['error_type']}: {rows[0]['error']}",
            "Mend the cause, then count again.",
        )
    found: dict[str, list[SqlRequest]] = {}
    places: dict[str, range] = {}
    for row in rows:
        start_s = row["started_at"].timestamp()
        first = bisect_left(ordered, start_s, key=lambda one: one.at_s)
        last = bisect_right(ordered, start_s + row["duration_s"], key=lambda one: one.at_s)
        places[row["atomic_action"]] = range(first, last)
        found[row["atomic_action"]] = list(ordered[first:last])
    if any(request.kind == UNREADABLE for request in found[TOTAL]):
        raise MeasurementError(
            f"{task}: what a database got in an iteration could not be read as requests",
            "Is its connection encrypted? Count again.",
        )
    inside = {place for name, own in places.items() if name != TOTAL for place in own}
    found[OTHER] = [ordered[place] for place in places[TOTAL] if place not in inside]
    return found


def _action(name: str, iterations: Sequence[Sequence[SqlRequest]]) -> CountedAction:
    counts = [sum(request.answered for request in each) for each in iterations]
    commits = sorted(sum(request.commits for request in each) for each in iterations)
    middle = sorted(range(len(counts)), key=lambda place: counts[place])[len(counts) // 2]
    typical = iterations[middle]
    return CountedAction(
        name=name,
        requests=counts[middle],
        write_commits=commits[len(commits) // 2],
        kinds=dict(sorted(Counter(request.kind for request in typical).items())),
        users=dict(sorted(Counter(request.user for request in typical if request.answered).items())),
        per_iteration=tuple(counts),
    )


def pairs_text(counts: Mapping[str, int]) -> str:
    """ "ROLLBACK 4, SELECT 5", the most first."""
    return ", ".join(f"{name or 'unknown'} {count}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))


def table(record: CountRecord) -> str:
    """A step a line, tab separated with a header."""
    lines = ["scenario\tstep\tdatabase requests\tcommits that write\tby command\tby user"]
    for scenario in record.scenarios:
        for action in scenario.actions:
            cells = [scenario.task, action.name or "whole iteration", action.text, str(action.write_commits)]
            lines.append("\t".join([*cells, pairs_text(action.kinds) or "-", pairs_text(action.users) or "-"]))
    return "\n".join(lines) + "\n"
