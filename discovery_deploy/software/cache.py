"""What the cache holds, who uses it, and the removal of what nobody does.

An entry is used when this version would ask for it, when hosts of an experiment of this machine stand on it (also
hosts that do not run at the moment: they are started again from it), or when it is mounted anywhere. What
environments are built from, projects' sources and wheels, is used by whoever uses such an environment; this version
also uses the sources of its releases.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from discovery_deploy.agent import machine
from discovery_deploy.agent.plan import NO_PATH, Plan
from discovery_deploy.experiment.model import Deployment
from discovery_deploy.software import box, builds, derived, stack
from discovery_deploy.software.patches.git_trees import commit_of
from discovery_deploy.software.patches.sources import lock_entries
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds import local, vagrant
from discovery_deploy.testbeds.base import noted_holder

FOLDERS = ("images", "environments", "archives", "wheels", "sources", "tools", "boxes")
"""Of the cache: what is in them is made once and never changed, but for copies of repositories, which grow."""
KEPT = {
    "downloads": "the next build",
    "contents": "the next host that is sent environments",
    "logs": "whoever looks into a build",
}
"""Other folders of the cache, and who wants them."""
_LEFT_BEHIND = (".partial", ".removed")
"""Endings of what a killed build or a killed removal leaves."""


class Entry(Strict):
    """Something in the cache."""

    name: str
    """Its path in the cache, such as `environments/rally-8b5adede7d3cdd0d`."""
    octets: int
    """What it takes on the disk."""
    used_by: tuple[str, ...]
    """Who needs it, in words; nobody: it can go."""


def entries(cache: Path) -> list[Entry]:
    """All that is in the cache, with what it takes and who uses it."""
    users = _Users(cache, local.known_plans())
    found = [Entry(name=name, octets=octets_of(cache / name), used_by=users.of(name)) for name in _names(cache)]
    for name, user in KEPT.items():
        if (cache / name).is_dir():
            found.append(Entry(name=name, octets=octets_of(cache / name), used_by=(user,)))
    return found


def prune(cache: Path, dry_run: bool = False) -> list[Entry]:
    """Remove what nobody uses; the entries that went, or would go.

    Each goes at once (it gets another name first), while no host is reserved and nobody makes it; a prune that is
    killed is completed by the next one.

    Raises:
        TestbedError: something could not be removed.
    """
    unused = [entry for entry in entries(cache) if not entry.used_by]
    if dry_run:
        return unused
    gone: list[tuple[Entry, Path]] = []
    try:
        with local.plans_held() as plans:
            users = _Users(cache, plans)  # looked at again: a reservation may have come between
            for entry in unused:
                path = cache / entry.name
                with _nobody_makes(path) as free:
                    if free and (path.suffix in _LEFT_BEHIND or not users.of(entry.name)):
                        gone.append((entry, _hidden(path)))
        for _, path in gone:
            _remove(path)
    except OSError as error:
        raise TestbedError(
            f"{error.filename or cache}: {error.strerror}", "Mend the permissions of the cache, then prune again."
        ) from error
    return [entry for entry, _ in gone]


def table(found: Iterable[Entry]) -> str:
    """Entries for standard output: tab separated, with a header."""
    lines = [f"{entry.name}\t{size_text(entry.octets)}\t{', '.join(entry.used_by) or '-'}" for entry in found]
    return "\n".join(["name\tsize\tused by", *lines]) + "\n"


def size_line(cache: Path) -> str:
    """One line for `doctor`: how much of the cache nobody uses. Only that is walked through: all takes seconds."""
    users = _Users(cache, local.known_plans())
    unused = sum(octets_of(cache / name) for name in _names(cache) if not users.of(name))
    text = f"cache {cache}"
    return f"{text}: nobody uses {size_text(unused)} of it: `discovery-deploy cache prune`" if unused else text


def size_text(octets: int) -> str:
    """Such as "1.3 GB", "12 MB"."""
    return f"{octets / 1e9:.1f} GB" if octets >= 1e9 else f"{octets / 1e6:.0f} MB"


def octets_of(path: Path) -> int:
    """What a tree takes on the disk, in bytes; a file with several names once, what cannot be read never."""
    if path.is_file():
        return path.stat().st_blocks * 512
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [path]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(waiting.pop()) as listed:
            for item in listed:
                status = item.stat(follow_symlinks=False)
                if item.is_dir(follow_symlinks=False):
                    waiting.append(Path(item.path))
                if (status.st_dev, status.st_ino) not in seen:
                    seen |= {(status.st_dev, status.st_ino)} if status.st_nlink > 1 else set()
                    total += status.st_blocks * 512
    return total


def _names(cache: Path) -> Iterator[str]:
    for folder in FOLDERS:
        if (cache / folder).is_dir():
            for path in sorted((cache / folder).iterdir()):
                if path.suffix != ".lock" and (not path.name.startswith(".") or path.suffix in _LEFT_BEHIND):
                    yield f"{folder}/{path.name}"


class _Users:
    """Who uses what, as things are now.

    Args:
        cache: its entries are asked for.
        plans: machine plans of the experiments that hold hosts here.
    """

    def __init__(self, cache: Path, plans: Iterable[Plan]) -> None:
        self.cache = cache
        self.current = builds.current()
        self.mounted = _mount_tables()
        self.boxes = vagrant.boxes_in_use(local.state_directory() / vagrant.FOLDER)
        known = list(plans)
        self.hosts = [(plan.experiment, plan.base, _noted(plan)) for plan in known if plan.base != NO_PATH]
        self.hidden = tuple(f"perhaps hosts of {plan.experiment}" for plan in known if plan.base == NO_PATH)
        """Of experiments of other users: what they use cannot be seen."""

    def of(self, name: str) -> tuple[str, ...]:
        """Users of an entry, in words."""
        path = self.cache / name
        if path.suffix in _LEFT_BEHIND:
            with _nobody_makes(path) as free:
                return () if free else ("its build",)
        if path.parent.name in ("wheels", "sources"):
            return tuple(self._built_from.get(name, ())) or self._of_source(path)
        image = path if name.startswith("images/") else self.cache / "images" / str(_built_in(path))
        users = ["this version"] if name in self.current else []
        users += [f"hosts of {title}" for title, base, noted in self.hosts if base == image or path.name in noted]
        if name.startswith(f"{box.FOLDER}/"):
            users += [f"hosts of {title}" for title in self.boxes.get(path.name, ())]
        if not users and re.search(rf"(?<![\w-]){re.escape(path.name)}(?![\w-])", self.mounted):
            users.append("a mount")
        return tuple(users) or self.hidden

    @cached_property
    def _used_projects(self) -> list[tuple[tuple[str, ...], str, ProjectRecord]]:
        """Users, base and project of every project in an environment that is used."""
        found = []
        for path in sorted((self.cache / "environments").glob(f"[!.]*/{derived.MANIFEST}")):
            users = self.of(f"environments/{path.parent.name}")
            if users:
                with suppress(OSError, ValueError):
                    told = json.loads(path.read_text(encoding="utf-8"))
                    projects = [ProjectRecord.model_validate(project) for project in told["projects"]]
                    found += [(users, str(told["base"]), project) for project in projects]
        return found

    @cached_property
    def _built_from(self) -> dict[str, dict[str, None]]:
        """Name of a source or wheel -> its users, in order."""
        found: dict[str, dict[str, None]] = {name: {"this version": None} for name in _released_sources()}
        for path in (self.cache / "environments").glob("openstack-*"):
            if path.is_dir():
                users = self.of(f"environments/{path.name}")
                found.setdefault(f"sources/{derived.hashes_name(path)}", {}).update(dict.fromkeys(users))
        for users, base, project in self._used_projects:
            wheel = f"wheels/{derived.wheel_name(base.removeprefix('openstack-'), project)}"
            found.setdefault(wheel, {}).update(dict.fromkeys(users))
        return found

    def _of_source(self, path: Path) -> tuple[str, ...]:
        """Users of an archive, or of the copy of a repository: one of their projects was made from it."""
        try:
            sha256 = (path / "sha256").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            sha256 = ""
        used: dict[str, None] = {}
        for users, _, project in self._used_projects:
            commit = re.search(r"^git .*, commit ([0-9a-f]{40,64})$", project.source)
            of_git = commit and (path / "HEAD").exists() and commit_of(path, commit[1])
            if of_git or (sha256 and sha256 in project.source):
                used.update(dict.fromkeys(users))
        return tuple(used)


def _released_sources() -> Iterator[str]:
    """Names of the sources of this version's releases: `check` reads them where a project is patched."""
    for release in get_args(Deployment.model_fields["release"].annotation):
        for project, locked in lock_entries(stack.lock_text(f"openstack-{release}")).items():
            yield f"sources/{project}-{locked.version}"


