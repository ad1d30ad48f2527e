"""EnOS's `network_constraints` as the WAN between our sites: what EnOS would put on every ordered pair. Pure.

EnOS shapes what each machine of a group sends to each machine of another: `delay` is one way, as here, and tc reads the
units. A pair has the defaults; a constraint changes what it names, of `src` to `dst`, and back when it is symmetric. A
group under `except` (or not under `groups`) is in no rule at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from discovery_deploy.enos.enos_reading import Notes, expand
from discovery_deploy.experiment.units import (
    format_duration,
    format_rate,
    format_ratio,
    parse_tc_delay,
    parse_tc_loss,
    parse_tc_rate,
)
from discovery_deploy.system.mistake import Place, near

SECTION = "network_constraints"
_MOST_DELAY_S = 60.0
_KNOWN = ("enable", "default_delay", "default_rate", "default_loss", "constraints", "except", "groups")
_KNOWN_OF_CONSTRAINT = ("src", "dst", "delay", "rate", "loss", "symmetric", "symetric")
_READERS: dict[str, Callable[[object], float]] = {
    "delay": parse_tc_delay,
    "rate": parse_tc_rate,
    "loss": parse_tc_loss,
}
_NETWORKS = "a host has one network of its site here, and that is shaped; leave it out"


class Link(NamedTuple):
    """What one ordered pair of groups has: delay in s, rate in bit/s, loss in [0, 1]; None: not shaped."""

    delay_s: float
    rate_bps: float | None
    loss: float


class Wan(NamedTuple):
    """The section `network` to be: the default's fields, and each constraint's."""

    default: dict[str, str]
    constraints: list[dict[str, Any]]


class Asked(NamedTuple):
    """What EnOS puts between groups."""

    default: Link | None
    """What pairs have that no constraint names; None: the file constrains nothing."""
    pairs: dict[tuple[str, str], Link | None]
    """Ordered pair of groups -> what it has; None: nothing."""


def asked(data: Mapping[str, Any], groups: Sequence[str], declared: Sequence[str], notes: Notes) -> Asked:
    """What EnOS puts between the groups.

    Args:
        data: the file.
        groups: those that have machines.
        declared: all that the file may name, also without machines, or with mistakes in them.
        notes: what is found on the way.
    """
    if data.get(SECTION) is None:
        return Asked(None, {})
    section = notes.mapping(data[SECTION], (SECTION,))
    _tell_unknown(section, notes)
    if section.get("enable") is False:
        notes.lose((SECTION, "enable"), "false: no WAN is asked for, and the constraints are left out")
        return Asked(None, {})
    default = _default(section, notes)
    shaped = _shaped(section, declared, notes)
    found: dict[tuple[str, str], Link | None] = {
        pair: default if set(pair) <= shaped else None for pair in permutations(groups, 2)
    }
    own: dict[tuple[str, str], set[str]] = {pair: set() for pair in found}
    constraints = section.get("constraints")
    for index, item in enumerate(notes.listed(constraints, (SECTION, "constraints")) if constraints else []):
        _constrain(found, own, item, (SECTION, "constraints", index), declared, notes)
    _tell_missing(section, {pair: names for pair, names in own.items() if found[pair] is not None}, notes)
    return Asked(default, found)


def _tell_unknown(section: Mapping[str, Any], notes: Notes) -> None:
    for key in section:
        if key in ("network", "default_network"):
            notes.lose((SECTION, key), _NETWORKS)
        elif key not in _KNOWN:
            _unknown(key, (SECTION, key), _KNOWN, notes)


def _unknown(key: str, place: Place, known: Sequence[str], notes: Notes) -> None:
    meant = near(key, known)
    notes.wrong(place, f'unknown key; did you mean "{meant}"?' if meant else f"unknown key; known: {', '.join(known)}")


def _default(section: Mapping[str, Any], notes: Notes) -> Link:
    read = {name: _quantity(section, f"default_{name}", name, (SECTION,), notes) for name in _READERS}
    return Link(read["delay"] or 0.0, read["rate"], read["loss"] or 0.0)


def _tell_missing(section: Mapping[str, Any], own: Mapping[tuple[str, str], Collection[str]], notes: Notes) -> None:
    """Defaults that the file does not have though a pair needs one. EnOS 2 and 3 read them with `get`.

    Args:
        own: ordered pair -> what constraints name for it.
    """
    for key, example in (("default_delay", "0ms"), ("default_rate", "10gbit")):
        if key in section or any(near(other, _KNOWN) == key for other in section if other not in _KNOWN):
            continue
        without = sorted(f"{a} -> {b}" for (a, b), names in own.items() if key.removeprefix("default_") not in names)
        if without:
            pairs = f"{', '.join(without[:3])}{'...' if len(without) > 3 else ''}"
            notes.wrong((SECTION,), f"{key} is missing, which {pairs} would have; write for example {key}: {example}")


def _quantity(section: Mapping[str, Any], key: str, kind: str, place: Place, notes: Notes) -> float | None:
    """A quantity that stands there, or None: not there, or wrong. A loss of null is none."""
    if key not in section or (kind == "loss" and section[key] is None):
        return None
    try:
        value = _READERS[kind](section[key])
    except ValueError as error:
        notes.wrong((*place, key), str(error))
        return None
    if kind == "delay" and value > _MOST_DELAY_S:
        notes.wrong((*place, key), f'"{section[key]}": must be at most {format_duration(_MOST_DELAY_S)}')
    return value


def _shaped(section: Mapping[str, Any], groups: Sequence[str], notes: Notes) -> set[str]:
    """Groups that rules are made for."""
    shaped = set(groups)
    if "groups" in section:
        shaped = set(_named_groups(section["groups"], (SECTION, "groups"), groups, notes))
    if "except" in section:
        shaped -= set(_named_groups(section["except"], (SECTION, "except"), groups, notes))
    return shaped


def _named_groups(value: Any, place: Place, groups: Sequence[str], notes: Notes) -> Iterator[str]:
    for index, name in enumerate([value] if isinstance(value, str) else notes.listed(value, place)):
        where = place if isinstance(value, str) else (*place, index)
        yield from _groups(name, where, groups, notes)


def _groups(name: Any, place: Place, groups: Sequence[str], notes: Notes) -> Iterator[str]:
    for group in expand(notes.text(name, place), place, notes):
        if group in groups:
            yield group
        elif group:
            meant = near(group, groups)
            hint = f'did you mean "{meant}"?' if meant else f"the groups are {', '.join(groups)}"
            notes.wrong(place, f'no group "{group}"; {hint}')


def _constrain(
    found: dict[tuple[str, str], Link | None],
    own: Mapping[tuple[str, str], set[str]],
    item: Any,
    place: Place,
    groups: Sequence[str],
    notes: Notes,
) -> None:
    section = notes.mapping(item, place)
    if not section:
        return
    for key in section:
        if key == "network":
            notes.lose((*place, key), _NETWORKS)
        elif key not in _KNOWN_OF_CONSTRAINT:
            _unknown(key, (*place, key), _KNOWN_OF_CONSTRAINT, notes)
    ends: dict[str, list[str]] = {"src": [], "dst": []}
    for key in ends:
        if key not in section:
            notes.wrong(place, f"{key} is missing")
        else:
            ends[key] = list(_groups(section[key], (*place, key), groups, notes))
    given = {name: _quantity(section, name, name, place, notes) for name in _READERS}
    there = {group for pair in found for group in pair}
    pairs = [(source, destination) for source in ends["src"] for destination in ends["dst"]]
    pairs = [pair for pair in pairs if set(pair) <= there]
    if _symmetric(section, place, notes):
        pairs += [(destination, source) for source, destination in pairs]
    _tell_lost_pairs(found, pairs, place, notes)
    for pair in pairs:
        before = found.get(pair)
        if before is None:
            continue
        own[pair].update(name for name, value in given.items() if value is not None)
        found[pair] = Link(
            before.delay_s if given["delay"] is None else given["delay"],
            before.rate_bps if given["rate"] is None else given["rate"],
            before.loss if given["loss"] is None else given["loss"],
        )


def _symmetric(section: Mapping[str, Any], place: Place, notes: Notes) -> bool:
    both = False
    for key in ("symmetric", "symetric"):
        if key not in section:
            continue
        if not isinstance(section[key], bool):
            notes.wrong((*place, key), "expected true or false")
        both = both or section[key] is True
        if section[key] is False:
            why = "false is taken at its word: one way; older EnOS took any value of this key for true"
            notes.lose((*place, key), why)
    return both


def _tell_lost_pairs(
    found: Mapping[tuple[str, str], Link | None], pairs: Sequence[tuple[str, str]], place: Place, notes: Notes
) -> None:
    if inner := sorted({a for a, b in pairs if a == b}):
        why = f"inside a site nothing is shaped ({', '.join(inner)}); make each of its hosts a site of its own"
        notes.lose(place, why)
    if outside := sorted({f"{a} -> {b}" for a, b in pairs if a != b and found.get((a, b)) is None}):
        notes.lose(place, f"`except` or `groups` leaves {', '.join(outside)} without any rule, so this has none there")


def wan(asked: Asked, names: Mapping[str, str]) -> Wan:
    """The `network` that gives every ordered pair what EnOS gives it.

    Args:
        asked: what EnOS puts between groups.
        names: group -> site.
    """
    # A default would reach the pairs that EnOS leaves alone: then each pair is named.
    common = None if None in asked.pairs.values() else asked.default
    constraints: list[dict[str, Any]] = []
    told: set[tuple[str, str]] = set()
    for (source, destination), link in asked.pairs.items():
        if link is None or link == common or (source, destination) in told:
            continue
        back = (destination, source)
        if asked.pairs[back] == link:
            told.add(back)
            ends: dict[str, Any] = {"between": [names[source], names[destination]]}
        else:
            ends = {"from": names[source], "to": names[destination]}
        constraints.append({**ends, **_fields(link, common)})
    return Wan(_fields(common, None) if common else {}, constraints)


def _fields(link: Link, common: Link | None) -> dict[str, str]:
    """Fields of a link that differ from the default's; without a default, those that do something."""
    base = common or Link(0.0, None, 0.0)
    fields = {}
    if link.delay_s != base.delay_s or common is None:
        fields["delay"] = format_duration(link.delay_s)
    if link.rate_bps is not None and link.rate_bps != base.rate_bps:
        fields["rate"] = format_rate(link.rate_bps)
    if link.loss != base.loss:
        fields["loss"] = format_ratio(link.loss)
    return fields
