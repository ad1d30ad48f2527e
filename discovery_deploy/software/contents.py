"""What is in an environment of the cache, as it must be on hosts, and archives of parts of it.

On hosts all belongs to root and only root may write, whatever owners and modes are in the cache. The list is made once
per environment; `host_environments`, which runs on hosts, compares with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from discovery_deploy.agent.host_environments import Entry, entries_of, sha256_of
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import write_file

FOLDER = "contents"
"""Of the cache: lists of contents, and archives for as long as they are being sent."""
TAR_LIMIT_S = 1800.0
"""For packing one environment."""
MODES = 0o755
"""The permissions that files keep on hosts."""


class Contents(NamedTuple):
    """The contents of an environment."""

    name: str
    """`<kind>-<hash>`."""
    text: str
    """JSON of the entries, as hosts get it."""

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def entries(self) -> list[Entry]:
        """All that is in it, sorted by path."""
        return entries_of(self.text)


def contents(cache: Path, name: str) -> Contents:
    """The contents of an environment of the cache, looked up, or computed once and kept.

    Raises:
        TestbedError: it is not in the cache, or holds what is neither a file, a directory nor a link.
    """
    root = cache / "environments" / name
    try:
        made = root.stat()
    except FileNotFoundError:
        raise TestbedError(f"{root} is not there", "Run again: it is built anew.") from None
    known = cache / FOLDER / f"{name}-{made.st_ino:x}-{made.st_mtime_ns:x}.json"
    try:
        return Contents(name, known.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = json.dumps(sorted(_entries(root)), separators=(",", ":"))
    known.parent.mkdir(parents=True, exist_ok=True)
    for old in known.parent.glob("*.json"):
        own = old.name.rsplit("-", 2)[0]
        if own == name or not (cache / "environments" / own).is_dir():  # built before under this name, or gone
            old.unlink(missing_ok=True)
    write_file(known, text)
    return Contents(name, text)


def _entries(root: Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            inner, found = str(path.relative_to(root)), path.lstat()
            mode = stat.S_IMODE(found.st_mode) & MODES
            if stat.S_ISLNK(found.st_mode):
                yield inner, "link", 0, 0, str(path.readlink())
            elif stat.S_ISDIR(found.st_mode):
                yield inner, "directory", mode, 0, ""
            elif stat.S_ISREG(found.st_mode):
                yield inner, "file", mode, found.st_size, sha256_of(path)
            else:
                raise TestbedError(f"{path} is no file", "Remove its environment from the cache; it is built anew.")


def write_archive(cache: Path, found: Contents, places: Iterable[int], stream: IO[bytes]) -> None:
    """Write a compressed archive of some files of an environment.

    Args:
        cache: directory of the cache.
        found: the environment's contents.
        places: of the files, in the list of entries.
        stream: a file that is written.
    Raises:
        TestbedError: tar failed, or took too long; the end of what it said is quoted.
    """
    entries = found.entries
    names = "".join(f"{entries[place][0]}\0" for place in places)
    command = [
        "tar", "--create", "--file=-", "--use-compress-program=gzip -1", "--sparse", "--hard-dereference",
        "--no-recursion", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go-w",
        f"--directory={cache / 'environments' / found.name}", "--null", "--files-from=-",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, input=names.encode(), stdout=stream, stderr=subprocess.PIPE, check=False, timeout=TAR_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        what = f"{found.name} could not be packed: tar timed out after {TAR_LIMIT_S:g} s"
        raise TestbedError(what, "Look at the disk of the cache, then run again.") from error
    if done.returncode:
        tail = "\n    ".join(done.stderr.decode(errors="replace").strip().splitlines()[-6:])
        raise TestbedError(
            f"{found.name} could not be packed (exit code {done.returncode}):\n    {tail}",
            "Free space in the cache, or remove this environment there; it is built anew.",
        )
