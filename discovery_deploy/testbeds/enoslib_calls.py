"""Asks EnOSlib, which runs in a process and a Python environment of its own (`enoslib_worker`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from discovery_deploy.software import enoslib_environment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress

WORKER = Path(__file__).resolve().with_name("enoslib_worker.py")
KEPT_LINES = 8
"""Lines of the log that an error quotes when the worker ended without an answer."""
SECONDS_TO_END = 10.0
"""How long a worker that is told to end may take."""


class Enoslib:
    """EnOSlib, asked one verb at a time.

    Args:
        cache: directory of the cache, with EnOSlib's environment.
        directory: where it works: files that it writes go there. Made when missing, mode 0700.
        variables: environment variables that it gets besides ours; `HOME` decides whose Grid'5000 account and keys.
        log: file to which all that EnOSlib prints is appended (mode 0600); default: `enoslib.log` in `directory`.
    """

    def __init__(
        self, cache: Path, directory: Path, variables: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.cache = cache
        self.directory = directory.absolute()
        self.variables = dict(variables or {})
        self.log = log or self.directory / "enoslib.log"

    def __call__(
        self, verb: str, arguments: Mapping[str, Any], progress: Progress, limit_s: float | None = None
    ) -> Any:
        """Ask a verb and wait for its answer.

        Args:
            verb: `<family>.<name>`, see `enoslib_worker`.
            arguments: the verb's own; what JSON can hold.
            progress: takes one short line per step.
            limit_s: the longest that it may take, in seconds; None: it ends by itself.
        Returns:
            What the verb returned.
        Raises:
            TestbedError: the verb failed (its own words), took longer than `limit_s`, or EnOSlib's environment could
                not be made. An interrupted driver ends the worker first.
        """
        python = enoslib_environment.enoslib_python(self.cache, progress)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as log:
            log.write(f"--- {verb}\n")
            log.flush()
            process = subprocess.Popen(
                [str(python), "-I", str(WORKER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=self.directory, text=True,
                env=self._environment(python), start_new_session=True,
            )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(limit_s, stop) if limit_s is not None else None
        if timer is not None:
            timer.start()
        try:
            answer = _answer(process, {"verb": verb, "arguments": arguments, "driver": os.getpid()}, progress)
        finally:
            if timer is not None:
                timer.cancel()
            _end(process)
        if late.is_set() and answer is None:
            raise TestbedError(f"EnOSlib: {verb} timed out after {limit_s:g} s", f"Look at {self.log}, then run again.")
        return self._result(verb, process.returncode, answer)

    def _environment(self, python: Path) -> dict[str, str]:
        # Never this tool's own: EnOSlib starts Ansible, and Ansible looks for what is configured.
        unwanted = ("PYTHON", "ANSIBLE_", "VIRTUAL_ENV")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        path = f"{python.parent}:{inherited.get('PATH', os.defpath)}"
        return {**inherited, "PATH": path, "LC_ALL": "C.UTF-8", **self.variables}

    def _result(self, verb: str, status: int, answer: Mapping[str, Any] | None) -> Any:
        if answer is None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT_LINES:]
            raise TestbedError(
                f"EnOSlib: {verb} ended with status {status} and no answer:\n    " + "\n    ".join(lines),
                f"Look at {self.log}, then run again.",
            )
        if "error" in answer:
            error = answer["error"]
            where = f"{error['host']}: " if error["host"] else ""
            raise TestbedError(f"{where}{error['what']}", error["advice"] or f"Look at {self.log}, then run again.")
        return answer["result"]


def _answer(process: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    """The last word of a worker; None when it ended without one."""
    asked, answers = _pipes(process)
    with suppress(BrokenPipeError):  # it ended at once; that it gave no answer is told
        asked.write(json.dumps(request))
        asked.close()
    for line in answers:
        said: dict[str, Any] = json.loads(line)
        if "progress" not in said:
            return said
        progress(str(said["progress"]))
    return None


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[str]) -> None:
    """See a worker end, with all that it started: by itself, or because it is told to."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
