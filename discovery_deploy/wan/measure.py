"""Measures the WAN from the hosts: probes at all sites at once, through whatever can run a command on a host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from discovery_deploy.agent import probe
from discovery_deploy.experiment.model import Verify
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.wan.shapes import FRAME_BYTES, Pair, PathShape, asked_rtt_s
from discovery_deploy.wan.verdict import PairMeasurement, PairVerdict, WanReport, judge, unmeasured

WARMUP_ECHOES = 3
"""Echoes sent first and forgotten: they resolve addresses and wake what sleeps."""
ECHOES_PER_S = 4000
"""Echoes of all sites together, half of what a UML router forwards before it delays them (each echo is two packets)."""
ECHO_FRAME_BYTES = 98
FIRST_LOOK_S = 1.0
"""In a large mesh the echoes of a pair are as few as this time allows, but at least `MIN_ECHOES`."""
MIN_ECHOES = 7
HERE = ""
"""As a point's host: this machine, of which the point is a network namespace."""
PORT = 47301
DATAGRAMS_PER_S = 8000
"""Datagrams of all sites together when loss is counted."""
STREAM_DATAGRAMS_PER_S = 2000
LOSS_BYTES = 64
LOSS_LIMIT_S = 30.0
UDP_BUDGET_BPS = 150e6
"""Datagrams fill rates up to this (all pairs that are measured at once together); TCP fills higher ones."""
OVERLOAD = 1.25
"""Offered rate per asked rate: the path, not the sender, must be what limits."""
RATE_SECONDS = 1.0
START_LIMIT_S = 30.0
"""Time that starting a probe on a busy machine may take."""


