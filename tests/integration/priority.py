"""Machines that are measured come before whatever else runs here, which would be measured otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Chosen = Callable[[Path], bool]
"""Whether a process is meant, by its directory in /proc. May raise OSError when it has ended."""


@contextmanager
def before_all_else(chosen: Chosen) -> Iterator[None]:
    """All threads of some processes at a real-time priority within the block. Raises AssertionError: there are none."""
    assert _schedule(chosen, os.SCHED_FIFO, 50), "none of this machine's processes is meant"
    try:
        yield
    finally:
        _schedule(chosen, os.SCHED_OTHER, 0)


def _schedule(chosen: Chosen, policy: int, priority: int) -> int:
    """How many processes were given the priority."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if chosen(process):
                for thread in (process / "task").iterdir():
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
                count += 1
    return count


def emulators(words: str) -> Chosen:
    """QEMU's processes on whose command line some words stand."""

    def chosen(process: Path) -> bool:
        line = (process / "cmdline").read_bytes()
        return b"qemu-system" in line.split(b"\0")[0] and words.encode() in line

    return chosen
