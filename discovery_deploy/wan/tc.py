"""Shapes of paths as programs for tc, and what tc shows of devices compared with them. Pure.

On the router's device towards a site there is, for every other site, an HTB class (rate) with a netem child (delay,
jitter, loss), chosen by a u32 filter on the source network. Where there is no router, `egress` makes the hosts' own
programs of the same parts.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.wan.plan import Device, Path, WanPlan
from discovery_deploy.wan.shapes import FRAME_BYTES, UNLIMITED_BPS, PathShape, limit_packets, single_packets

BURST_S = 0.004
"""A class may send this long at once: a router that wakes late by less loses no rate."""

SEGMENTATION_OFF = "# segmentation: off"

SEGMENTATION_ON = "# segmentation: on"
"""Comments at the head of a program: whether super-packets of up to 64 KB (TSO, GSO) may come to its devices."""
TIME_ROUNDING_S = 2e-6
"""tc 6.1 shows 37.5 ms as 0.037499 and 1.234567 ms as 0.001233."""
RATIO_ROUNDING = 1e-5
"""tc shows six digits."""
RATE_ROUNDING = 1e-3
"""tc shows at least four digits of a rate."""

_CLASS = re.compile(r"^class htb (?P<classid>\S+) .*\brate (?P<rate>\d+)(?P<unit>[KMGT]?)bit\b")
_UNIT_BPS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_NETEM_KEYS = frozenset({"limit", "delay", "loss-random", "ecn", "gap", "seed"})
"""What a netem of ours may show; anything else (reorder, duplicate, corrupt, slot...) was put there by another hand.

