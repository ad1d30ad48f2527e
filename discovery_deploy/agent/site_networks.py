"""Networks of a plan on one machine: a management bridge, a bridge per site, and a network namespace per host.

What is there is observed, what is missing is decided by pure functions, and only that is made (`ip -batch`).
Names begin with dd<slot>, so that everything is found again without the plan. Standard library only.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery_deploy.agent.machine import MachineError, is_namespace, namespaces, own, run
from discovery_deploy.agent.plan import Host, Plan

QUEUE_PACKETS = 10000
"""`txqueuelen` of every device: a burst on the local network must not be dropped before it reaches the WAN."""

CONGESTION_CONTROL = "cubic"
"""TCP's congestion control between sites, whatever the machine's own is: part of what is measured (loss, rate)."""

_RULE_PREFERENCE = 5000
"""A slot's routing rules have this plus twice its number, and the next: so they are found without the plan."""

_GROUP = 0xDD00
"""Number of a slot's device group while it is removed, plus its own number."""


@dataclass(frozen=True)
class Inside:
    """What is there in the network namespace of a host."""

    addresses: frozenset[tuple[str, str]]
    """(device, address) of devices that are up."""
    devices: frozenset[str]
    gateway: str | None


@dataclass(frozen=True)
class Observed:
    """What is there on the machine, of one slot and beside it."""

    links: dict[str, dict[str, Any]]
    """Device -> what `ip -j -d link` says of it."""
    addresses: tuple[tuple[str, str], ...]
    """(device, address with prefix length) of the whole machine."""
    routes: tuple[tuple[str, str], ...]
    """(device, destination) of the whole machine, without default routes."""
    rules: frozenset[str]
    """The slot's routing rules, as `ip rule add` takes them."""
    namespaces: tuple[str, ...]
    """Network namespaces of the slot."""
    broken: tuple[str, ...] = ()
    """Names of namespaces of the slot behind which there is none: `ip netns add` was killed."""


def observe(slot: int) -> Observed:
    """What is there on this machine, seen by a slot."""
    links = json.loads(run("ip", "-j", "-d", "link", "show") or "[]")
    addresses = json.loads(run("ip", "-j", "-4", "address", "show") or "[]")
    routes = json.loads(run("ip", "-j", "-4", "route", "show") or "[]")
    rules = json.loads(run("ip", "-j", "-4", "rule", "show") or "[]")
    names = namespaces(slot)
    broken = [name for name in names if not is_namespace(name)]
    return Observed(
        links={link["ifname"]: link for link in links if own(slot, link["ifname"])},
        addresses=tuple(
            (link["ifname"], f"{address['local']}/{address['prefixlen']}")
            for link in addresses
            for address in link["addr_info"]
        ),
        routes=tuple((route.get("dev", ""), route["dst"]) for route in routes if route["dst"] != "default"),
        rules=frozenset(_rule_text(rule) for rule in rules if rule["priority"] in _preferences(slot)),
        namespaces=tuple(name for name in names if name not in broken),
        broken=tuple(broken),
    )


def _preferences(slot: int) -> tuple[int, int]:
    return _RULE_PREFERENCE + 2 * slot, _RULE_PREFERENCE + 2 * slot + 1


def _rule_text(rule: dict[str, Any]) -> str:
    """A rule as `ip rule add` takes it, from what `ip -j rule` says of it. Pure."""
    network = f"{rule.get('dst', '0.0.0.0')}/{rule.get('dstlen', 32)}"
    action = f"iif {rule['iif']} lookup {rule['table']}" if "iif" in rule else str(rule.get("action"))
    return f"pref {rule['priority']} to {network} {action}"


def look_inside(namespace: str) -> Inside:
    """What is there in a network namespace."""
    links = json.loads(run("ip", "-n", namespace, "-j", "-4", "address", "show") or "[]")
    routes = json.loads(run("ip", "-n", namespace, "-j", "-4", "route", "show", "default") or "[]")
    return Inside(
        addresses=frozenset(
            (link["ifname"], address["local"])
            for link in links
            if "UP" in link["flags"]
            for address in link["addr_info"]
        ),
        devices=frozenset(link["ifname"] for link in links),
        gateway=next((route.get("gateway") for route in routes), None),
    )


