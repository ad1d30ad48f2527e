"""Tunnels between the WAN routers of machines that share an experiment's sites. Standard library only.

A router has one VXLAN device per other machine, made in the machine's own network namespace and used in the router's:
so what is inside leaves the machine in UDP from the machine's own address, whatever lies between, one network or
several. What comes out of a tunnel is forwarded to a site of this machine, and shaped there like what comes from here.

Hosts keep frames of 1500 bytes, as everywhere. A full one is 50 bytes longer in the tunnel, and goes in two fragments
where the network between the machines takes no more than 1500. The devices are bound to no other device, so they take
1500 bytes; outer packets have no "don't fragment"; and a router forwards by the MTU of its device, not by what the
tunnel learns of the path.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from discovery_deploy.agent.plan import Peer, Plan

UDP_PORT = 24789
"""Of all tunnels. Below the ports that the kernel gives to programs, and not VXLAN's own, which the machine may use."""
MTU_BYTES = 1500
SIOCETHTOOL = 0x8946
GRO = (0x2B, 0x2C)
"""Commands (get, set) of SIOCETHTOOL, from linux/ethtool.h."""


def peer(slot: int, own: int, other: int, addresses: tuple[str, str], machine: str, plan: Plan) -> Peer:
    """What a machine's plan says about another machine. Pure.

    Args:
        slot: of the experiment, the same on both machines.
        own: number of this machine in the experiment, 0 to 254.
        other: number of the other one.
        addresses: of this machine and of the other.
        machine: name of the other.
        plan: of the other.
    """
    low, high = sorted((own, other))

    def mac(source: int, to: int) -> str:
        return f"02:dd:{slot:02x}:ff:{source:02x}:{to:02x}"

    return Peer(
        machine=machine,
        device=f"peer{other}",
        vni=(slot << 16) + (low << 8) + high + 1,
        local=addresses[0],
        remote=addresses[1],
        mac=mac(own, other),
        peer_mac=mac(other, own),
        next_hop=f"169.254.{slot}.{other + 1}",
        subnets=tuple(site.subnet for site in plan.sites),
        gateway=plan.sites[0].gateway,
        hosts={host.name: host.site_address for host in plan.hosts},
    )


def wanted_commands(
    tunnels: Iterable[Peer], shown: Sequence[Mapping[str, Any]], namespace: str
) -> tuple[list[str], list[str]]:
    """(lines of `ip` in the router's namespace that remove what is not as planned, lines outside that make it). Pure.

    Args:
        tunnels: of the plan.
        shown: what `ip -d -j link show type vxlan` says in the namespace.
        namespace: the router's.
    """
    there = {link["ifname"]: link["linkinfo"]["info_data"] for link in shown}
    right = {tunnel.device for tunnel in tunnels if _is(tunnel, there.get(tunnel.device))}
    removed = [f"link del {name}" for name in sorted(there) if name not in right]
    made = [
        f"link add {tunnel.device} address {tunnel.mac} mtu {MTU_BYTES} netns {namespace} type vxlan id {tunnel.vni} "
        f"local {tunnel.local} remote {tunnel.remote} dstport {UDP_PORT} ttl 64 nolearning udpcsum"
        for tunnel in tunnels
        if tunnel.device not in right
    ]
    return removed, made


def _is(tunnel: Peer, shown: Mapping[str, Any] | None) -> bool:
    asked = (tunnel.vni, tunnel.local, tunnel.remote, UDP_PORT)
    return shown is not None and tuple(shown.get(key) for key in ("id", "local", "remote", "port")) == asked


def inside_commands(tunnels: Sequence[Peer], routes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of `ip` in the router's namespace, once the devices are there; they may be run again. Pure.

    Args:
        tunnels: of the plan.
        routes: what `ip -j route` says there.
    """
    way = {subnet: tunnel for tunnel in tunnels for subnet in tunnel.subnets}
    lines = [
        f"route del {route['dst']} dev {route['dev']}"
        for route in routes
        if str(route.get("dev")).startswith("peer") and route["dst"] not in way
    ]
    for tunnel in tunnels:
        lines += [
            f"link set {tunnel.device} up",
            f"neigh replace {tunnel.next_hop} lladdr {tunnel.peer_mac} dev {tunnel.device} nud permanent",
        ]
    lines += [
        f"route replace {subnet} via {tunnel.next_hop} dev {tunnel.device} onlink" for subnet, tunnel in way.items()
    ]
    return lines


def receives_single_packets(namespace: str, device: str) -> None:
    """Let a device join no packets that it receives: the WAN must see them one by one. Raises OSError."""
    _ethtool(namespace, device, GRO[1], 0)


def joins_packets(namespace: str, device: str) -> bool:
    """Whether a device may join packets that it receives (GRO). Raises OSError."""
    return bool(_ethtool(namespace, device, GRO[0], 0))


def _ethtool(namespace: str, device: str, command: int, value: int) -> int:
    """One legacy ethtool ioctl in a network namespace. Raises OSError."""
    data = ctypes.create_string_buffer(struct.pack("II", command, value))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(data))
    with _socket_in(namespace) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)
    return int(struct.unpack_from("I", data, 4)[0])


def _socket_in(namespace: str) -> socket.socket:
    """A socket that belongs to another network namespace; this thread is there only for the moment."""
    enter = ctypes.CDLL(None, use_errno=True).setns
    with Path("/proc/thread-self/ns/net").open() as here, Path("/run/netns", namespace).open() as there:
        if enter(there.fileno(), 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"/run/netns/{namespace}")
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            enter(here.fileno(), 0)


def parsed(shown: str) -> list[dict[str, Any]]:
    """What `ip -j` has printed; nothing is an empty list. Pure."""
    found: list[dict[str, Any]] = json.loads(shown or "[]")
    return [entry for entry in found if entry]  # it shows an empty object for what is of another type
