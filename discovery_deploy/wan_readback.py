"""What tc shows on the WAN router, compared with the program that it was given. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from discovery_deploy.wan import (
    UNLIMITED_BPS,
    Pair,
    PathShape,
    class_minor,
    limit_packets,
    single_packets,
)

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
    """Class -> source networks sent there, in the order in which they are tried."""


def _network(match: Mapping[str, Any]) -> str:
    mask = int(match["mask"], 16)
    address = ipaddress.ip_address(int(match["value"], 16))
    if int(match["off"]) != 12:
        return f"{match['value']}/{match['mask']} at {match['off']}"
    return f"{address}/{mask.bit_count()}"


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
            filters.setdefault(options.get("flowid", "none"), []).append(_network(options["match"]))
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


def _path_problems(shape: PathShape, subnet: str, minor: str, shown: _Shown) -> Iterator[str]:
    classid = f"1:{minor}"
    asked_bps = shape.rate_bps or UNLIMITED_BPS
    shown_bps = shown.rates_bps.get(classid)
    if shown_bps is None:
        yield f"no class {classid}"
    elif abs(asked_bps - shown_bps) > 8 + RATE_ROUNDING * asked_bps:
        yield f"rate asked {asked_bps / 1e6:g} Mbit/s, tc shows {shown_bps / 1e6:g} Mbit/s"
    yield from _netem_problems(shape, shown.qdiscs.get(classid))
    if shown.filters.get(classid, []) != [subnet]:
        yield f"packets from {subnet} should go to class {classid}, tc shows {shown.filters.get(classid, [])}"


def readback_problems(
    shapes: Mapping[Pair, PathShape], shown_json: str, devices: Mapping[str, str], subnets: Mapping[str, str]
) -> tuple[str, ...]:
    """Differences between the shapes that were asked and what the router shows, within tc's own rounding.

    Args:
        shapes: as from `wan.path_shapes`.
        shown_json: what `wan_router.read` returns: {"qdisc": {device: [objects of tc -j]}, "class": {device:
            [lines of tc]}, "filter": {device: [objects]}, "segmentation": {device: bool}}.
        devices: site -> the router's device towards it.
        subnets: site -> its network (CIDR).
    Returns:
        One line a difference, each naming the path or device; empty when all is as asked.
    """
    shown = json.loads(shown_json)
    minors = class_minor(devices)
    problems = []
    for destination, device in sorted(devices.items()):
        on_device = _shown(shown, device)
        root = on_device.qdiscs.get("root", {"kind": "nothing"})
        if root["kind"] != "htb" or root.get("handle") != "1:" or int(root["options"].get("default", "0"), 16) != 0:
            problems.append(f"{device} towards {destination}: no htb of ours at the root, but {root['kind']}")
            continue
        sources = sorted(set(devices) - {destination})
        for source in sources:
            found = _path_problems(shapes[source, destination], subnets[source], minors[source], on_device)
            problems += [f"{source} -> {destination} ({device}): {problem}" for problem in found]
        ours = {f"1:{minors[source]}" for source in sources}
        for classid in sorted((set(on_device.rates_bps) | set(on_device.filters)) - ours):
            problems.append(f"{device} towards {destination}: class or filter {classid} is not ours")
        if shown["segmentation"].get(device) and single_packets(shapes.values()):
            problems.append(f"{device} towards {destination}: takes super-packets (TSO, GSO), which shaping needs off")
    return tuple(problems)
