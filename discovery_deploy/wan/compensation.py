"""What the testbed takes itself: measured, taken off the delays that are asked, and corrected by what is seen then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from discovery_deploy.experiment.model import Verify
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s
from discovery_deploy.wan.verdict import WanReport, milliseconds

Shapes = Mapping[Pair, PathShape]

BASE_PROBES = 100
"""Echoes of each pair, at least, when the testbed's own RTT is measured: its error becomes one of every shape."""
NOTHING_S = 1e-6
"""Less than this is no correction."""


class BaseRtt(Strict):
    """The testbed's own round trip for one ordered pair of sites, in seconds; measured while nothing was shaped."""

    source: str
    destination: str
    rtt_s: float
    late_s: float = 0.0
    """How much more than that and its delays a round trip takes where the path is shaped."""


class BaseRtts(Strict):
    """The same for all pairs, and of which machines."""

    measured_at: str
    """ISO 8601, UTC."""
    identities: dict[str, str]
    """`Lease.identities` of that time: of other machines the round trips are others."""
    pairs: tuple[BaseRtt, ...]

    def by_pair(self) -> dict[Pair, float]:
        """Pair -> seconds."""
        return {(pair.source, pair.destination): pair.rtt_s for pair in self.pairs}

    def late(self) -> dict[Pair, float]:
        """Pair -> seconds of `BaseRtt.late_s`."""
        return {(pair.source, pair.destination): pair.late_s for pair in self.pairs}


def base_rtts(
    runner: measure.Runner, points: Sequence[measure.Point], verify: Verify, identities: Mapping[str, str]
) -> BaseRtts:
    """Measure the testbed's own RTT of every pair of sites; nothing may be shaped meanwhile.

    Args:
        runner: runs a command on a host.
        points: one per site.
        verify: how many echoes, at least `BASE_PROBES`, and how far apart.
        identities: of the lease; kept with what was measured.
    Raises:
        MeasurementError: a probe did not answer; whatever the runner raises.
    """
    unshaped = {(a.site, b.site): PathShape() for a in points for b in points if a.site != b.site}
    how = verify.model_copy(update={"measure": ("rtt",), "probes": max(verify.probes, BASE_PROBES)})
    measured = measure.measure(runner, points, unshaped, how)
    pairs = [
        BaseRtt(source=source, destination=destination, rtt_s=pair.rtt_median_s)
        for (source, destination), pair in sorted(measured.pairs.items())
        if pair.rtt_median_s is not None
    ]
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return BaseRtts(measured_at=at, identities=dict(identities), pairs=tuple(pairs))


def _can_give_s(shape: PathShape) -> float:
    """How much of a way's delay may be taken off: less than the jitter would be cut off at zero."""
    return max(0.0, shape.delay_s - shape.jitter_s)


def _shortened(shape: PathShape, by_s: float) -> PathShape:
    """To whole nanoseconds, so that nothing of a delay is left where all of it was taken."""
    return shape.model_copy(update={"delay_s": round(shape.delay_s - by_s, 9)})


def base_rtt_tolerance_s(asked_s: float, verify: Verify) -> float:
    """How much more than asked a round trip may take in the verification, in seconds, without the chance of jitter."""
    return max(verify.rtt_tolerance, verify.rtt_tolerance_ratio * asked_s)


def compensate(
    shapes: Shapes, base_rtts_s: Mapping[Pair, float], verify: Verify, late_s: Mapping[Pair, float] | None = None
) -> dict[Pair, PathShape]:
    """The shapes to apply so that, with the testbed's own round trips, the asked ones are what there is.

    Half of a pair's base RTT is taken off the delay of each way; what one way has not, the other gives. Jitter stays
    whole: delays are not made shorter than it.

    Args:
        shapes: as asked.
        base_rtts_s: ordered pair -> median RTT in seconds while nothing was shaped; of both orders, whose
            mean counts, or of one.
        verify: a base RTT is too long when it exceeds what can be taken off by more than is accepted as measured.
        late_s: the same pairs -> what shaped paths took beyond that (`corrected`): taken off too, as far as there is
            delay to take it from.
    Raises:
        MeasurementError: naming every pair whose base RTT is too long, or was not measured.
    """
    applied, late = dict(shapes), late_s or {}
    mistakes = []
    for a, b in sorted(pair for pair in shapes if pair[0] < pair[1]):
        known = [base_rtts_s[way] for way in ((a, b), (b, a)) if way in base_rtts_s]
        if not known:
            mistakes.append(f"{a} <-> {b}: the testbed's own RTT is not known: no echo came back while it was unshaped")
            continue
        base_s, asked_s = _mean(known), asked_rtt_s(shapes, (a, b))
        there, back = shapes[a, b], shapes[b, a]
        can_s = _can_give_s(there), _can_give_s(back)
        if base_s - sum(can_s) > base_rtt_tolerance_s(asked_s, verify):
            kept = "" if sum(can_s) >= asked_s else f" (jitter leaves {milliseconds(sum(can_s))} of it)"
            mistakes.append(
                f"{a} <-> {b}: RTT asked {milliseconds(asked_s)}{kept}, the testbed alone takes {milliseconds(base_s)}"
            )
            continue
        own_s = max(0.0, base_s + _mean([seconds for way, seconds in late.items() if way in ((a, b), (b, a))]))
        second_s = min(own_s - min(own_s / 2, can_s[0]), can_s[1])
        first_s = min(own_s - second_s, can_s[0])
        applied[a, b] = _shortened(there, first_s)
        applied[b, a] = _shortened(back, second_s)
    if mistakes:
        raise MeasurementError(
            "\n".join(mistakes),
            "Ask for longer delays between these sites, or for machines that are closer to each other.",
        )
    return applied


def corrected(base: BaseRtts, shapes: Shapes, report: WanReport, verify: Verify) -> BaseRtts | None:
    """What to take off instead, by what was measured with these taken off; None where that is well as it is.

    Shaped paths of emulated machines took a millisecond more (timers that are late?); no unshaped path shows it. A
    pair is corrected when one of its orders is off by more than half of what is accepted, as the next measurement is
    another.

    Args:
        base: with which `shapes` were compensated.
        shapes: as asked.
        report: measured since.
        verify: what is accepted.
    """
    errors_s = {
        (pair.measured.source, pair.measured.destination): pair.measured.rtt_median_s - pair.asked_rtt_s
        for pair in report.pairs
        if pair.measured.rtt_median_s is not None
    }
    rtts_s, late_s = base.by_pair(), base.late()
    better = dict(late_s)
    for a, b in sorted(pair for pair in shapes if pair[0] < pair[1]):
        ways = ((a, b), (b, a))
        errors = [errors_s[way] for way in ways if way in errors_s]
        accepted_s = base_rtt_tolerance_s(asked_rtt_s(shapes, (a, b)), verify)
        if not any(abs(error_s) > accepted_s / 2 for error_s in errors):
            continue
        base_s = _mean([rtts_s[way] for way in ways if way in rtts_s])
        own_s = base_s + _mean([late_s[way] for way in ways if way in late_s])
        can_s = sum(_can_give_s(shapes[way]) for way in ways)
        now_s, then_s = (min(max(0.0, seconds), can_s) for seconds in (own_s, own_s + _mean(errors)))
        if abs(then_s - now_s) > NOTHING_S:
            better |= {way: round(then_s - base_s, 9) for way in ways}
    if better == late_s:
        return None
    changed = (pair.model_copy(update={"late_s": better[pair.source, pair.destination]}) for pair in base.pairs)
    return base.model_copy(update={"pairs": tuple(changed)})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
