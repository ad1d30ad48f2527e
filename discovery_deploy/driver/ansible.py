"""Runs one of our playbooks: watched, with a time limit, and with errors that name host, role, task and log.

Ansible is this environment's own (ansible-core 2.17), set up by environment variables alone; mitogen's strategy when
it is installed, unless DISCOVERY_DEPLOY_ANSIBLE=plain.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from discovery_deploy.cloud.inventory import with_variables
from discovery_deploy.cloud.variables import Variables
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import PlaybookError
from discovery_deploy.system.programs import contained

Progress = Callable[[str], None]

LIMIT_S = 900.0
CONNECT_S = 30
"""In which a host answers and starts a Python. Ansible's own 10 s were too short for one on a busy machine."""
SILENCE_S = 300.0
"""No event for so long means that a task hangs; tasks that wait have shorter limits of their own."""
FAILED_GRACE_S = 10.0
"""Once a host has failed in a task, how long the others may still take: they may be waiting for that very host."""
POLL_S = 0.05
LONGEST_TMPDIR = 70
"""Sockets of mitogen's are made in TMPDIR, and a socket's path has at most 107 characters."""
GRACE_S = 2.0
KEPT_LINES = 15


@dataclass
class Watch:
    """What is known of a running playbook, from its events."""

    play_hosts: tuple[str, ...] = ()
    task: str = ""
    task_at: float = 0.0
    answered: set[str] = field(default_factory=set)
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(host, task, status, message)"""
    cut_short: bool = False
    """Whether it was ended while hosts had not answered yet, because another had failed."""
    seconds: dict[str, float] = field(default_factory=dict)
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Account for one event."""
        kind = event["event"]
        if kind in ("play", "task", "end") and self.task:
            self.seconds[self.task] = round(self.seconds.get(self.task, 0.0) + event["at"] - self.task_at, 3)
            self.task = ""
        if kind == "play":
            self.play_hosts = tuple(event["hosts"])
        elif kind == "task":
            self.task, self.task_at, self.answered = event["name"], event["at"], set()
        elif kind == "report":
            self.reports.setdefault(event["host"], []).append(event["content"])
        elif kind == "result":
            self.answered.add(event["host"])
            if event["status"] in ("failed", "unreachable"):
                self.failures.append((event["host"], self.task, event["status"], event["message"]))

    def silent_hosts(self) -> list[str]:
        """Hosts of the present play that have not answered to the present task."""
        return [host for host in self.play_hosts if host not in self.answered]


@dataclass(frozen=True)
class PlaybookResult:
    """What a playbook that ended well gave."""

    reports: dict[str, list[dict[str, Any]]]
    """Host -> what modules reported from it, in order."""
    task_seconds: dict[str, float]
    """Role and task -> seconds."""


