"""What any WAN router must do, whatever it runs in.

A noisy machine may spoil any measurement: a pair is wrong when it is so in every one of several.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from discovery_deploy.agent import probe, wan_router
from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s, path_shapes
from tests.integration.wan_bed import Wan

MEASUREMENTS = 6
TOLERANCE_S = 0.0005
BASE_S = 0.002


def network(**fields: Any) -> Network:
    return Network.model_validate(fields)


def until_good(attempt: Callable[[], dict[Any, Any]]) -> None:
    """Repeat a measurement that returns what is wrong, until nothing has been so in every one.

    The pauses grow: a machine whose host takes its processors away is late for seconds.
    """
    wrong = attempt()
    for number in range(1, MEASUREMENTS):
        if wrong:
            time.sleep(2 * number)
            again = attempt()
            wrong = {key: again[key] for key in wrong if key in again}
    assert not wrong, f"wrong in each of {MEASUREMENTS} measurements: {wrong}"


def inside_uml() -> bool:
    """Whether these tests run in a User-Mode Linux of their own (`inside_uml`)."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


@contextmanager
def at_a_pace_that_this_kernel_keeps() -> Iterator[None]:
    """Inside User-Mode Linux fewer datagrams a second.

    At the usual pace 3 to 13 % were lost on busy machines, and rates were 5 % too low. That fits what Linux does with a
    process of real-time priority, as such a kernel is: busy for 0.95 s it stands still for the rest of the second
    (sched_rt_runtime_us). It was not watched doing so.
    """
    slower = 4 if inside_uml() else 1
    with (
        mock.patch.object(measure, "DATAGRAMS_PER_S", measure.DATAGRAMS_PER_S / slower),
        mock.patch.object(measure, "STREAM_DATAGRAMS_PER_S", measure.STREAM_DATAGRAMS_PER_S / slower),
    ):
        yield


def wrong_rtts(wan: Wan, shapes: dict[Pair, PathShape]) -> dict[Pair | str, float]:
    """Pairs whose median RTT is not twice the delay plus the testbed's own, with their errors in seconds.

    The testbed's own RTT is among them, as `base`, when it is not that of one machine.
    """
    measured = measure.measure(wan.run, wan.points, shapes, Verify())
    assert measured.probe_scheduling == "fifo"
    base_s = measured.base_rtt_s
    wrong: dict[Pair | str, float] = {} if 0 < base_s < BASE_S else {"base": base_s}
    for pair, m in measured.pairs.items():
        assert m.rtt_median_s is not None
        error_s = m.rtt_median_s - base_s - asked_rtt_s(shapes, pair)
        if abs(error_s) > TOLERANCE_S:
            wrong[pair] = error_s
    return wrong


def every_round_trip_is_twice_the_delay(wan: Wan, delay: str) -> None:
    shapes = wan.shape(network(default={"delay": delay}))
    assert wan.readback(shapes) == ()
    until_good(lambda: wrong_rtts(wan, shapes))


def every_pair_may_have_its_own_delay(wan: Wan) -> None:
    constraints = [
        {"between": [a, b], "delay": f"{3 * i + 7 * j} ms"}
        for i, a in enumerate(wan.names)
        for j, b in enumerate(wan.names)
        if i < j
    ]
    shapes = wan.shape(network(constraints=constraints))
    assert wan.readback(shapes) == ()
    until_good(lambda: wrong_rtts(wan, shapes))


def each_direction_has_its_own_delay(wan: Wan) -> None:
    a, b, c = wan.names[:3]
    shapes = wan.shape(
        network(
            default={"delay": "2 ms"},
            constraints=[
                {"from": a, "to": b, "delay": "5 ms"},
                {"from": b, "to": a, "delay": "40 ms"},
                {"from": c, "to": a, "delay": "15 ms"},
            ],
        )
    )

    def wrong() -> dict[Pair, Any]:
        measured = measure.measure(wan.run, wan.points, shapes, Verify())
        delays_s = {pair: m.one_way_median_s for pair, m in measured.pairs.items()}
        return {
            pair: delay_s
            for pair, delay_s in delays_s.items()
            if delay_s is None or abs(delay_s - measured.base_rtt_s / 2 - shapes[pair].delay_s) > TOLERANCE_S
        }

    until_good(lambda: wrong_rtts(wan, shapes))
    until_good(wrong)


