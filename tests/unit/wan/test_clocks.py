"""Clocks of hosts against the driver's, by exchanges that take a known time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.wan import clocks


class World:
    """Hosts whose clocks are ahead of ours; each exchange takes so long, the answer is given after a share of it."""

    def __init__(self, ahead_s: dict[str, float], took_s: Sequence[float] = (0.02,), share: float = 0.5) -> None:
        self.ahead_s, self.took_s, self.share = ahead_s, list(took_s), share
        self.now_s = 1_800_000_000.0
        self.asked = 0

    def now_ns(self) -> int:
        return round(self.now_s * 1e9)

    def __call__(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        assert command == ["date", "+%s%N"]
        took_s = self.took_s[min(self.asked, len(self.took_s) - 1)]
        self.asked += 1
        answer = round((self.now_s + took_s * self.share + self.ahead_s[host]) * 1e9)
        self.now_s += took_s
        return f"{answer}\n"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ahead_s", [0.0, 3.5, -0.2])
def test_the_true_offset_is_within_the_bound(ahead_s: float, share: float) -> None:
    world = World({"a": ahead_s}, share=share)
    (found,) = clocks.compare(world, ["a"], 0.1, world.now_ns)
    assert found.error_s == pytest.approx(0.01)
    assert abs(found.offset_s - ahead_s) <= found.error_s + 1e-6


def test_a_clock_beyond_the_tolerance_is_named_with_its_bound() -> None:
    world = World({"a": 0.0, "b": 1.5})
    found = clocks.compare(world, ["a", "b"], 0.1, world.now_ns)
    assert world.asked == 2
    (line,) = clocks.beyond(found, 0.1)
    assert line == "b: its clock is 1500.00 ms (+- 10.00 ms) ahead of this machine's, tolerance 100.00 ms"
    assert clocks.unsure(found, 0.1) == ()


def test_an_exchange_that_took_too_long_is_made_again_and_the_fastest_counts() -> None:
    world = World({"a": 0.05}, took_s=[2.0, 0.4, 0.02])
    (found,) = clocks.compare(world, ["a"], 0.1, world.now_ns)
    assert world.asked == 3
    assert found.error_s == pytest.approx(0.01)


def test_what_cannot_be_told_is_told() -> None:
    world = World({"a": 0.0}, took_s=[2.0, 1.0])
    found = clocks.compare(world, ["a"], 0.1, world.now_ns)
    assert world.asked == clocks.EXCHANGES
    assert clocks.beyond(found, 0.1) == ()
    (line,) = clocks.unsure(found, 0.1)
    assert line.endswith("is not known: the fastest of 5 exchanges took 1000.00 ms")


def test_a_host_without_nanoseconds_is_told() -> None:
    def busybox(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        return "1800000000%N\n"

    with pytest.raises(MeasurementError, match="a: `date \\+%s%N` printed '1800000000%N'"):
        clocks.compare(busybox, ["a"], 0.1)