def run_playbook(
    name: str,
    inventory: Mapping[str, Any],
    variables: Variables,
    logs: Path,
    progress: Progress,
    limit_s: float = LIMIT_S,
    silence_s: float = SILENCE_S,
    playbooks: Path | None = None,
) -> PlaybookResult:
    """Run `playbooks/<name>.yml` to its end.

    Args:
        name: of the playbook, e.g. "deploy".
        inventory: from `inventory.inventory`.
        variables: from `variables.variables`; they reach Ansible in a private file that is removed afterwards.
        logs: directory for `<name>.log` and `<name>.events.jsonl`, both of mode 0600; beside it, while the playbook
            runs, is a private directory with the variables.
        progress: takes one short line per task.
        limit_s: the playbook is stopped after so many seconds.
        silence_s: it is also stopped when a task gives no result for so long.
        playbooks: directory of the playbooks; default: the package's own.
    Raises:
        PlaybookError: a task failed, a host was lost, or a limit was reached; hosts, tasks and the log are named.
    """
    playbooks = playbooks or data_directory("playbooks")
    events, log = logs / f"{name}.events.jsonl", logs / f"{name}.log"
    whole = with_variables(dict(inventory), variables)
    with (
        _scratch(logs.parent / f".{name}.playbook") as scratch,
        _private(log, "a") as output,
        _private(events, "w"),
    ):
        output.write(f"# {name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        output.flush()
        begun = log.stat().st_size
        environment = ansible_environment(playbooks, scratch, events, len(whole["all"]["hosts"]))
        process = _start(playbooks / f"{name}.yml", whole, scratch, output, environment)
        watch = _follow(process, events, name, progress, limit_s, silence_s, log)
    if process.returncode or watch.failures:
        said = log.read_bytes()[begun:].decode(errors="replace")
        raise PlaybookError(*failure_text(name, watch, log, process.returncode, said))
    return PlaybookResult(reports=watch.reports, task_seconds=watch.seconds)


def _start(
    playbook: Path, inventory: dict[str, Any], scratch: Path, output: TextIO, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    hosts = scratch / "inventory.json"
    with _private(hosts, "w") as stream:
        json.dump(inventory, stream)
    (scratch / "ansible.cfg").touch()  # the user's own does not count
    return subprocess.Popen(
        mortal([sys.executable, "-m", "ansible", "playbook", "-i", str(hosts), str(playbook)]),
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """An empty private directory that is removed afterwards; what a killed driver left there goes first."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def mortal(command: list[str]) -> list[str]:
    """`command` such that it, its workers and its connections die with the driver: the next one runs it again."""
    if os.geteuid() == 0:
        return contained(command)
    return ["setpriv", "--pdeathsig", "KILL", *command]


def ansible_environment(playbooks: Path, scratch: Path, events: Path, hosts: int) -> dict[str, str]:
    """Environment variables of ansible-playbook: this process's without its ANSIBLE_ ones, and all that we set.

    Args:
        playbooks: directory with our plugins and roles.
        scratch: a directory that is removed afterwards.
        events: file that the events are written to.
        hosts: how many hosts work at the same time.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    ours = {
        "PYTHONSAFEPATH": "1",  # `python -m ansible` would import what lies in the working directory
        "ANSIBLE_CONFIG": str(scratch / "ansible.cfg"),
        "ANSIBLE_HOME": str(scratch / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(scratch / "collections"),
        "ANSIBLE_ROLES_PATH": str(playbooks / "roles"),
        "ANSIBLE_LIBRARY": str(playbooks / "library"),
        "ANSIBLE_MODULE_UTILS": str(playbooks / "module_utils"),
        "ANSIBLE_FILTER_PLUGINS": str(playbooks / "filter_plugins"),
        "ANSIBLE_CALLBACK_PLUGINS": str(playbooks / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "events",
        "ANSIBLE_INVENTORY_ENABLED": "yaml",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
        "ANSIBLE_ANY_ERRORS_FATAL": "1",
        "ANSIBLE_FORKS": str(max(5, hosts)),
        "ANSIBLE_TIMEOUT": str(CONNECT_S),
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_HOST_KEY_CHECKING": "True",  # against what ssh_config names
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_NO_TARGET_SYSLOG": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "DISCOVERY_DEPLOY_EVENTS": str(events),
        "LC_ALL": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    if len(str(scratch)) < LONGEST_TMPDIR:
        ours["TMPDIR"] = str(scratch)
    strategy = mitogen_strategies()
    if strategy is not None:
        ours |= {"ANSIBLE_STRATEGY_PLUGINS": str(strategy), "ANSIBLE_STRATEGY": "mitogen_linear"}
    return kept | ours


def mitogen_strategies() -> Path | None:
    """Directory of mitogen's strategy plugins; None when it is not installed or not wanted."""
    if os.environ.get("DISCOVERY_DEPLOY_ANSIBLE") == "plain":
        return None
    found = importlib.util.find_spec("ansible_mitogen")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "plugins" / "strategy"


def _private(path: Path, mode: str) -> Any:
    """A file opened for writing that nobody else can read, from its first byte."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    return open(path, mode, encoding="utf-8", opener=opener)


def _follow(
    process: subprocess.Popen[bytes],
    events: Path,
    name: str,
    progress: Progress,
    limit_s: float,
    silence_s: float,
    log: Path,
) -> Watch:
    """Read events until the playbook ends; stop it, and raise, when it takes too long."""
    watch = Watch()
    started = heard = time.monotonic()
    failed: float | None = None
    try:
        for event in _events(process, events):
            now = time.monotonic()
            if event is not None:
                heard = now
                watch.take(event)
                failed = failed or (now if watch.failures else None)
                if event["event"] == "task":
                    progress(event["name"])
            elif failed is not None and now - failed > FAILED_GRACE_S:
                watch.cut_short = True
                break
            elif now - heard > silence_s or now - started > limit_s:
                waited = f"{silence_s:g} s without a result" if now - heard > silence_s else f"{limit_s:g} s"
                where, hosts = watch.task or "its start", ", ".join(watch.silent_hosts()) or "no host"
                raise PlaybookError(
                    f"{name}: stopped after {waited} in `{where}`, waiting for {hosts} (log: {log})",
                    "Look at these hosts with `discovery-deploy ssh HOST`, then run again.",
                )
    finally:
        _stop(process)
    return watch


def _events(process: subprocess.Popen[bytes], path: Path) -> Iterator[dict[str, Any] | None]:
    """The events in a file that grows, as they come; None whenever there is none; ends with the process."""
    with path.open("r", encoding="utf-8") as stream:
        rest = ""
        while True:
            ended = process.poll() is not None
            rest += stream.read()
            *lines, rest = rest.split("\n")
            yield from (json.loads(line) for line in lines)
            if ended:
                return
            if not lines:
                yield None
                time.sleep(POLL_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the playbook and all its workers, if they still run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def failure_text(name: str, watch: Watch, log: Path, code: int, said: str) -> tuple[str, str]:
    """What happened, and what to do: the texts of an error. Pure.

    Args:
        log: where all output is.
        code: exit code of ansible-playbook.
        said: its output, quoted when no task failed.
    """
    if not watch.failures:
        quoted = "\n    ".join(said.strip().splitlines()[-KEPT_LINES:])
        return f"{name}: Ansible ended with code {code} (log: {log}):\n    {quoted}", "Mend the cause, then run again."
    lost = [failure for failure in watch.failures if is_loss(failure[2], failure[3])]
    lines = []
    for host, task, status, message in sorted(watch.failures):
        quoted = message.replace("\n", "\n    ") or "no message"
        lines.append(f"{host}: {'lost during ' if is_loss(status, message) else ''}{task}: {quoted}")
    silent = watch.silent_hosts()
    if watch.cut_short and silent:
        lines.append(f"not waited for any longer: {', '.join(silent)}")
    advice = "Run again: `run` starts dead hosts anew." if lost else "Mend the cause, then run again."
    return "\n".join(lines) + f"\n  (log: {log})", advice


def is_loss(status: str, message: str) -> bool:
    """Whether a failure means that the host was lost; mitogen says so in words."""
    return status == "unreachable" or "Context has disconnected" in message
