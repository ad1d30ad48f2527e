"""Rally tasks from our templates, and Rally's reports as rows of a typed table. Pure but for reading templates."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from discovery_deploy.bench.records import Placement, RunRecord
from discovery_deploy.experiment.model import Scenario
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import DiscoveryError, ExperimentError
from discovery_deploy.system.strict import Strict

if TYPE_CHECKING:  # imported where it is used: every command of the command line would wait for it
    import pyarrow as pa

TOTAL = ""
"""`atomic_action` of the row that holds a whole iteration."""
OTHER = "(other)"
"""What an iteration spends outside its atomic actions: in Keystone's tasks, Rally signing in."""


class Argument(Strict):
    """An argument that a task declares."""

    description: str
    default: Any = None
    """None: not passed to Rally unless the experiment gives it."""


class AtomicAction(Strict):
    """What one timed step of an iteration consists of, so that a fitted number of round trips can be judged."""

    name: str
    """As in Rally's report; `(other)` for what lies outside all of them."""
    does: str
    """Its API requests."""


class TaskTemplate(Strict):
    """A Rally task that answers one question; a file of `rally_tasks/`."""

    name: str
    """Folder and plugin method, for example `keystone/create_and_list_users`; also the file's place."""
    question: str
    scenario: str
    """Name of Rally's scenario plugin."""
    services: tuple[str, ...] = ("keystone",)
    """Services without which it cannot run (and those that these need)."""
    arguments: dict[str, Argument] = {}
    contexts: dict[str, Any] = {}
    """What Rally prepares before the iterations and removes after them."""
    writes: bool
    """Whether an iteration changes the state backend on purpose (a token issued is not a change)."""
    atomic_actions: tuple[AtomicAction, ...] = Field(min_length=1)
    notes: str = ""
    """What a reader of the numbers must know."""

    def action(self, name: str) -> AtomicAction | None:
        """The description of an atomic action, or None when it is not described."""
        return next((action for action in self.atomic_actions if action.name == name), None)


def load_tasks(directory: Path | None = None) -> dict[str, TaskTemplate]:
    """Every task template of a directory (default: those of the package), by name, sorted.

    Raises:
        DiscoveryError: a file that is not a template, or whose name is not its place (a fault of the installation).
    """
    root = directory or data_directory("rally_tasks")
    tasks = {}
    for path in sorted(root.glob("*/*.yaml")):
        template = _read_template(path)
        place = path.relative_to(root).with_suffix("").as_posix()
        if template.name != place:
            raise DiscoveryError(f"{path}: its name is {template.name!r}, but it lies at {place!r}")
        tasks[template.name] = template
    return tasks