def networks(plan: Plan) -> list[ipaddress.IPv4Network]:
    """Networks that a plan uses: management, then one per site."""
    management = plan.management
    own_network = ipaddress.IPv4Network(f"{management.address}/{management.prefix_length}", strict=False)
    return [own_network, *(ipaddress.IPv4Network(site.subnet) for site in plan.sites)]


def collisions(wanted: Iterable[ipaddress.IPv4Network], slot: int | None, observed: Observed) -> list[str]:
    """What on the machine uses an address of the wanted networks, apart from a slot's own devices.

    A route as wide as 10.0.0.0/8 is no collision: ours are narrower and take precedence.
    """
    taken = [(device, text) for device, text in (*observed.addresses, *observed.routes)]
    found = set()
    for device, text in taken:
        network = ipaddress.IPv4Network(text, strict=False)
        if slot is not None and own(slot, device):
            continue
        for ours in wanted:
            if network.prefixlen > 8 and network.overlaps(ours):
                found.add(f"{ours} is used by {device or 'a route'} ({text})")
    return sorted(found)


def _bridge(name: str) -> list[str]:
    return [
        f"link add {name} type bridge mcast_snooping 0",
        f"link set {name} addrgenmode none txqueuelen {QUEUE_PACKETS} up",
    ]


def _veth(device: str, inside: str, namespace: str, bridge: str, alone: bool) -> list[str]:
    lines = [
        f"link add {device} type veth peer name {inside} netns {namespace}",
        f"link set {device} master {bridge} addrgenmode none txqueuelen {QUEUE_PACKETS} up",
    ]
    # Ports of the management bridge reach the machine but not each other: no way around the WAN.
    return [*lines, f"link set {device} type bridge_slave isolated on"] if alone else lines


def shared_commands(plan: Plan, observed: Observed) -> list[str]:
    """Lines for `ip -batch` that make the missing bridges and rules; empty when all are there. Pure."""
    lines: list[str] = []
    management = plan.management
    for name in (management.bridge, *(site.bridge for site in plan.sites)):
        if name not in observed.links:
            lines += _bridge(name)
    address = f"{management.address}/{management.prefix_length}"
    if (management.bridge, address) not in observed.addresses:
        lines.append(f"address replace {address} dev {management.bridge}")
    return [*lines, *(f"rule add {rule}" for rule in rules(plan) if rule not in observed.rules)]


def rules(plan: Plan) -> list[str]:
    """Rules by which only the machine itself sends to the plan's networks, whatever it forwards for others. Pure.

    Each names its network: nothing else on the machine is touched by them.
    """
    own_packets, others = _preferences(plan.slot)
    return [
        text
        for network in guarded(plan)
        for text in (f"pref {own_packets} to {network} iif lo lookup main", f"pref {others} to {network} unreachable")
    ]


def guarded(plan: Plan) -> list[str]:
    """Destinations of the rules: the management network, and one that covers all sites. Pure."""
    management, *sites = networks(plan)
    cover = sites[0]
    while not all(site.subnet_of(cover) for site in sites):
        cover = cover.supernet()
    return [str(management), str(cover)]


def host_commands(plan: Plan, host: Host, observed: Observed, inside: Inside | None) -> list[str]:
    """Lines for `ip -batch` that make a host's missing namespace, links and route on the machine's side. Pure.

    Args:
        plan: the machine plan.
        host: one of its hosts.
        observed: what is there on the machine.
        inside: what is there in the host's namespace, None when there is no namespace.
    """
    namespace, management = host.namespace, plan.management.bridge
    site_bridge = plan.site_of(host).bridge
    lines = [f"netns del {namespace}"] if namespace in observed.broken else []
    if inside is None:
        lines.append(f"netns add {namespace}")
    for device, peer, bridge in (
        (host.site_device, "eth0", site_bridge),
        (host.management_device, "mgmt0", management),
    ):
        link = observed.links.get(device)
        if inside and link and peer in inside.devices and link.get("master") == bridge:
            continue
        if link:
            lines.append(f"link del {device}")
        lines += _veth(device, peer, namespace, bridge, alone=bridge == management)
    if (management, host.site_address) not in observed.routes:
        lines.append(f"route replace {host.site_address}/32 via {host.management_address} dev {management}")
    return lines


def hardware_address(address: str) -> str:
    """Ethernet address of a host: always the same, so that its neighbours still know it when its link is made anew."""
    return "02:dd:" + ":".join(f"{part:02x}" for part in ipaddress.IPv4Address(address).packed)


