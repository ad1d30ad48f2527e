"""The WAN between sites as it is asked for: from constraints to the shape of every path. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from discovery_deploy.experiment.model import Network
from discovery_deploy.experiment.units import format_duration, format_rate, format_ratio
from discovery_deploy.system.strict import Strict

Pair = tuple[str, str]
"""(source site, destination site)."""

FRAME_BYTES = 1514
"""A full Ethernet frame as HTB counts it: 1500 bytes and the Ethernet header."""

UNLIMITED_BPS = 10_000_000_000
"""Rate of the class of a path that is not limited; above what any router here forwards."""

MIN_QUEUE_PACKETS = 1000


class PathShape(Strict):
    """The one-way path from one site to another, as asked; every value is settled (defaults applied)."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bps: float | None = None
    """None: not limited."""

    def __str__(self) -> str:
        parts = [format_duration(self.delay_s)]
        if self.jitter_s:
            parts.append(f"jitter {format_duration(self.jitter_s)}")
        if self.loss:
            parts.append(f"loss {format_ratio(self.loss)}")
        if self.rate_bps is not None:
            parts.append(format_rate(self.rate_bps))
        return ", ".join(parts)


def path_shapes(network: Network, site_names: Sequence[str]) -> dict[Pair, PathShape]:
    """Shape of every ordered pair of sites, sorted; what a constraint leaves out comes from the default.

    Raises:
        ValueError: a constraint names a site that is not in `site_names`.
    """
    default = network.default
    constraints = {pair: constraint for constraint in network.constraints for pair in constraint.ordered_pairs()}
    unknown = sorted({name for pair in constraints for name in pair} - set(site_names))
    if unknown:
        raise ValueError(f"constraints name unknown sites: {', '.join(unknown)}")

    def shape(pair: Pair) -> PathShape:
        asked = constraints.get(pair, default)
        return PathShape(
            delay_s=default.delay if asked.delay is None else asked.delay,
            jitter_s=(default.jitter if asked.jitter is None else asked.jitter) or 0.0,
            loss=(default.loss if asked.loss is None else asked.loss) or 0.0,
            rate_bps=default.rate if asked.rate is None else asked.rate,
        )

    names = sorted(site_names)
    return {(a, b): shape((a, b)) for a in names for b in names if a != b}


def queue_limit(delay_s: float, rate_bps: float) -> int:
    """Packets that netem must hold so that its queue, not our constraint, drops as late as a real router would.

    Packets on their way (delay x rate), and `MIN_QUEUE_PACKETS` that wait for their turn in front of the rate.

    Args:
        delay_s: one-way delay plus jitter, in seconds, >= 0.
        rate_bps: rate of the constraint, in bits per second, > 0.
    Returns:
        A number of full frames (1514 bytes), at least 1000.
    Raises:
        ValueError: a negative delay or a rate that is not positive.
    Source: `limit` in tc-netem(8).
    """
    if delay_s < 0 or rate_bps <= 0:
        raise ValueError(f"no queue for a delay of {delay_s} s at {rate_bps} bit/s")
    return MIN_QUEUE_PACKETS + math.ceil(round(delay_s * rate_bps / (8 * FRAME_BYTES), 6))


def limit_packets(shape: PathShape) -> int:
    """`queue_limit` of a path."""
    return queue_limit(shape.delay_s + shape.jitter_s, shape.rate_bps or UNLIMITED_BPS)


def single_packets(shapes: Iterable[PathShape]) -> bool:
    """Whether the router must see packets one by one (no TSO or GSO super-packets of up to 64 KB).

    With loss a super-packet is lost as a whole, and TCP hardly notices; with a rate one counts as one in the
    queue's limit, and passes as one burst; with jitter packets of one burst would never change places.
    """
    return any(shape.loss > 0 or shape.jitter_s > 0 or shape.rate_bps is not None for shape in shapes)


def asked_rtt_s(shapes: Mapping[Pair, PathShape], pair: Pair) -> float:
    """Round trip that was asked of a pair: both one-way delays."""
    return shapes[pair].delay_s + shapes[pair[1], pair[0]].delay_s


class AppliedPath(Strict):
    """The shape that was put on one ordered pair of sites."""

    source: str
    destination: str
    shape: PathShape


class AppliedShapes(Strict):
    """What was last put on the WAN."""

    paths: tuple[AppliedPath, ...]