def _read_template(path: Path) -> TaskTemplate:
    try:
        # Ours, so what libyaml does otherwise than YAML 1.2 does not matter: it is several times as fast.
        return TaskTemplate.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except YAMLError as error:
        raise DiscoveryError(f"{path}: {error}") from error
    except ValidationError as error:
        mistakes = "\n".join(f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DiscoveryError(mistakes) from error


def task_arguments(template: TaskTemplate, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for Rally: what is given, over the declared defaults.

    Raises:
        ExperimentError: an argument that the task does not declare; near misses are named.
    """
    mistakes = []
    for name in sorted(set(given) - set(template.arguments)):
        near = difflib.get_close_matches(name, template.arguments, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else f"; it has {', '.join(template.arguments) or 'none'}"
        mistakes.append(f'task {template.name}: no argument "{name}"{hint}')
    if mistakes:
        raise ExperimentError("\n".join(mistakes), "Use the arguments that the task's file declares.")
    defaults = {name: argument.default for name, argument in template.arguments.items() if argument.default is not None}
    return {**defaults, **given}


def rally_task(template: TaskTemplate, scenario: Scenario) -> dict[str, Any]:
    """A complete Rally task (version 2), to be written as JSON.

    Args:
        template: what is asked.
        scenario: how often, how many at once, and with which arguments.
    Raises:
        ExperimentError: an argument that the task does not declare.
    """
    subtask = {
        "title": template.name,
        "scenario": {template.scenario: task_arguments(template, scenario.args)},
        "runner": {"constant": {"times": scenario.times, "concurrency": scenario.concurrency}},
        "contexts": template.contexts,
        "sla": {"failure_rate": {"max": 0}},
    }
    return {"version": 2, "title": template.name, "description": template.question, "subtasks": [subtask]}


# Rally's reports (`rally task report --json`, format 1.2)


def workloads(report: Any, title: str | None = None) -> list[dict[str, Any]]:
    """All workloads of a report, or those of the subtasks of a title; an empty list for what is not a report."""
    found: list[dict[str, Any]] = []
    tasks = report.get("tasks") if isinstance(report, dict) else None
    for task in tasks or []:
        for subtask in task.get("subtasks") or []:
            if title in (None, subtask.get("title")):
                found.extend(subtask.get("workloads") or [])
    return found


def problems(report: Any, scenario: Scenario) -> tuple[str, ...]:
    """Why a Rally report cannot stand for a run; empty when it can.

    Failed iterations are a result, not a problem: the failure rate stands beside every number.

    Args:
        report: parsed JSON, or None when Rally left none.
        scenario: what was asked.
    """
    if not isinstance(report, dict) or not isinstance(report.get("tasks"), list):
        return ("Rally left no report that can be read",)
    found = [
        f"Rally's task ended as {task.get('status')!r}" for task in report["tasks"] if task.get("status") != "finished"
    ]
    found_workloads = workloads(report)
    for workload in found_workloads:
        for result in workload.get("contexts_results") or []:
            error = (result.get("setup") or {}).get("error")
            if error:
                found.append(f"Rally could not set up {result.get('plugin_name')}: {_error_text(error)[1]}")
    made = sum(len(workload.get("data") or []) for workload in found_workloads)
    if made != scenario.times:
        found.append(f"Rally made {made} of {scenario.times} iterations")
    return tuple(found)


def all_failed(report: Any) -> str | None:
    """The first error when no iteration of a Rally report succeeded ("Type: message"); None when one did.

    Args:
        report: parsed JSON; one without iterations gives None (see `problems`).
    """
    data = [iteration for workload in workloads(report) for iteration in workload.get("data") or []]
    if not data or not all(iteration.get("error") for iteration in data):
        return None
    first = min(data, key=lambda iteration: float(iteration.get("timestamp") or 0))
    return ": ".join(part for part in _error_text(first["error"]) if part) or "Rally names no error"


def first_request_at(report: Any) -> float | None:
    """When the first iteration of a report began, in seconds since the epoch by its host's clock; None without any."""
    data = [iteration for workload in workloads(report) for iteration in workload.get("data") or []]
    return min((float(iteration["timestamp"]) for iteration in data if iteration.get("timestamp")), default=None)


def start_skew(firsts: Mapping[str, tuple[Any, float]]) -> float | None:
    """Seconds between the first requests of the first and the last of several sites; None when they cannot be compared.

    Args:
        firsts: site -> its report, and how far its host's clock is ahead of the driver's, in seconds.
    """
    begun = [(first_request_at(report), ahead_s) for report, ahead_s in firsts.values()]
    at = [first - ahead_s for first, ahead_s in begun if first is not None]
    return max(at) - min(at) if len(at) == len(begun) > 1 else None


def _error_text(error: Any) -> tuple[str, str]:
    """(type, first line of the message) of an error as Rally writes it: [type, message, traceback], or a mapping."""
    if isinstance(error, Mapping):
        parts = [str(error.get("etype", "")), str(error.get("msg", ""))]
    else:
        parts = [str(part) for part in error] if isinstance(error, Sequence) and not isinstance(error, str) else []
        parts = (parts or ["", str(error)])[:2]
    message = (parts[1] if len(parts) > 1 else "").strip().splitlines()
    return parts[0], message[0] if message else ""


def schema(factors: Sequence[str]) -> pa.Schema:
    """Columns of the table of iterations: one row per iteration and atomic action, and one per iteration as a whole.

    Args:
        factors: paths of the campaign's factors; each is a text column that holds the level's label.
    """
    import pyarrow as pa

    texts = ["run_id", "scenario", "setting", *factors]
    fields = [pa.field(name, pa.string(), nullable=False) for name in texts]
    fields += [
        pa.field("repetition", pa.int32(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("database_site", pa.string(), nullable=False),
        pa.field("database_rtt_s", pa.float64(), nullable=False),
        pa.field("commit_rtt_s", pa.float64(), nullable=False),
        pa.field("beside_only_database", pa.bool_(), nullable=False),
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("atomic_action", pa.string(), nullable=False),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("duration_s", pa.float64()),
        pa.field("failed", pa.bool_(), nullable=False),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("valid", pa.bool_(), nullable=False),
    ]
    return pa.schema(fields)


def iterations(report: Any, run: RunRecord, site: str) -> list[dict[str, Any]]:
    """Rows of one Rally report, in the order in which the iterations began.

    Each iteration gives a row with `atomic_action` "" and position 0 (the whole), then one per atomic action from
    position 1; a name that comes again in the iteration gets " (2)". A step that did not end has no duration.

    Args:
        report: parsed JSON of `rally task report --json`; anything else gives no rows (see `problems`).
        run: the run it belongs to.
        site: the bench site where that Rally ran; its placement must stand in the run.
    """
    placement = next(place for place in run.placements if place.bench_site == site)
    common = _run_columns(run, placement)
    data = [iteration for workload in workloads(report) for iteration in workload.get("data") or []]
    rows: list[dict[str, Any]] = []
    for number, iteration in enumerate(sorted(data, key=lambda one: float(one.get("timestamp") or 0)), 1):
        rows.extend({**common, "iteration": number, **row} for row in iteration_rows(iteration))
    return rows


def _run_columns(run: RunRecord, placement: Placement) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "scenario": run.scenario.task,
        "setting": run.setting.label,
        **run.setting.labels,
        "repetition": run.repetition,
        "site": placement.bench_site,
        "database_site": placement.nearest_database_site,
        "database_rtt_s": placement.database_rtt_s,
        "commit_rtt_s": placement.commit_rtt_s,
        "beside_only_database": run.says_nothing_of_the_wan(placement),
        "valid": run.valid,
    }


def iteration_rows(iteration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of one iteration of a report: the whole (`atomic_action` "", position 0), then its atomic actions."""
    error_type, error = _error_text(iteration.get("error") or [])
    failed = bool(iteration.get("error"))
    whole = _row(0, TOTAL, iteration.get("timestamp"), iteration.get("duration"), failed)
    rows = [{**whole, "error_type": error_type, "error": error}]
    seen: Counter[str] = Counter()
    for position, action in enumerate(iteration.get("atomic_actions") or [], 1):
        seen[action["name"]] += 1
        count = seen[action["name"]]
        name = action["name"] if count == 1 else f"{action['name']} ({count})"
        start, end = action.get("started_at"), action.get("finished_at")
        duration_s = None if start is None or end is None else end - start
        broken = bool(action.get("failed")) or duration_s is None
        rows.append(_row(position, name, start, duration_s, broken))
        if broken:
            rows[-1].update(error_type=error_type, error=error)
    return rows


def _row(position: int, name: str, start: Any, duration_s: Any, failed: bool) -> dict[str, Any]:
    return {
        "position": position,
        "atomic_action": name,
        "started_at": None if start is None else datetime.fromtimestamp(float(start), tz=timezone.utc),
        "duration_s": None if duration_s is None else float(duration_s),
        "failed": failed,
        "error_type": "",
        "error": "",
    }


def table(reports: Iterable[tuple[RunRecord, str, Any]], factors: Sequence[str] = ()) -> pa.Table:
    """The typed table of all iterations of a campaign.

    Args:
        reports: (run, bench site, parsed report of that site's Rally or None), in the order wanted.
        factors: paths of the campaign's factors.
    """
    import pyarrow as pa

    rows = [row for run, site, report in reports for row in iterations(report, run, site)]
    return pa.Table.from_pylist(rows, schema=schema(factors))
