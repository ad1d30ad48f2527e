"""Source archives (sdists): read as data, with a limit to what they may unfold to; nothing of them is executed."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from pathlib import Path

from discovery_deploy.software.patches.patch_series import EXECUTABLE, LINK, REGULAR, SourceFile, Tree, canonical
from discovery_deploy.software.patches.trees import MOST_BYTES, Collected, TreeError

MOST_UNFOLDED = MOST_BYTES + 100_000_000
"""Bytes of the whole archive, with its own headers."""
VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"
"""What versions are made of."""


class SdistError(Exception):
    """An archive that cannot be used; begins with its path."""


class _Limited(gzip.GzipFile):
    """A compressed file that is read to a limit of what comes out of it."""

    left = MOST_UNFOLDED

    def read(self, size: int | None = -1) -> bytes:
        """As of a file. Raises TreeError when more comes out than may."""
        wanted = self.left + 1 if size is None or size < 0 else min(size, self.left + 1)
        found = super().read(wanted)
        self.left -= len(found)
        if self.left < 0:
            raise TreeError(f"unfolds to more than {MOST_UNFOLDED // 1_000_000} MB")
        return found


def sdist_tree(file: Path) -> Tree:
    """The files of a source archive, below its one directory.

    Raises:
        SdistError: it is no `.tar.gz`, or holds what no project may (`trees.Collected`).
    """
    found = Collected()
    try:
        with _Limited(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                _take(found, archive, member)
    except TreeError as error:
        raise SdistError(f"{file}: {error}") from error
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError, zlib.error) as error:
        raise SdistError(f"{file}: is not a source archive (.tar.gz): {error}") from error
    return found.tree


def _take(found: Collected, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Add one member of an archive. Raises TreeError."""
    if member.isdir():
        return
    path = _below_the_top(member.name)
    if not path:
        raise TreeError(f"{ascii(member.name)[:120]} is not below one directory")
    if member.issym():
        found.add(path, SourceFile(LINK, os.fsencode(member.linkname)))
        return
    if member.islnk():  # another name of a file that came before
        first = found.tree.get(_below_the_top(member.linkname))
        if first is None:
            raise TreeError(f"{ascii(member.name)[:120]} is a hard link to what is not in the archive")
        found.add(path, first)
        return
    if not member.isfile():
        raise TreeError(f"{ascii(member.name)[:120]} is neither a file nor a link")
    found.room_for(member.size)
    stream = archive.extractfile(member)
    assert stream is not None
    found.add(path, SourceFile(EXECUTABLE if member.mode & 0o100 else REGULAR, stream.read()))


def _below_the_top(name: str) -> str:
    """A member's path without the archive's one directory; "" when it is not below one."""
    top, _, path = name.removeprefix("./").partition("/")
    return "" if top in ("", "..") else path


def sdist_version(project: str, tree: Tree, file: Path) -> str:
    """The version in an sdist's PKG-INFO, whose name must be the project's. Raises SdistError."""
    text = tree["PKG-INFO"].content.decode("utf-8", "replace") if "PKG-INFO" in tree else ""
    fields = dict(re.findall(r"^(Name|Version): *(\S+)", text.partition("\n\n")[0], re.MULTILINE))
    if canonical(fields.get("Name", "")) != canonical(project) or "Version" not in fields:
        raise SdistError(f"{file}: is {fields.get('Name', 'no sdist: it has no PKG-INFO')}, not {project}")
    if not re.fullmatch(VERSION, fields["Version"]):
        raise SdistError(f"{file}: {ascii(fields['Version'])[:60]} is not a version")
    return str(fields["Version"])
