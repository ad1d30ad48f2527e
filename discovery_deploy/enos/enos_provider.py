"""EnOS's `provider` section as ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from discovery_deploy.enos.enos_reading import Notes
from discovery_deploy.enos.enos_sites import HostPlan, SitePlan
from discovery_deploy.experiment.wording import shown
from discovery_deploy.system.mistake import Place, near

PLACE: Place = ("provider",)
_CLUSTERS = {
    "grenoble": "dahu drac servan troll yeti",
    "lille": "chetemi chiclet chifflet chifflot chirop",
    "luxembourg": "granduc larochette petitprince",
    "lyon": "gemini hercule hydra neowise nova orion pyxis sagittaire sirius taurus",
    "nancy": "graoully graphene graphique graphite grappe grat grele griffon grimani grimoire grisou gros grostiti "
    "grouille grue gruss grvingt",
    "nantes": "econome ecotype",
    "reims": "stremi",
    "rennes": "paradoxe paranoia parapide parapluie parasilo paravance",
    "sophia": "helios sol suno uvb",
    "toulouse": "estats montcalm",
}
_SITE_OF = {cluster: site for site, clusters in _CLUSTERS.items() for cluster in clusters.split()}
"""Cluster of Grid'5000 -> its site: EnOS's files do not say it, EnOS asks Grid'5000."""
_SIZES = {
    "tiny": (1, 512), "small": (1, 1024), "medium": (2, 2048), "big": (3, 3072), "large": (4, 4096),
    "extra-large": (6, 6144),
}  # fmt: skip
"""EnOSlib's sizes of virtual machines: cores, memory in MB."""
_MOST_MEMORY_MB, _MOST_CPUS = 1048576, 256
_OURS = "hosts need Debian 12"
_CLOUDS = ("chameleonkvm", "chameleonbaremetal", "chameleonedge", "openstack", "fabric", "iotlab", "distem")
_DEPLOY_TYPES = ("deploy", "allow_classic_ssh")
"""Types of OAR jobs that the provider adds by itself."""


def section(data: Mapping[str, Any], sites: Sequence[SitePlan], notes: Notes) -> dict[str, Any]:
    """Our provider section; {"type": "local"} where there is no counterpart."""
    if "provider" not in data:
        notes.wrong(
            (), "the key provider is missing; files of EnOS 1 have its keys at the top: put them under `provider`"
        )
        return {}
    given = data["provider"]
    provider = {"type": given} if isinstance(given, str) else notes.mapping(given, PLACE)
    if not provider:
        return {}
    kind, _, backend = notes.text(provider.get("type"), (*PLACE, "type")).partition(":")
    if kind in _CLOUDS:
        why = (
            f"there is no provider {kind} here; start such machines yourself and name them under `provider: static`; "
            "until then the file says `local`"
        )
        notes.lose((*PLACE, "type"), why)
        return {"type": "local"}
    readers: dict[str, Callable[[Mapping[str, Any], Sequence[SitePlan], Notes], dict[str, Any]]] = {
        "g5k": _grid5000,
        "vmong5k": _grid5000,
        "vagrant": _vagrant,
        "static": _static,
    }
    if kind not in readers:
        if kind:
            known = (*readers, *_CLOUDS)
            meant = near(kind, known)
            hint = f'did you mean "{meant}"?' if meant else f"known: {', '.join(known)}"
            notes.wrong((*PLACE, "type"), f'EnOS has no provider "{kind}"; {hint}')
        return {}
    return readers[kind]({**({"backend": backend} if backend else {}), **provider, "type": kind}, sites, notes)


# virtual machines


def _vagrant(provider: Mapping[str, Any], sites: Sequence[SitePlan], notes: Notes) -> dict[str, Any]:
    cpus, memory_mb = _largest(sites, notes)
    found: dict[str, Any] = {"type": "vagrant", "backend": provider.get("backend", "virtualbox")}
    if found["backend"] not in ("libvirt", "virtualbox"):
        notes.wrong((*PLACE, "backend"), f"expected libvirt or virtualbox, not {shown(found['backend'])}")
    ours = found["backend"] == "libvirt"
    if not ours:  # the box that this tool builds has no boot loader, which VirtualBox needs
        found |= {"box": "debian/bookworm64", "user": "vagrant", "packages": "network"}
    found |= {"memory_mb": memory_mb, "cpus": cpus}
    if provider.get("config_extra"):
        found["extra"] = notes.text(provider["config_extra"], (*PLACE, "config_extra"))
    lost = {
        "box": f"{_OURS}: the box is {'the one of `discovery-deploy box build`' if ours else found['box']}",
        "user": f"the box lets {'root' if ours else found['user']} in",
        "name_prefix": "machines are named after the experiment and the host",
    }
    _tell_rest(provider, {"backend", "config_extra"}, lost, notes)
    _tell_networks(provider, "machines have one network for the sites and one for ssh", notes)
    return found


