"""From EnOS's `reservation.yaml` to an experiment file, with what has no counterpart. Pure.

EnOS's format was read in its documents and sources (versions 1 to 8), and EnOSlib's for what EnOS hands on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any

from discovery_deploy.enos import enos_network, enos_provider
from discovery_deploy.enos.enos_network import Wan
from discovery_deploy.enos.enos_reading import UNGROUPED, Notes, declared_groups, descriptions
from discovery_deploy.enos.enos_sites import HostPlan, SitePlan, fitting_name, site_plans
from discovery_deploy.experiment import config
from discovery_deploy.experiment.fields import format_path
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.system.mistake import Place
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds import g5k_request

_ADVICE = "Correct it, or remove what is not needed; docs/enoslib.md tells what is read."
_LONGEST_NAME = 20
_SERVICES = "[keystone, placement, glance, neutron, nova]"
_USED = frozenset({"provider", "topology", "resources", "network_constraints", "kolla"})
_ANCHORS = "hosts"
"""A key that EnOS does not read: files for machines given by hand keep YAML's anchors there."""
_LOST = {
    "kolla-ansible": "services come from PyPI and from `sources`, not from kolla's images; set `deployment.release`",
    "kolla_repo": "services come from PyPI and from `sources`, not from kolla's images; set `deployment.release`",
    "kolla_ref": "services come from PyPI and from `sources`, not from kolla's images; set `deployment.release`",
    "docker_version": "no containers are used on hosts",
    "registry": "no container images are used; Python environments are built once and kept in the cache",
    "enable_monitoring": "there is no monitoring stack; what Rally measures and the WAN's probes are in the report",
    "inventory": "`deployment.topology` says what runs where; `deployment.placement` moves single services",
    "workload": "name Rally's tasks in `campaign.scenarios`",
}
_KOLLA = {
    "node_custom_config": "give options of services in `deployment.overrides` (docs/experiment.md)",
    "nova_compute_virt_type": "libvirt uses KVM where it works, and emulation where not",
    "openstack_release": "set `deployment.release`",
    "kolla_base_distro": "hosts are Debian 12",
    "kolla_install_type": "services are installed from source, from PyPI",
    "kolla_internal_vip_address": "each site's services are asked at its control host; there is no virtual address",
}
_INTERFACES = "a host's interface on the network of its site is found by itself"
_OPTIONS = "what services are told is in `deployment.overrides`, what is deployed in `deployment.services`"


class Imported(Strict):
    """What a reservation became."""

    text: str
    """An experiment file that passes `check`."""
    lost: tuple[str, ...]
    """What has no counterpart, one a line: `file:line:column: key: why, and what to do instead`."""


def convert(text: str, file: str, name: str | None = None, now: datetime | None = None) -> Imported:
    """The experiment file that asks for what a reservation of EnOS asks for.

    Args:
        text: what the reservation file holds.
        file: its path, for messages; its name is the experiment's when nothing else gives one.
        name: of the experiment; default: the job's.
        now: the present time in Paris, without a zone; a reservation before it is told. None: not looked at.
    Raises:
        ExperimentError: every mistake of the file, as `file:line:column: key: what`.
    """
    document = config.composed(text, file, "a reservation file", _ADVICE)
    notes = Notes()
    placed = [(at, mistake) for at, mistake in document.placed_mistakes if mistake.path[:1] != (_ANCHORS,)]
    described = descriptions(document.data, notes)
    sites = site_plans(described, notes)
    groups = {site.group: site.name for site in sites}
    asked = enos_network.asked(document.data, list(groups), declared_groups(document.data, described), notes)
    provider = enos_provider.section(document.data, sites, notes)
    control = [site for site in sites if any("control" in host.roles for host in site.hosts)]
    if sites and not control:
        notes.wrong(_machines_place(document.data), "no machine has the role control")
    _tell_lost_keys(document.data, notes)
    _tell_shared_rates(asked, sites, notes)
    begins = provider.get("reservation")
    if now is not None and isinstance(begins, str) and g5k_request.is_past(begins, now):
        notes.lose(
            ("provider", "reservation"), "begins in the past; left out, so that the job begins when there is room"
        )
        del provider["reservation"]
    placed += [(document.position(mistake.path), mistake) for mistake in notes.mistakes]
    if placed or not control:
        raise config.refusal(file, placed, _ADVICE)
    chosen = fitting_name(name or _job_name(document.data) or PurePath(file).stem, _LONGEST_NAME)
    lines = [*_head(chosen, file), *_provider(provider), *_sites(sites), *_network(enos_network.wan(asked, groups))]
    made = "\n".join([*lines, *_deployment(sites, control, notes), *_campaign(sites)]) + "\n"
    _check(made, file)
    return Imported(text=made, lost=tuple(_told(notes, document, file)))


def _check(made: str, file: str) -> None:
    """What the models alone know: a queue that is no text, a date that is none."""
    try:
        config.parse(made, "experiment")
    except ExperimentError as error:
        told = "\n".join(line.split(": ", 1)[-1] for line in error.what.splitlines())
        raise ExperimentError(
            f"{file}: what it asks for cannot stand in an experiment file:\n{told}", _ADVICE
        ) from error


def _told(notes: Notes, document: Any, file: str) -> Iterator[str]:
    placed = {(document.position(lost.path), f"{format_path(lost.path)}: {lost.why}") for lost in notes.lost}
    for (line, column), told in sorted(placed):
        yield f"{file}:{line}:{column}: {told}"


def _job_name(data: Mapping[str, Any]) -> str:
    provider = data["provider"]
    named = provider.get("job_name") or provider.get("name") if isinstance(provider, dict) else None
    return named if isinstance(named, str) else ""


