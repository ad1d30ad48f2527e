"""The WAN as a value: which device shapes which paths, and by which classes. Pure.

From it come the program for tc, what changes from one to another, and what tc must show afterwards (`tc`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from discovery_deploy.wan.shapes import Pair, PathShape, single_packets

FIRST_MINOR = 0x10
"""Class of the first source site (by name); lower numbers are left to HTB itself."""


@dataclass(frozen=True)
class Path:
    """A path that a device shapes, in a class of its own."""

    name: str
    """In messages: source, destination and device."""
    minor: str
    """Number of its class, and of its netem's handle (hexadecimal)."""
    shape: PathShape
    matches: tuple[str, ...]
    """Which packets take it, as u32 filters have it ("src 10.0.0.0/24"), in their order."""


@dataclass(frozen=True)
class Device:
    """A device with our htb at its root."""

    name: str
    where: str
    """In messages: the device, and what it is."""
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class WanPlan:
    """What a router, or several of one WAN, should shape."""

    devices: tuple[Device, ...]
    super_packets: bool
    """Whether packets of up to 64 KB (TSO, GSO) may come to it."""


def class_minor(site_names: Iterable[str]) -> dict[str, str]:
    """Site -> minor number of the class of its paths on every device."""
    return {name: f"{FIRST_MINOR + index:x}" for index, name in enumerate(sorted(site_names))}


def wan_plan(shapes: Mapping[Pair, PathShape], devices: Mapping[str, str], subnets: Mapping[str, str]) -> WanPlan:
    """The plan of a router: a path is shaped by the device towards its destination.

    Args:
        shapes: as from `shapes.path_shapes`.
        devices: site -> the router's device towards it.
        subnets: site -> its network (CIDR).
    Raises:
        ValueError: the shapes are not of these sites.
    """
    sites = sorted(devices)
    if {(a, b) for a in sites for b in sites if a != b} != set(shapes):
        raise ValueError("the shapes are not of the sites that have devices")
    minors = class_minor(sites)
    return WanPlan(
        devices=tuple(
            Device(
                name=devices[destination],
                where=f"{devices[destination]} towards {destination}",
                paths=tuple(
                    Path(
                        name=f"{source} -> {destination} ({devices[destination]})",
                        minor=minors[source],
                        shape=shapes[source, destination],
                        matches=(f"src {subnets[source]}",),
                    )
                    for source in sites
                    if source != destination
                ),
            )
            for destination in sites
        ),
        super_packets=not single_packets(shapes.values()),
    )
