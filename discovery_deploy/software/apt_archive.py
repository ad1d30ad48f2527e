"""The apt archive that the driver carries to hosts which reach none: built once in the cache, complete by itself.

It holds the packages of the hosts' image and all that these depend on, resolved as if nothing were installed: whatever
a minimal Debian of that release lacks is in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from discovery_deploy.software.guest import apt_options
from discovery_deploy.software.image import FULL_PACKAGES, PACKAGES, Variant, apt_acquire_options, image_hash
from discovery_deploy.software.stack import build_inside
from discovery_deploy.system.files import digest, made_once
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict

RECIPE = 1
"""Raise it when the build makes something else from the same texts."""
FOLDER = "archives"
"""Of the cache."""
INDEX = "Packages"

# Paragraphs of an index are packages' own control files, and where the package is.
BUILD = r"""
export DEBIAN_FRONTEND=noninteractive
printf '%s\n' "$APT_OPTIONS" > /etc/apt/apt.conf.d/99archive
apt-get --quiet=2 update
echo "I: getting the packages of hosts"
mkdir -p /run/dpkg; : > /run/dpkg/status
mkdir -p /run/debs/partial
apt-get --quiet=2 --yes --no-install-recommends --download-only -o APT::Sandbox::User=root \
    -o Dir::State::status=/run/dpkg/status -o Dir::Cache::archives=/run/debs install $PACKAGES
cd /run/debs
for file in *.deb; do
    dpkg-deb --field "$file"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
        "$file" "$(stat --format=%s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
done > "$PREFIX/Packages"
mv ./*.deb "$PREFIX/"
"""


class AptArchive(Strict):
    """A carried archive in the cache."""

    name: str
    """`apt-<variant>-<hash>`."""
    index_sha256: str
    """Hash of its index, which holds those of all packages."""
    files: dict[str, str]
    """`<package> <version>` -> file."""


def wanted_packages(variant: Variant) -> tuple[str, ...]:
    """Debian packages of the hosts of a variant, by name: those of its image."""
    return PACKAGES if variant == "base" else PACKAGES + FULL_PACKAGES


def archive_name(variant: Variant) -> str:
    """Name of a variant's archive, known without building it. The day of the build and the mirror are not in it."""
    return f"apt-{variant}-{digest(RECIPE, BUILD, image_hash(variant), wanted_packages(variant))}"


def apt_archive(cache: Path, image: Path, variant: Variant, progress: Progress) -> AptArchive:
    """The archive with the packages of a variant, built inside the image from this machine's sources if not cached.

    Args:
        cache: directory of the cache; the archive is `archives/<name>` below it.
        image: base tree of the hosts; it is not changed.
        variant: whose packages.
        progress: takes one short line per step.
    Raises:
        TestbedError: packages could not be had; the end of what apt said is quoted.
    """
    cache, image = cache.absolute(), image.absolute()
    target = cache / FOLDER / archive_name(variant)

    def build(partial: Path) -> None:
        progress(f"making the apt archive of the {variant} hosts (once)")
        given = {"PACKAGES": " ".join(wanted_packages(variant)), "APT_OPTIONS": apt_options(apt_acquire_options())}
        build_inside(cache, image, partial, target.name, BUILD, given, {}, progress)

    made_once(target, build, f"the apt archive of the {variant} hosts", progress)
    index = (target / INDEX).read_bytes()
    return AptArchive(
        name=target.name, index_sha256=hashlib.sha256(index).hexdigest(), files=index_files(index.decode("utf-8"))
    )


def index_files(index: str) -> dict[str, str]:
    """`<package> <version>` -> file, from the text of an index. Pure."""
    found = {}
    for paragraph in index.split("\n\n"):
        fields: Mapping[str, str] = dict(re.findall(r"^(Package|Version|Filename): *(\S+)$", paragraph, re.MULTILINE))
        if len(fields) == 3:
            found[f"{fields['Package']} {fields['Version']}"] = fields["Filename"].removeprefix("./")
    return found
