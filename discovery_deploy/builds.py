"""Everything that is built once and cached, for one experiment: the base image and the environments of the hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from discovery_deploy import image, stack
from discovery_deploy.data import data_directory
from discovery_deploy.errors import TestbedError
from discovery_deploy.model import Deployment, Strict
from discovery_deploy.phases import Inputs, digest
from discovery_deploy.providers.base import Progress

NOTED = "environments.json"
"""File of a workspace with the environments of its hosts: the cache keeps those."""

First = TypeVar("First")
Second = TypeVar("Second")


class Environments(Strict):
    """What hosts see below /opt/discovery-deploy, and use."""

    openstack: stack.Environment
    rally: stack.Environment
    database: stack.Environment
    """MariaDB's first content."""


def environments(cache: Path, release: str, progress: Progress) -> Environments:
    """The environments of a release, built when they are not cached: Rally's beside OpenStack's.

    Raises:
        TestbedError: a build failed; when more than one did, all are told.
    """
    base = image.base_image(cache, progress)

    def with_database() -> tuple[stack.Environment, stack.Environment]:
        openstack = stack.openstack_environment(cache, base, release, progress)
        return openstack, stack.database_seed(cache, base, openstack, progress)

    (openstack, database), rally = _beside(with_database, lambda: stack.rally_environment(cache, base, progress))
    return Environments(openstack=openstack, rally=rally, database=database)


def _beside(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of two builds made at the same time, the second in a thread.

    An interrupted driver does not wait for the thread: it ends with the driver, and its program with it.

    Raises:
        TestbedError: that of the build that failed, or one that tells of both.
    """
    results: list[Second] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(second())
        except BaseException as error:  # raised below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        made = first()
    except TestbedError as error:
        thread.join()
        if errors and isinstance(errors[0], TestbedError):
            raise TestbedError(f"{error.what}\n{errors[0].what}", error.advice) from errors[0]
        raise
    thread.join()
    if errors:
        raise errors[0]
    return made, results[0]


def inputs(release: str) -> Inputs:
    """Hashes of what phases use besides the experiment file, known without building anything."""
    base = image.image_hash()
    openstack = stack.environment_hash("openstack", base, release)
    return Inputs(
        image=base,
        openstack=f"{openstack}-{stack.database_hash(base, openstack)}",
        rally=stack.environment_hash("rally", base),
        playbooks=_tree_hash(data_directory("playbooks")),
    )


def current() -> frozenset[str]:
    """What this version uses of the cache, for any release: `images/<hash>` and `environments/<kind>-<hash>`."""
    base = image.image_hash()
    names = {f"images/{base}", f"environments/rally-{stack.environment_hash('rally', base)}"}
    for release in get_args(Deployment.model_fields["release"].annotation):
        openstack = stack.environment_hash("openstack", base, release)
        database = stack.database_hash(base, openstack)
        names |= {f"environments/openstack-{openstack}", f"environments/database-{database}"}
    return frozenset(names)


def _tree_hash(directory: Path) -> str:
    """Hash of the names and contents of all files below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest([(str(path.relative_to(directory)), path.read_bytes().hex()) for path in files])
