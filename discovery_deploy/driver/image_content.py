"""The second name of an image: what is in it. The first one, by which it is looked up, is that of its recipe.

The same recipe gives other packages on another day. Which an experiment's hosts were made of is kept in its workspace.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts import nesting
from discovery_deploy.software.image import Variant, image_hash, variant
from discovery_deploy.software.records import ImageRecord, Images, changes
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.files import digest
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.workspace import Workspace

KEPT = "images.json"
"""File of a workspace with the images of its hosts, the latest last."""
_STATUS = Path("var/lib/dpkg/status")
_TOLD = 12
"""Packages that a line names; all are in the workspace."""


def packages(status: str) -> dict[str, str]:
    """Package -> version of all that is installed, from dpkg's status file. Pure."""
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): *(.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= set(fields):
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))


def image_record(tree: Path) -> ImageRecord:
    """Both names of a baked image, and its packages.

    Raises:
        OSError: it is not there, or is no Debian.
    """
    return _read(tree, (tree / _STATUS).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(tree: Path, changed_ns: int) -> ImageRecord:
    found = packages((tree / _STATUS).read_text(encoding="utf-8", errors="replace"))
    return ImageRecord(recipe=tree.name, content=digest(found), packages=found)


def kept_images(workspace: Workspace) -> tuple[ImageRecord, ...]:
    """The images that an experiment's hosts were made of, the latest last; none when that cannot be read."""
    try:
        kept = workspace.load(KEPT, Images)
    except StateError:
        return ()
    return kept.images if kept else ()


def keep_image(workspace: Workspace, tree: Path, progress: Progress) -> str:
    """Write down the image that hosts are made of, and tell what differs from the last one of the same recipe.

    Returns:
        The name of its content; "" when it cannot be told.
    """
    try:
        record, kept = image_record(tree), kept_images(workspace)
    except OSError:
        return ""
    earlier = [image for image in kept if image.recipe == record.recipe]
    if earlier and earlier[-1].content != record.content:
        differing = changes(earlier[-1].packages, record.packages)
        more = f" and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
        progress(f"the image was baked anew, with other packages: {', '.join(differing[:_TOLD])}{more}")
        workspace.note("image of other packages", recipe=record.recipe, content=record.content, changes=differing)
    if not kept or kept[-1] != record:
        workspace.save(KEPT, Images(images=(*(image for image in kept if image != record), record)))
    return record.content


def variant_of(experiment: Experiment) -> Variant:
    """The variant of an experiment's image; where hosts are no containers, the one in which environments are built."""
    return variant(experiment.deployment.services) if nesting.hosts_are_containers(experiment) else "base"


def is_other(workspace: Workspace, cache: Path, experiment: Experiment, content: str) -> bool:
    """Whether the image that hosts were made of was baked again since, and other packages are in it.

    Args:
        workspace: of the experiment.
        cache: directory of the cache; when it lacks the image, nothing is known of it.
        experiment: with the levels of the setting in place.
        content: of the hosts' image; "" when that is not known.
    """
    tree = cache / "images" / image_hash(variant_of(experiment))
    known = next((image for image in kept_images(workspace) if image.content == content), None)
    try:
        return known is not None and known.recipe == tree.name and image_record(tree).content != content
    except OSError:
        return False
