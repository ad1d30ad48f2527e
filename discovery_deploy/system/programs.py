"""Programs that are run to their end: none outlives the driver, and what it says is kept."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress

LIMIT_S = 3600.0
"""For a bake or a build. One that hangs holds the lock of what it makes, for which all others wait."""


KEPT_LINES = 12
"""Lines of a failed program's output that its error quotes."""


def without_passwords(text: str) -> str:
    """A text whose addresses have no user names and passwords. Pure."""
    return re.sub(r"//[^/\s]*@", "//", text)


def output(
    command: Sequence[str],
    limit_s: float,
    package: str = "",
    when_late: str = "See with `ps` what it waits for, then run again.",
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program without input to its end; its standard output.

    Args:
        command: the words of its command line.
        limit_s: how long it may take.
        package: of Debian, with the program; default: the program's name.
        when_late: advice for the case that it takes longer.
        environment: of the program; None: this process's.
        directory: in which it works; None: this process's.
    Raises:
        TestbedError: it is not installed, failed (its last lines are quoted), or took longer than `limit_s` seconds.
    """
    try:
        done = interruption.run(command, None, limit_s, environment, directory)
    except FileNotFoundError as error:
        advice = f"apt-get install -y {package or command[0]}"
        raise TestbedError(f"the command {command[0]} is missing", advice) from error
    except subprocess.TimeoutExpired as error:
        raise TestbedError(f"`{shlex.join(command)}` timed out after {limit_s:g} s", when_late) from error
    if done.returncode:
        said = "\n    ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-KEPT_LINES:])
        raise TestbedError(f"`{shlex.join(command)}` failed:\n    {said}", "Mend the cause, then try again.")
    return done.stdout


def contained(command: Sequence[str]) -> list[str]:
    """`command` in mount and process namespaces of its own: mounts and processes end with it, and it with us."""
    inner = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    return ["setpriv", "--pdeathsig", "KILL", *inner]


def steps(pattern: str, progress: Progress) -> Callable[[str], None]:
    """Takes lines of output and passes on those that match, without their first word when it is a level."""

    def take(line: str) -> None:
        if re.match(pattern, line):
            progress(re.sub(r"^[IWE]: ", "", line))

    return take


@contextmanager
def _ended_after(limit_s: float, process: subprocess.Popen[str], late: threading.Event) -> Iterator[None]:
    """Ends a process, with all of its group, at the end of the block or when the time is over, which sets `late`."""

    def end() -> None:
        late.set()
        _kill(process)

    clock = threading.Timer(limit_s, end)
    clock.daemon = True
    clock.start()
    try:
        yield
    except BaseException:
        _kill(process)
        raise
    finally:
        clock.cancel()


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _readable(text: str) -> Iterator[IO[bytes]]:
    """A nameless file of this text, to be read from its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def run_logged(
    command: Sequence[str],
    log: Path,
    what: str,
    line_taken: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
    stdin: str = "",
) -> None:
    """Run a program to its end; all it says goes to `log` (mode 0600) and, line by line, to `line_taken`.

    Addresses that it says lose their passwords; those that it needs are given on its standard input.

    Raises:
        TestbedError: it cannot be started, failed, or was still running after `limit_s`; the end of its output is
            quoted.
    """
    if os.geteuid() != 0:
        raise TestbedError(f"{what} needs root", "Run as root.")
    lines: list[str] = []
    late = threading.Event()
    try:
        log.unlink(missing_ok=True)
        log.touch(mode=0o600)
        with log.open("w", encoding="utf-8") as kept, _readable(stdin) as given, subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", env=environment, start_new_session=True,
        ) as process, _ended_after(limit_s, process, late):  # fmt: skip
            assert process.stdout is not None
            kept.write(f"$ {shlex.join(command)}\n")
            with interruption.watched(process):
                for said in process.stdout:
                    line = without_passwords(said)
                    kept.write(line)
                    lines = [*lines[1 - KEPT_LINES :], line.rstrip()]
                    line_taken(line.rstrip())
                process.wait()
    except FileNotFoundError as error:
        raise TestbedError(f"{what}: {error.filename} is not installed", f"apt-get install {error.filename}") from error
    if process.returncode or late.is_set():
        tail = "\n    ".join(lines) or "(no output)"
        if late.is_set():
            advice = "See in the log what it waited for (a proxy, an archive), then run again."
            raise TestbedError(f"{what} timed out after {limit_s:g} s (log: {log}):\n    {tail}", advice)
        if any("No space left on device" in line for line in lines):
            raise TestbedError(f"{what} failed: the disk is full:\n    {tail}", "Free space, then run again.")
        missing = re.search(r"failed to execute (\S+): No such file", tail)
        if missing:
            raise TestbedError(f"{what}: {missing[1]} is not installed", f"apt-get install {missing[1]}")
        raise TestbedError(f"{what} failed (log: {log}):\n    {tail}", "Mend the cause, then run again.")
