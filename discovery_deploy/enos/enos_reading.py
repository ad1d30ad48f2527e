"""What EnOS's `reservation.yaml` holds, read with all its mistakes: groups and machines. Pure.

EnOS takes machines from one of three places: `provider.resources` (EnOSlib's own description), else `topology`
(groups, then sizes or clusters, then roles), else `resources` (no groups).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from discovery_deploy.experiment.wording import shown
from discovery_deploy.system.mistake import Mistake, Place

UNGROUPED = "default_group"
"""EnOS's name for the group of machines that are in none."""
KOLLA_ROLES = frozenset(
    {"control", "compute", "network", "storage", "monitoring", "deployment", "baremetal", "bench", "util", "registry"}
    | {"enos/bench", "enos/registry", "enos/influx", "enos/grafana"}
)
"""Roles that say what runs on a machine; any other may be the group that it belongs to."""
MOST_MACHINES = 1000
"""Of one description; more is a slip of the keyboard."""

_RANGE = re.compile(r"(.+)\[([0-9]+)-([0-9]+)\]")
_MOST_GROUPS = 64
_OLD_KEYS = {"role": "roles", "flavor": "flavour"}
_READ = frozenset(
    {"roles", "cluster", "nodes", "servers", "primary_network", "number", "flavour", "flavour_desc"}
    | {"address", "alias", "user", "keyfile", "port", "extra"}
)
_NOT_READ = {
    "min": "a machine that cannot be had is an error; every host of the file is there, or nothing is reserved",
    "secondary_networks": "one network of a host is used",
    "networks": "one network of a host is used",
    "backend": "all machines have the backend of the provider",
    "name_prefix": "machines are named after the experiment and the host",
}
"""Keys of a machine without counterpart, and why."""


class Lost(NamedTuple):
    """Something in the file that has no counterpart here."""

    path: Place
    why: str
    """Why, and what to do instead."""


class Notes:
    """What is found on the way: mistakes of the file, and what is lost."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.lost: list[Lost] = []

    def wrong(self, place: Place, message: str) -> None:
        """Tell a mistake."""
        self.mistakes.append(Mistake(place, message))

    def lose(self, place: Place, why: str) -> None:
        """Tell what has no counterpart."""
        self.lost.append(Lost(place, why))

    def mapping(self, value: Any, place: Place) -> dict[str, Any]:
        """A mapping, or {} with a mistake."""
        if isinstance(value, dict):
            return value
        self.wrong(place, f"expected keys with values, not {shown(value)}")
        return {}

    def listed(self, value: Any, place: Place) -> list[Any]:
        """A list, or [] with a mistake."""
        if isinstance(value, list):
            return value
        self.wrong(place, f"expected a list, not {shown(value)}")
        return []

    def text(self, value: Any, place: Place) -> str:
        """A text, or "" with a mistake."""
        if isinstance(value, str) and value:
            return value
        self.wrong(place, f"expected a text, not {shown(value)}")
        return ""

    def count(self, value: Any, place: Place) -> int:
        """A number of machines, or 0 with a mistake."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_MACHINES:
            return value
        self.wrong(place, f"expected a number of machines, at most {MOST_MACHINES}, not {shown(value)}")
        return 0


class Description(NamedTuple):
    """Machines of one kind, as the file describes them."""

    place: Place
    group: str
    roles: tuple[str, ...]
    number: int
    size: str = ""
    """Cluster, or name of a size of virtual machines."""
    details: Mapping[str, Any] = {}
    """What the provider says of it: `address`, `servers`, `flavour_desc`..."""


def expand(name: str, place: Place, notes: Notes) -> list[str]:
    """Groups that a name stands for: `grp[1-3]` is grp1, grp2 and grp3, any other stands for itself."""
    match = _RANGE.fullmatch(name)
    if match is None:
        if "[" in name or "]" in name:
            notes.wrong(place, f'"{name}" is no group and no range of groups; write for example "grp[1-3]"')
        return [name]
    stem, first, last = match[1], int(match[2]), int(match[3])
    if last < first or last - first >= _MOST_GROUPS:
        notes.wrong(place, f'"{name}" is no range of 1 to {_MOST_GROUPS} groups')
        return [f"{stem}{first}"]
    return [f"{stem}{number}" for number in range(first, last + 1)]


def descriptions(data: Mapping[str, Any], notes: Notes) -> list[Description]:
    """The machines that EnOS would use, with their groups."""
    provider = data.get("provider")
    inside = isinstance(provider, dict) and provider.get("resources") is not None
    places: list[Place] = [("provider", "resources")] if inside else []
    places += [(key,) for key in ("topology", "resources") if key in data]
    if not places:
        notes.wrong((), "names no machines: neither `topology` nor `resources` is here")
        return []
    for other in places[1:]:
        notes.lose(other, f"not used by EnOS either, since {'.'.join(map(str, places[0]))} is there")
    if inside:
        assert isinstance(provider, dict)
        return list(_of_enoslib(provider["resources"], _constrained(data), notes))
    top = notes.mapping(data[str(places[0][0])], places[0])
    is_static = (provider.get("type") if isinstance(provider, dict) else provider) == "static"
    reader = _given if is_static else _reserved
    return [found for key, value in top.items() for found in reader(key, value, (*places[0], key), notes)]


