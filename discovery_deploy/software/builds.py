"""Everything that is built once and cached, for one experiment: the base image and the environments of the hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from discovery_deploy.experiment.model import Deployment
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.software import apt_archive, box, derived, enoslib_environment, guest, image, stack
from discovery_deploy.software.inputs import Inputs, digest
from discovery_deploy.software.patches.sources import ProjectCode
from discovery_deploy.software.seed import Content, content_for
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict

NOTED = "environments.json"
"""File of a workspace with the environments of its hosts: the cache keeps those."""

variant = image.variant

First = TypeVar("First")
Second = TypeVar("Second")


class Environments(Strict):
    """What hosts see below /opt/discovery-deploy, and use."""

    openstack: stack.Environment
    rally: stack.Environment
    database: stack.Environment
    """MariaDB's first content."""
    guest: stack.Environment | None = None
    """The guest of virtual machines; None where there are none."""
    services: dict[str, stack.Environment] = {}
    """Service -> its environment, derived from `openstack`: with other projects where they are asked for."""

    def service(self, name: str) -> stack.Environment:
        """The environment that a service runs in."""
        return self.services.get(name, self.openstack)


def environments(
    cache: Path,
    release: str,
    services: Sequence[str],
    progress: Progress,
    guests: bool = False,
    code: Sequence[ProjectCode] = (),
) -> Environments:
    """The environments for services of a release, built when they are not cached: Rally's beside OpenStack's.

    Args:
        cache: directory of the cache.
        release: of OpenStack.
        services: that are deployed.
        progress: takes one short line per step.
        guests: whether virtual machines run.
        code: of the projects that are not simply the release's.
    Raises:
        TestbedError: a build failed; when more than one did, all are told.
    """
    base = image.base_image(cache, progress)

    def with_database() -> tuple[stack.Environment, stack.Environment]:
        openstack = stack.openstack_environment(cache, base, release, progress)
        content = content_for(services)
        schema = [project for project in code if project.record.own_schema]
        maker = derived.derived_environment(cache, base, openstack, schema, progress) if schema else openstack
        hash_ = _database_hash(base.name, openstack.hash, content, code)
        return openstack, stack.database_seed(cache, base, maker, content, progress, hash_)

    def others() -> tuple[stack.Environment, stack.Environment | None]:
        return stack.rally_environment(cache, base, progress), guest.guest(cache, base, progress) if guests else None

    (openstack, database), (rally, machine) = _beside(with_database, others)
    made = {
        service: derived.derived_environment(cache, base, openstack, code_of_service(service, code), progress)
        for service in services
    }
    return Environments(openstack=openstack, rally=rally, database=database, guest=machine, services=made)


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


def code_of_service(service: str, code: Sequence[ProjectCode]) -> list[ProjectCode]:
    """The projects that a service may load: its own and all libraries. Editing Nova restarts no Keystone."""
    others = {one.project for one in SERVICES.values() if one.name != service}
    return [project for project in code if project.record.project not in others]


def _database_hash(image_hash: str, openstack: str, content: Content, code: Sequence[ProjectCode]) -> str:
    """Of the databases' first content: the release's, unless a project changes its schema."""
    changed = {project.record.project: project.record.own_schema for project in code if project.record.own_schema}
    return stack.database_hash(image_hash, digest(openstack, changed) if changed else openstack, content)


def inputs(release: str, services: Sequence[str], guests: bool = False, code: Sequence[ProjectCode] = ()) -> Inputs:
    """Hashes of what phases use besides the experiment file, known without building anything; as `environments`."""
    base = image.image_hash()
    openstack = stack.environment_hash("openstack", base, release)
    parts = [openstack, _database_hash(base, openstack, content_for(services), code)]
    parts += [guest.guest_hash(base)] if guests else []
    names = {
        service: derived.derived_name(openstack, [project.record for project in code_of_service(service, code)])
        for service in services
    }
    return Inputs(
        image=image.image_hash(variant(services)),
        openstack="-".join(parts),
        code=digest(names),
        rally=stack.environment_hash("rally", base),
        playbooks=_tree_hash(data_directory("playbooks")),
    )


def current() -> frozenset[str]:
    """What this version uses of the cache: images, environments, EnOSlib, the box, by their paths there."""
    base = image.image_hash()
    names = {f"images/{image.image_hash(kind)}" for kind in get_args(image.Variant)}
    names |= {f"{apt_archive.FOLDER}/{apt_archive.archive_name(kind)}" for kind in get_args(image.Variant)}
    names |= {
        f"environments/rally-{stack.environment_hash('rally', base)}",
        f"environments/guest-{guest.guest_hash(base)}",
        f"tools/{enoslib_environment.environment_name()}",
        f"{box.FOLDER}/{box.box_hash()}",
    }
    for release in get_args(Deployment.model_fields["release"].annotation):
        openstack = stack.environment_hash("openstack", base, release)
        names |= {f"environments/openstack-{openstack}", f"environments/{derived.derived_name(openstack, ())}"}
        for content in get_args(Content):
            names.add(f"environments/database-{stack.database_hash(base, openstack, content)}")
    return frozenset(names)


def _tree_hash(directory: Path) -> str:
    """Hash of the names and contents of all files below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest([(str(path.relative_to(directory)), path.read_bytes().hex()) for path in files])
