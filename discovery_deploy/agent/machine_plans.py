"""Machine plans where they are kept: a slot for each, written down beside what they made, and all of it removed again.

Standard library only: shipped to machines together with `containers.py`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from discovery_deploy.agent import containers, machine, site_networks
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Plan, WanRouter, as_data, read

SLOTS = 64
"""Experiments that fit on one machine at the same time: slot n has 10.(64+n).0.0/16 and 10.(128+n).0.0/16."""


def slot_networks(slot: int) -> list[ipaddress.IPv4Network]:
    """What a slot may use of the address space: management, sites. Pure."""
    return [ipaddress.IPv4Network(f"10.{first + slot}.0.0/16") for first in (64, 128)]


def free_slots(taken: Iterable[int], observed: site_networks.Observed) -> list[int]:
    """Slots that nobody has and whose networks nothing on the machine uses, in order. Pure."""
    busy = set(taken)
    return [
        slot
        for slot in range(SLOTS)
        if slot not in busy and not site_networks.collisions(slot_networks(slot), None, observed)
    ]


def read_plan(directory: Path) -> Plan | None:
    """The plan in a directory; None when it is missing, cut off, not a plan, or of another directory.

    Of a plan that another version wrote and this one does not understand, the slot is known.

    Raises:
        PermissionError: this user may not read it.
    """
    try:
        data = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or type(data.get("slot")) is not int:
        return None
    if Path(str(data.get("directory", directory))).resolve() != directory.resolve():
        return None
    try:
        return read({"directory": str(directory), **data})
    except MachineError:
        return lost_plan(directory, data["slot"])


def write_plan(directory: Path, plan: Plan) -> None:
    """Keep a plan in its directory. Raises MachineError when a directory that is not ours is there."""
    machine.make_own(directory, known=_is_known(directory))
    machine.replace(directory / "plan.json", json.dumps(as_data(plan), indent=2, sort_keys=True) + "\n")


def _is_known(directory: Path) -> bool:
    """Whether a directory is ours although it may lack our mark: it has a plan, or a slot."""
    return read_plan(directory) is not None or bool(machine.slots_of(directory))


def lost_plan(directory: Path, slot: int) -> Plan:
    """What `containers.down` needs to find everything when the plan is lost. Pure."""
    return Plan(slot, directory, experiment=directory.name, router=WanRouter(f"dd{slot}-router"))


def clear(directory: Path) -> None:
    """Remove everything of a directory, in whatever slots it was.

    Raises:
        MachineError: something could not be removed, or the directory is not ours.
    """
    plan, known = read_plan(directory), _is_known(directory)
    slots = machine.slots_of(directory)
    if plan is not None and plan.slot not in machine.claims():
        slots.append(plan.slot)
    for slot in slots:
        found = plan or lost_plan(directory, slot)
        router = found.router or WanRouter(f"dd{slot}-router")
        containers.down(replace(found, slot=slot, directory=directory, router=router), known)
    machine.remove_own(directory, known)
