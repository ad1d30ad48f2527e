"""Nothing waits for ever: every wait of roles, modules, probes and Rally has an end, before its task counts as hung."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from discovery_deploy.bench import bench, cloud_probe
from discovery_deploy.driver import ansible, smoke_acts
from discovery_deploy.system import remote
from discovery_deploy.system.data import data_directory

PLAYBOOKS = data_directory("playbooks")
MODULES = sorted([*PLAYBOOKS.glob("library/*.py"), *PLAYBOOKS.glob("module_utils/*.py")])
ACTING = [Path(inspect.getfile(module)) for module in (cloud_probe, smoke_acts, bench, remote)]
TEMPLATES = sorted(PLAYBOOKS.glob("roles/*/templates/*"))
WAITING = {"sleep", "recv", "select", "run", "run_command", "request", "sql", "status", "ask", "galera_status", "wait"}
"""Names of calls that may take time; a loop with one of them is a wait."""
CLOCKS = {"monotonic", "left_s", "settimeout"}
"""Names of calls by which a wait ends, or one of its steps."""


def tasks_of(entries: Any) -> Iterator[dict[str, Any]]:
    """Tasks of a list of plays, blocks and tasks."""
    for entry in entries or []:
        inner = [
            key for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always") if key in entry
        ]
        for key in inner:
            yield from tasks_of(entry[key])
        if not inner:
            yield entry


def all_tasks() -> list[tuple[str, dict[str, Any]]]:
    files = sorted([*PLAYBOOKS.glob("*.yml"), *PLAYBOOKS.glob("roles/*/tasks/*.yml")])
    named = [(str(path.relative_to(PLAYBOOKS)), yaml.safe_load(path.read_text())) for path in files]
    return [(f"{path}: {task['name']}", task) for path, content in named for task in tasks_of(content)]


def within(value: Any) -> bool:
    """Whether a time ends a wait before the task counts as hung."""
    return isinstance(value, int) and 0 < value < ansible.SILENCE_S


def unlimited(task: dict[str, Any]) -> list[str]:
    """Why a task might wait for ever."""
    found = []
    if "until" in task and not within(task.get("retries", 3) * task.get("delay", 5)):
        found.append("until")
    if "async" in task and not within(task["async"]):
        found.append("async")
    for module, limit in (("wait_for", "timeout"), ("wait_for_connection", "timeout"), ("pause", "seconds")):
        given = task.get(f"ansible.builtin.{module}", task.get(module))
        if (given is not None or module in task) and not within((given or {}).get(limit)):
            found.append(module)
    for options in task.values():
        if isinstance(options, dict) and "limit_s" in options and not within(options["limit_s"]):
            found.append("limit_s")
    return found


def test_every_wait_of_a_task_has_a_limit() -> None:
    tasks = all_tasks()
    assert len(tasks) > 100
    assert {name: found for name, task in tasks if (found := unlimited(task))} == {}


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ({"until": "x is success", "retries": 100, "delay": 5}, ["until"]),
        ({"until": "x is success"}, []),
        ({"ansible.builtin.wait_for": {"port": 80}}, ["wait_for"]),
        ({"ansible.builtin.wait_for": {"port": 80, "timeout": 60}}, []),
        ({"ansible.builtin.pause": None}, []),
        ({"pause": None}, ["pause"]),
        ({"galera_wait": {"limit_s": 0}}, ["limit_s"]),
        ({"galera_wait": {"limit_s": 300}}, ["limit_s"]),
        ({"async": 3600}, ["async"]),
    ],
)
def test_a_task_without_a_limit_is_seen(task: dict[str, Any], found: list[str]) -> None:
    assert unlimited(task) == found


def called(part: ast.AST) -> str:
    """Last name of what is called; "" for what is no call."""
    if not isinstance(part, ast.Call):
        return ""
    return getattr(part.func, "attr", getattr(part.func, "id", ""))


def endless(text: str) -> list[str]:
    """Lines of a program that may wait for ever: loops without a clock, programs and connections without a time."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        bounded = "settimeout" in {called(part) for part in ast.walk(function)}
        for part in ast.walk(function):
            if isinstance(part, ast.While):
                names = {called(inner) for inner in ast.walk(part)}
                if (
                    (names & WAITING or _is_true(part.test))
                    and not names & CLOCKS
                    and not bounded
                    and not _counts(part)
                ):
                    found.append(f"{part.lineno}: a loop without a clock")
            starts = isinstance(part, ast.Call) and ast.unparse(part.func) in (
                "subprocess.run",
                "socket.create_connection",
            )
            if starts or called(part) in ("urlopen",):
                assert isinstance(part, ast.Call)
                if "timeout" not in {keyword.arg for keyword in part.keywords}:
                    found.append(f"{part.lineno}: {ast.unparse(part.func)} without a timeout")
    return sorted(set(found))


