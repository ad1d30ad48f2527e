"""A layout in words: what runs at each site, and what crosses the WAN. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from discovery_deploy.cloud.topology import At, Compute, Instance, Layout, layout
from discovery_deploy.experiment.model import Experiment, Site
from discovery_deploy.experiment.services import SERVICES


class Flow(NamedTuple):
    """Somebody at a site asks somebody at another site."""

    who: str
    """Such as "nova" or "computes"."""
    whom: str
    """Such as "the database" or "keystone"."""
    source: str
    destination: str


class Group(NamedTuple):
    """Members of one cluster, which tell each other everything."""

    what: str
    sites: tuple[str, ...]


def flows(found: Layout, bench_sites: tuple[str, ...] = ()) -> tuple[Flow, ...]:
    """Every flow between two sites, each once, in a stable order."""
    seen: dict[Flow, None] = {}
    for instance in found.instances:
        seen.update(dict.fromkeys(_of_instance(found, instance)))
    for compute in found.computes:
        seen.update(dict.fromkeys(_of_compute(found, compute)))
    for site in bench_sites:
        for endpoint in found.endpoints:
            if endpoint.region == found.region_of[site]:
                at = found.serving["keystone", site] if endpoint.service == "keystone" else endpoint.at
                seen[Flow("clients", endpoint.service, site, at.site)] = None
    return tuple(flow for flow in seen if flow.source != flow.destination)


def _of_instance(found: Layout, instance: Instance) -> Iterator[Flow]:
    who, here = (instance.service if instance.has_api else "conductors"), instance.at.site
    for server in instance.databases.values():
        yield Flow(who, "the database" if instance.has_api else "its cell's database", here, server.at.site)
    if instance.broker:
        yield Flow(who, "broker", here, instance.broker.at.site)
    if instance.service != "keystone":
        yield Flow(who, "keystone", here, found.serving["keystone", here].site)
    if instance.service == "neutron":
        yield Flow(who, "OVN", here, _member(found.ovn_of(here).members, here))
    if instance.service == "nova" and instance.has_api:
        yield from (Flow(who, need, here, site) for need, site in _needs(found, instance.region))
        for cell in found.of("nova"):
            if not cell.has_api and cell.broker:
                yield Flow(who, "a cell's broker", here, cell.broker.at.site)
                yield Flow(who, "a cell's database", here, cell.databases["nova"].at.site)


def _needs(found: Layout, region: str) -> Iterator[tuple[str, str]]:
    """What Nova asks in its region, and where that is."""
    for endpoint in found.endpoints:
        if endpoint.region == region and endpoint.service in SERVICES["nova"].needs and endpoint.service != "keystone":
            yield endpoint.service, endpoint.at.site


def _of_compute(found: Layout, compute: Compute) -> Iterator[Flow]:
    here = compute.at.site
    yield Flow("computes", "broker", here, compute.broker.at.site)
    yield Flow("computes", "keystone", here, found.serving["keystone", here].site)
    yield from (Flow("computes", need, here, site) for need, site in _needs(found, compute.region))
    if compute.libvirt:
        yield Flow("computes", "OVN", here, _member(compute.ovn.members, here))


def _member(members: tuple[At, ...], site: str) -> str:
    return next((member.site for member in members if member.site == site), members[0].site)


def groups(found: Layout) -> tuple[Group, ...]:
    """Clusters and networks whose members are at several sites."""
    backend = [server.at.site for server in found.servers if server.kind == "backend"]
    every = [Group("Galera", tuple(backend))]
    every += [Group("RabbitMQ", tuple(member.site for member in broker.members)) for broker in found.brokers]
    every += [Group("OVN's databases", tuple(member.site for member in central.members)) for central in found.ovn]
    for central in found.ovn:
        real = [compute.at.site for compute in found.computes if compute.libvirt and compute.ovn == central]
        every.append(Group("servers' networks", tuple(dict.fromkeys(real))))
    return tuple(group for group in dict.fromkeys(every) if len(group.sites) > 1)


def described(experiment: Experiment) -> str:
    """Text of a layout: a line per host that holds something, then what crosses the WAN."""
    found = layout(experiment)
    topology = experiment.deployment.topology.model_dump()
    lines = [f"topology {'@'.join(topology.values())}, regions: {', '.join(found.regions)}"]
    width = max(len(host.name) for site in experiment.sites for host in site.hosts)
    for site in experiment.sites:
        for host in site.hosts:
            held = [*_held(experiment, found, At(site.name, host.name))]
            lines += [f"  {host.name:{width}}  {'; '.join(held)}"] if held else []
    lines.append("across the WAN")
    crossing = [*_crossing(found, experiment.bench_sites() if experiment.campaign.scenarios else ())]
    lines += [f"  {line}" for line in crossing or ["nothing"]]
    return "\n".join(lines) + "\n"


def picture(experiment: Experiment) -> str:
    """The sites as boxes beside each other with what they hold, and what crosses the WAN under them."""
    found = layout(experiment)
    columns = [_box(site.name, [*_contents(experiment, found, site)]) for site in experiment.sites]
    height = max(map(len, columns))
    rows = [[*column[:-1], *[f"|{' ' * (_BOX - 2)}|"] * (height - len(column)), column[-1]] for column in columns]
    lines = ["   ".join(parts) for parts in zip(*rows, strict=True)]
    crossing = [*_crossing(found, experiment.bench_sites() if experiment.campaign.scenarios else ())]
    return "\n".join([*lines, "", "across the WAN:", *(f"  {line}" for line in crossing or ["nothing"])]) + "\n"


_BOX = 30


def _contents(experiment: Experiment, found: Layout, site: Site) -> Iterator[str]:
    for host in site.hosts:
        yield from _held(experiment, found, At(site.name, host.name))


def _box(name: str, contents: list[str]) -> list[str]:
    inner = _BOX - 4
    lines = [
        line for part in contents for line in textwrap.wrap(part, inner, subsequent_indent="  ", break_on_hyphens=False)
    ]
    top, bottom = f"+- {name} {'-' * (_BOX - len(name) - 5)}+", f"+{'-' * (_BOX - 2)}+"
    return [top, *(f"| {line:{inner}} |" for line in lines), bottom]


def _held(experiment: Experiment, found: Layout, at: At) -> Iterator[str]:
    whole = [one.service for one in found.instances if one.at == at and one.has_api]
    if whole:
        yield ", ".join(whole)
    for instance in found.of("nova"):
        if instance.at == at and experiment.deployment.topology.type == "cells" and instance.cell:
            yield f"conductor of {instance.cell}"
    for server in found.servers:
        if server.at == at:
            yield f"{'databases' if server.kind == 'backend' else 'own databases'} {', '.join(server.databases)}"
    for broker in found.brokers:
        if broker.at == at:
            yield f"broker {', '.join(broker.vhosts)}"
    if any(at in central.members for central in found.ovn):
        yield "OVN's databases"
    for compute in found.computes:
        if compute.at == at:
            parts = [f"{len(compute.fakes)} fake"] if compute.fakes else []
            yield f"computes: {', '.join([*parts, 'libvirt'] if compute.libvirt else parts)}"


def _crossing(found: Layout, bench_sites: tuple[str, ...]) -> Iterator[str]:
    pairs: dict[tuple[str, str], list[str]] = {}
    for flow in flows(found, bench_sites):
        pairs.setdefault((flow.who, flow.whom), []).append(f"{flow.source} -> {flow.destination}")
    asked: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (who, whom), ways in pairs.items():
        asked.setdefault((who, tuple(ways)), []).append(whom)
    asking: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (who, found_ways), whoms in asked.items():
        asking.setdefault((tuple(whoms), found_ways), []).append(who)
    for (whoms_of, found_ways), who_all in asking.items():
        verb = "asks" if who_all[0] in SERVICES and len(who_all) == 1 else "ask"
        yield f"{', '.join(who_all)} {verb} {', '.join(whoms_of)}: {', '.join(found_ways)}"
    for group in groups(found):
        yield f"{group.what}, each with each: {', '.join(group.sites)}"