def directions_that_were_swapped_are_told(wan: Wan) -> None:
    """By the measurement itself: round trips are the same."""
    a, b, _ = wan.names[:3]
    constraints = [{"from": a, "to": b, "delay": "5 ms"}, {"from": b, "to": a, "delay": "80 ms"}]
    asked = wan.shape(network(default={"delay": "2 ms"}, constraints=constraints))

    def wrong() -> dict[Any, Any]:
        problems = measure.verify_wan(wan.run, wan.points, asked, Verify()).problems
        return dict.fromkeys(problems)

    until_good(wrong)
    swapped = {**asked, (a, b): asked[b, a], (b, a): asked[a, b]}
    wan.change(asked, swapped)

    def unseen() -> dict[Any, Any]:
        problems = measure.verify_wan(wan.run, wan.points, asked, Verify()).problems
        words = (
            f"{a} -> {b}: one-way delay asked 5.00 ms, measured 8",
            f"{b} -> {a}: one-way delay asked 80.00 ms, me",
        )
        return {} if len(problems) == 2 and all(map(str.startswith, problems, words)) else {"problems": problems}

    until_good(unseen)


def a_way_that_loses_all_is_not_called_measured(wan: Wan) -> None:
    a, b, _ = wan.names[:3]
    shapes = wan.shape(network(default={"delay": "2 ms"}, constraints=[{"from": a, "to": b, "loss": "100 %"}]))

    def wrong() -> dict[Any, Any]:
        report = measure.verify_wan(wan.run, wan.points, shapes, Verify())
        got = {(v.measured.source, v.measured.destination): v for v in report.pairs}
        there, back = got[a, b], got[b, a]
        good = (there.measured.sent, there.measured.received) == (40, 0)
        good = good and {"RTT", "one-way delay", "loss"} == {*there.not_measured}
        # its requests arrive
        good = good and back.not_measured == ("RTT",)
        return {} if good and not report.problems else {"report": report}

    until_good(wrong)
    wan.change(shapes, {**shapes, (a, b): shapes[b, a]})
    (there, back) = measure.verify_wan(wan.run, wan.points, shapes, Verify()).problems
    assert there.startswith(f"{a} -> {b}: 40 of 40 echoes came back, asked was a loss of 100 % on the way there")
    assert back.startswith(f"{b} -> {a}: 40 of 40 echoes came back, asked was a loss of 100 % on the way back")


def loss_and_rate_are_as_asked_and_only_there(wan: Wan) -> None:
    a, b, c = wan.names[:3]
    rate = "5 Mbit/s" if inside_uml() else "20 Mbit/s"
    shapes = wan.shape(
        network(
            default={"delay": "5 ms"},
            constraints=[
                {"from": a, "to": b, "loss": "5 %", "rate": rate},
                {"from": b, "to": c, "rate": rate},
                {"from": c, "to": b, "loss": "5 %"},
            ],
        )
    )
    assert wan.readback(shapes) == ()
    verify = Verify(measure=("loss", "rate"))

    def wrong() -> dict[Pair, Any]:
        found = {}
        for pair, m in measure.measure(wan.run, wan.points, shapes, verify).pairs.items():
            asked = shapes[pair]
            # 1900 datagrams: 1.5 % are three standard deviations of a loss of 5 %
            good = m.loss is not None and abs(m.loss - asked.loss) < (0.015 if asked.loss else 0.001)
            if asked.rate_bps is None:
                good = good and m.rate_bps is None
            else:
                good = good and m.rate_bps is not None and abs(m.rate_bps / asked.rate_bps - 1) < 0.02
            if not good:
                found[pair] = m
        return found

    with at_a_pace_that_this_kernel_keeps():
        until_good(wrong)


def echoes(wan: Wan, source: str, destination: str, count: int, interval_s: float) -> dict[str, Any]:
    """What a steady ping of one pair gets."""
    spec = {
        "task": "rtt",
        "stations": [{"to": [wan.address(destination)]}],
        "count": count,
        "interval_s": interval_s,
        "warmup": 3,
        "wait_s": 2.0,
    }
    command = ["python3", "-I", "-S", "-", json.dumps(spec)]
    answer = json.loads(wan.run(f"{source}-1", command, Path(probe.__file__).read_text(), 60))
    result: dict[str, Any] = answer["results"][0]
    return result