def _largest(sites: Sequence[SitePlan], notes: Notes) -> tuple[int, int]:
    """Cores and memory (MB) of the largest machine: all hosts have the same."""
    sizes: dict[tuple[int, int], None] = {}
    for host in _hosts(sites):
        sizes.setdefault(_size(host, notes))
    if not sizes:
        return _SIZES["tiny"]
    largest = max(cpus for cpus, _ in sizes), max(memory for _, memory in sizes)
    if len(sizes) > 1:
        told = f"{largest[0]} cores, {largest[1]} MB"
        why = f"machines of {len(sizes)} sizes; here all have the same, so that of the largest: {told}"
        notes.lose(next(iter(_hosts(sites))).origin.place[:2], why)
    return largest


def _size(host: HostPlan, notes: Notes) -> tuple[int, int]:
    place, details = host.origin.place, host.origin.details
    if "flavour_desc" in details:
        described = notes.mapping(details["flavour_desc"], (*place, "flavour_desc"))
        values = described.get("core", 1), described.get("mem", 512)
        if all(isinstance(value, int) and value > 0 for value in values):
            return min(int(values[0]), _MOST_CPUS), min(max(int(values[1]), 256), _MOST_MEMORY_MB)
        notes.wrong((*place, "flavour_desc"), "expected whole numbers for core and mem (MB)")
        return _SIZES["tiny"]
    name = host.origin.size or "tiny"
    if name not in _SIZES:
        notes.wrong(place, f'no size "{name}"; EnOSlib has {", ".join(_SIZES)}')
    return _SIZES.get(name, _SIZES["tiny"])


# Grid'5000


def _grid5000(provider: Mapping[str, Any], sites: Sequence[SitePlan], notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "g5k"}
    places = {site.name: _machines_of(site, provider, notes) for site in sites}
    known = [place for place in places.values() if place]
    if known:
        found["default"] = known[0]
        others = {name: place for name, place in places.items() if place and place != known[0]}
        found |= {"sites": others} if others else {}
    found |= _job(provider, notes)
    lost = {
        "job_name": "the job is found by the experiment's name",
        "name": "the job is found by the experiment's name",
        "env_version": "kadeploy installs the newest version of an environment",
        "force_deploy": "hosts are deployed anew when they are not what the experiment asks for",
        "dhcp": "interfaces are brought up in any case",
        "key": "the experiment has a key of its own",
        "oargrid_jobids": "a job is found again by the experiment's name",
        "monitor": "add it to `job_types`",
        "role_distribution": "a host has exactly the roles of the file",
        "single_interface": "one interface of a host is used",
        "vlans": "one vlan is asked for with `network: kavlan`",
    }
    if provider["type"] == "vmong5k":
        why = (
            "virtual machines on Grid'5000 are none of ours: each host is a whole machine of its cluster; reserve fewer"
        )
        notes.lose((*PLACE, "type"), why)
        lost |= dict.fromkeys(
            ("image", "strategy", "subnet_type", "working_dir", "enable_taktuk"), "of virtual machines"
        )
        lost |= dict.fromkeys(("gateway", "gateway_user"), "`jump` says whether ssh goes through access.grid5000.fr")
    used = {"walltime", "queue", "reservation", "project", "job_type", "env_name"}
    _tell_rest(provider, used, lost, notes)
    return found


