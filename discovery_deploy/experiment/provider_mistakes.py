"""Whether a provider's section fits the sites and hosts of its experiment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from discovery_deploy.experiment.placement import placed
from discovery_deploy.experiment.references import site_names
from discovery_deploy.system.mistake import Mistake, Place, near

if TYPE_CHECKING:
    from discovery_deploy.experiment.model import Experiment
    from discovery_deploy.experiment.provider_models import Grid5000, Machines, Static, Vagrant

_PROVIDER: Place = ("provider",)


def provider_mistakes(experiment: Experiment) -> Iterable[Mistake]:
    """What does not fit between a provider and the sites, in the order of the file."""
    provider = experiment.provider
    if provider.type != "local":
        yield from _too_large(experiment, provider)
    if provider.type == "static":
        yield from _machines(experiment, provider)
    elif provider.type == "g5k":
        yield from _sites(experiment, provider)
        yield from _servers(experiment, provider)


def _too_large(experiment: Experiment, provider: Vagrant | Grid5000 | Static) -> Iterable[Mistake]:
    most = provider.hosts_per_machine
    for index, site in enumerate(experiment.sites):
        if most is not None and len(site.hosts) > most:
            message = f'site "{site.name}" has {len(site.hosts)} hosts, and they stay together on one machine'
            yield Mistake((*_PROVIDER, "hosts_per_machine"), message, (("sites", index),))


def _machines(experiment: Experiment, provider: Static) -> Iterable[Mistake]:
    hosts = [host.name for site in experiment.sites for host in site.hosts]
    most = provider.hosts_per_machine
    given: dict[str, Place] = {}
    addresses: dict[str, Place] = {}
    listening: dict[str, Place] = {}
    for index, machine in enumerate(provider.machines):
        where: Place = ("provider", "machines", index)
        if machine.host not in hosts and most is None:
            meant = near(machine.host, hosts)
            hint = f'did you mean "{meant}"?' if meant else f"the hosts are {', '.join(hosts)}"
            yield Mistake((*where, "host"), f'no host "{machine.host}"; {hint}', (("sites",),))
        elif machine.host in given:
            yield Mistake((*where, "host"), f'a second machine for "{machine.host}"', (given[machine.host],))
        given.setdefault(machine.host, (*where, "host"))
        way = f"{machine.jump or ''} {machine.address} {machine.port}"
        if way in addresses:
            yield Mistake((*where, "address"), f'"{machine.address}" is a machine above already', (addresses[way],))
        addresses.setdefault(way, (*where, "address"))
        at, field = machine.listens_at, "site_address" if machine.site_address else "address"
        if addresses[way] == (*where, "address"):
            if at in listening:
                yield Mistake((*where, field), f'"{at}" is where a machine above listens', (listening[at],))
            listening.setdefault(at, (*where, field))
    if most is not None:
        yield from _too_few(experiment, provider, most)
    for name in hosts if most is None else ():
        if name not in given:
            yield Mistake(("provider", "machines"), f'no machine for host "{name}"', (("sites",),))


def _too_few(experiment: Experiment, provider: Static, most: int) -> Iterable[Mistake]:
    sizes = {site.name: len(site.hosts) for site in experiment.sites}
    if max(sizes.values()) > most:
        return
    needed, given = len(placed(sizes, most)), len(provider.machines)
    if needed > given:
        there = "is 1" if given == 1 else f"are {given}"
        message = f"{needed} machines are needed for {sum(sizes.values())} hosts, and there {there}"
        yield Mistake((*_PROVIDER, "machines"), message, (("sites",), (*_PROVIDER, "hosts_per_machine")))


def _sites(experiment: Experiment, provider: Grid5000) -> Iterable[Mistake]:
    for name in provider.sites:
        if name not in experiment.site_names:
            message = f'no site "{name}"; the sites are {", ".join(experiment.site_names)}'
            yield Mistake(("provider", "sites", name), message, site_names(experiment))
    if provider.default is None:
        lacking = [name for name in experiment.site_names if name not in provider.sites]
        for name in lacking:
            message = f'nothing says where the hosts of site "{name}" are; give `default`, or name it in `sites`'
            yield Mistake(_PROVIDER, message, (*site_names(experiment), ("provider", "sites")))


def _servers(experiment: Experiment, provider: Grid5000) -> Iterable[Mistake]:
    """Servers that are none of their site, are in two lists, or are too few for their hosts."""
    given = {name: place for name, place in provider.sites.items() if name in experiment.site_names}
    places: dict[Place, Machines] = {("provider", "sites", name): place for name, place in given.items()}
    if provider.default is not None:
        places = {("provider", "default"): provider.default, **places}
    hosts: dict[Machines, list[str]] = {}
    for site in experiment.sites:
        place = given.get(site.name, provider.default)
        if place is not None:
            hosts.setdefault(place, []).extend(host.name for host in site.hosts)
    seen: dict[str, tuple[Machines, Place]] = {}
    for path, place in places.items():
        for index, server in enumerate(place.servers):
            here: Place = (*path, "servers", index)
            full = full_name(server, place.g5k_site)
            if not re.fullmatch(rf"[a-z]+[a-z0-9]*-[0-9]+\.{place.g5k_site}\.grid5000\.fr", full):
                example = f"paravance-1.{place.g5k_site}.grid5000.fr"
                yield Mistake(here, f'"{server}" is no machine of {place.g5k_site}; write for example "{example}"')
                continue
            other, where = seen.setdefault(full, (place, here))
            if other != place:
                yield Mistake(here, f'"{server}" is in another list already; name the same list, or others', (where,))
        asked = hosts.get(place, [])
        if place.servers and len(place.servers) < len(asked):
            message = f"{len(place.servers)} servers for {len(asked)} hosts: {', '.join(asked)}"
            yield Mistake((*path, "servers"), message, (("sites",), *site_names(experiment)))


def full_name(server: str, g5k_site: str) -> str:
    """The full name of a server of Grid'5000 that may be given without its site."""
    return server if "." in server else f"{server}.{g5k_site}.grid5000.fr"
