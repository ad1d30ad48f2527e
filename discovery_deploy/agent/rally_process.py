"""Rally on a bench host, started once and told what to run: a program for Rally's own Python.

Loading Rally and its plugins takes seconds of a processor; here it is paid once. Each task runs in a child that is
forked off from what was loaded, so that no run inherits anything of another, and one that hangs is killed alone. The
program ends, and with it the task that runs, when its standard input does: when nobody is there who wants the result.

Standard input and output carry one JSON object a line:

    <- {"loaded": "5.1.1"}
    -> {"run": "FOLDER", "task": {...}, "limit_s": 3600}     a Rally task (version 2), run as it is: nothing is rendered
    <- {"ready": true}                                       all is set up; the first request follows the next line
    -> {"begin": true}
    <- {"begun": 1764500000.0}                               this host's clock
    <- {"ended": ""}                                         or why there is no complete result
    -> {"stop": true}                                        ends the task at any time; `ended` follows

A run's folder gets task.json, rally.log, rally.json and rally.html. A task is validated with the cloud's help the
first time; again, in the same process, its syntax only: what it was compared with is the same deployment.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = re.compile(r"[A-Za-z0-9_@+~-][A-Za-z0-9_.@+~-]*")
"""Names of runs' folders; never a path."""
LOG = "rally.log"
VALIDATED, READY = b"v", b"r"
"""What a child says to the process that it came from."""

Act = Callable[[Path, dict[str, Any], bool, Callable[[bytes], None], Callable[[], None]], None]
"""Runs a task in a folder: (folder, task, whether it was validated before, tell, wait until it may begin)."""