class Runner(Protocol):
    """Runs a command on a host."""

    def __call__(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        """What it prints. Raises an error that names the host when it fails or takes longer than `timeout_s`."""


@dataclass(frozen=True)
class Point:
    """The host from which a site is measured."""

    site: str
    host: str
    """The name that the runner knows. Points of one host read one clock: one-way delays between them are measured."""
    address: str
    """On the network of the site."""
    gateway: str | None = None
    """The WAN router's address there: its unshaped RTT is what the testbed itself takes. None: not measured."""
    namespace: str | None = None
    """Path of the network namespace on that host in which the address is; None: where commands run."""


@dataclass(frozen=True)
class Measured:
    """What one measurement of some pairs gave."""

    pairs: dict[Pair, PairMeasurement]
    base_rtt_s: float
    """RTT of the testbed itself between two sites: twice the median RTT from host to gateway, 0.0 when unknown."""
    probe_scheduling: str
    """`fifo` when all probes ran at real-time priority, else `other`."""


def on_this_machine(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
    """A `Runner` of `HERE` alone. Raises MeasurementError."""
    assert host == HERE
    words = [sys.executable if word == "python3" else word for word in command]
    try:
        done = interruption.run(words, stdin, timeout_s)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"the probe gave no answer within {timeout_s:g} s", "Is the machine busy?") from None
    if done.returncode:
        raise MeasurementError(
            f"the probe failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}",
            "Run again: `run` starts dead hosts anew.",
        )
    return done.stdout


@dataclass
class _Probes:
    """Runs probes at points, all at once, and remembers how they were scheduled."""

    runner: Runner
    points: Mapping[str, Point]
    source: str = field(default_factory=lambda: Path(probe.__file__).read_text())
    scheduling: set[str] = field(default_factory=set)

    def run(self, specifications: Mapping[str, dict[str, Any]], seconds: float) -> dict[str, dict[str, Any]]:
        """Site -> answer, for site -> specification; `seconds` is what the task itself may take."""

        def one(site: str) -> dict[str, Any]:
            host = self.points[site].host
            command = ["python3", "-I", "-S", "-", json.dumps(specifications[site])]
            text = self.runner(host, command, self.source, seconds + START_LIMIT_S)
            try:
                answer: dict[str, Any] = json.loads(text)
            except ValueError as error:
                raise MeasurementError(
                    f"{host or site}: the probe answered {text[:200]!r}", "Look whether python3 runs on the host."
                ) from error
            self.scheduling.add(answer.get("scheduling", ""))
            return answer

        with interruption.pool(len(specifications)) as pool:
            return dict(zip(specifications, pool.map(one, specifications), strict=True))


def measure(
    runner: Runner,
    points: Iterable[Point],
    shapes: Mapping[Pair, PathShape],
    verify: Verify,
    *,
    pairs: Collection[Pair] | None = None,
) -> Measured:
    """Measure pairs of sites: RTT of all at once; loss and rate, when `verify` wants them, in rounds.

    A round trip is the same from either side: each pair is asked from one, and both orders get what was measured.

    Args:
        runner: how to run a command on a host; called from several threads at once.
        points: one per site.
        shapes: what was asked; it sets how long to wait and how much to send.
        verify: what to measure, and how many probes.
        pairs: which pairs, each in both orders though only one is named; all when None.
    Raises:
        MeasurementError: a probe did not answer; whatever the runner raises.
    """
    probes = _Probes(runner, {point.site: point for point in points})
    wanted = sorted(shapes if pairs is None else {way for a, b in pairs for way in ((a, b), (b, a))})
    if not wanted:  # one site has no WAN
        return Measured({}, 0.0, "")
    found: dict[Pair, dict[str, Any]] = {pair: {} for pair in wanted}
    base_rtt_s = _measure_rtt(probes, shapes, verify, found) if "rtt" in verify.measure else 0.0
    if "loss" in verify.measure:
        _measure_loss(probes, shapes, verify, found)
    if "rate" in verify.measure:
        _measure_rate(probes, shapes, found)
    measurements = {pair: unmeasured(pair).model_copy(update=values) for pair, values in found.items()}
    return Measured(measurements, base_rtt_s, "fifo" if probes.scheduling - {""} == {"fifo"} else "other")


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return probe.quantile(ordered, 0.5) if ordered else 0.0


def echo_schedule(shapes: Sequence[PathShape], verify: Verify) -> tuple[int, float]:
    """How many echoes each pair gets, and the time between two of them in seconds, for paths measured at once.

    As `verify` says, but never so fast that all echoes together slow the router, or that the request or reply that a
    path carries each time takes more than 30 % of its rate; and never so many that it takes longer than
    `FIRST_LOOK_S`, as long as `MIN_ECHOES` are left.

    Args:
        shapes: of both ways of every pair.
        verify: how many are wanted, and how often.
    """
    slowest_bps = min((shape.rate_bps for shape in shapes if shape.rate_bps is not None), default=float("inf"))
    interval_s = max(verify.interval, len(shapes) / 2 / ECHOES_PER_S, 8 * ECHO_FRAME_BYTES / (0.3 * slowest_bps))
    if interval_s == verify.interval:
        return verify.probes, interval_s
    return min(verify.probes, max(MIN_ECHOES, round(FIRST_LOOK_S / interval_s))), interval_s


def asking_order(shapes: Mapping[Pair, PathShape], pair: Pair) -> Pair:
    """From which side a pair is asked: not by the way that loses all, where the other is seen to bring requests."""
    a, b = sorted(pair)
    return (b, a) if shapes[a, b].loss == 1 and shapes[b, a].loss < 1 else (a, b)


def _stations(probes: _Probes, ways: Sequence[Pair]) -> dict[str, list[Point]]:
    """First site of each host -> the points there that take part: all that ask, and what they ask beside them."""
    asking, asked = {source for source, _ in ways}, {destination for _, destination in ways}
    hosts: dict[str, list[Point]] = {}
    for site, point in sorted(probes.points.items()):
        if site in asking | asked:
            hosts.setdefault(point.host, []).append(point)
    taking_part = (group for group in hosts.values() if asking & {point.site for point in group})
    return {group[0].site: group for group in taking_part}


def _measure_rtt(
    probes: _Probes, shapes: Mapping[Pair, PathShape], verify: Verify, found: dict[Pair, dict[str, Any]]
) -> float:
    """Put sent, received, RTTs, and where clocks are shared one-way delays, into `found`; the RTT of the testbed."""
    count, interval_s = echo_schedule([shapes[pair] for pair in found], verify)
    wait_s = 0.5 + max(asked_rtt_s(shapes, pair) + 2 * shapes[pair].jitter_s for pair in found)
    ways = sorted({asking_order(shapes, pair) for pair in found})
    groups = _stations(probes, ways)
    asked = {point.site: [to for source, to in ways if source == point.site] for point in probes.points.values()}
    specifications = {
        name: {
            "task": "rtt",
            "stations": [
                {
                    "to": [probes.points[to].address for to in asked[point.site]],
                    "gateway": point.gateway,
                    "namespace": point.namespace,
                }
                for point in group
            ],
            "count": count,
            "interval_s": interval_s,
            "warmup": WARMUP_ECHOES,
            "wait_s": wait_s,
        }
        for name, group in groups.items()
    }
    answers = probes.run(specifications, (count + WARMUP_ECHOES) * interval_s + wait_s)
    gateways_s: list[float] = []
    for name, group in groups.items():
        results = iter(answers[name]["results"])
        for point in group:
            for to in asked[point.site]:
                _take_echoes(found, (point.site, to), next(results))
            if point.gateway and (rtt_s := next(results)["median_s"]) is not None:
                gateways_s.append(rtt_s)
    return 2 * _median(gateways_s)


def _take_echoes(found: dict[Pair, dict[str, Any]], way: Pair, result: Mapping[str, Any]) -> None:
    for pair, one_way in ((way, result["there"]), (way[::-1], result["back"])):
        found[pair[0], pair[1]].update(
            sent=result["sent"],
            received=result["received"],
            rtt_median_s=result["median_s"],
            rtt_p99_s=result["p99_s"],
            rtt_max_s=result["max_s"],
            one_way_median_s=one_way["median_s"],
            jitter_s=one_way["jitter_s"],
        )


def rounds(sites: Sequence[str]) -> Iterator[list[Pair]]:
    """All unordered pairs of sites in rounds in which no site stands twice (the circle method of tournaments)."""
    circle: list[str | None] = [*sites, *([None] if len(sites) % 2 else [])]
    for _ in range(len(circle) - 1):
        opposite = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        yield [(a, b) for a, b in opposite if a is not None and b is not None]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def _stream_round(probes: _Probes, orders: Mapping[Pair, dict[str, Any]], quiet_s: float) -> dict[Pair, dict[str, Any]]:
    """Send one stream on each pair at once; per pair `sent` and what the destination counted."""
    seconds = max(order["count"] * order["gap_s"] + order["drain_s"] for order in orders.values())
    limit_s = seconds + 2 * probe.HELLO_LIMIT_S
    specifications = {
        site: {
            "task": "stream",
            "address": point.address,
            "namespace": point.namespace,
            "port": PORT,
            "quiet_s": quiet_s,
            "limit_s": limit_s,
            "expect": sum(destination == site for _, destination in orders),
            "send": [
                {"to": probes.points[destination].address, **order}
                for (source, destination), order in orders.items()
                if source == site
            ],
        }
        for site, point in probes.points.items()
        if any(site in pair for pair in orders)
    }
    answers = probes.run(specifications, limit_s)
    results = {}
    for source, destination in orders:
        sent = answers[source]["sent"][0]["sent"]
        received = answers[destination]["received"].get(probes.points[source].address)
        if sent and received:
            results[source, destination] = {"sent": sent, **received}
    return results


def loss_datagrams(loss: float, verify: Verify) -> int:
    """Datagrams that make a measured loss differ from the true one by the tolerance only once in 16,000 (4 sigma).

    Source: standard deviation of a binomial share, sqrt(p (1 - p) / n). At least 500, at most 20,000.
    """
    share = max(loss * (1 - loss), 0.001)
    return min(20_000, max(500, round(16 * share / max(verify.loss_tolerance, 1e-6) ** 2)))


def _quiet_s(shapes: Mapping[Pair, PathShape]) -> float:
    """After such a silence nothing of a stream is still on its way."""
    return 0.02 + 2 * max(shape.jitter_s for shape in shapes.values())


def _measure_loss(
    probes: _Probes,
    shapes: Mapping[Pair, PathShape],
    verify: Verify,
    found: dict[Pair, dict[str, Any]],
) -> None:
    for round_ in rounds(sorted(probes.points)):
        both = [way for a, b in round_ for way in ((a, b), (b, a))]
        orders = {}
        for source, destination in both:
            shape, back = shapes[source, destination], shapes[destination, source]
            if (source, destination) not in found or shape.loss == 1 or back.loss == 1:
                continue
            frame_bits = 8 * (LOSS_BYTES + probe.UDP_FRAME_BYTES)
            gap_s = max(1 / STREAM_DATAGRAMS_PER_S, len(both) / DATAGRAMS_PER_S)
            gap_s = max(gap_s, frame_bits / (0.3 * (shape.rate_bps or 1e12)))
            count = min(loss_datagrams(shape.loss, verify), max(20, round(LOSS_LIMIT_S / gap_s)))
            drain_s = asked_rtt_s(shapes, (source, destination))
            orders[source, destination] = {"count": count, "gap_s": gap_s, "size": LOSS_BYTES, "drain_s": drain_s}
        if orders:
            for pair, result in _stream_round(probes, orders, _quiet_s(shapes)).items():
                found[pair]["loss"] = 1 - result["received"] / result["sent"]


def _rate_order(shape: PathShape, rtt_s: float) -> dict[str, Any]:
    """A stream of more than a path with a rate lets through, of at least 200 datagrams, 125 a second or more."""
    assert shape.rate_bps is not None
    frame_bytes = int(min(FRAME_BYTES, max(106, shape.rate_bps / 8 / 100)))
    offered_bps = shape.rate_bps * OVERLOAD / (1 - shape.loss)
    gap_s = 8 * frame_bytes / offered_bps
    seconds = max(RATE_SECONDS, 200 * gap_s)
    return {
        "count": round(seconds / gap_s),
        "gap_s": gap_s,
        "size": frame_bytes - probe.UDP_FRAME_BYTES,
        "drain_s": rtt_s + seconds,
    }


def _within_budget(pairs: Sequence[Pair], shapes: Mapping[Pair, PathShape]) -> Iterator[list[Pair]]:
    """Split pairs into groups whose asked rates together stay within what datagrams can fill."""
    group: list[Pair] = []
    total_bps = 0.0
    for pair in pairs:
        rate_bps = shapes[pair].rate_bps or 0.0
        if group and total_bps + rate_bps > UDP_BUDGET_BPS:
            yield group
            group, total_bps = [], 0.0
        group.append(pair)
        total_bps += rate_bps
    if group:
        yield group


def _measure_rate(probes: _Probes, shapes: Mapping[Pair, PathShape], found: dict[Pair, dict[str, Any]]) -> None:
    """Only pairs with a rate: a path without one has nothing to be compared with."""
    limited = {pair for pair in found if shapes[pair].rate_bps is not None and shapes[pair].loss < 0.9}
    fast = {pair for pair in limited if (shapes[pair].rate_bps or 0.0) > UDP_BUDGET_BPS}
    for round_ in rounds(sorted(probes.points)):
        ways = [way for a, b in round_ for way in ((a, b), (b, a)) if way in limited - fast]
        for group in _within_budget(ways, shapes):
            orders = {pair: _rate_order(shapes[pair], asked_rtt_s(shapes, pair)) for pair in group}
            for pair, result in _stream_round(probes, orders, _quiet_s(shapes)).items():
                found[pair]["rate_bps"] = result["rate_bps"]
    for pair in sorted(fast):
        found[pair]["rate_bps"] = _bulk_rate_bps(probes, pair, asked_rtt_s(shapes, pair))


def _bulk_rate_bps(probes: _Probes, pair: Pair, rtt_s: float) -> float | None:
    """Rate of several TCP connections together, alone in the WAN."""
    source, destination = (probes.points[site] for site in pair)
    to = destination.address
    common = {"task": "bulk", "port": PORT}
    seconds = 2 * RATE_SECONDS + 20 * rtt_s
    limit_s = seconds + probe.HELLO_LIMIT_S + 5
    answers = probes.run(
        {
            pair[1]: {**common, "namespace": destination.namespace, "address": to, "limit_s": limit_s},
            pair[0]: {**common, "namespace": source.namespace, "to": to, "connections": 8, "duration_s": seconds},
        },
        limit_s,
    )
    rate_bps: float | None = answers[pair[1]]["rate_bps"]
    return rate_bps


def verify_wan(
    runner: Runner,
    points: Sequence[Point],
    shapes: Mapping[Pair, PathShape],
    verify: Verify,
    *,
    readback: Callable[[], Sequence[str]] = tuple,
    attempts: int = 2,
    forwards_bps: float | None = None,
) -> WanReport:
    """Measure and judge; pairs that are not as asked are measured again, and the last measurement counts.

    A wrong shape is wrong every time; what goes away by itself was the machine's. Each measurement is judged by what
    the testbed itself took at that time: beside thousands of echoes it takes more than beside one.

    Args:
        readback: gives the differences between the program and what tc shows; called once.
        attempts: how often a pair is measured at most, >= 1.
        forwards_bps: as `judge`.
        (others): as `measure`.
    """
    problems = readback()
    verdicts: dict[Pair, PairVerdict] = {}
    wanted: Collection[Pair] = sorted(shapes)
    reports: list[WanReport] = []
    while len(reports) < attempts and (wanted or not reports):
        measured = measure(runner, points, shapes, verify, pairs=wanted)
        report = judge(
            {way: shapes[way] for a, b in wanted for way in ((a, b), (b, a))},
            measured.pairs.values(),
            verify,
            measured.base_rtt_s,
            measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            readback_problems=problems,
            probe_scheduling=measured.probe_scheduling,
            forwards_bps=forwards_bps,
        )
        reports.append(report)
        found = {(verdict.measured.source, verdict.measured.destination): verdict for verdict in report.pairs}
        verdicts.update(found)
        wanted = [pair for pair, verdict in found.items() if verdict.problems]
    scheduling = {report.probe_scheduling for report in reports}
    return reports[-1].model_copy(
        update={
            "pairs": tuple(verdict for _, verdict in sorted(verdicts.items())),
            "base_rtt_s": reports[0].base_rtt_s,
            "probe_scheduling": scheduling.pop() if len(scheduling) == 1 else "other",
        }
    )
