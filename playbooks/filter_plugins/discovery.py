"""Filters of our roles: decisions that concern several hosts at once."""

from __future__ import annotations

import base64
import hashlib
import json
import re
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


def rabbitmq_definitions(accounts: list[dict[str, str]]) -> str:
    """RabbitMQ's definitions (JSON) of virtual hosts and users, from vhost, user and password of each account.

    Passwords stand in it as RabbitMQ keeps them, salted and hashed; the salt is made from the account, so that equal
    accounts give an equal text.
    """
    passwords = {account["user"]: account["password"] for account in accounts}
    users = [
        {
            "name": user,
            "password_hash": _rabbitmq_hash(user, password),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": [],
        }
        for user, password in sorted(passwords.items())
    ]
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    permissions = sorted({(account["vhost"], account["user"]) for account in accounts})
    definitions = {
        "vhosts": [{"name": vhost} for vhost in sorted({vhost for vhost, _ in permissions})],
        "users": users,
        "permissions": [{"vhost": vhost, "user": user, **everything} for vhost, user in permissions],
    }
    return json.dumps(definitions, indent=1, sort_keys=True) + "\n"


def _rabbitmq_hash(user: str, password: str) -> str:
    salt = hashlib.sha256(f"{user}/{password}".encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def with_overrides(text: str, overrides: dict[str, dict[str, object]]) -> str:
    """A configuration (INI) with options put over it; comments and order stay.

    Args:
        text: what the role's template gave.
        overrides: section -> option -> value. An option that is there is replaced where it is, another is put at the
            end of its section, and a new section at the end of the file.
    """
    sections = _sections(text)
    for section, options in overrides.items():
        place = next((lines for name, lines in sections if name == section), None)
        if place is None:
            place = [f"[{section}]"]
            sections[-1][1].append("")
            sections.append((section, place))
        for option, value in options.items():
            _put(place, option, f"{option} = {_ini_value(value)}")
    return "\n".join(line for _, lines in sections for line in lines).rstrip("\n") + "\n"


def _sections(text: str) -> list[tuple[str, list[str]]]:
    """(name, lines with its heading) of each section in order; the first has no name and no heading."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in text.rstrip("\n").split("\n"):
        heading = re.match(r"\[([^\]]+)\]\s*$", line)
        if heading:
            sections.append((heading[1], []))
        sections[-1][1].append(line)
    return sections


def _put(lines: list[str], option: str, line: str) -> None:
    """Set an option among the lines of a section; an option that stood there several times stands there once then."""
    found = [number for number, old in enumerate(lines) if re.match(rf"{re.escape(option)}\s*[=:]", old)]
    if found:
        for number in reversed(found):
            del lines[number]
            while number < len(lines) and re.match(r"\s+\S", lines[number]):  # the value's further lines
                del lines[number]
        lines.insert(found[0], line)
        return
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, line)


def _ini_value(value: object) -> str:
    """A value as oslo.config reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(_ini_value(item) for item in value)
    return "" if value is None else str(value)


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, object]:
        """Name -> filter."""
        return {
            "galera_plan": galera_plan,
            "key_files": key_files,
            "next_after": next_after,
            "primary_view": primary_view,
            "rabbitmq_definitions": rabbitmq_definitions,
            "with_overrides": with_overrides,
        }