def declared_groups(data: Mapping[str, Any], found: Iterable[Description]) -> list[str]:
    """Groups that the file has, also those without machines, or whose machines are wrong."""
    topology, silent = data.get("topology"), Notes()
    named = [group for name in (topology if isinstance(topology, dict) else ()) for group in expand(name, (), silent)]
    return list(dict.fromkeys([*(one.group for one in found), *named]))


def _reserved(key: str, value: Any, place: Place, notes: Notes) -> Iterator[Description]:
    """Machines by size or cluster: {paravance: {control: 1}}, or under a group {grp1: {paravance: {control: 1}}}."""
    for inner, number in notes.mapping(value, place).items():
        where = (*place, inner)
        if isinstance(number, dict):
            for role, many in number.items():
                found = notes.count(many, (*where, role))
                for group in expand(key, place, notes):
                    yield Description((*where, role), group, (role,), found, inner)
        else:
            yield Description(where, UNGROUPED, (inner,), notes.count(number, where), key)


def _given(key: str, value: Any, place: Place, notes: Notes) -> Iterator[Description]:
    """Machines by hand: {control: MACHINE or [MACHINE...]}, or under a group {grp1: {control: ...}}."""
    if isinstance(value, dict) and "address" not in value:
        for role, machines in value.items():
            for group in expand(key, place, notes):
                yield from _machines(machines, group, role, (*place, role), notes)
    else:
        yield from _machines(value, UNGROUPED, key, place, notes)


def _machines(value: Any, group: str, role: str, place: Place, notes: Notes) -> Iterator[Description]:
    many = isinstance(value, list)
    for index, item in enumerate(value if many else [value]):
        where: Place = (*place, index) if many else place
        if not isinstance(item, dict) or not item:
            notes.wrong(where, f"expected a machine with its `address`, not {shown(item)}")
            continue
        _tell_lost_details(item, where, notes)
        yield Description(where, group, (role,), 1, details=item)


def _constrained(data: Mapping[str, Any]) -> list[str] | None:
    """Groups that the constraints name; None when there are no constraints."""
    section = data.get("network_constraints")
    if not isinstance(section, dict):
        return None
    silent = Notes()
    named: list[Any] = [*_items(section.get("except")), *_items(section.get("groups"))]
    named += [
        one.get(key) for one in _items(section.get("constraints")) if isinstance(one, dict) for key in ("src", "dst")
    ]
    return [group for name in named if isinstance(name, str) for group in expand(name, (), silent)]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _of_enoslib(value: Any, constrained: list[str] | None, notes: Notes) -> Iterator[Description]:
    place: Place = ("provider", "resources")
    section = notes.mapping(value, place)
    for index, item in enumerate(notes.listed(section.get("machines", []), (*place, "machines"))):
        where: Place = (*place, "machines", index)
        details = {_OLD_KEYS.get(key, key): one for key, one in notes.mapping(item, where).items()}
        given = details.get("roles", [])
        key = "roles" if isinstance(item, dict) and "roles" in item else "role"
        roles = [given] if isinstance(given, str) else notes.listed(given, (*where, key))
        roles = [notes.text(role, (*where, key)) for role in roles]
        _tell_lost_details(details, where, notes)
        if not roles:
            notes.wrong(where, "names no roles")
            continue
        group = _group_of(roles, constrained, where, notes)
        yield Description(
            where,
            group,
            tuple(role for role in roles if role != group),
            _number(details, where, notes),
            str(details.get("cluster") or details.get("flavour") or ""),
            details,
        )


def _tell_lost_details(details: Mapping[str, Any], place: Place, notes: Notes) -> None:
    for key in details:
        if key not in _READ:
            notes.lose((*place, key), _NOT_READ.get(key, "no key of machines here is like it"))


def _number(details: Mapping[str, Any], place: Place, notes: Notes) -> int:
    if "servers" in details:
        return len(notes.listed(details["servers"], (*place, "servers")))
    for key in ("nodes", "number"):
        if key in details:
            return notes.count(details[key], (*place, key))
    return 1


def _group_of(roles: Iterable[str], constrained: list[str] | None, place: Place, notes: Notes) -> str:
    """Which of its roles is the group of a machine: one that the constraints name, else one that is none of kolla's."""
    if constrained is None:
        return UNGROUPED
    named = [role for role in roles if role in constrained]
    if len(named) > 1:
        notes.wrong(place, f"is in the groups {', '.join(named)} of the constraints; a host is at one site")
    others = [role for role in roles if role not in KOLLA_ROLES]
    return next(iter([*named, *others]), UNGROUPED)