def _machines_place(data: Mapping[str, Any]) -> Place:
    provider = data.get("provider")
    if isinstance(provider, dict) and provider.get("resources") is not None:
        return ("provider", "resources")
    return ("topology",) if "topology" in data else ("resources",)


def _tell_lost_keys(data: Mapping[str, Any], notes: Notes) -> None:
    for key in data:
        if key not in _USED and key != _ANCHORS:
            notes.lose((key,), _LOST.get(key, "EnOS does not read this key, or it has no counterpart here"))
    kolla = data.get("kolla")
    for key, value in (notes.mapping(kolla, ("kolla",)) if kolla is not None else {}).items():
        notes.lose(("kolla", key), _of_kolla(key, value))


def _of_kolla(key: str, value: Any) -> str:
    if key in _KOLLA:
        return _KOLLA[key]
    if key.endswith("_interface"):
        return _INTERFACES
    if key.startswith("enable_"):
        service, off = key.removeprefix("enable_"), value in (False, "no", "false", "False")
        if service in SERVICES:
            return f"take {service} out of `deployment.services`" if off else f"{service} is deployed in any case"
        return f"as it is here: {service} is not deployed" if off else f"{service} is not deployed by this tool"
    return f"a variable of kolla-ansible; {_OPTIONS}"


def _tell_shared_rates(asked: enos_network.Asked, sites: Sequence[SitePlan], notes: Notes) -> None:
    if asked.default is not None and any(len(site.hosts) > 1 for site in sites):
        why = "EnOS gives a rate to each pair of machines; here all hosts of two sites share it, one way"
        notes.lose((enos_network.SECTION, "default_rate"), why)


# the text


def _head(name: str, file: str) -> list[str]:
    return [
        f"# Made by `discovery-deploy import-enos` from {PurePath(file).name} of EnOS. Every key is explained in",
        "# docs/experiment.md; `discovery-deploy check FILE` tells what is wrong after a change.",
        f"name: {name}",
        "# What you want to know; it heads the report.",
        '# question: ""',
        "",
    ]


def _provider(provider: Mapping[str, Any]) -> list[str]:
    lines = ["provider:"]
    for key, value in provider.items():
        if key == "machines":
            lines += ["  machines:", *(f"    - {_flow(machine)}" for machine in value)]
        elif key == "sites":
            lines += ["  sites:", *(f"    {name}: {_flow(place)}" for name, place in value.items())]
        else:
            lines.append(f"  {key}: {_flow(value)}")
    return [*lines, ""]


def _sites(sites: Iterable[SitePlan]) -> list[str]:
    lines = ["sites:"]
    for site in sites:
        origin = "machines without a group" if site.group == UNGROUPED else f"group {site.group}"
        lines += [f"  - name: {site.name}  # {_comment(origin)}", "    hosts:"]
        lines += [
            f"      - {_flow({'name': host.name, 'roles': list(host.roles)})}  # {_origin(host)}" for host in site.hosts
        ]
    return [*lines, ""]


def _origin(host: HostPlan) -> str:
    size = f" on {host.origin.size}" if host.origin.size else ""
    return _comment(", ".join(host.origin.roles) + size)


def _comment(text: str) -> str:
    """One line, whatever the file's names hold."""
    return " ".join(text.split())


def _network(wan: Wan) -> list[str]:
    if not wan.default and not wan.constraints:
        return []
    lines = ["# EnOS's delays are one way, as these are: a round trip takes those of both ways.", "network:"]
    if wan.default:
        lines += ["  default:", *(f"    {key}: {value}" for key, value in wan.default.items())]
    if wan.constraints:
        lines += ["  constraints:", *(f"    - {_flow(constraint)}" for constraint in wan.constraints)]
    return [*lines, ""]


def _deployment(sites: Sequence[SitePlan], control: Sequence[SitePlan], notes: Notes) -> list[str]:
    if len(control) > 1:
        topology, backend = "{type: shared-state}", "{type: galera}"
        why = "kolla makes one cloud of control machines in several groups, behind one address; shared-state is nearest"
        notes.lose(control[1].hosts[0].origin.place, f"{why}: the same state, and each site's own address")
    else:
        topology, backend = (f"{{type: {kind}, site: {control[0].name}}}" for kind in ("centralized", "mariadb"))
        if sum("control" in host.roles for host in control[0].hosts) > 1:
            why = "control services run on one host of a site; `deployment.placement` moves single services to another"
            notes.lose(control[0].hosts[1].origin.place, why)
    computes = int(any("compute" in host.roles for site in sites for host in site.hosts))
    return [
        "# In place of kolla's containers and their release. Not deployed: Horizon, Heat, Cinder, HAProxy.",
        "deployment:",
        '  release: "2025.1"',
        f"  services: {_SERVICES}",
        f"  topology: {topology}",
        f"  backend: {backend}",
        f"  computes: {{fake: 0, libvirt: {computes}}}",
        "",
    ]


def _campaign(sites: Iterable[SitePlan]) -> list[str]:
    bench = next((site.name for site in sites for host in site.hosts if "bench" in host.roles), None)
    return [
        "campaign:",
        *([f"  bench_site: {bench}"] if bench else []),
        "  # EnOS keeps what Rally is asked in a workload file; name tasks of rally_tasks/ here:",
        "  # scenarios:",
        "  #   - {task: nova/boot_and_delete_server, times: 10, concurrency: 1}",
    ]


def _flow(value: Any) -> str:
    """A value of YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and (
        not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*|[0-9.]+ (ms|s|%|[kMG]?bit/s)", value) or _is_a_word_of_yaml(value)
    ):
        return json.dumps(value)
    return str(value)


def _is_a_word_of_yaml(text: str) -> bool:
    return text.lower() in ("true", "false", "null", "yes", "no", "on", "off", "inf", "nan")
