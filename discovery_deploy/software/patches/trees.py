"""Files of a project that come from outside: what they may be, and the one function that writes them.

Archives, git repositories and patches are data: a path of theirs leads to no place outside the directory that it is
for, whatever links, doubled names and sizes they hold.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from discovery_deploy.software.patches.patch_series import EXECUTABLE, LINK, REGULAR, SourceFile, Tree
from discovery_deploy.software.patches.unified_diff import inside

MOST_FILES = 50_000
"""Of one project; Nova has 6,000."""
MOST_BYTES = 200_000_000
"""Of all files of one project, unpacked; SQLAlchemy's have 63 MB."""
_LONGEST_PATH, _LONGEST_PART = 1024, 255
_SHOWN = 120


class TreeError(Exception):
    """Files that are refused: the first path that is not as it must be, or how much there is."""


class Collected:
    """A project's files, looked at one by one as they come; nothing that is refused is kept."""

    def __init__(self) -> None:
        self.tree: dict[str, SourceFile] = {}
        self._folders: set[str] = set()
        self._bytes = 0

    def room_for(self, size: int) -> None:
        """Ask, before a file is read, whether it still fits.

        Args:
            size: of the file, in bytes.
        Raises:
            TreeError: it does not.
        """
        if len(self.tree) >= MOST_FILES:
            raise TreeError(f"holds more than {MOST_FILES} files")
        if self._bytes + size > MOST_BYTES:
            raise TreeError(f"holds more than {MOST_BYTES // 1_000_000} MB of files")

    def add(self, path: str, file: SourceFile) -> None:
        """Take one more file. Raises TreeError."""
        problem = path_problem(path)
        if problem:
            raise TreeError(problem)
        if file.mode not in (REGULAR, EXECUTABLE, LINK):
            raise TreeError(f'"{path}" has the mode {file.mode}')
        if file.mode == LINK and (not file.content or b"\0" in file.content):
            raise TreeError(f'"{path}" is a link to nowhere')
        self.room_for(len(file.content))
        if path in self.tree:
            raise TreeError(f'"{path}" is there twice')
        if path in self._folders:
            raise TreeError(f'"{path}" is a file and a directory')
        for folder in _above(path):
            if folder in self.tree:
                kind = "a symbolic link" if self.tree[folder].mode == LINK else "a file"
                raise TreeError(f'"{path}" is below "{folder}", which is {kind}')
        self._folders.update(_above(path))
        self._bytes += len(file.content)
        self.tree[path] = file


def path_problem(path: str) -> str | None:
    """Why a path cannot be one of a project's files, or None when it can. Pure."""
    shown = ascii(path[:_SHOWN])[1:-1]
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return f'"{shown}" is not UTF-8'
    if any(unicodedata.category(letter) == "Cc" for letter in path):
        return f'"{shown}" holds a control character'
    if len(encoded) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_PART for part in path.split("/")):
        return f'"{shown}..." is too long'
    return inside(path)


def _above(path: str) -> Iterator[str]:
    """Every directory that a path goes through, the outermost first."""
    return (path[:place] for place, letter in enumerate(path) if letter == "/")


def write_tree(tree: Tree, directory: Path) -> None:
    """Write files below a directory, which is made when missing; no file is replaced and no link is followed.

    Raises:
        TreeError: a path that leads elsewhere, in the tree or by what is in the directory already.
        OSError: a file cannot be written.
    """
    checked = Collected()
    for path in sorted(tree):
        checked.add(path, tree[path])
    directory.mkdir(parents=True, exist_ok=True)
    folders: dict[str, list[str]] = {}
    for path in checked.tree:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, names in folders.items():
        with _opened(directory, folder) as handle:
            for name in names:
                _write(handle, name, tree[f"{folder}/{name}" if folder else name])


@contextmanager
def _opened(directory: Path, folder: str) -> Iterator[int]:
    """A handle of a folder below a directory, made when missing; none of its parts is a link. Raises TreeError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folder.split("/") if folder else ():
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=handle)
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            except OSError as error:
                raise TreeError(f'"{folder}" cannot be a directory: {error.strerror}') from error
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _write(folder: int, name: str, file: SourceFile) -> None:
    try:
        if file.mode == LINK:
            os.symlink(os.fsdecode(file.content), name, dir_fd=folder)
            return
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    except FileExistsError as error:
        raise TreeError(f'"{name}" is there already') from error
    with os.fdopen(made, "wb") as stream:
        stream.write(file.content)
        os.fchmod(stream.fileno(), 0o755 if file.mode == EXECUTABLE else 0o644)
