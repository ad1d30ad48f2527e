"""Filters of our roles: decisions that concern several hosts at once."""

from __future__ import annotations

import uuid

NAMESPACE = uuid.UUID("6f0d6c2e-3f0c-5c0e-9a43-4f0c7a1d2b11")
PRIMARY_VIEW = 3


def key_files(repositories: dict[str, list[str]], directory: str) -> list[dict[str, str]]:
    """Files for `write_files` that make repositories of numbered keys below a directory."""
    return [
        {"path": f"{directory}/{name}/{number}", "content": key}
        for name, keys in sorted(repositories.items())
        for number, key in enumerate(keys)
    ]


def next_after(ring: dict[str, object], name: str) -> str:
    """The name that follows in sorted order, the first after the last; a single name follows itself."""
    names = sorted(ring)
    return names[(names.index(name) + 1) % len(names)]


def galera_plan(states: dict[str, dict]) -> dict[str, str]:
    """What each member of a Galera cluster must do, from what each was seen to be.

    - `form`: nothing worth keeping anywhere: all start together from the same seed.
    - `bootstrap`: a cluster that had been whole is down: its most advanced member starts first.
    - `join`, `join empty`: start and get what is missing, or everything, from a member that is up.
    - `keep`: runs and belongs to the cluster.

    Args:
        states: host -> `whole` (the cluster had once been complete), `primary` (runs, and belongs to the primary
            component), `seqno` (last transaction known).
    """
    joins = {host: "join" if state["whole"] else "join empty" for host, state in states.items()}
    primary = [host for host, state in states.items() if state["primary"]]
    if primary:
        return {host: "keep" if host in primary else joins[host] for host in states}
    whole = [host for host in sorted(states) if states[host]["whole"]]
    if not whole:
        return dict.fromkeys(states, "form")
    first = max(whole, key=lambda host: states[host]["seqno"])
    return {**joins, first: "bootstrap"}


def primary_view(members: list[dict], cluster: str, host: str) -> str:
    """Text of a `gvwstate.dat`: as if this member had last seen all members in the primary component.

    Members that start with such a view, and with the same state, become the primary component as soon as all have
    met (Galera's recovery of the primary component), without transfer of state and without one of them going first.
    """
    identities = {member["host"]: uuid.uuid5(NAMESPACE, f"{cluster}/{member['host']}") for member in members}
    lines = [
        f"my_uuid: {identities[host]}",
        "#vwbeg",
        f"view_id: {PRIMARY_VIEW} {min(identities.values())} 1",
        "bootstrap: 0",
    ]
    lines += [f"member: {identities[member['host']]} {member['segment']}" for member in members]
    return "\n".join([*lines, "#vwend"]) + "\n"


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, object]:
        """Name -> filter."""
        return {
            "galera_plan": galera_plan,
            "key_files": key_files,
            "next_after": next_after,
            "primary_view": primary_view,
        }