def _is_true(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and bool(test.value)


def _counts(loop: ast.While) -> bool:
    """Whether a loop only searches: it asks nobody, and counts upwards."""
    return not {called(part) for part in ast.walk(loop)} & WAITING and any(
        isinstance(part, ast.AugAssign) for part in ast.walk(loop)
    )


@pytest.mark.parametrize("path", [*MODULES, *ACTING], ids=lambda path: path.name)
def test_no_loop_and_no_program_of_a_module_waits_for_ever(path: Path) -> None:
    assert endless(path.read_text()) == []


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n        ask()",
        "while not done:\n        time.sleep(1)",
        "subprocess.run(['x'], check=True)",
        "urllib.request.urlopen(url)",
    ],
)
def test_an_endless_wait_is_seen(body: str) -> None:
    assert len(endless(f"def act():\n    {body}\n")) == 1


def test_every_limit_that_a_module_has_by_itself_ends_before_its_task_counts_as_hung() -> None:
    limits = {}
    for path in MODULES:
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.Dict):
                entries = {ast.unparse(key): value for key, value in zip(part.keys, part.values, strict=True) if key}
                if "'limit_s'" in entries:
                    limits[path.stem] = entries["'limit_s'"]
            if isinstance(part, ast.Assign) and re.fullmatch(r"\w*LIMIT_S", ast.unparse(part.targets[0])):
                limits[f"{path.stem} {ast.unparse(part.targets[0])}"] = part.value
    assert len(limits) >= 12
    wrong = {name: ast.unparse(value) for name, value in limits.items() if not _is_within(value, name)}
    assert wrong == {}


def _is_within(value: ast.expr, name: str) -> bool:
    if isinstance(value, ast.Name):  # an option that was given a name: see its own test
        return name == "mariadb_databases" and value.id == "limit"
    found = ast.literal_eval(value)
    return within(int(found["default"] if isinstance(found, dict) else found))


def test_units_come_up_or_fail_in_time() -> None:
    seen = 0
    for path in TEMPLATES:
        for name, value in re.findall(r"^(Timeout\w*Sec)=(.*)$", path.read_text(), re.MULTILINE):
            seen += 1
            assert value.isdecimal(), f"{path}: {name}={value}"
            assert within(int(value)), f"{path}: {name}={value}"
    assert seen >= 6
    debians = (PLAYBOOKS / "roles/mariadb/templates/unit.conf.j2").read_text()
    assert "TimeoutStartSec=" in debians  # Debian's own unit waits for 15 minutes


def test_a_playbook_and_each_of_its_tasks_end() -> None:
    assert 0 < ansible.SILENCE_S < ansible.LIMIT_S < math.inf


def test_rally_is_ended_and_so_are_its_requests() -> None:
    text = (PLAYBOOKS / "roles/rally/templates/rally.conf.j2").read_text()
    waits = re.findall(r"^(\w*timeout\w*) *= *(.*)$", text, re.MULTILINE)
    assert waits
    assert all(0 < float(value) < math.inf for _, value in waits)
    assert bench.limit_s(1) == 1980
    assert '"limit_s": limit_s(times)' in inspect.getsource(bench), "the process on the host is told when to end a task"


def test_what_smoke_asks_ends() -> None:
    assert 0 < cloud_probe.REQUEST_LIMIT_S <= cloud_probe.CLEAN_LIMIT_S < math.inf
    with pytest.raises(cloud_probe.GaveUpError, match="not within"):
        cloud_probe.Cloud("http://127.0.0.1:9/v3", "x", 0.0).left_s("sign in")
