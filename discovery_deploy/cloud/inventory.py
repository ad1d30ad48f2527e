"""Ansible's view of the hosts: groups after roles and sites, and the way to each over the management network. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery_deploy.cloud.topology import layout
from discovery_deploy.cloud.variables import Variables, backend_role, database_hosts, role_hosts
from discovery_deploy.experiment.model import ROLES, Experiment

if TYPE_CHECKING:
    from discovery_deploy.experiment.lease import Lease

HOST_PYTHON = "/usr/bin/python3"


def inventory(experiment: Experiment, lease: Lease, ssh_config: Path, key: Path) -> dict[str, Any]:
    """The inventory as plain data, without secrets: equal hosts give an equal inventory.

    Groups by what hosts are for: `control`, `database`, `bench`, `compute` (what is of these roles runs there, or may
    in another setting). By what runs there in this setting (a group without hosts is left out): `memcached`, one per
    service (of `nova` also a cell's conductor), `nova_compute`, `cloud_content` (one host per cloud), `glance_copies`
    (to whose Glances images are copied), `rabbitmq`, `site_mariadb`, `ovn`, `open_vswitch`, one of `mariadb` and
    `galera`. What may run there in another: `prepare_<role>`. And `site_<name>`.

    Args:
        experiment: with the levels of the setting in place.
        lease: its hosts.
        ssh_config: file for `ssh -F`.
        key: private key of the experiment.
    """
    groups: dict[str, list[str]] = {role: [host.name for host in role_hosts(experiment, lease, role)] for role in ROLES}
    groups[backend_role(experiment)] = [host.name for host in database_hosts(experiment, lease)]
    used = _used(experiment)
    groups |= {name: [host.name for host in lease.hosts if host.name in hosts] for name, hosts in used.items() if hosts}
    groups |= {f"prepare_{role}": groups[kind] for role, kind in _prepared(experiment).items()}
    for host in lease.hosts:
        groups.setdefault(site_group(host.site), []).append(host.name)
    return {
        "all": {
            "vars": {
                "ansible_user": "root",
                "ansible_python_interpreter": HOST_PYTHON,
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_common_args": f"-F {shlex.quote(str(ssh_config))}",
            },
            "hosts": {host.name: {"ansible_host": host.management_address} for host in lease.hosts},
            "children": {name: {"hosts": {host: {} for host in hosts}} for name, hosts in sorted(groups.items())},
        }
    }


def _used(experiment: Experiment) -> dict[str, set[str]]:
    """Group -> hosts on which it is in this setting."""
    found = layout(experiment)
    used: dict[str, set[str]] = {
        name: {instance.at.host for instance in found.of(name)} for name in experiment.deployment.services
    }
    return {
        **used,
        "memcached": set().union(*used.values()),
        "cloud_content": {instance.at.host for instance in found.clouds()},
        "glance_copies": {instance.at.host for instance in found.image_copies()},
        "nova_compute": {compute.at.host for compute in found.computes},
        "open_vswitch": {compute.at.host for compute in found.computes if compute.libvirt},
        "rabbitmq": {broker.at.host for broker in found.brokers},
        "site_mariadb": {server.at.host for server in found.servers if server.kind == "site"},
        "ovn": {member.host for central in found.ovn for member in central.members},
    }


def _prepared(experiment: Experiment) -> dict[str, str]:
    """Ansible role -> the group on whose hosts it may come to be, whatever topology and placement are."""
    services = experiment.deployment.services
    found: dict[str, str] = dict.fromkeys(("memcached", *services), "control")
    if len(services) > 1:
        found["site_mariadb"] = "control"
    if "neutron" in services or "nova" in services:
        found["rabbitmq"] = "control"
    if "neutron" in services:
        found["ovn"] = "control"
    if "nova" in services:
        found |= {"nova_compute": "compute", "open_vswitch": "compute"}
    if len(services) > 1:
        found["cloud_content"] = "control"
    return found


def with_variables(inventory: dict[str, Any], variables: Variables) -> dict[str, Any]:
    """The inventory with the roles' variables in it; it holds secrets then.

    Every text of its variables is marked as one that Ansible must not render: what an experiment file says, and paths
    and passwords, are data. JSON is the form in which Ansible reads such marks.
    """
    everything = inventory["all"]
    hosts = {name: {**values, **variables.hosts.get(name, {})} for name, values in everything["hosts"].items()}
    shared = {**everything["vars"], **variables.shared}
    return {"all": {**everything, "vars": _as_data(shared), "hosts": _as_data(hosts)}}


def _as_data(value: Any) -> Any:
    """A value with every text in it (not the keys of mappings, which Ansible does not render) marked as data."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, dict):
        return {key: _as_data(inner) for key, inner in value.items()}
    return [_as_data(inner) for inner in value] if isinstance(value, list | tuple) else value


def site_group(site: str) -> str:
    """Name of the group of a site's hosts (Ansible allows no dash in it)."""
    return "site_" + site.replace("-", "_")