def inside_commands(plan: Plan, host: Host, inside: Inside | None) -> list[str]:
    """Lines for `ip -n <namespace> -batch` that make what is missing in a host's namespace. Pure."""
    site = plan.site_of(host)
    site_length = site.subnet.partition("/")[2]
    wanted = (
        ("eth0", host.site_address, site_length),
        ("mgmt0", host.management_address, plan.management.prefix_length),
    )
    lines = [] if inside and "lo" in dict(inside.addresses) else ["link set lo up"]
    for device, address, length in wanted:
        if inside is None or (device, address) not in inside.addresses:
            lines.append(
                f"link set {device} address {hardware_address(address)} addrgenmode none txqueuelen {QUEUE_PACKETS} up"
            )
            lines.append(f"address replace {address}/{length} dev {device}")
    if inside is None or inside.gateway != site.gateway or len(lines):
        lines.append(f"route replace default via {site.gateway} dev eth0 congctl {CONGESTION_CONTROL}")
    return lines


def up(plan: Plan) -> list[str]:
    """Make the networks and namespaces of a plan; what is there already is not touched.

    Returns:
        Names of hosts whose namespace is new: what may still run in a lost one must be started anew.

    Raises:
        MachineError: addresses are in use, or the kernel refuses.
    """
    observed = observe(plan.slot)
    in_use = collisions(networks(plan), plan.slot, observed)
    if in_use:
        raise MachineError("; ".join(in_use), "release what uses it, or reserve with another slot")
    lines: list[str] = []
    insides: list[Inside | None] = []
    for host in plan.hosts:
        inside = look_inside(host.namespace) if host.namespace in observed.namespaces else None
        of_host = host_commands(plan, host, observed, inside)
        remade = any(line.startswith("link add") for line in of_host)
        insides.append(None if remade else inside)
        lines += of_host
    # What is removed may be going already, with its namespace; what is made must succeed.
    _batch([line for line in lines if " del " in line], may_fail=True)
    _batch([*shared_commands(plan, observed), *(line for line in lines if " del " not in line)])
    _close_off(plan.management.bridge, [site.bridge for site in plan.sites])
    for host, inside in zip(plan.hosts, insides, strict=True):
        _batch(inside_commands(plan, host, inside), "-n", host.namespace)
    return [host.name for host in plan.hosts if host.namespace not in observed.namespaces]


def missing(plan: Plan, host: Host) -> str:
    """What a host's network lacks, seen from the machine without starting a process; "" when nothing."""
    for device in (host.site_device, host.management_device):
        if not Path(f"/sys/class/net/{device}").exists():
            return f"link {device} is gone"
    return "" if is_namespace(host.namespace) else f"namespace {host.namespace} is gone"


def _close_off(management: str, sites: list[str]) -> None:
    """No IPv6 on the bridges, and nothing that comes from a host is passed on by the machine."""
    for bridge in (management, *sites):
        for name, value in (("ipv4/conf/{}/forwarding", "0"), ("ipv6/conf/{}/disable_ipv6", "1")):
            file = Path("/proc/sys/net") / name.format(bridge)
            if file.exists() and file.read_text().strip() != value:
                file.write_text(value)


def _batch(lines: list[str], *options: str, may_fail: bool = False) -> None:
    if not Path("/proc/sys/net/ipv6").is_dir():
        lines = [line.replace(" addrgenmode none", "") for line in lines]
    if lines:
        force = ("-force",) if may_fail else ()
        good = (0, 1) if may_fail else (0,)
        run("ip", *options, *force, "-batch", "-", text="\n".join(lines) + "\n", good=good)


def down(slot: int) -> None:
    """Remove every device, namespace and rule of a slot, found by name. Raises MachineError when something stays."""
    observed = observe(slot)
    # As a group they go in one act of the kernel; one by one each costs about 40 ms.
    lines = [f"link set {name} group {_GROUP + slot}" for name in sorted(observed.links)]
    if lines:
        lines.append(f"link del group {_GROUP + slot}")
    lines += [f"netns del {name}" for name in (*observed.namespaces, *observed.broken)]
    lines += [f"rule del {rule}" for rule in sorted(observed.rules)]
    _batch(lines, may_fail=True)  # devices may be going already, with their namespaces
    left = observe(slot)
    stay = [*left.links, *left.namespaces, *left.broken, *left.rules]
    if stay:
        raise MachineError(f"networks of slot {slot} cannot be removed: {', '.join(stay)}", "look with `ip -d link`")
