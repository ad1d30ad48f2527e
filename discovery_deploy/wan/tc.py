"""What tc shows on devices that we shape, compared with the programs that they were given. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from discovery_deploy.wan.wan import UNLIMITED_BPS, Pair, PathShape, class_minor, limit_packets, single_packets

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


@dataclass(frozen=True)
class _Shown:
    """What tc shows for one device."""

    qdiscs: dict[str, dict[str, Any]]
    """Parent ("root" for the root) -> queueing discipline."""
    rates_bps: dict[str, float]
    """Class -> rate."""
    filters: dict[str, list[str]]
    """Class -> which packets are sent there, in the order in which they are tried."""


@dataclass(frozen=True)
class ExpectedPath:
    """A path that a device should shape."""

    name: str
    """In messages: source, destination and device."""
    shape: PathShape
    packets: tuple[str, ...]
    """Which packets take it: "from NETWORK" or "to NETWORK", in the order of the program."""


@dataclass(frozen=True)
class ExpectedDevice:
    """What tc should show on a device with our htb."""

    name: str
    where: str
    """In messages: the device, and what it is."""
    paths: Mapping[str, ExpectedPath]
    """Minor number of the class -> path."""
    single_packets: bool
    """Whether it must take no super-packets."""


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


def _path_problems(path: ExpectedPath, minor: str, shown: _Shown) -> Iterator[str]:
    classid, shape = f"1:{minor}", path.shape
    asked_bps = shape.rate_bps or UNLIMITED_BPS
    shown_bps = shown.rates_bps.get(classid)
    if shown_bps is None:
        yield f"no class {classid}"
    elif abs(asked_bps - shown_bps) > 8 + RATE_ROUNDING * asked_bps:
        yield f"rate asked {asked_bps / 1e6:g} Mbit/s, tc shows {shown_bps / 1e6:g} Mbit/s"
    yield from _netem_problems(shape, shown.qdiscs.get(classid))
    if shown.filters.get(classid, []) != list(path.packets):
        asked = ", ".join(path.packets)
        yield f"packets {asked} should go to class {classid}, tc shows {shown.filters.get(classid, [])}"


def device_problems(device: ExpectedDevice, shown: Mapping[str, Any]) -> Iterator[str]:
    """Differences between what a device should have and what tc shows, within tc's own rounding.

    Args:
        device: with our htb.
        shown: {"qdisc": {device: [objects of tc -j]}, "class": {device: [lines of tc]}, "filter": {device: [objects]},
            "segmentation": {device: bool}}.
    """
    on_device = _shown(shown, device.name)
    root = on_device.qdiscs.get("root", {"kind": "nothing"})
    if root["kind"] != "htb" or root.get("handle") != "1:" or int(root["options"].get("default", "0"), 16) != 0:
        yield f"{device.where}: no htb of ours at the root, but {root['kind']}"
        return
    for minor, path in device.paths.items():
        for problem in _path_problems(path, minor, on_device):
            yield f"{path.name}: {problem}"
    ours = {f"1:{minor}" for minor in device.paths}
    for classid in sorted((set(on_device.rates_bps) | set(on_device.filters)) - ours):
        yield f"{device.where}: class or filter {classid} is not ours"
    if shown["segmentation"].get(device.name) and device.single_packets:
        yield f"{device.where}: takes super-packets (TSO, GSO), which shaping needs off"


def readback_problems(
    shapes: Mapping[Pair, PathShape], shown_json: str, devices: Mapping[str, str], subnets: Mapping[str, str]
) -> tuple[str, ...]:
    """Differences between the shapes that were asked and what the router shows, within tc's own rounding.

    Args:
        shapes: as from `wan.path_shapes`.
        shown_json: what `wan_router.read` returns; JSON of what `device_problems` takes.
        devices: site -> the router's device towards it.
        subnets: site -> its network (CIDR).
    Returns:
        One line a difference, each naming the path or device; empty when all is as asked.
    """
    shown, minors = json.loads(shown_json), class_minor(devices)
    single = single_packets(shapes.values())
    problems: list[str] = []
    for destination, device in sorted(devices.items()):
        paths = {
            minors[source]: ExpectedPath(
                f"{source} -> {destination} ({device})", shapes[source, destination], (f"from {subnets[source]}",)
            )
            for source in sorted(set(devices) - {destination})
        }
        problems += device_problems(ExpectedDevice(device, f"{device} towards {destination}", paths, single), shown)
    return tuple(problems)
