"""The WAN between sites: from constraints to a tc program; and the records of what was measured. Pure.

On the router's device towards a site there is, for every other site, an HTB class (rate) with a netem child (delay,
jitter, loss), chosen by a u32 filter on the source network. `wan_readback` compares it with what tc shows. Where there
is no router, `egress` makes the hosts' own programs of the same parts.
"""

from __future__ import annotations

import math
from collections import Counter
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
BURST_S = 0.004
"""A class may send this long at once: a router that wakes late by less loses no rate."""
FIRST_MINOR = 0x10
"""Class of the first source site (by name); lower numbers are left to HTB itself."""
UML_FORWARDS_BPS = 350e6
"""What a router in User-Mode Linux has been seen to forward at least, in all, of the single packets of paths with a
rate; whether it forwards more is known only when it is measured."""
SEGMENTATION_OFF = "# segmentation: off"
SEGMENTATION_ON = "# segmentation: on"
"""Comments for whoever runs a program: whether the router's ports may take super-packets of up to 64 KB (TSO, GSO)."""


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
    """RTT of the testbed itself while this pair was measured; None: the report's."""
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
    """RTT of the testbed itself between two sites, measured with all pairs; subtracted before judging."""
    probe_scheduling: str = ""
    """`fifo` when all probes ran at real-time priority, `other` when some could not, "" when not measured."""
    clocks: tuple[ClockOffset, ...] = ()
    """Of hosts that do not read the driver's own clock."""
    clock_problems: tuple[str, ...] = ()
    """Clocks that are too far away for what relies on them: a common start at several sites."""

    def base_of(self, pair: PairVerdict) -> float:
        """RTT of the testbed itself while a pair was measured, in seconds."""
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


def class_minor(site_names: Iterable[str]) -> dict[str, str]:
    """Site -> minor number of the class of its paths on every device, also its netem's handle (hexadecimal text)."""
    return {name: f"{FIRST_MINOR + index:x}" for index, name in enumerate(sorted(site_names))}


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def root_lines(device: str) -> list[str]:
    """Lines of tc that put our empty htb at a device's root, whatever is there."""
    # Whatever is there goes first: htb refuses to be replaced by htb.
    return [f"qdisc replace dev {device} root pfifo", f"qdisc replace dev {device} root handle 1: htb default 0"]


def path_lines(device: str, minor: str, shape: PathShape) -> list[str]:
    """Lines of tc that add a path's class and its netem to a device with our htb."""
    return [
        f"class add dev {device} parent 1: classid 1:{minor} {_class_options(shape)}",
        f"qdisc add dev {device} parent 1:{minor} handle {minor}: {_netem_options(shape)}",
    ]


def filter_line(device: str, minor: str, match: str) -> str:
    """The line of tc that leads packets with `match` ("src 10.0.0.0/24") into a class."""
    return f"filter add dev {device} parent 1: protocol ip prio 1 u32 match ip {match} flowid 1:{minor}"


def change_lines(device: str, minor: str, before: PathShape, after: PathShape) -> list[str]:
    """Lines of tc that give a path another shape and lose no packet; none when tc is told the same for both."""
    lines = []
    if _class_options(before) != _class_options(after):
        lines.append(f"class change dev {device} parent 1: classid 1:{minor} {_class_options(after)}")
    if _netem_options(before) != _netem_options(after):
        lines.append(f"qdisc change dev {device} parent 1:{minor} handle {minor}: {_netem_options(after)}")
    return lines


def _class_options(shape: PathShape) -> str:
    rate_bps = round(shape.rate_bps or UNLIMITED_BPS)
    burst_bytes = math.ceil(rate_bps / 8 * BURST_S) + FRAME_BYTES
    return f"htb rate {rate_bps}bit burst {burst_bytes} cburst {burst_bytes} quantum 20000"


def _netem_options(shape: PathShape) -> str:
    words = ["netem", "delay", f"{_number(shape.delay_s * 1e3)}ms"]
    if shape.jitter_s:
        words.append(f"{_number(shape.jitter_s * 1e3)}ms")
    if shape.loss:
        words += ["loss", f"{_number(shape.loss * 100)}%"]
    return " ".join([*words, "limit", str(limit_packets(shape))])


def segmentation(shapes: Iterable[PathShape]) -> str:
    """The comment that a program with these shapes begins with."""
    return SEGMENTATION_OFF if single_packets(shapes) else SEGMENTATION_ON


def tc_program(shapes: Mapping[Pair, PathShape], devices: Mapping[str, str], subnets: Mapping[str, str]) -> str:
    """The whole program for `tc -batch`, for a router that has one already or none.

    Packets that wait in a queue are lost when it is run, and for a moment nothing is shaped.

    Args:
        shapes: as from `path_shapes`.
        devices: site -> the router's device towards it.
        subnets: site -> its network (CIDR).
    """
    minors = class_minor(devices)
    lines = [segmentation(shapes.values())]
    for destination in sorted(devices):
        device = devices[destination]
        lines += root_lines(device)
        for source in sorted(devices):
            if source == destination:
                continue
            minor = minors[source]
            lines += path_lines(device, minor, shapes[source, destination])
            lines.append(filter_line(device, minor, f"src {subnets[source]}"))
    return "\n".join(lines) + "\n"


def tc_changes(old: Mapping[Pair, PathShape], new: Mapping[Pair, PathShape], devices: Mapping[str, str]) -> str:
    """The program that turns a router with `old` into one with `new`, with no packet lost; "" when they are equal.

    Raises:
        ValueError: the two are not of the same sites: that needs `tc_program`.
    """
    if set(old) != set(new):
        raise ValueError("the sites have changed: the whole program must be run")
    minors = class_minor(devices)
    lines = []
    for source, destination in sorted(new, key=lambda pair: (pair[1], pair[0])):
        before, after = old[source, destination], new[source, destination]
        lines += change_lines(devices[destination], minors[source], before, after)
    return "\n".join([segmentation(new.values()), *lines]) + "\n" if lines else ""


def asked_rtt_s(shapes: Mapping[Pair, PathShape], pair: Pair) -> float:
    """Round trip that was asked of a pair: both one-way delays."""
    return shapes[pair].delay_s + shapes[pair[1], pair[0]].delay_s


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


class AppliedPath(Strict):
    """The shape that was put on one ordered pair of sites."""

    source: str
    destination: str
    shape: PathShape


class AppliedShapes(Strict):
    """What was last put on the WAN."""

    paths: tuple[AppliedPath, ...]
