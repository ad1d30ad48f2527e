"""Hosts as containers on the machines of another provider: which machines, their plans, and who shapes what. Pure.

Every machine has a machine plan, as `local` makes them. Slot, sites' numbers, names and addresses are those of one
plan of the whole experiment, which is divided: so they are unique on all machines. The WAN routers of the machines
reach each other through tunnels (`wan_tunnels`); a path is shaped by the router of its destination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from discovery_deploy.agent import wan_tunnels
from discovery_deploy.agent.plan import Plan, TcProgram, as_data, read
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment, Host, Site
from discovery_deploy.experiment.placement import placed
from discovery_deploy.experiment.provider_models import Grid5000, Local, Machines, Static
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import local

MOST_MACHINES = 250
"""Machines of an experiment: each has a number of one byte in the tunnels' addresses."""


def hosts_per_machine(experiment: Experiment) -> int | None:
    """How many hosts share a machine; None when every host is a machine, or is on this one."""
    provider = experiment.provider
    return None if isinstance(provider, Local) else provider.hosts_per_machine


def hosts_are_containers(experiment: Experiment) -> bool:
    """Whether hosts are made of an image of ours, on this machine or on others."""
    return isinstance(experiment.provider, Local) or hosts_per_machine(experiment) is not None


def machines(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Machine -> the sites whose hosts are containers on it, in the order of the machines.

    Raises:
        ValueError: the experiment's hosts are not nested.
        TestbedError: a site does not fit on a machine, or there are not enough machines.
    """
    return {name: sites for name, (_, sites) in _placed(experiment).items()}


def _placed(experiment: Experiment) -> dict[str, tuple[Machines | None, tuple[str, ...]]]:
    """Machine -> (where on Grid'5000 it is, its sites)."""
    most, provider = hosts_per_machine(experiment), experiment.provider
    if most is None:
        raise ValueError(f"{experiment.name}: hosts are not nested")
    places: list[tuple[Machines | None, dict[str, int]]] = []
    for site in experiment.sites:
        place = provider.sites.get(site.name, provider.default) if isinstance(provider, Grid5000) else None
        sizes = next((known for at, known in places if at == place), None)
        if sizes is None:
            sizes = {}
            places.append((place, sizes))
        sizes[site.name] = len(site.hosts)
    try:
        found = [(place, names) for place, sizes in places for names in placed(sizes, most)]
    except ValueError as error:
        raise TestbedError(f"{experiment.name}: {error}", "Raise provider.hosts_per_machine.") from error
    names = [machine.host for machine in provider.machines] if isinstance(provider, Static) else None
    most_machines = MOST_MACHINES if names is None else min(len(names), MOST_MACHINES)
    if len(found) > most_machines:
        raise TestbedError(
            f"{experiment.name}: {len(found)} machines are needed, {most_machines} can be had",
            "Raise provider.hosts_per_machine, or give more machines.",
        )
    return {names[index] if names else f"machine-{index + 1}": entry for index, entry in enumerate(found)}


def machines_experiment(experiment: Experiment) -> Experiment:
    """What to ask of the provider of the machines: an experiment whose hosts are the machines, each a host of its own.

    Its sites are where machines may be; network, deployment and campaign are the original's and mean nothing here.

    Raises:
        As `machines`.
    """
    places: list[tuple[Machines | None, list[Host]]] = []
    for name, (place, _) in _placed(experiment).items():
        host = Host(name=name)
        known = next((hosts for at, hosts in places if at == place), None)
        if known is None:
            places.append((place, [host]))
        else:
            known.append(host)
    names = [f"machines-{index + 1}" for index in range(len(places))]
    sites = tuple(Site(name=name, hosts=tuple(hosts)) for name, (_, hosts) in zip(names, places, strict=True))
    changes: dict[str, Any] = {"hosts_per_machine": None}
    provider = experiment.provider
    if isinstance(provider, Grid5000):
        changes["sites"] = {name: place for name, (place, _) in zip(names, places, strict=True)}
        changes["default"] = None
    elif isinstance(provider, Static):
        used = {host.name for site in sites for host in site.hosts}
        changes["machines"] = tuple(machine for machine in provider.machines if machine.host in used)
    return experiment.model_copy(update={"sites": sites, "provider": provider.model_copy(update=changes)})


def machine_plans(
    experiment: Experiment,
    addresses: Mapping[str, str],
    slot: int,
    directory: Path,
    base: Path,
    environments: Path,
    public_key: str,
) -> dict[str, Plan]:
    """Machine -> its machine plan.

    Args:
        experiment: nested.
        addresses: machine -> its address for the other machines.
        slot: free on all of them.
        directory: where the experiment keeps everything on each machine.
        base: unpacked base image there.
        environments: directory there that hosts see at /opt/discovery-deploy.
        public_key: may log in to the hosts as root.
    Raises:
        TestbedError: as `machines`, and a site with more hosts than addresses.
    """
    whole = local.machine_plan(experiment, slot, directory, base, environments, public_key)
    parts = {name: _part(whole, sites) for name, sites in machines(experiment).items()}
    return {
        name: replace(
            part,
            peers=tuple(
                wan_tunnels.peer(slot, own, other, (addresses[name], addresses[peer]), peer, parts[peer])
                for other, peer in enumerate(parts)
                if peer != name
            ),
        )
        for own, (name, part) in enumerate(parts.items())
    }


def _part(whole: Plan, sites: Sequence[str]) -> Plan:
    """The plan of the machine that has these sites."""
    return replace(
        whole,
        sites=tuple(site for site in whole.sites if site.name in sites),
        hosts=tuple(host for host in whole.hosts if host.site in sites),
    )


def plans_of(lease: Lease) -> dict[str, Plan]:
    """Machine -> its plan, of a nested lease. Raises MachineError when one was damaged."""
    return {name: read(plan) for name, plan in lease.details["plans"].items()}


def owners(plans: Mapping[str, Plan]) -> dict[str, str]:
    """Device of a WAN router -> the machine where it is."""
    return {site.router_device: name for name, plan in plans.items() for site in plan.sites}


def of_machines(program: TcProgram, plans: Mapping[str, Plan]) -> dict[str, TcProgram]:
    """A tc program divided: machine -> what is about its devices.

    Raises:
        ValueError: something is about no device of a machine.
    """
    strange = sorted(set(program.devices) - set(owners(plans)))
    if strange:
        raise ValueError(f"no machine has {', '.join(strange)}")
    return {name: program.of({site.router_device for site in plan.sites}) for name, plan in plans.items()}


def environments_of_machines(
    plans: Mapping[str, Plan], wanted: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Machine -> names of the environments that its hosts need, from host -> names."""
    return {
        name: tuple(sorted({one for host in plan.hosts for one in wanted[host.name]})) for name, plan in plans.items()
    }


def merged(shown: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What tc shows on several machines as what it would show on one (`wan_router.read`)."""
    found: dict[str, Any] = {}
    for one in shown:
        for key, devices in one.items():
            found.setdefault(key, {}).update(devices)
    return found


def lease(
    experiment: Experiment,
    plans: Mapping[str, Plan],
    born: Mapping[str, Mapping[str, str]],
    ways: Mapping[str, Mapping[str, str]],
    details: Mapping[str, Any],
) -> Lease:
    """The lease of hosts whose plans are up.

    Args:
        experiment: nested.
        plans: machine -> its plan.
        born: host -> its `machine_id`.
        ways: machine -> options of ssh_config with which its hosts are reached.
        details: for `Lease.details`, besides the plans.
    """
    roles = {host.name: host.roles for site in experiment.sites for host in site.hosts}
    places = [(name, host) for name, plan in plans.items() for host in plan.hosts]
    order = [name for site in experiment.sites for name in (host.name for host in site.hosts)]
    places.sort(key=lambda place: order.index(place[1].name))
    sites = [site for plan in plans.values() for site in plan.sites]
    return Lease(
        provider=experiment.provider.type,
        experiment=experiment.name,
        hosts=tuple(
            LeasedHost(
                name=host.name, site=host.site, roles=roles[host.name],
                management_address=host.management_address, site_address=host.site_address, ssh=dict(ways[name]),
            )
            for name, host in places
        ),
        site_subnets={site.name: site.subnet for site in sites},
        site_devices={site.name: site.router_device for site in sites},
        site_gateways={site.name: site.gateway for site in sites},
        identities={name: facts["machine_id"] for name, facts in born.items()},
        router="netns",
        details={"plans": {name: as_data(plan) for name, plan in plans.items()}, **details},
    )  # fmt: skip
