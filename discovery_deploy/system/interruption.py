"""What a driver does that is told to stop: it ends the programs and threads it waits for, and then itself, soon.

The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread. On its way up it leaves pools of
threads (`pool`), whose programs (`run`, `watched`) are ended; whatever has not ended after `LIMIT_S` is left alone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from discovery_deploy.system.errors import EXIT_INTERRUPTED

LIMIT_S = 3.0
"""So long after the first signal the process ends, wherever it is. What was done is written down before and after."""
SAME_S = 0.5
"""A signal so soon after the first is the same: `timeout`, and a terminal that is closed, send theirs twice."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POKE, POKE_S = signal.SIGUSR1, 0.1
"""Sent to the main thread so often until it has heard of the first."""
KEPT = "interrupted; what was done is kept: run again to go on, or release"


class _Group:
    """The threads of a pool, and of pools that were made in them."""

    def __init__(self, parent: _Group | None) -> None:
        self.parent = parent
        self._stopped = False

    def stop(self) -> None:
        """Refuse more programs in these threads."""
        self._stopped = True

    def stopped(self) -> bool:
        """Whether this pool, or one around it, is left because of an interruption."""
        return self._stopped or (self.parent is not None and self.parent.stopped())


class _Own(threading.local):
    group: _Group | None = None


_own = _Own()
_running: dict[subprocess.Popen[Any], _Group | None] = {}
"""Every program that is waited for, with the pool in whose thread it was started."""
_raised: list[int] = []
"""The signal that has interrupted the main thread; empty until then."""


@contextmanager
def watched(process: subprocess.Popen[Any]) -> Iterator[None]:
    """A program that is waited for within the block; it is ended when its pool is left, or the block by an error.

    Raises:
        KeyboardInterrupt: in a thread of a pool, when the pool is left because of an interruption.
    """
    group = _own.group
    _running[process] = group
    try:
        _raise_when_stopped(group)
        yield
        _raise_when_stopped(group)
    except BaseException:
        _end(process)
        raise
    finally:
        del _running[process]


def run(
    command: Sequence[str],
    stdin: str | IO[bytes] | None,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does, with its output as text.

    Its streams are files: nobody waits for what it leaves behind (ssh's shared connection) to close a pipe.

    Args:
        command: the words of its command line.
        stdin: text or file that it reads; None: nothing.
        timeout_s: how long it may take.
        environment: of the program; None: this process's.
        directory: in which it works; None: this process's.
    Raises:
        subprocess.TimeoutExpired: it took longer; it has been ended.
        FileNotFoundError: there is no such program.
        KeyboardInterrupt: as `watched`.
    """
    _raise_when_stopped(_own.group)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if isinstance(stdin, str):
            given.write(stdin.encode())
            given.seek(0)
        source = given if stdin is None or isinstance(stdin, str) else stdin
        process = subprocess.Popen(
            list(command), stdin=source, stdout=out, stderr=err, env=environment, cwd=directory
        )  # fmt: skip
        with watched(process):
            process.wait(timeout_s)
        return subprocess.CompletedProcess(list(command), process.returncode, _text(out), _text(err))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _raise_when_stopped(group: _Group | None) -> None:
    if group is not None and group.stopped():
        raise KeyboardInterrupt


def _end(process: subprocess.Popen[Any]) -> None:
    """See a program end that is not wanted any more."""
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


@contextmanager
def pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that ends with the block; an interruption ends what the threads wait for, not waiting for them.

    Args:
        threads: how many at most; 0 counts as 1.
    """
    group = _Group(_own.group)

    def begin() -> None:
        _own.group = group

    executor = ThreadPoolExecutor(max(threads, 1), initializer=begin)
    try:
        yield executor
    except KeyboardInterrupt:
        group.stop()
        _kill(lambda of: of is not None and of.stopped())
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        executor.shutdown(wait=not group.stopped())


def _kill(chosen: Callable[[_Group | None], bool]) -> None:
    """End programs, by the pool of each; who waits for them sees that."""
    for process, group in list(_running.items()):
        if chosen(group):
            with suppress(ProcessLookupError):
                process.kill()


# signals


def requested() -> bool:
    """Whether a signal has asked this process to end."""
    return bool(_raised)


def obey_signals() -> None:
    """From now on the first of `SIGNALS` raises KeyboardInterrupt, and another one later ends this process at once.

    A SIGHUP that is ignored (nohup) stays ignored. To be called once, in the main thread.
    """
    seen, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in (*SIGNALS, POKE):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    threading.Thread(target=_watch, args=(seen,), daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _raised:
        _raised.append(number)
        _leave_terminal()
        raise KeyboardInterrupt


def _watch(seen: int) -> None:
    """See to it that the main thread hears of the first signal, and that the process ends in time.

    Python tells a signal to the main thread when that runs: one that comes when it is just about to wait for a lock
    or a program is told after that wait. Another signal, sent to that very thread, ends the wait.
    """
    while os.read(seen, 1)[0] not in SIGNALS:
        pass
    first_s = time.monotonic()
    while (age_s := time.monotonic() - first_s) < LIMIT_S:
        if not _raised:
            signal.pthread_kill(threading.main_thread().ident or 0, POKE)
        ready, _, _ = select.select([seen], [], [], min(POKE_S, LIMIT_S - age_s))
        if ready and os.read(seen, 1)[0] in SIGNALS and time.monotonic() - first_s > SAME_S:
            _end_now("ended at once, by a second signal: run again to go on, or release")
    _end_now(KEPT)


@contextmanager
def ends_the_process() -> Iterator[None]:
    """After an interruption the end of the block, however it comes, is that of this process, with one line.

    Threads that still wait for something do not matter.
    """
    try:
        yield
    finally:
        if requested():
            with suppress(OSError):
                sys.stdout.flush()
            _end_now(KEPT)


def _end_now(line: str) -> NoReturn:
    """End without waiting for anything: all that is kept is written before and after it is done, never meanwhile."""
    _kill(lambda group: True)
    with suppress(OSError):
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a spinner hides it
        os.write(2, f"{show_cursor}\n{line}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _leave_terminal() -> None:
    """Let what is said go nowhere when the terminal is no more: an error of writing would hide the interruption."""
    for number in range(3):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not _is_there(number):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, number)
                os.close(nowhere)


def _is_there(terminal: int) -> bool:
    try:
        termios.tcgetattr(terminal)
    except termios.error as error:
        return bool(error.args[0] != errno.EIO)
    return True
