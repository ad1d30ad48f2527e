"""The machine plan: what one machine is to hold of an experiment, and its form in JSON. Pure.

It goes to other machines and is kept beside what it made, so that any version
finds it again: keys that this version does not know are left out, keys that are absent have their defaults. Standard
library only.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from discovery_deploy.agent.machine import MachineError

NO_PATH = Path()
"""Of what is not known of a plan that was lost."""


@dataclass(frozen=True)
class Management:
    """The network by which the machine reaches its hosts; it is decided by the slot."""

    bridge: str
    address: str
    """Of the machine."""
    prefix_length: int


@dataclass(frozen=True)
class Site:
    """A site's network on this machine, and the WAN router's port in it."""

    name: str
    index: int
    """In the experiment."""
    bridge: str
    router_device: str
    """The router's own device."""
    tap: str
    """Its other end: a port of the bridge."""
    gateway: str
    """Address of the router's device."""
    subnet: str


@dataclass(frozen=True)
class Host:
    """A host: a network namespace with one foot in its site's network and one in the management network."""

    name: str
    site: str
    namespace: str
    site_address: str
    site_device: str
    management_address: str
    management_device: str
    system: bool = True
    """Whether a container boots there; else it is a namespace alone."""


@dataclass(frozen=True)
class Bind:
    """A directory of the machine that hosts see, read-only."""

    source: Path
    target: str


@dataclass(frozen=True)
class WanRouter:
    """What is asked of the machine's WAN router."""

    namespace: str
    mode: str = "auto"
    """`netns`, `uml`, or `auto`: the first where the kernel has netem."""
    memory_mb: int = 0
    """Of a router in User-Mode Linux; 0: by the number of sites."""


@dataclass(frozen=True)
class Peer:
    """Another machine of the experiment, and the tunnel from this machine's WAN router to its."""

    machine: str
    device: str
    """Of the tunnel, in the router's namespace."""
    vni: int
    """Number of the pair of machines, in both directions."""
    local: str
    """Address of this machine."""
    remote: str
    """Address of the other."""
    mac: str
    peer_mac: str
    next_hop: str
    """The other router on the tunnel; known to this router alone."""
    subnets: tuple[str, ...]
    """Networks of the other machine's sites."""
    gateway: str
    """An address of the other router, which answers."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Host of the other machine -> its address in its site."""


@dataclass(frozen=True)
class Plan:
    """What one machine is to hold of an experiment. Of a plan that was lost, slot and directory are known."""

    slot: int
    """Decides names and addresses."""
    directory: Path
    """Where the experiment keeps everything on this machine."""
    experiment: str = ""
    base: Path = NO_PATH
    """Unpacked base image of the hosts."""
    upper: str = "volatile"
    """Whether hosts' files may be lost with the machine: `volatile` or `disk`."""
    binds: tuple[Bind, ...] = ()
    authorized_keys: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    hosts: tuple[Host, ...] = ()
    router: WanRouter | None = None
    peers: tuple[Peer, ...] = ()

    @property
    def management(self) -> Management:
        """The management network."""
        return Management(bridge=f"dd{self.slot}m", address=f"10.{64 + self.slot}.0.1", prefix_length=16)

    def site_of(self, host: Host) -> Site:
        """The site of a host. Raises MachineError when the plan does not have it."""
        for site in self.sites:
            if site.name == host.site:
                return site
        raise MachineError(f"{host.name}: the plan has no site {host.site}", "look at the plan")

    def same_hosts(self, other: Plan) -> bool:
        """Whether two plans differ at most in what hosts and router take while they run: keys, and other machines."""
        return replace(self, authorized_keys=(), peers=()) == replace(other, authorized_keys=(), peers=())


@dataclass(frozen=True)
class TcProgram:
    """What a WAN router is told."""

    super_packets: bool
    """Whether its ports may take packets of up to 64 KB (TSO, GSO)."""
    devices: dict[str, tuple[str, ...]]
    """The router's device -> lines of `tc -batch`, in their order."""

    def of(self, devices: Collection[str]) -> TcProgram:
        """What is about some of the devices."""
        return replace(self, devices={name: lines for name, lines in self.devices.items() if name in devices})

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines."""
        return tuple(line for lines in self.devices.values() for line in lines)


def as_data(value: Plan | TcProgram) -> dict[str, Any]:
    """A plan, or a program, as JSON takes it."""
    data: dict[str, Any] = _as_json(asdict(value))
    return data


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_as_json(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def read(data: object) -> Plan:
    """A plan from what JSON gave.

    Raises:
        MachineError: it is not a plan; names the place.
    """
    plan: Plan = _dataclass(Plan, data, "plan")
    return plan


def read_program(data: object) -> TcProgram:
    """A program from what JSON gave. Raises MachineError, as `read`."""
    program: TcProgram = _dataclass(TcProgram, data, "program")
    return program


def _dataclass(kind: Any, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise MachineError(f"{where}: is not an object of JSON", "look at the plan")
    kinds, found = get_type_hints(kind), {}
    for one in fields(kind):
        if one.name in data:
            found[one.name] = _value(kinds[one.name], data[one.name], f"{where}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise MachineError(f"{where}.{one.name}: is absent", "look at the plan")
    return kind(**found)


def _value(kind: Any, data: Any, where: str) -> Any:
    """A value of a field's type: a dataclass, one or None, a tuple of one type, texts by text, a path, or plain."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, data, where)
    if origin is types.UnionType:
        return None if data is None else _value(arguments[0], data, where)
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(_value(arguments[0], part, f"{where}[{number}]") for number, part in enumerate(data))
    if origin is dict and isinstance(data, Mapping):
        return {str(key): _value(arguments[1], part, f"{where}.{key}") for key, part in data.items()}
    if kind is Path and isinstance(data, str):
        return Path(data)
    if origin is None and kind is not Path and type(data) is kind:
        return data
    raise MachineError(f"{where}: {str(data)[:60]!r} is of another kind than a plan has there", "look at the plan")
