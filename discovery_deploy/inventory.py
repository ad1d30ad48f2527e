"""Ansible's view of the hosts: groups after roles and sites, and the way to each over the management network. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery_deploy.model import ROLES, Experiment
from discovery_deploy.variables import Variables, backend_role, database_hosts, role_hosts

if TYPE_CHECKING:
    from discovery_deploy.providers.base import Lease

HOST_PYTHON = "/usr/bin/python3"


def inventory(experiment: Experiment, lease: Lease, ssh_config: Path, key: Path) -> dict[str, Any]:
    """The inventory as plain data, without secrets: equal hosts give an equal inventory.

    Groups: `control`, `database`, `bench` (the hosts on which services of these roles run or may run: the first of
    each site), one of `mariadb` and `galera` (the hosts that hold the databases), and `site_<name>`.

    Args:
        experiment: with the levels of the setting in place.
        lease: its hosts.
        ssh_config: file for `ssh -F`.
        key: private key of the experiment.
    """
    groups: dict[str, list[str]] = {role: [host.name for host in role_hosts(experiment, lease, role)] for role in ROLES}
    groups[backend_role(experiment)] = [host.name for host in database_hosts(experiment, lease)]
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


def with_variables(inventory: dict[str, Any], variables: Variables) -> dict[str, Any]:
    """The inventory with the roles' variables in it; it holds secrets then."""
    everything = inventory["all"]
    hosts = {name: {**values, **variables.hosts.get(name, {})} for name, values in everything["hosts"].items()}
    return {"all": {**everything, "vars": {**everything["vars"], **variables.shared}, "hosts": hosts}}


def site_group(site: str) -> str:
    """Name of the group of a site's hosts (Ansible allows no dash in it)."""
    return "site_" + site.replace("-", "_")