def a_change_loses_no_packet(wan: Wan) -> None:
    """A ping each 5 ms, while delays, jitter, rates and queues change under it."""
    a, b = wan.names[:2]
    old = wan.shape(network(default={"delay": "10 ms"}))
    settings = [
        network(default={"delay": "40 ms"}),
        network(default={"delay": "1 ms", "rate": "20 Mbit/s"}),
        network(default={"delay": "25 ms", "jitter": "5 ms"}),
        network(default={"delay": "150 ms", "rate": "100 Mbit/s"}),
        network(default={"delay": "0 ms"}),
    ]
    result: dict[str, Any] = {}
    pinging = threading.Thread(target=lambda: result.update(echoes(wan, a, b, 800, 0.005)))
    pinging.start()
    pinging.join(0.7)
    for setting in settings:
        assert pinging.is_alive(), "the changes must come while echoes are sent"
        new = path_shapes(setting, wan.names)
        wan.change(old, new)
        old = new
        pinging.join(0.15)
    assert pinging.is_alive(), "the changes must come while echoes are sent"
    pinging.join()
    assert (result["sent"], result["received"], result["duplicates"], result["unsent"]) == (800, 800, 0, 0)
    assert result["max_s"] > 0.25, "some echoes must have seen 150 ms each way"
    assert wan.readback(old) == ()


class OnThreeSites:
    """Tests of every router, for a class in a module that has a fixture `three`."""

    def test_each_direction_has_its_own_delay(self, three: Wan) -> None:
        each_direction_has_its_own_delay(three)

    def test_directions_that_were_swapped_are_told(self, three: Wan) -> None:
        directions_that_were_swapped_are_told(three)

    def test_a_way_that_loses_all_is_not_called_measured(self, three: Wan) -> None:
        a_way_that_loses_all_is_not_called_measured(three)

    def test_loss_and_rate_are_as_asked_and_only_there(self, three: Wan) -> None:
        loss_and_rate_are_as_asked_and_only_there(three)

    def test_a_change_loses_no_packet(self, three: Wan) -> None:
        a_change_loses_no_packet(three)


def readback_sees(wan: Wan, command: str, message: str) -> None:
    """A router that was changed by hand, with a shell command in it, is caught."""
    shapes = wan.shape(network(default={"delay": "25 ms", "loss": "1 %", "rate": "50 Mbit/s"}))
    assert wan.readback(shapes) == ()
    wan_router.run(wan.plan, command.format(**wan.subnets))
    problems = wan.readback(shapes)
    assert any(message.format(**wan.subnets) in problem for problem in problems), problems
    assert len(problems) <= 2, problems


SABOTAGE = {
    "delay": (
        "tc qdisc change dev vec1 parent 1:10 handle 10: netem delay 26ms loss 1% limit 1104",
        "ares -> brest (vec1): delay asked 25 ms, tc shows 26 ms",
    ),
    "loss": (
        "tc qdisc change dev vec1 parent 1:10 handle 10: netem delay 25ms limit 1104",
        "ares -> brest (vec1): loss asked 1 %, tc shows 0 %",
    ),
    "limit": (
        "tc qdisc change dev vec1 parent 1:10 handle 10: netem delay 25ms loss 1%",
        "ares -> brest (vec1): queue asked 1104 packets, tc shows 1000",
    ),
    "corruption": (
        "tc qdisc change dev vec1 parent 1:10 handle 10: netem delay 25ms loss 1% limit 1104 corrupt 1%",
        "ares -> brest (vec1): netem also has corrupt",
    ),
    "rate": (
        "tc class change dev vec1 parent 1: classid 1:10 htb rate 40mbit quantum 20000",
        "ares -> brest (vec1): rate asked 50 Mbit/s, tc shows 40 Mbit/s",
    ),
    "filters": (
        "tc filter del dev vec1 parent 1:",
        "ares -> brest (vec1): packets from {ares} should go to class 1:10, tc shows []",
    ),
    "a filter before ours": (
        "tc filter add dev vec1 parent 1: protocol ip prio 0 u32 match ip src {ares} flowid 1:12",
        "cork -> brest (vec1): packets from {cork} should go to class 1:12, tc shows",
    ),
    "no program": ("tc qdisc del dev vec1 root", "vec1 towards brest: no htb of ours at the root"),
}
"""What is broken by hand on three sites -> command in the router, and what readback must say ({site}: its network)."""