A `seed` is shown by newer versions; `ecn` and `gap` are always shown and must be false and 0.
"""


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


def program(plan: WanPlan) -> TcProgram:
    """The whole program, for a router that has one already or none.

    Packets that wait in a queue are lost when it is run, and for a moment nothing is shaped.
    """
    return TcProgram(plan.super_packets, {device.name: tuple(_device_lines(device)) for device in plan.devices})


def _device_lines(device: Device) -> Iterator[str]:
    yield from root_lines(device.name)
    for path in device.paths:
        yield from path_lines(device.name, path.minor, path.shape)
        for match in path.matches:
            yield filter_line(device.name, path.minor, match)


def changes(old: WanPlan, new: WanPlan) -> TcProgram | None:
    """The program that turns a router with `old` into one with `new`, with no packet lost; None when there is none.

    Raises:
        ValueError: the two differ in more than shapes: that needs `program`.
    """
    if [_without_shapes(device) for device in old.devices] != [_without_shapes(device) for device in new.devices]:
        raise ValueError("the sites have changed: the whole program must be run")
    lines: dict[str, tuple[str, ...]] = {}
    for before, after in zip(old.devices, new.devices, strict=True):
        changed = [
            line
            for one, other in zip(before.paths, after.paths, strict=True)
            for line in change_lines(after.name, other.minor, one.shape, other.shape)
        ]
        if changed:
            lines[after.name] = tuple(changed)
    return TcProgram(new.super_packets, lines) if lines else None


def _without_shapes(device: Device) -> tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    return device.name, tuple((path.minor, path.matches) for path in device.paths)


def text(told: TcProgram) -> str:
    """A program for people."""
    return "\n".join([SEGMENTATION_ON if told.super_packets else SEGMENTATION_OFF, *told.lines]) + "\n"


@dataclass(frozen=True)
class _Shown:
    """What tc shows for one device."""

    qdiscs: dict[str, dict[str, Any]]
    """Parent ("root" for the root) -> queueing discipline."""
    rates_bps: dict[str, float]
    """Class -> rate."""
    filters: dict[str, list[str]]
    """Class -> which packets are sent there, in the order in which they are tried."""


def _packets(match: Mapping[str, Any]) -> str:
    """The packets that a u32 filter matches; the addresses of IPv4 are at bytes 12 (source) and 16 of its header."""
    way = {12: "from", 16: "to"}.get(int(match["off"]))
    if way is None:
        return f"{match['value']}/{match['mask']} at {match['off']}"
    address = ipaddress.ip_address(int(match["value"], 16))
    return f"{way} {address}/{int(match['mask'], 16).bit_count()}"


def _shown(shown: Mapping[str, Any], device: str) -> _Shown:
    qdiscs = {"root" if q.get("root") else str(q.get("parent")): q for q in shown["qdisc"].get(device, [])}
    rates_bps = {}
    for line in shown["class"].get(device, []):
        found = _CLASS.match(line)
        if found:
            rates_bps[found["classid"]] = float(found["rate"]) * _UNIT_BPS[found["unit"]]
    filters: dict[str, list[str]] = {}
    for entry in shown["filter"].get(device, []):
        options = entry.get("options", {})
        if entry.get("kind") != "u32":
            filters.setdefault(f"of {entry.get('kind')}", [])
        elif "match" in options:
            filters.setdefault(options.get("flowid", "none"), []).append(_packets(options["match"]))
    return _Shown(qdiscs, rates_bps, filters)


def _seconds(value: float) -> str:
    return f"{value * 1e3:g} ms"


def _netem_problems(shape: PathShape, qdisc: Mapping[str, Any] | None) -> Iterator[str]:
    if qdisc is None or qdisc.get("kind") != "netem":
        yield f"no netem, but {qdisc['kind'] if qdisc else 'nothing'}"
        return
    options = qdisc["options"]
    for key in ("delay", "jitter"):
        asked_s = shape.delay_s if key == "delay" else shape.jitter_s
        shown_s = float(options.get("delay", {}).get(key, 0.0))
        if abs(asked_s - shown_s) > TIME_ROUNDING_S + RATIO_ROUNDING * asked_s:
            yield f"{key} asked {_seconds(asked_s)}, tc shows {_seconds(shown_s)}"
    shown_loss = float(options.get("loss-random", {}).get("loss", 0.0))
    if abs(shape.loss - shown_loss) > 1e-8 + RATIO_ROUNDING * shape.loss:
        yield f"loss asked {shape.loss * 100:g} %, tc shows {shown_loss * 100:g} %"
    if options.get("limit") != limit_packets(shape):
        yield f"queue asked {limit_packets(shape)} packets, tc shows {options.get('limit')}"
    foreign = sorted(set(options) - _NETEM_KEYS) + [key for key in ("ecn", "gap") if options.get(key)]
    foreign += [f"{key} correlation" for key in ("delay", "loss-random") if options.get(key, {}).get("correlation", 0)]
    if foreign:
        yield f"netem also has {', '.join(foreign)}"


def _path_problems(path: Path, shown: _Shown) -> Iterator[str]:
    classid, shape = f"1:{path.minor}", path.shape
    asked_bps = shape.rate_bps or UNLIMITED_BPS
    shown_bps = shown.rates_bps.get(classid)
    if shown_bps is None:
        yield f"no class {classid}"
    elif abs(asked_bps - shown_bps) > 8 + RATE_ROUNDING * asked_bps:
        yield f"rate asked {asked_bps / 1e6:g} Mbit/s, tc shows {shown_bps / 1e6:g} Mbit/s"
    yield from _netem_problems(shape, shown.qdiscs.get(classid))
    asked = [match.replace("src ", "from ").replace("dst ", "to ") for match in path.matches]
    if shown.filters.get(classid, []) != asked:
        yield f"packets {', '.join(asked)} should go to class {classid}, tc shows {shown.filters.get(classid, [])}"


def device_problems(device: Device, shown: Mapping[str, Any], super_packets: bool) -> Iterator[str]:
    """Differences between what a device should have and what tc shows, within tc's own rounding.

    Args:
        device: with our htb.
        shown: {"qdisc": {device: [objects of tc -j]}, "class": {device: [lines of tc]}, "filter": {device: [objects]},
            "segmentation": {device: bool}}.
        super_packets: whether it may take them.
    """
    on_device = _shown(shown, device.name)
    root = on_device.qdiscs.get("root", {"kind": "nothing"})
    if root["kind"] != "htb" or root.get("handle") != "1:" or int(root["options"].get("default", "0"), 16) != 0:
        yield f"{device.where}: no htb of ours at the root, but {root['kind']}"
        return
    for path in device.paths:
        for problem in _path_problems(path, on_device):
            yield f"{path.name}: {problem}"
    ours = {f"1:{path.minor}" for path in device.paths}
    for classid in sorted((set(on_device.rates_bps) | set(on_device.filters)) - ours):
        yield f"{device.where}: class or filter {classid} is not ours"
    if shown["segmentation"].get(device.name) and not super_packets:
        yield f"{device.where}: takes super-packets (TSO, GSO), which shaping needs off"


def problems(plan: WanPlan, shown: Mapping[str, Any]) -> tuple[str, ...]:
    """Differences between a plan and what the router shows, within tc's own rounding.

    Args:
        plan: that was put there.
        shown: as for `device_problems`.
    Returns:
        One line a difference, each naming the path or device; empty when all is as asked.
    """
    return tuple(problem for device in plan.devices for problem in device_problems(device, shown, plan.super_packets))