def _machines_of(site: SitePlan, provider: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """Cluster or servers of a site's hosts, and where in Grid'5000 they are."""
    servers = [str(name) for host in site.hosts for name in host.origin.details.get("servers", [])]
    servers = list(dict.fromkeys(servers))
    if servers:
        where = servers[0].split(".")
        g5k_site = where[1] if len(where) > 2 else _SITE_OF.get(where[0].rsplit("-", 1)[0], "")
        if not g5k_site:
            notes.wrong(
                site.hosts[0].origin.place,
                f'"{servers[0]}" does not tell its site; write paravance-1.rennes.grid5000.fr',
            )
        return {"g5k_site": g5k_site, "servers": servers} if g5k_site else {}
    clusters = list(dict.fromkeys(host.origin.size for host in site.hosts if host.origin.size))
    if not clusters:
        notes.wrong(site.hosts[0].origin.place, "names no cluster and no servers")
        return {}
    if len(clusters) > 1:
        others = ", ".join(clusters[1:])
        why = f"a site's hosts are of one cluster here: {clusters[0]} for all of {site.name}, none of {others}"
        notes.lose(site.hosts[0].origin.place[:2], why)
    g5k_site = _SITE_OF.get(clusters[0], "") or _network_site(site.hosts[0], provider)
    if not g5k_site:
        what = f'at which site of Grid\'5000 the cluster "{clusters[0]}" is, is not known here'
        notes.wrong(
            site.hosts[0].origin.place, f"{what}; name its machines with `servers`, or the `site` of its network"
        )
        return {}
    return {"g5k_site": g5k_site, "cluster": clusters[0]}


def _network_site(host: HostPlan, provider: Mapping[str, Any]) -> str:
    """The site of a machine's primary network, as EnOSlib's descriptions give it."""
    for network in _networks(provider):
        if network.get("id") == host.origin.details.get("primary_network"):
            return str(network.get("site") or "")
    return ""


def _job(provider: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("queue", "reservation", "project"):
        if provider.get(key) is not None:
            found[key] = notes.text(provider[key], (*PLACE, key))
    if provider.get("walltime") is not None:
        given = notes.text(provider["walltime"], (*PLACE, "walltime"))
        found["walltime"] = f"0{given}" if re.match(r"[0-9]:", given) else given
        if given and not re.fullmatch(r"[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]", given):
            notes.wrong((*PLACE, "walltime"), f'"{given}" is no time as OAR writes it; write for example "02:00:00"')
    types = provider.get("job_type", "deploy" if provider["type"] == "g5k" else [])
    types = [types] if isinstance(types, str) else notes.listed(types, (*PLACE, "job_type"))
    more = [notes.text(one, (*PLACE, "job_type")) for one in types]
    if rest := [one for one in more if one not in _DEPLOY_TYPES]:
        found["job_types"] = rest
    if "deploy" in more:
        found |= _deployed(provider, notes)
    elif provider.get("env_name"):
        notes.lose((*PLACE, "env_name"), "not used by EnOS either, since job_type is not deploy")
    return found


def _deployed(provider: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    name = str(provider.get("env_name") or "debian11-min")
    found = {"environment": name if "debian12" in name else "debian12-min"}
    if found["environment"] != name and provider.get("env_name"):
        notes.lose(
            (*PLACE, "env_name"),
            f'{_OURS}: "debian12-min" stands for "{name}"; one of your own may be named if it is that',
        )
    kinds = {str(network.get("type")) for network in _networks(provider)}
    legacy = not (isinstance(provider.get("resources"), dict))
    if "kavlan-global" in kinds:
        return {**found, "network": "kavlan-global"}
    return {**found, "network": "kavlan" if legacy or {"kavlan", "kavlan-local"} & kinds else "production"}


# hosts given by hand


def _static(provider: Mapping[str, Any], sites: Sequence[SitePlan], notes: Notes) -> dict[str, Any]:
    machines = [_machine(host, notes) for host in _hosts(sites)]
    why = "the machines' networks stay as they are"
    lost = dict.fromkeys(
        ("network", "networks"), f"{why}; name `site_address` where the WAN is to lie on another than `address`"
    )
    lost["eths"] = f"{why}; the interface is the one that has the address"
    _tell_rest(provider, set(), lost, notes)
    _tell_networks(provider, f"{why}; name `site_address` where the WAN is to lie on another than `address`", notes)
    return {"type": "static", "machines": machines}


def _machine(host: HostPlan, notes: Notes) -> dict[str, Any]:
    details, place = host.origin.details, host.origin.place
    found: dict[str, Any] = {"host": host.name, "address": notes.text(details.get("address"), (*place, "address"))}
    try:
        IPv4Address(found["address"])
    except AddressValueError:
        if found["address"]:
            what = f'"{found["address"]}" is no IPv4 address; the WAN is put between such addresses'
            notes.wrong((*place, "address"), what)
    for theirs, ours in (("user", "user"), ("keyfile", "key")):
        if details.get(theirs) is not None:
            found[ours] = notes.text(details[theirs], (*place, theirs))
    port = details.get("port")
    if port is not None and not (isinstance(port, int) and 0 < port < 65536):
        notes.wrong((*place, "port"), f"expected a port, not {shown(port)}")
    elif port not in (None, 22):
        found["port"] = port
    extra = notes.mapping(details["extra"], (*place, "extra")) if details.get("extra") is not None else {}
    return {**found, **_of_extra(extra, found.get("user"), (*place, "extra"), notes)}


def _of_extra(extra: Mapping[str, Any], user: str | None, place: Place, notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if extra.get("gateway"):
        who = extra.get("gateway_user") or user
        port = f":{extra['gateway_port']}" if extra.get("gateway_port") else ""
        found["jump"] = f"{who}@{extra['gateway']}{port}" if who else f"{extra['gateway']}{port}"
    if extra.get("ansible_become") in (True, "yes", "true"):
        found["become"] = True
    for key in extra:
        if key not in ("gateway", "gateway_user", "gateway_port", "ansible_become"):
            notes.lose(
                (*place, key), "Ansible's variables of a host are the tool's own; put what ssh needs into ~/.ssh/config"
            )
    return found


# for all


def _hosts(sites: Iterable[SitePlan]) -> Iterable[HostPlan]:
    return (host for site in sites for host in site.hosts)


def _networks(provider: Mapping[str, Any]) -> list[dict[str, Any]]:
    resources = provider.get("resources")
    networks = resources.get("networks") if isinstance(resources, dict) else None
    return [network for network in networks if isinstance(network, dict)] if isinstance(networks, list) else []


def _tell_networks(provider: Mapping[str, Any], why: str, notes: Notes) -> None:
    if _networks(provider):
        notes.lose((*PLACE, "resources", "networks"), why)


def _tell_rest(provider: Mapping[str, Any], used: set[str], lost: Mapping[str, str], notes: Notes) -> None:
    for key in provider:
        if key in lost:
            notes.lose((*PLACE, key), lost[key])
        elif key not in used and key not in ("type", "resources"):
            notes.lose(
                (*PLACE, key), f"EnOS's provider {provider['type']} has no such key, or it has no counterpart here"
            )
