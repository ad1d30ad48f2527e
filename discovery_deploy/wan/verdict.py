"""Whether the WAN is the one asked for: records of what was measured, and from them a verdict. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from discovery_deploy.experiment.model import Verify
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s

UML_FORWARDS_BPS = 350e6
"""What a router in User-Mode Linux has been seen to forward at least, in all, of the single packets of paths with a
rate; whether it forwards more is known only when it is measured."""


class PairMeasurement(Strict):
    """What was measured from `source` to `destination`; times in seconds, None where not measured.

    Echoes go there and back: each pair is asked from one side, and both orders have its `sent` to `rtt_max_s`.
    """

    source: str
    destination: str
    sent: int
    """Echo requests."""
    received: int
    """Replies."""
    rtt_median_s: float | None
    rtt_p99_s: float | None
    rtt_max_s: float | None
    loss: float | None = None
    """One-way loss, a ratio, counted at the destination."""
    rate_bps: float | None = None
    """One-way rate in bits per second on the wire (Ethernet frames), counted at the destination."""
    one_way_median_s: float | None = None
    """Median one-way delay of the echoes; only where both sites read the same clock."""
    jitter_s: float | None = None
    """Half the width of a uniform distribution with the 10th and 90th percentiles of these one-way delays."""


class PairVerdict(Strict):
    """Asked against measured for one ordered pair."""

    asked: PathShape
    asked_rtt_s: float
    """Forward plus backward delay, without the base RTT of the testbed."""
    measured: PairMeasurement
    base_rtt_s: float | None = None
    """What was subtracted for the testbed itself: its RTT while this pair was measured, at most the tolerance of the
    RTT; None, in older records: the report's."""
    problems: tuple[str, ...] = ()

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Kinds of what was asked and not measured: for these only what tc shows was compared with what was asked."""
        asked, got = self.asked, self.measured
        kinds = {
            "RTT": got.rtt_median_s is None,
            "one-way delay": got.one_way_median_s is None,
            "jitter": bool(asked.jitter_s) and got.jitter_s is None,
            "loss": bool(asked.loss) and got.loss is None,
            "rate": asked.rate_bps is not None and got.rate_bps is None,
        }
        return tuple(kind for kind, missing in kinds.items() if missing)


class ClockOffset(Strict):
    """How far a host's clock is from the driver's."""

    host: str
    offset_s: float
    """The host's clock minus the driver's; positive: the host is ahead."""
    error_s: float
    """Half of what the exchange took, in seconds: the true offset is within `offset_s` +- `error_s`."""


class WanReport(Strict):
    """One verification of the whole WAN."""

    measured_at: str
    """ISO 8601, UTC."""
    pairs: tuple[PairVerdict, ...]
    readback_problems: tuple[str, ...] = ()
    """Differences between the program that was applied and what tc shows."""
    base_rtt_s: float = 0.0
    """RTT of the testbed itself between two sites, measured with all pairs."""
    probe_scheduling: str = ""
    """`fifo` when all probes ran at real-time priority, `other` when some could not, "" when not measured."""
    clocks: tuple[ClockOffset, ...] = ()
    """Of hosts that do not read the driver's own clock."""
    clock_problems: tuple[str, ...] = ()
    """Clocks that are too far away for what relies on them: a common start at several sites."""

    def base_of(self, pair: PairVerdict) -> float:
        """What was subtracted from a pair's RTT for the testbed itself, in seconds."""
        return self.base_rtt_s if pair.base_rtt_s is None else pair.base_rtt_s

    @property
    def problems(self) -> tuple[str, ...]:
        """Every reason why the WAN is not the one asked for."""
        of_pairs = tuple(problem for pair in self.pairs for problem in pair.problems)
        return self.readback_problems + self.clock_problems + of_pairs

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Each kind of what was asked and not measured, with the number of ordered pairs: "rate (2 of 6 pairs)"."""
        counts = Counter(kind for pair in self.pairs for kind in pair.not_measured)
        return tuple(f"{kind} ({count} of {len(self.pairs)} pairs)" for kind, count in sorted(counts.items()))


def milliseconds(seconds: float) -> str:
    """A time as messages show it."""
    return f"{seconds * 1e3:.2f} ms"


def unmeasured(pair: Pair) -> PairMeasurement:
    """The measurement of a pair that nothing was sent on."""
    return PairMeasurement(
        source=pair[0],
        destination=pair[1],
        sent=0,
        received=0,
        rtt_median_s=None,
        rtt_p99_s=None,
        rtt_max_s=None,
    )


def rtt_tolerance_s(shapes: Mapping[Pair, PathShape], pair: Pair, verify: Verify, received: int) -> float:
    """Largest accepted |measured - asked| of a median RTT, in seconds.

    Jitter widens it by three standard errors of a median of `received` samples: each way is uniform within
    +-jitter (standard deviation jitter / sqrt 3), and a median's standard error is sqrt(pi / 2) x sd / sqrt(n).
    """
    ways = (shapes[pair], shapes[pair[1], pair[0]])
    deviation_s = math.sqrt(sum(way.jitter_s**2 for way in ways) / 3)
    sampling_s = 3 * math.sqrt(math.pi / 2) * deviation_s / math.sqrt(max(received, 1))
    return max(verify.rtt_tolerance, verify.rtt_tolerance_ratio * asked_rtt_s(shapes, pair)) + sampling_s


def one_way_tolerance_s(shapes: Mapping[Pair, PathShape], pair: Pair, verify: Verify, received: int) -> float:
    """Largest accepted |measured - asked| of a median one-way delay, in seconds: as `rtt_tolerance_s`.

    The median of values that are uniform within +-jitter has the standard error jitter / sqrt(n).
    """
    accepted_s = max(verify.rtt_tolerance, verify.rtt_tolerance_ratio * asked_rtt_s(shapes, pair))
    return accepted_s + 3 * shapes[pair].jitter_s / math.sqrt(max(received, 1))


def jitter_tolerance_s(jitter_s: float, verify: Verify, received: int) -> float:
    """Largest accepted |measured - asked| of a jitter, in seconds: the testbed's own, and four standard errors.

    The distance of the 10th and 90th percentiles of n uniform values has the standard error 0.8 jitter / sqrt(n)
    (asymptotically); it is 1.6 jitter.
    """
    return verify.rtt_tolerance + 4 * jitter_s / 2 / math.sqrt(max(received, 1))


def _rtt_problems(
    shapes: Mapping[Pair, PathShape], measured: PairMeasurement, verify: Verify, base_s: float
) -> Iterable[str]:
    pair = (measured.source, measured.destination)
    where = f"{pair[0]} -> {pair[1]}"
    kept = (1 - shapes[pair].loss) * (1 - shapes[pair[1], pair[0]].loss)
    if measured.rtt_median_s is None:
        if measured.sent and kept:
            yield f"{where}: no reply to {measured.sent} echo requests"
        return
    if not kept:
        yield (
            f"{where}: {measured.received} of {measured.sent} echoes came back, asked was a loss of 100 % on the way "
            f"{'there' if shapes[pair].loss == 1 else 'back'}"
        )
        return
    asked_s, tolerance_s = asked_rtt_s(shapes, pair), rtt_tolerance_s(shapes, pair, verify, measured.received)
    if abs(measured.rtt_median_s - base_s - asked_s) > tolerance_s:
        yield (
            f"{where}: RTT asked {milliseconds(asked_s)}, measured {milliseconds(measured.rtt_median_s)} "
            f"(median of {measured.received}; {milliseconds(base_s)} of it are the testbed's), "
            f"tolerance {milliseconds(tolerance_s)}"
        )
    lost = 1 - measured.received / measured.sent
    allowed = 2 * verify.loss_tolerance + 4 * math.sqrt(kept * (1 - kept) / measured.sent)
    if abs(lost - (1 - kept)) > allowed:
        yield (
            f"{where}: {measured.sent - measured.received} of {measured.sent} echoes lost ({100 * lost:.1f} %), "
            f"asked {100 * (1 - kept):.1f} % for both ways together"
        )


def _one_way_problems(
    shapes: Mapping[Pair, PathShape], measured: PairMeasurement, verify: Verify, base_s: float
) -> Iterable[str]:
    """Of one direction's delay and jitter, where both were seen; half of the testbed's own RTT belongs to each way."""
    pair = (measured.source, measured.destination)
    shape, where = shapes[pair], f"{pair[0]} -> {pair[1]}"
    tolerance_s = one_way_tolerance_s(shapes, pair, verify, measured.received)
    delay_s = measured.one_way_median_s
    if delay_s is not None and abs(delay_s - base_s / 2 - shape.delay_s) > tolerance_s:
        yield (
            f"{where}: one-way delay asked {milliseconds(shape.delay_s)}, measured {milliseconds(delay_s)} "
            f"({milliseconds(base_s / 2)} of it are the testbed's), tolerance {milliseconds(tolerance_s)}"
        )
    if shape.jitter_s and measured.jitter_s is not None:
        tolerance_s = jitter_tolerance_s(shape.jitter_s, verify, measured.received)
        if abs(measured.jitter_s - shape.jitter_s) > tolerance_s:
            yield (
                f"{where}: jitter asked {milliseconds(shape.jitter_s)}, measured {milliseconds(measured.jitter_s)}, "
                f"tolerance {milliseconds(tolerance_s)}"
            )


def _flow_problems(
    shape: PathShape, measured: PairMeasurement, verify: Verify, forwards_bps: float | None
) -> Iterable[str]:
    where = f"{measured.source} -> {measured.destination}"
    if measured.loss is not None and abs(measured.loss - shape.loss) > verify.loss_tolerance:
        yield (
            f"{where}: loss asked {100 * shape.loss:.2f} %, measured {100 * measured.loss:.2f} %, "
            f"tolerance {100 * verify.loss_tolerance:.2f} %"
        )
    if shape.rate_bps is None:
        return
    if measured.rate_bps is None:
        if forwards_bps is not None and shape.rate_bps > forwards_bps:
            yield (
                f"{where}: rate asked {shape.rate_bps / 1e6:.3f} Mbit/s, not measured, and more than the "
                f"{forwards_bps / 1e6:g} Mbit/s that this kind of router has been seen to forward; "
                "add `rate` to `network.verify.measure`, or ask for less"
            )
        return
    allowed_bps = verify.rate_tolerance * shape.rate_bps
    if abs(measured.rate_bps - shape.rate_bps) > allowed_bps:
        yield (
            f"{where}: rate asked {shape.rate_bps / 1e6:.3f} Mbit/s, measured {measured.rate_bps / 1e6:.3f} "
            f"Mbit/s, tolerance {allowed_bps / 1e6:.3f} Mbit/s"
        )


def judge(
    shapes: Mapping[Pair, PathShape],
    measurements: Iterable[PairMeasurement],
    verify: Verify,
    base_rtt_s: float,
    *,
    measured_at: str,
    readback_problems: Sequence[str] = (),
    probe_scheduling: str = "",
    forwards_bps: float | None = None,
) -> WanReport:
    """Asked against measured, for every ordered pair; a pair that was not measured is a problem.

    Args:
        base_rtt_s: RTT of the testbed itself between two sites; up to `verify.rtt_tolerance` of it is subtracted.
        measured_at: ISO 8601, UTC.
        forwards_bps: a rate above this is a problem where it was not measured; None: none is.
    """
    # A testbed slower than the tolerance is a deviation, not a base to be forgiven.
    base_s = min(base_rtt_s, verify.rtt_tolerance)
    by_pair = {(measured.source, measured.destination): measured for measured in measurements}
    verdicts = []
    for pair, shape in sorted(shapes.items()):
        asked_s = asked_rtt_s(shapes, pair)
        measured = by_pair.get(pair) or unmeasured(pair)
        problems = [*_rtt_problems(shapes, measured, verify, base_s)]
        problems += _one_way_problems(shapes, measured, verify, base_s)
        problems += _flow_problems(shape, measured, verify, forwards_bps)
        if pair not in by_pair:
            problems = [f"{pair[0]} -> {pair[1]}: not measured"]
        verdicts.append(
            PairVerdict(
                asked=shape, asked_rtt_s=asked_s, measured=measured, base_rtt_s=base_s, problems=tuple(problems)
            )
        )
    return WanReport(
        measured_at=measured_at,
        pairs=tuple(verdicts),
        readback_problems=tuple(readback_problems),
        base_rtt_s=base_rtt_s,
        probe_scheduling=probe_scheduling,
    )


def summary(report: WanReport) -> str:
    """One line: how many ordered pairs, how far the medians are from asked, and what was not measured."""
    if report.problems:
        return f"{len(report.problems)} problems, the first: {report.problems[0]}"
    errors_s = [
        abs(pair.measured.rtt_median_s - report.base_of(pair) - pair.asked_rtt_s)
        for pair in report.pairs
        if pair.measured.rtt_median_s is not None
    ]
    said = f"largest RTT error {max(errors_s) * 1e3:.2f} ms" if errors_s else "no RTT"
    unseen = f"; {not_measured_text(report)}" if report.not_measured else ""
    where = " where measured" if unseen else ""
    return f"{len(report.pairs)} ordered pairs as asked{where}, {said}{unseen}"


def not_measured_text(report: WanReport) -> str:
    """What of a verification stands on the read-back alone: "not measured, only read back: rate (2 of 6 pairs)"."""
    return f"not measured, only read back: {', '.join(report.not_measured)}"
