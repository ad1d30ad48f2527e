"""Everything that is built once and cached, for one experiment: the base image and the environments of the hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discovery_deploy import image, stack
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


def variant(services: Sequence[str]) -> image.Variant:
    """The image of the hosts of a deployment with these services. Pure."""
    return "base" if content_for(services) == "keystone" else "full"


def environments(cache: Path, release: str, services: Sequence[str], progress: Progress) -> Environments:
    """The environments for services of a release, built when they are not cached. Raises TestbedError."""
    base = image.base_image(cache, progress)
    openstack = stack.openstack_environment(cache, base, release, progress)
    return Environments(
        openstack=openstack,
        rally=stack.rally_environment(cache, base, progress),
        database=stack.database_seed(cache, base, openstack, content_for(services), progress),
    )


def inputs(release: str, services: Sequence[str]) -> Inputs:
    """Hashes of what phases use besides the experiment file, known without building anything."""
    base = image.image_hash()
    openstack = stack.environment_hash("openstack", base, release)
    return Inputs(
        image=image.image_hash(variant(services)),
        openstack=f"{openstack}-{stack.database_hash(base, openstack, content_for(services))}",
        rally=stack.environment_hash("rally", base),
        playbooks=_tree_hash(data_directory("playbooks")),
    )


def _tree_hash(directory: Path) -> str:
    """Hash of the names and contents of all files below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest([(str(path.relative_to(directory)), path.read_bytes().hex()) for path in files])
