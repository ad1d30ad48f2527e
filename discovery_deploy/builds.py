"""Everything that is built once and cached, for one experiment: the base image and the environments of the hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discovery_deploy import guest, image, stack
from discovery_deploy.data import data_directory
from discovery_deploy.model import Strict
from discovery_deploy.phases import Inputs, digest
from discovery_deploy.providers.base import Progress
from discovery_deploy.seed import content_for


class Environments(Strict):
    """What hosts see below /opt/discovery-deploy, and use."""

    openstack: stack.Environment
    rally: stack.Environment
    database: stack.Environment
    """MariaDB's first content."""
    guest: stack.Environment | None = None
    """The guest of virtual machines; None where there are none."""


def variant(services: Sequence[str]) -> image.Variant:
    """The image of the hosts of a deployment with these services. Pure."""
    return "base" if content_for(services) == "keystone" else "full"


def environments(
    cache: Path, release: str, services: Sequence[str], progress: Progress, guests: bool = False
) -> Environments:
    """The environments for services of a release, built when they are not cached.

    Args:
        cache: directory of the cache.
        release: of OpenStack.
        services: that are deployed.
        progress: takes one short line per step.
        guests: whether virtual machines run.
    Raises:
        TestbedError: something could not be built.
    """
    base = image.base_image(cache, progress)
    openstack = stack.openstack_environment(cache, base, release, progress)
    return Environments(
        openstack=openstack,
        rally=stack.rally_environment(cache, base, progress),
        database=stack.database_seed(cache, base, openstack, content_for(services), progress),
        guest=guest.guest(cache, base, progress) if guests else None,
    )


def inputs(release: str, services: Sequence[str], guests: bool = False) -> Inputs:
    """Hashes of what phases use besides the experiment file, known without building anything."""
    base = image.image_hash()
    openstack = stack.environment_hash("openstack", base, release)
    parts = [openstack, stack.database_hash(base, openstack, content_for(services))]
    parts += [guest.guest_hash(base)] if guests else []
    return Inputs(
        image=image.image_hash(variant(services)),
        openstack="-".join(parts),
        rally=stack.environment_hash("rally", base),
        playbooks=_tree_hash(data_directory("playbooks")),
    )


def _tree_hash(directory: Path) -> str:
    """Hash of the names and contents of all files below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest([(str(path.relative_to(directory)), path.read_bytes().hex()) for path in files])
