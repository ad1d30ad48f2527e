"""EnOS's machines as our sites and hosts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from discovery_deploy.enos.enos_reading import UNGROUPED, Description, Notes
from discovery_deploy.experiment.model import ROLES, Role
from discovery_deploy.experiment.references import RESERVED

_MOST_SITES = 64
_LONGEST_SITE, _LONGEST_HOST = 20, 24
_UNGROUPED_SITE = "site"
"""Name of the site of machines that are in no group."""
_BENCH = frozenset({"bench", "util", "enos/bench"})
_WITHOUT = {
    "network": "Neutron's routers and DHCP are OVN's here, on the control and compute hosts",
    "storage": "Cinder and Swift are not deployed here",
    "monitoring": "there is no monitoring stack; what Rally measures and the WAN's probes are in the report",
}
"""EnOS's roles that no role of ours does the work of, and why not."""


class HostPlan(NamedTuple):
    """A host to be, and the machine that it comes from."""

    name: str
    site: str
    roles: tuple[Role, ...]
    origin: Description


class SitePlan(NamedTuple):
    """A site to be."""

    name: str
    group: str
    hosts: tuple[HostPlan, ...]


def site_plans(found: Sequence[Description], notes: Notes) -> list[SitePlan]:
    """Sites in the order of the file; a group without machines is none."""
    merged = _merged(found, notes)
    if len({one.group for one in merged}) > _MOST_SITES:
        notes.wrong(
            merged[0].place[:1], f"makes more than {_MOST_SITES} groups; an experiment has at most that many sites"
        )
        return []
    _tell_lost_roles(merged, notes)
    no_bench = not any(_BENCH & set(one.roles) for one in merged)
    sites: list[SitePlan] = []
    taken: set[str] = set()
    for group in dict.fromkeys(one.group for one in merged):
        name = fitting_name(_UNGROUPED_SITE if group == UNGROUPED else group, _LONGEST_SITE, taken)
        taken.add(name)
        sites.append(
            SitePlan(name, group, tuple(_hosts(name, [one for one in merged if one.group == group], no_bench, taken)))
        )
    return sites


def _merged(found: Sequence[Description], notes: Notes) -> list[Description]:
    """Descriptions of machines that there are; a machine given by hand that stands under several roles is one."""
    kept: list[Description] = []
    known: dict[tuple[str, int], int] = {}
    for one in found:
        if not one.number:
            continue
        address = one.details.get("address")
        key = (str(address), int(one.details.get("port") or 22)) if address is not None and _is_port(one) else None
        if key is None or key not in known:
            if key is not None:
                known[key] = len(kept)
            kept.append(one)
            continue
        first = kept[known[key]]
        if first.group != one.group:
            notes.wrong(one.place, f'"{address}" is in the groups {first.group} and {one.group}; a host is at one site')
        kept[known[key]] = first._replace(roles=tuple(dict.fromkeys((*first.roles, *one.roles))))
    return kept


def _is_port(one: Description) -> bool:
    return isinstance(one.details.get("port", 22), int)


def _tell_lost_roles(found: Iterable[Description], notes: Notes) -> None:
    for one in found:
        for role in one.roles:
            if role in ("control", "compute") or role in _BENCH:
                continue
            why = _WITHOUT.get(role, "no role of hosts here is like it")
            kept = [other for other in one.roles if _ours((other,), False)]
            what = (
                "its hosts keep their other roles" if kept else "its machines are left out, unless a site has no other"
            )
            notes.lose(one.place, f'role "{role}": {why}; {what}')


def _hosts(site: str, found: Sequence[Description], no_bench: bool, taken: set[str]) -> Iterable[HostPlan]:
    useful = [(one, _ours(one.roles, no_bench)) for one in found]
    if not any(roles for _, roles in useful):  # a site needs a host; a client does no harm there
        useful = [(found[0]._replace(number=1), ("bench",))]
    count = 0
    for one, roles in useful:
        for _ in range(one.number if roles else 0):
            count += 1
            alias = one.details.get("alias") if one.number == 1 else None
            name = fitting_name(str(alias or f"{site}-{count}"), _LONGEST_HOST, taken)
            taken.add(name)
            yield HostPlan(name, site, roles, one)


def _ours(roles: Iterable[str], control_benches: bool) -> tuple[Role, ...]:
    """Our roles: EnOS puts databases on control machines, and Rally too unless machines are there for it."""
    asked: set[str] = set()
    for role in roles:
        if role == "control":
            asked |= {"control", "database"} | ({"bench"} if control_benches else set())
        elif role == "compute":
            asked.add("compute")
        elif role in _BENCH:
            asked.add("bench")
    return tuple(role for role in ROLES if role in asked)


def fitting_name(text: str, longest: int, taken: Iterable[str] = ()) -> str:
    """A name as sites and hosts may have it, and that nobody has."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.split(".")[0].lower()).strip("-") or "site"
    plain = plain if plain[0].isalpha() else f"s{plain}"
    plain = plain[:longest].strip("-")
    known = {*taken, *RESERVED}
    name, number = plain, 2
    while name in known:
        suffix = f"-{number}"
        name, number = plain[: longest - len(suffix)].strip("-") + suffix, number + 1
    return name
