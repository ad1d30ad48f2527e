"""What experiments leave on a host, read from the roles themselves: their `install`, `deploy` and `destroy`.

So that a host that was given by hand can be left as it was found, without a second list that a new role would forget.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from discovery_deploy.cloud.variables import RALLY_DIRECTORY, STATE_DIRECTORY
from discovery_deploy.system.strict import Strict

KNOWN = {"rally_directory": RALLY_DIRECTORY, "inventory_hostname": "*"}
"""Variables in the paths of roles -> what they are on hosts."""

SOFTWARE = "/opt/discovery-deploy"
"""Where hosts have the Python environments."""

_OWN_PATHS = (f"{STATE_DIRECTORY}/runs", f"{STATE_DIRECTORY}/environments", f"{STATE_DIRECTORY}/agent", SOFTWARE)
"""What the driver itself writes on hosts: runs, what it knows of environments, the agent, and those."""
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "dpkg-db-backup.timer", "fstrim.timer")
"""What a Debian host does by itself at some hour, which would be a part of what is measured then."""
_SCRATCH = ("/root/.ansible",)
_INTERFACES = ("br-int", "br-ex", "br-tunnel", "ovs-netdev", "ovs-system", "tunnel-in", "tunnel-out")
"""What a killed Open vSwitch leaves; `open_vswitch_state` of the playbooks removes the same."""


class Traces(Strict):
    """What experiments leave on a host."""

    units: tuple[str, ...]
    """systemd units, some of them patterns."""
    paths: tuple[str, ...]
    """Files and directories, some of them patterns."""
    contents: tuple[str, ...]
    """Directories of packages, of which the content is an experiment's."""
    scratch: tuple[str, ...]
    """What goes unless it was there before; it is used, not replaced."""
    users: tuple[str, ...]
    """Users, each with a group of its name."""
    interfaces: tuple[str, ...]
    namespaces: tuple[str, ...]
    """Network namespaces."""
    tables: tuple[str, ...]
    """Tables of nftables, of family ip."""
    timers: tuple[str, ...]
    """Timers of the host that stand still meanwhile."""
    programs: tuple[str, ...]
    """Directories; what was started from there is an experiment's process."""


def traces(playbooks: Path) -> Traces:
    """What the roles of these playbooks leave. Equal playbooks give equal traces.

    Raises:
        ValueError: a role names a path by a variable that is not known here.
    """
    gone, written, users = [], [], set()
    for role in sorted((playbooks / "roles").iterdir()):
        gone += [task["gone"] for task in _tasks(role, "destroy") if "gone" in task]
        written += [file["path"] for task in _tasks(role, "deploy") for file in _files(task)]
        for task in _tasks(role, "install"):
            if "ansible.builtin.user" in task:
                users.add(task["ansible.builtin.user"]["name"])
    named = {key: sorted({_plain(one) for entry in gone for one in entry.get(key, ())}) for key in _KINDS}
    covered = (*named["paths"], *named["contents"])
    more = {_whole(_plain(path)) for path in written}
    paths = {*named["paths"], *_OWN_PATHS, *(path for path in more if not is_below(path, covered))}
    return Traces(
        units=tuple(named["units"]),
        paths=tuple(sorted(paths)),
        contents=tuple(named["contents"]),
        scratch=_SCRATCH,
        users=tuple(sorted(users)),
        interfaces=_INTERFACES,
        namespaces=("tunnels",),
        tables=("discovery_tunnels",),
        timers=TIMERS,
        programs=(SOFTWARE,),
    )


_KINDS = ("units", "paths", "contents")


def _tasks(role: Path, verb: str) -> list[dict[str, Any]]:
    return YAML(typ="safe", pure=True).load((role / "tasks" / f"{verb}.yml").read_text(encoding="utf-8")) or []


def _files(part: Any) -> Iterator[Mapping[str, Any]]:
    """Files that a task writes, wherever in it they are said."""
    if isinstance(part, dict):
        if "path" in part and "content" in part:
            yield part
        else:
            for inner in part.values():
                yield from _files(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _files(inner)


def _plain(text: str) -> str:
    """A path or unit with its variables' values. Raises ValueError."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in KNOWN:
            raise ValueError(f"{text}: nothing says what {match[1]} is on hosts (traces.KNOWN)")
        return KNOWN[match[1]]

    return re.sub(r"{{ *(\w+) *}}", value, text)


def _whole(path: str) -> str:
    """The directory that comes with a file: that of a unit's drop-ins."""
    parent = PurePosixPath(path).parent
    return str(parent) if parent.suffix == ".d" and parent.parent.name == "system" else path


def is_below(path: str, places: tuple[str, ...]) -> bool:
    """Whether a path is one of these, or in one of them."""
    return any(path == place or path.startswith(f"{place}/") for place in places)
