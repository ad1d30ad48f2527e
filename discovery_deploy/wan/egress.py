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

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.wan.plan import Device, Path, class_minor
from discovery_deploy.wan.shapes import Pair, PathShape, single_packets
from discovery_deploy.wan.tc import (
    SEGMENTATION_ON,
    change_lines,
    device_problems,
    filter_line,
    path_lines,
    root_lines,
    segmentation,
)

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
