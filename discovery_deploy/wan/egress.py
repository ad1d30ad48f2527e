"""The WAN where no router lies between the sites: each host shapes what it sends. Pure.

On a host's device there is, for every other site whose path is to be shaped, an HTB class (rate) with a netem child
(delay, jitter, loss); u32 filters lead packets to each host of that site into it. All else leaves unshaped: to hosts of
the own site, to the driver, to the internet. A host with no path to shape has nothing, so its kernel needs nothing.

A router's rate from one site to another is shared by the hosts of the sending site. Here each host has it for itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from discovery_deploy.experiment.model import Verify
from discovery_deploy.system.errors import MeasurementError, TestbedError
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan.plan import Device, Path, class_minor
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s, single_packets
from discovery_deploy.wan.tc import (
    SEGMENTATION_ON,
    change_lines,
    device_problems,
    filter_line,
    path_lines,
    root_lines,
    segmentation,
)
from discovery_deploy.wan.verdict import WanReport, milliseconds

Shapes = Mapping[Pair, PathShape]

UNSHAPED = PathShape()


class EgressHost(Protocol):
    """What is to be known of a host; `base.LeasedHost` has it."""

    @property
    def name(self) -> str:
        """Unique in the experiment."""

    @property
    def site(self) -> str:
        """Where it is."""

    @property
    def site_address(self) -> str:
        """IPv4 address to which the WAN leads."""

    @property
    def site_device(self) -> str:
        """The host's device by which packets to other sites leave."""


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


def shaped_paths(shapes: Shapes, site: str) -> dict[str, PathShape]:
    """Destination site -> shape, of the paths from a site that need shaping, sorted by name."""
    paths = {destination: shape for (source, destination), shape in shapes.items() if source == site}
    return {name: paths[name] for name in sorted(paths) if paths[name] != UNSHAPED}


def _addresses(hosts: Sequence[EgressHost]) -> dict[str, list[str]]:
    """Site -> addresses of its hosts, sorted by the hosts' names. Raises as `programs`."""
    owners: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for host in sorted(hosts, key=lambda host: host.name):
        other = owners.setdefault(host.site_address, host.name)
        if other != host.name:
            raise TestbedError(
                f"hosts {other} and {host.name} have the same address {host.site_address}: "
                "what is sent to one cannot be told from what is sent to the other",
                "Give every host an address of its own.",
            )
        found.setdefault(host.site, []).append(host.site_address)
    return found


def programs(shapes: Shapes, hosts: Sequence[EgressHost]) -> dict[str, str]:
    """The whole program (`tc -batch`) of every host, whatever is on its device.

    Packets that wait in a queue are lost when it is run, and for a moment nothing is shaped.

    Args:
        shapes: as from `shapes.path_shapes`.
        hosts: all hosts of all sites.
    Returns:
        Host -> program. One that shapes nothing only takes away what an earlier one put there.
    Raises:
        TestbedError: two hosts have the same address.
    """
    addresses = _addresses(hosts)
    minors = class_minor({site for pair in shapes for site in pair})
    return {host.name: _program(shaped_paths(shapes, host.site), host, minors, addresses) for host in hosts}


def _program(
    paths: Mapping[str, PathShape], host: EgressHost, minors: Mapping[str, str], addresses: Mapping[str, Sequence[str]]
) -> str:
    device = host.site_device
    if not paths:
        # pfifo first: with the default discipline there, there would be nothing to delete.
        lines = [SEGMENTATION_ON, f"qdisc replace dev {device} root pfifo", f"qdisc del dev {device} root"]
        return "\n".join(lines) + "\n"
    lines = [segmentation(paths.values()), *root_lines(device)]
    for destination, shape in paths.items():
        minor = minors[destination]
        lines += path_lines(device, minor, shape)
        lines += [filter_line(device, minor, f"dst {address}/32") for address in addresses[destination]]
    return "\n".join(lines) + "\n"


def changes(old: Shapes, new: Shapes, hosts: Sequence[EgressHost]) -> dict[str, str]:
    """The programs that turn hosts with `old` into hosts with `new`; no host that stays as it is.

    No packet is lost, but on hosts where a path begins or ends to be shaped: they get the whole program.

    Raises:
        ValueError: the two are not of the same sites: that needs `programs`.
        TestbedError: two hosts have the same address.
    """
    if set(old) != set(new):
        raise ValueError("the sites have changed: the whole programs must be run")
    whole = programs(new, hosts)
    minors = class_minor({site for pair in new for site in pair})
    found = {}
    for host in hosts:
        before, after = shaped_paths(old, host.site), shaped_paths(new, host.site)
        if set(before) != set(after):
            found[host.name] = whole[host.name]
            continue
        lines = [
            line
            for destination, shape in after.items()
            for line in change_lines(host.site_device, minors[destination], before[destination], shape)
        ]
        if lines:
            found[host.name] = "\n".join([segmentation(after.values()), *lines]) + "\n"
    return found


def readback_problems(shapes: Shapes, shown: Mapping[str, str], hosts: Sequence[EgressHost]) -> tuple[str, ...]:
    """Differences between the shapes that were asked and what hosts show, within tc's own rounding.

    Args:
        shapes: that were put there, as from `shapes.path_shapes` or `compensate`.
        shown: host -> JSON of what `tc.device_problems` takes.
        hosts: as for `programs`.
    Returns:
        One line a difference, each naming path and host; empty when all is as asked.
    """
    addresses = _addresses(hosts)
    minors = class_minor({site for pair in shapes for site in pair})
    problems: list[str] = []
    for host in sorted(hosts, key=lambda host: host.name):
        on_host, where = json.loads(shown[host.name]), f"{host.name}: {host.site_device}"
        paths = shaped_paths(shapes, host.site)
        if not paths:
            roots = [q for q in on_host["qdisc"].get(host.site_device, []) if q.get("root")]
            # The kernel's own discipline, put there by nobody, has the handle 0.
            left = [str(root["kind"]) for root in roots if root.get("handle") != "0:"]
            problems += [f"{where}: nothing is to be shaped, but tc shows {kind}" for kind in left]
            continue
        expected = tuple(
            Path(
                name=f"{host.site} -> {destination} ({where})",
                minor=minors[destination],
                shape=shape,
                matches=tuple(f"dst {address}/32" for address in addresses[destination]),
            )
            for destination, shape in paths.items()
        )
        device = Device(host.site_device, where, expected)
        problems += device_problems(device, on_host, not single_packets(paths.values()))
    return tuple(problems)


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
