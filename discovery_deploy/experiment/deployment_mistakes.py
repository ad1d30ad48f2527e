"""Whether a deployment fits itself and the sites: services, topology, placement, computes, overrides."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from discovery_deploy.experiment.references import site_names
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.system.mistake import Mistake, Place, near

if TYPE_CHECKING:
    from discovery_deploy.experiment.model import Experiment

_TOPOLOGY: Place = ("deployment", "topology")
_SERVICES: Place = ("deployment", "services")


def service_mistakes(services: Sequence[str]) -> Iterable[Mistake]:
    """Services without what they need; places begin at the deployment."""
    for index, name in enumerate(services):
        lacking = [need for need in SERVICES[name].needs if need not in services]
        if lacking:
            yield Mistake(("services", index), f"{name} needs {', '.join(lacking)} too")


def deployment_mistakes(experiment: Experiment) -> Iterable[Mistake]:
    """What does not fit between a deployment and the sites, in the order of the file."""
    yield from _lacking_control(experiment)
    yield from _topology_without_its_service(experiment)
    yield from _lacking_databases(experiment)
    yield from _lacking_computes(experiment)
    yield from _named_services(experiment)
    yield from _placement(experiment)
    yield from _overrides(experiment)


def _lacking_control(experiment: Experiment) -> Iterable[Mistake]:
    topology = experiment.deployment.topology
    lacking = [(index, site) for index, site in enumerate(experiment.sites) if not site.first("control")]
    for index, site in lacking:
        where: Place = ("sites", index, "hosts")
        if topology.type == "regions":
            yield Mistake(where, "no host with the role control; each site needs one", (where, _TOPOLOGY))
        elif topology.type in ("centralized", "cells") and site.name == topology.site:
            message = f'site "{site.name}" has no host with the role control'
            yield Mistake((*_TOPOLOGY, "site"), message, (where, _TOPOLOGY))
        elif topology.type == "cells" and site.name in experiment.compute_sites():
            message = "no host with the role control; with cells each site with computes needs one"
            rests_on = (where, _TOPOLOGY, _SERVICES, ("deployment", "computes"))
            yield Mistake(where, message, rests_on)
    if topology.type == "shared-state" and len(lacking) == len(experiment.sites):
        yield Mistake((*_TOPOLOGY, "type"), "no site has a host with the role control", (("sites",), _TOPOLOGY))


def _topology_without_its_service(experiment: Experiment) -> Iterable[Mistake]:
    if experiment.deployment.topology.type == "cells" and "nova" not in experiment.deployment.services:
        message = "cells are Nova's: add nova to the services, or choose centralized"
        yield Mistake((*_TOPOLOGY, "type"), message, (_TOPOLOGY, _SERVICES))


def _lacking_databases(experiment: Experiment) -> Iterable[Mistake]:
    backend = experiment.deployment.backend
    rests_on: tuple[Place, ...] = (("deployment", "backend"),)
    regions = experiment.deployment.topology.type == "regions"
    control_sites = experiment.site_names if regions else experiment.control_sites()
    for index, site in enumerate(experiment.sites):
        where: Place = ("sites", index, "hosts")
        if site.first("database"):
            continue
        if backend.type == "galera" and site.name in control_sites:
            which = "each site" if regions else "each site with control services"
            message = f"no host with the role database; galera needs one at {which}"
            yield Mistake(where, message, (where, *rests_on, _TOPOLOGY))
        elif backend.type == "mariadb" and site.name == backend.site:
            message = f'site "{site.name}" has no host with the role database'
            yield Mistake(("deployment", "backend", "site"), message, (where, *rests_on))


def _lacking_computes(experiment: Experiment) -> Iterable[Mistake]:
    computes = experiment.deployment.computes
    if "nova" not in experiment.deployment.services or not computes.fake + computes.libvirt:
        return
    if not experiment.compute_sites():
        message = "no host has the role compute; give one the role, or ask for {fake: 0, libvirt: 0}"
        yield Mistake(("deployment", "computes"), message, (("sites",), _SERVICES))


def _named_services(experiment: Experiment) -> Iterable[Mistake]:
    """Services that are configured or placed, and are none or not deployed."""
    deployment = experiment.deployment
    named: list[Place] = [("overrides", name) for name in deployment.overrides]
    named += [("site_overrides", site, name) for site, found in deployment.site_overrides.items() for name in found]
    named += [("placement", name) for name in deployment.placement]
    for place in named:
        name, where = str(place[-1]), ("deployment", *place)
        if name not in SERVICES:
            meant = near(name, SERVICES)
            hint = f'did you mean "{meant}"?' if meant else f"known: {', '.join(SERVICES)}"
            yield Mistake(where, f'no service "{name}"; {hint}')
        elif name not in deployment.services:
            message = f"{name} is not deployed; the services are {', '.join(deployment.services)}"
            yield Mistake(where, message, (_SERVICES,))


def _overrides(experiment: Experiment) -> Iterable[Mistake]:
    deployment = experiment.deployment
    yield from _not_for_a_file(("deployment", "overrides"), deployment.overrides)
    for site, overrides in deployment.site_overrides.items():
        yield from _not_for_a_file(("deployment", "site_overrides", site), overrides)


def _not_for_a_file(place: Place, overrides: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterable[Mistake]:
    """What cannot stand in an INI file."""
    for service, sections in overrides.items():
        for section, options in sections.items():
            where = (*place, service, section)
            if not re.fullmatch(r"[^\[\]\s_][^\[\]\s]*", section) or _control_character(section):
                yield Mistake(where, f'"{section}" is not the name of a section')
            for option, value in options.items():
                if not re.fullmatch(r"[^\[\]=:#;\s_][^\[\]=:#;\s]*", option) or _control_character(option):
                    yield Mistake((*where, option), f'"{option}" is not the name of an option')
                problem = _value_problem(value)
                if problem:
                    yield Mistake((*where, option), problem)


def _value_problem(value: Any) -> str | None:
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        return "a text, a number or a truth value is expected; a list is a text with commas"
    if not isinstance(value, str):
        return None
    if len(value.splitlines()) > 1:
        return "one line is expected"
    found = _control_character(value)
    return f"the character U+{ord(found):04X} cannot stand in a configuration file" if found else None


def _control_character(text: str) -> str:
    """The first one in a text, or ""."""
    return next((letter for letter in text if unicodedata.category(letter) == "Cc"), "")


def _placement(experiment: Experiment) -> Iterable[Mistake]:
    sites = {site.name: site for site in experiment.sites}
    hosts = {host.name: (site, host) for site in experiment.sites for host in site.hosts}
    for service, places in experiment.deployment.placement.items():
        taken: dict[str, str] = {}
        if service == "nova" and len(places) > 1 and experiment.deployment.topology.type == "cells":
            message = "with cells, Nova's API is at one site"
            yield Mistake(("deployment", "placement", "nova", 1), message, (_TOPOLOGY,))
        if not places:
            yield Mistake(("deployment", "placement", service), "at least one site or host is needed")
        for index, name in enumerate(places):
            where: Place = ("deployment", "placement", service, index)
            if name in sites:
                site, fits, kind = sites[name], sites[name].first("control") is not None, "site"
            elif name in hosts:
                (site, host), kind = hosts[name], "host"
                fits = "control" in host.roles
            else:
                meant = near(name, [*sites, *hosts])
                hint = f'did you mean "{meant}"?' if meant else f"the sites are {', '.join(sites)}"
                yield Mistake(where, f'no site or host "{name}"; {hint}', site_names(experiment))
                continue
            if not fits:
                lack = "has no host with the role control" if kind == "site" else "has not the role control"
                yield Mistake(where, f'{kind} "{name}" {lack}', (("sites",),))
            elif site.name in taken:
                first = f'site "{site.name}" runs {service} already, through "{taken[site.name]}"'
                message = f"{first}; a site has each service once"
                yield Mistake(where, message, (("sites",),))
            taken.setdefault(site.name, name)
