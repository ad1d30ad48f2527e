"""Whether the parts of an experiment fit each other: names that collide, references that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from discovery_deploy.system.mistake import Mistake, Place

if TYPE_CHECKING:
    from discovery_deploy.experiment.model import Experiment


RESERVED = frozenset(
    {"all", "localhost", "router", "ungrouped", "bench", "compute", "control", "database", "mariadb", "galera"}
    | {"management", "sites", "memcached", "rabbitmq", "ovn", "keystone", "placement", "glance", "neutron", "nova"}
)
"""Names that no site or host may have: groups of Ansible's and ours, networks of EnOSlib's, and the WAN router."""


def reference_mistakes(experiment: Experiment) -> Iterable[Mistake]:
    """All references of an experiment that lead nowhere, in the order of the file."""
    yield from _names_that_collide(experiment)
    yield from _unknown_sites(experiment)
    yield from _lacking_bench(experiment)


def _names_that_collide(experiment: Experiment) -> Iterable[Mistake]:
    sites: dict[str, Place] = {}
    hosts: dict[str, Place] = {}
    for index, site in enumerate(experiment.sites):
        where: Place = ("sites", index, "name")
        if site.name in sites:
            yield Mistake(where, f'a second site "{site.name}"', (sites[site.name],))
        sites.setdefault(site.name, where)
    for index, site in enumerate(experiment.sites):
        for place, host in enumerate(site.hosts):
            where = ("sites", index, "hosts", place, "name")
            if host.name in hosts and site.name not in experiment.site_names[:index]:
                yield Mistake(where, f'a second host "{host.name}"', (hosts[host.name], ("sites", index)))
            hosts.setdefault(host.name, where)
            if host.name in RESERVED:
                yield Mistake(where, f'"{host.name}" is reserved; choose another name')
        if site.name in RESERVED:
            yield Mistake(("sites", index, "name"), f'"{site.name}" is reserved; choose another name')


def _unknown_sites(experiment: Experiment) -> Iterable[Mistake]:
    named: list[tuple[Place, str | None]] = []
    for index, constraint in enumerate(experiment.network.constraints):
        path = ("network", "constraints", index)
        named += [((*path, "between", place), name) for place, name in enumerate(constraint.between or ())]
        named += [((*path, "from"), constraint.source), ((*path, "to"), constraint.destination)]
    backend, topology = experiment.deployment.backend, experiment.deployment.topology
    if backend.type == "mariadb":
        named.append((("deployment", "backend", "site"), backend.site))
    if topology.type in ("centralized", "cells"):
        named.append((("deployment", "topology", "site"), topology.site))
    overrides = experiment.deployment.site_overrides
    named += [(("deployment", "site_overrides", name), name) for name in overrides]
    named.append((("campaign", "bench_site"), experiment.campaign.bench_site))
    known = experiment.site_names
    for where, name in named:
        if name is not None and name not in known:
            message = f'no site "{name}"; the sites are {", ".join(known)}'
            yield Mistake(where, message, site_names(experiment))


def site_names(experiment: Experiment) -> tuple[Place, ...]:
    """Places of the sites' names, on which rests what names a site."""
    return tuple(("sites", index, "name") for index in range(len(experiment.sites)))


def _lacking_bench(experiment: Experiment) -> Iterable[Mistake]:
    if not experiment.campaign.scenarios:
        return
    where: Place = ("campaign", "bench_site")
    for name in experiment.bench_sites():
        for index, site in enumerate(experiment.sites):
            if site.name == name and not site.first("bench"):
                rests_on: tuple[Place, ...] = (("sites", index), ("campaign", "load"))
                yield Mistake(where, f'site "{name}" has no host with the role bench', rests_on)
    if not experiment.bench_sites():
        yield Mistake(("campaign", "load"), "no site has a host with the role bench", (("sites",),))
