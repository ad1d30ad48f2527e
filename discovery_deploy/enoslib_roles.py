"""EnOSlib's view of a running experiment: its hosts as Roles, the networks between them as Networks.

Imported by nothing of ours: a script or a notebook asks for `discovery_deploy.roles`. Besides EnOSlib it needs pydantic
and ruamel.yaml, so that it also works in an environment that holds EnOSlib and not the rest of this tool.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from discovery_deploy.cloud.inventory import HOST_PYTHON, site_group
from discovery_deploy.experiment import config
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.system import workspace
from discovery_deploy.system.errors import StateError, TestbedError
from discovery_deploy.system.remote import Remote, side_by_side
from discovery_deploy.system.workspace import Workspace

if TYPE_CHECKING:
    from enoslib import Networks, Roles

ENOSLIB = "enoslib>=10.9,<10.10"
"""What pip installs; the version that this was tested with."""
NEEDS = ("pydantic>=2.11", "ruamel.yaml>=0.18")
"""What else `roles` needs of an environment that does not hold the rest of this tool."""
MANAGEMENT = "management"
"""Name of the network on which hosts are reached by ssh, where it is not a site's."""
SITES = "sites"
"""Name under which the networks of all sites are found together."""


class Device(NamedTuple):
    """A network interface of a host, with its IPv4 addresses."""

    name: str
    addresses: tuple[IPv4Interface, ...]


class HostView(NamedTuple):
    """What EnOSlib is told of a host."""

    name: str
    address: str
    port: int | None
    roles: tuple[str, ...]
    devices: tuple[Device, ...]


def roles(experiment: str | Path | None = None) -> tuple[Roles, Networks]:
    """EnOSlib's Roles and Networks of an experiment whose hosts run.

    Every host is asked for its interfaces and addresses; nothing is changed.

    Args:
        experiment: its name, its workspace folder or its file; default: the only one in the results directory.
    Returns:
        Roles: role ("control", "database", "bench", "compute"), site, and "site_<name>" (dashes as "_") -> hosts.
        Networks: site -> the network of its hosts; "sites" -> these of all; "management" -> the one for ssh alone.
    Raises:
        StateError: no such experiment, or none of its hosts are reserved.
        ExperimentError: the experiment file is wrong.
        TestbedError: EnOSlib is not installed, a host cannot be reached or lacks its address.
        PlaybookError: a host could not tell its addresses.
    """
    found = find(experiment)
    lease = found.load("lease.json", Lease)
    if lease is None:
        raise StateError(
            f"{found.path}: no hosts are reserved",
            "Reserve them first: `discovery-deploy reserve FILE`, or `run FILE`.",
        )
    enoslib = _enoslib()
    remote = Remote(found.ssh_config)
    names = [host.name for host in lease.hosts]
    answers = side_by_side(lambda name: remote(name, ["ip", "-json", "-4", "address"]), names)
    views = host_views(lease, dict(zip(names, answers, strict=True)))
    cidrs = network_cidrs(lease, views)
    known = {cidr: enoslib.objects.DefaultNetwork(cidr) for some in cidrs.values() for cidr in some}
    networks = enoslib.Networks({name: [known[cidr] for cidr in some] for name, some in cidrs.items()})
    hosts = {view.name: _host(view, known, found.ssh_config, found.key) for view in views}
    groups: dict[str, list[Any]] = {}
    for view in views:
        for role in view.roles:
            groups.setdefault(role, []).append(hosts[view.name])
    return enoslib.Roles(groups), networks


def find(experiment: str | Path | None) -> Workspace:
    """The workspace of an experiment, named as for `roles`. Raises StateError, ExperimentError."""
    if experiment is not None and Path(experiment).is_file():
        return workspace.find_workspace(config.load(Path(experiment)).name)
    return workspace.find_workspace(None if experiment is None else str(experiment))


