"""Machine plans where they are kept: a slot for each, written down beside what they made, and all of it removed again.

Standard library only: shipped to machines together with `containers.py`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path

from discovery_deploy.agent import containers, machine, site_networks
from discovery_deploy.agent.machine import Plan

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

    Raises:
        PermissionError: this user may not read it.
    """
    try:
        plan = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(plan, dict) or not isinstance(plan.get("slot"), int):
        return None
    return plan if Path(str(plan.get("directory", directory))).resolve() == directory.resolve() else None


def write_plan(directory: Path, plan: Plan) -> None:
    """Keep a plan in its directory. Raises MachineError when a directory that is not ours is there."""
    machine.make_own(directory, known=_is_known(directory))
    machine.replace(directory / "plan.json", json.dumps(plan, indent=2, sort_keys=True) + "\n")


def _is_known(directory: Path) -> bool:
    """Whether a directory is ours although it may lack our mark: it has a plan, or a slot."""
    return read_plan(directory) is not None or bool(machine.slots_of(directory))


def same_hosts(old: Plan, new: Plan) -> bool:
    """Whether two plans differ at most in what hosts and router take while they run: keys, and other machines. Pure."""
    changing: Plan = {"authorized_keys": [], "peers": []}
    return {**old, **changing} == {**new, **changing}


def bare_plan(directory: Path, slot: int) -> Plan:
    """What `containers.down` needs to find everything when the plan is lost. Pure."""
    return {
        "experiment": directory.name, "slot": slot, "directory": str(directory), "sites": [],
        "router": {"mode": "auto", "namespace": f"dd{slot}-router"},
    }  # fmt: skip


def clear(directory: Path) -> None:
    """Remove everything of a directory, in whatever slots it was.

    Raises:
        MachineError: something could not be removed, or the directory is not ours.
    """
    plan, known = read_plan(directory) or {}, _is_known(directory)
    slots = machine.slots_of(directory)
    if "slot" in plan and plan["slot"] not in machine.claims():
        slots.append(plan["slot"])
    for slot in slots:
        containers.down({**bare_plan(directory, slot), **plan, "slot": slot, "directory": str(directory)}, known)
    machine.remove_own(directory, known)