class Lines:
    """JSON lines of a file descriptor, as they come."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.ended = False
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """What has come since; waits for something. Sets `ended` when there will be no more."""
        more = os.read(self.descriptor, 1 << 20)
        self.ended = not more
        *lines, self._rest = (self._rest + more).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


class Child:
    """A task that runs in a process of its own, with whatever it starts.

    Args:
        act: what it does; an exception is a failure, with its traceback in the log.
        folder: where it works and writes its log.
        task: given to `act`.
        validated: given to `act`.
    """

    def __init__(self, act: Act, folder: Path, task: dict[str, Any], validated: bool) -> None:
        self.says, told = os.pipe()
        begin, self._begin = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _become(folder)
                act(folder, task, validated, lambda what: _tell(told, what), lambda: _wait(begin))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)  # here too: whoever comes first
        os.close(told)
        os.close(begin)
        self.ends = os.pidfd_open(self.pid)

    def begin(self) -> None:
        """Let the load begin."""
        with suppress(BrokenPipeError):
            os.write(self._begin, b"b")

    def close(self) -> int:
        """End it and whatever it has started. Returns the exit code that it had: negative for a signal."""
        ended = bool(select.select([self.ends], [], [], 0)[0])
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for descriptor in (self.says, self._begin, self.ends):
            os.close(descriptor)
        return code if ended else -signal.SIGKILL


def _become(folder: Path) -> None:
    """Make this process one that leads its group, works in a folder, reads nothing and writes into its log."""
    os.setpgid(0, 0)
    os.chdir(folder)
    for descriptor, path, how in ((0, os.devnull, os.O_RDONLY), (1, LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        opened = os.open(path, how, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)


def _tell(descriptor: int, what: bytes) -> None:
    os.write(descriptor, what)


def _wait(descriptor: int) -> None:
    if not os.read(descriptor, 1):
        raise SystemExit("nobody lets it begin")


class Runs:
    """Runs the tasks that come in, one at a time.

    Args:
        root: the folder of the runs' folders.
        act: what is done with a task, in a child.
        orders: descriptor to read from.
        answers: descriptor to write to.
    """

    def __init__(self, root: Path, act: Act, orders: int, answers: int) -> None:
        self.root, self.act, self.answers = root, act, answers
        self.orders = Lines(orders)
        self.validated: set[str] = set()

    def serve(self) -> None:
        """Obey until there are no more orders."""
        while not self.orders.ended:
            for order in self.orders.read():
                if "run" in order:
                    problem = self._run(order)
                    if self.orders.ended:
                        return
                    self.say({"ended": problem})

    def say(self, answer: dict[str, Any]) -> None:
        """Answer with one line."""
        os.write(self.answers, json.dumps(answer).encode() + b"\n")

    def _run(self, order: dict[str, Any]) -> str:
        """One task, to its end. Returns "" or why it has no complete result."""
        name = str(order["run"])
        if not FOLDER.fullmatch(name):
            return f"{name!r} is no name of a folder"
        folder = self.root / name
        task = order["task"]
        known = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            (folder / "task.json").write_text(json.dumps(task, indent=1), encoding="utf-8")
        except OSError as error:
            return f"{folder}: {error.strerror}"
        child = Child(self.act, folder, task, known in self.validated)
        problem: str | None = None
        try:
            problem = self._watch(child, float(order["limit_s"]), known)
        finally:
            code = child.close()
        if problem is not None:
            return problem
        return "" if code == 0 else f"it ended with exit code {code}" if code > 0 else f"it was ended by signal {-code}"

    def _watch(self, child: Child, limit_s: float, known: str) -> str | None:
        """Hand on what child and driver say, until the child ends (None), must end, or is not wanted any more."""
        until = time.monotonic() + limit_s
        watched = [self.orders.descriptor, child.says, child.ends]
        while True:
            readable = select.select(watched, [], [], max(0.0, until - time.monotonic()))[0]
            if not readable:
                return f"it had not ended after {limit_s:g} s"
            if child.says in readable:
                said = os.read(child.says, 64)
                if not said:
                    watched.remove(child.says)
                if VALIDATED in said:
                    self.validated.add(known)
                if READY in said:
                    self.say({"ready": True})
            elif child.ends in readable:
                return None
            if self.orders.descriptor in readable:
                for order in self.orders.read():
                    if "stop" in order:
                        return "it was told to stop"
                    if "begin" in order:
                        child.begin()
                        self.say({"begun": time.time()})
                if self.orders.ended:
                    return "nobody waits for it"


# with Rally


def load() -> str:
    """Import Rally and all plugins. Returns its version.

    Tasks may say what the clean-up by the administrator looks for: it is Rally's own context, which Rally hides.
    """
    _part("rally.plugins").load()
    _part("rally.task.context").Context.get("admin_cleanup@openstack", allow_hidden=True)._meta_set("hidden", False)
    for name in ("rally.api", "rally.task.engine", "rally.task.processing.plot"):
        _part(name)
    return str(_part("rally.common.version").version_string())


def _part(name: str) -> Any:
    return importlib.import_module(name)


def rally_act(config: str) -> Act:
    """What runs a task with Rally as configured by a file, and writes its reports."""

    def act(
        folder: Path, task: dict[str, Any], validated: bool, tell: Callable[[bytes], None], wait: Callable[[], None]
    ) -> None:
        engine, objects = _part("rally.task.engine"), _part("rally.common.objects")
        api = _part("rally.api").API(config_args=["--config-file", config], skip_db_check=True)
        deployment = objects.Deployment.list()[0]
        wanted = _part("rally.task.task_cfg").TaskConfig(task)
        made = objects.Task(env_uuid=deployment["uuid"], title=wanted.title, description=wanted.description)
        running = engine.TaskEngine(wanted, made, deployment.env_obj)
        running.validate(only_syntax=validated)
        tell(VALIDATED)
        _hold_first_load(tell, wait)
        running.run()
        for kind, name in (("json", "rally.json"), ("html-static", "rally.html")):
            for text in api.task.export([made["uuid"]], kind, name)["files"].values():
                (folder / name).write_text(text, encoding="utf-8")

    return act


def _hold_first_load(tell: Callable[[bytes], None], wait: Callable[[], None]) -> None:
    """Let the first runner of this process begin when it is told, after all contexts are set up and arguments found."""
    begun: list[bool] = []

    def held(run: Callable[..., None]) -> Callable[..., None]:
        def runs(*arguments: Any) -> None:
            if not begun:
                begun.append(True)
                tell(READY)
                wait()
            run(*arguments)

        return runs

    runners = _part("rally.task.runner").ScenarioRunner
    for kind in _part("rally.common.plugin.discover").itersubclasses(runners):
        if "_run_scenario" in vars(kind):
            kind._run_scenario = held(kind._run_scenario)


def main() -> None:
    """rally_process.py CONFIG ROOT"""
    config, root = sys.argv[1:]
    os.umask(0o077)
    answers = os.dup(1)
    os.dup2(2, 1)  # what Rally prints is no answer
    runs = Runs(Path(root), rally_act(config), 0, answers)
    runs.say({"loaded": load()})
    runs.serve()
    os._exit(0)  # at once: putting away what was loaded takes seconds


if __name__ == "__main__":
    main()
