"""Hosts' clocks, compared with this machine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.wan.verdict import ClockOffset, milliseconds

AT_ONCE = 4
"""Hosts asked at the same time: more would make each answer later, and the bound wider."""
EXCHANGES = 5
"""At most, of each host; the first ones may have to open a connection."""
LIMIT_S = 30.0


class Runner(Protocol):
    """Runs a command on a host (`remote.Remote`)."""

    def __call__(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        """What it prints."""


def exchange(runner: Runner, host: str, now_ns: Callable[[], int] = time.time_ns) -> ClockOffset:
    """Ask a host for its time once. Raises MeasurementError, and whatever the runner raises.

    Source: F. Cristian, Probabilistic clock synchronization, Distributed Computing 3 (1989): the answer was given
    between the two readings of our own clock.
    """
    before_ns = now_ns()
    text = runner(host, ["date", "+%s%N"], "", LIMIT_S).strip()
    after_ns = now_ns()
    if not (text.isascii() and text.isdigit()):
        raise MeasurementError(f"{host}: `date +%s%N` printed {text[:80]!r}", "Hosts need GNU coreutils.")
    middle_ns = (before_ns + after_ns) // 2
    return ClockOffset(host=host, offset_s=(int(text) - middle_ns) / 1e9, error_s=(after_ns - before_ns) / 2e9)


def compare(
    runner: Runner, hosts: Iterable[str], tolerance_s: float, now_ns: Callable[[], int] = time.time_ns
) -> tuple[ClockOffset, ...]:
    """How far hosts' clocks are from ours, by name: of each the exchange that took least time.

    A host is asked until it is known whether its clock is within `tolerance_s`, or `EXCHANGES` times.
    """

    def one(host: str) -> ClockOffset:
        best = exchange(runner, host, now_ns)
        for _ in range(EXCHANGES - 1):
            if _within(best, tolerance_s) is not None:
                break
            best = min(best, exchange(runner, host, now_ns), key=lambda found: found.error_s)
        return best

    names = sorted(set(hosts))
    with interruption.pool(AT_ONCE) as pool:
        return tuple(pool.map(one, names))


def _within(clock: ClockOffset, tolerance_s: float) -> bool | None:
    """Whether a clock is surely within the tolerance; None when the bound does not tell."""
    if abs(clock.offset_s) + clock.error_s <= tolerance_s:
        return True
    return False if abs(clock.offset_s) - clock.error_s > tolerance_s else None


def beyond(clocks: Iterable[ClockOffset], tolerance_s: float) -> tuple[str, ...]:
    """A line for each clock that is surely further from ours than the tolerance."""
    return tuple(
        f"{clock.host}: its clock is {milliseconds(abs(clock.offset_s))} (+- {milliseconds(clock.error_s)}) "
        f"{'ahead of' if clock.offset_s > 0 else 'behind'} this machine's, tolerance {milliseconds(tolerance_s)}"
        for clock in clocks
        if _within(clock, tolerance_s) is False
    )


def unsure(clocks: Iterable[ClockOffset], tolerance_s: float) -> tuple[str, ...]:
    """A line for each clock of which the exchanges took too long to tell."""
    return tuple(
        f"{clock.host}: whether its clock is within {milliseconds(tolerance_s)} of this machine's is not known: the "
        f"fastest of {EXCHANGES} exchanges took {milliseconds(2 * clock.error_s)}"
        for clock in clocks
        if _within(clock, tolerance_s) is None
    )
