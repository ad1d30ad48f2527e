"""What the driver writes down about the software of hosts, and what the report reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from discovery_deploy.system.strict import Strict


class ProjectRecord(Strict):
    """Where the code of a project came from, and which files came of it."""

    project: str
    """Canonical name, such as oslo-messaging."""
    version: str
    """What it is called in its environment."""
    source: str
    """For a person, with what pins it: a hash, a commit."""
    patches: tuple[str, ...] = ()
    """Applied to that, in order."""
    tree: str
    """SHA-256 over all its files (`patch_series.tree_hash`)."""
    own_schema: str = ""
    """Hash of what it puts into databases at first, when that is not the release's."""


class HostCode(Strict):
    """What a host proved about the code that its services run."""

    projects: dict[str, str]
    """Service unit, project -> tree hash: "keystone.service oslo-db"."""
    processes: int
    """Processes of services that were looked at."""
    modules: int
    """Files of Python code that these processes have loaded, each compared with the manifest."""
    files: int
    """Files on the host that were compared with the manifest."""


class ImageRecord(Strict):
    """An image that hosts are made of."""

    recipe: str
    """Name by which it is looked up: hash of how it is made."""
    content: str
    """Hash of its packages with their versions."""
    packages: dict[str, str]
    """Debian package -> version."""


class Images(Strict):
    """The images that an experiment's hosts were made of."""

    images: tuple[ImageRecord, ...] = ()


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which packages differ, by name: "curl 1 -> 2", "less 1 is gone".

    Args:
        before: package -> version.
        after: the same.
    """
    told = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None:
            told.append(f"{name} {new} is new")
        elif new is None:
            told.append(f"{name} {old} is gone")
        elif old != new:
            told.append(f"{name} {old} -> {new}")
    return told


class HostSoftware(Strict):
    """What a host was sent and what was installed there, before anything was deployed."""

    host: str
    environments: dict[str, str]
    """Name of each environment -> SHA-256 of the list of its files and their hashes, compared on the host."""
    packages_from: str = ""
    """Where missing Debian packages came from: "network" (the host's own sources), or the carried archive's name and
    the SHA-256 of its index; "" when nothing was missing."""
    installed: dict[str, str] = {}
    """Debian package that was not there before -> its version."""
    upgraded: dict[str, str] = {}
    """Debian package that had to be upgraded for those -> the version that was there before; `release` leaves it."""


class Software(Strict):
    """What hosts that do not see the driver's cache were sent."""

    hosts: tuple[HostSoftware, ...]