def _built_in(environment: Path) -> str | None:
    """Hash of the image that an environment was made in: hosts of that image may use it."""
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads((environment / "built.json").read_text(encoding="utf-8")).get("image"))
    return None


def _noted(plan: Plan) -> frozenset[str]:
    """Names of environments that the workspace of an experiment has noted as those of its hosts."""
    with suppress(OSError, ValueError):
        if workspace := noted_holder(plan.directory):
            return frozenset(_texts(json.loads((workspace / builds.NOTED).read_text(encoding="utf-8"))))
    return frozenset()


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for part in data.values() if isinstance(data, dict) else data:
            yield from _texts(part)


def _mount_tables() -> str:
    """What is mounted on this machine, in all its mount namespaces."""
    tables: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            namespace = (process / "ns" / "mnt").stat().st_ino
            if namespace not in tables:
                tables[namespace] = (process / "mountinfo").read_text(encoding="utf-8", errors="replace")
    return "\n".join(tables.values())


@contextmanager
def _nobody_makes(path: Path) -> Iterator[bool]:
    """Holds the lock of an entry's maker (see `files.made_once`) where that is possible at once; whether it is held.

    Files have no maker who would come back to them.
    """
    if path.is_file():
        yield True
        return
    name = path.name if not path.name.startswith(".") else path.stem[1:]
    try:
        lock = (path.parent / f".{name}.lock").open("w", encoding="utf-8")
    except PermissionError:
        yield False
        return
    with lock:
        yield machine.lock(lock.fileno())


def _hidden(path: Path) -> Path:
    """The entry under a name that nobody looks for."""
    if path.suffix in _LEFT_BEHIND:
        return path
    hidden = path.with_name(f".{path.name}.removed")
    if hidden.exists():
        _remove(hidden)
    return path.rename(hidden)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