def host_views(lease: Lease, answers: Mapping[str, str]) -> list[HostView]:
    """What EnOSlib is told of the leased hosts. Pure.

    Args:
        lease: the hosts.
        answers: host -> what `ip -json -4 address` printed there.
    Raises:
        TestbedError: no interface of a host has its site address.
    """
    reached = [host.management_address for host in lease.hosts]
    return [
        _host_view(host, _devices(host, answers[host.name]), reached.count(host.management_address) == 1)
        for host in lease.hosts
    ]


def _host_view(host: LeasedHost, devices: tuple[Device, ...], alone: bool) -> HostView:
    """Where several hosts are behind one address, the ssh_config tells them apart by their names."""
    return HostView(
        name=host.name,
        address=host.management_address if alone else host.name,
        port=int(host.ssh["Port"]) if "Port" in host.ssh else None,
        roles=tuple(dict.fromkeys((*host.roles, host.site, site_group(host.site)))),
        devices=devices,
    )


def _devices(host: LeasedHost, answer: str) -> tuple[Device, ...]:
    try:
        found = tuple(
            Device(link["ifname"], tuple(_interface(address) for address in link["addr_info"]))
            for link in json.loads(answer)
            if link.get("ifname") != "lo" and link.get("addr_info")
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TestbedError(f"{host.name}: what `ip address` printed cannot be read: {error}") from error
    if _network_of(found, host.site_address) is None:
        raise TestbedError(
            f"{host.name}: no interface has its site address {host.site_address}",
            "Run `discovery-deploy reserve FILE`: it mends hosts that lost their network.",
        )
    return found


def _interface(address: Mapping[str, Any]) -> IPv4Interface:
    return IPv4Interface(f"{address['local']}/{address['prefixlen']}")


def _network_of(devices: tuple[Device, ...], address: str) -> str | None:
    """CIDR of the network of an address that is one of these devices'."""
    for device in devices:
        for interface in device.addresses:
            if str(interface.ip) == address:  # an address may be a name
                return str(interface.network)
    return None


def network_cidrs(lease: Lease, views: list[HostView]) -> dict[str, list[str]]:
    """Network's name -> CIDRs: of each site, of all sites together, and of management where no site has it. Pure."""
    devices = {view.name: view.devices for view in views}
    found: dict[str, list[str]] = {}
    for host in lease.hosts:
        cidr = _network_of(devices[host.name], host.site_address)
        if cidr is not None and cidr not in found.setdefault(host.site, []):
            found[host.site].append(cidr)
    sites = list(dict.fromkeys(cidr for cidrs in found.values() for cidr in cidrs))
    management = [_network_of(devices[host.name], host.management_address) for host in lease.hosts]
    apart = [cidr for cidr in dict.fromkeys(management) if cidr is not None and cidr not in sites]
    return {**found, SITES: sites} | ({MANAGEMENT: apart} if apart else {})


def _enoslib() -> Any:
    try:
        return importlib.import_module("enoslib")
    except ModuleNotFoundError as error:
        if error.name != "enoslib":
            raise
        raise TestbedError(
            f"EnOSlib is not installed in the environment of {sys.executable}",
            f"Install it: {shlex.quote(sys.executable)} -m pip install '{ENOSLIB}' (docs/enoslib.md tells what fits).",
        ) from error


def _host(view: HostView, networks: Mapping[str, Any], ssh_config: Path, key: Path) -> Any:
    """EnOSlib's Host; `networks` are EnOSlib's, by CIDR."""
    objects = importlib.import_module("enoslib.objects")
    devices = {
        objects.NetDevice(
            device.name,
            {
                objects.IPAddress(str(address), network=networks.get(str(address.network)))
                for address in device.addresses
            },
        )
        for device in view.devices
    }
    return objects.Host(
        view.address,
        alias=view.name,
        user="root",
        keyfile=str(key),
        port=view.port,
        extra={
            "ansible_ssh_common_args": f"-F {shlex.quote(str(ssh_config))}",
            "ansible_python_interpreter": HOST_PYTHON,
        },
        net_devices=devices,
    )
