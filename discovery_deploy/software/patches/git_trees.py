"""The files of a project as git knows them: of a commit, or of a working copy as it is now."""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from discovery_deploy.agent import machine
from discovery_deploy.software.patches.patch_series import EXECUTABLE, LINK, REGULAR, SourceFile, Tree
from discovery_deploy.software.patches.trees import MOST_BYTES, Collected, TreeError, path_problem
from discovery_deploy.system.errors import TestbedError

LIMIT_S = 600.0
MOST_OUTPUT = MOST_BYTES + 100_000_000
"""Bytes that a command may answer with."""
_SETTINGS = (
    # a working copy may be another user's, and a repository anybody's; nothing that its configuration names is run
    "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
    "-c", "core.autocrlf=false", "-c", "core.attributesFile=/dev/null", "-c", "log.showSignature=false",
    "-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false",
    # objects that are not as git makes them are refused when they are fetched, but for what old histories hold
    "-c", "transfer.fsckObjects=true", "-c", "fetch.fsck.zeroPaddedFilemode=ignore",
    "-c", "fetch.fsck.missingSpaceBeforeDate=ignore", "-c", "fetch.fsck.badTimezone=ignore",
)  # fmt: skip
_VARIABLES = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",  # a URL such as ext::COMMAND is no address
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C.UTF-8",
}
_NOT_OURS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_EXTERNAL_DIFF")


class GitError(Exception):
    """Git failed, or holds what no project may; what it said, in one line."""


def git(directory: Path, *words: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
    """Standard output of a git command in a directory.

    Raises:
        GitError: it failed, took longer than LIMIT_S, or said more than MOST_OUTPUT bytes.
        TestbedError: git is not installed.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    kept |= {**_VARIABLES, **(environment or {})}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as told:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                ["git", "-C", str(directory), *_SETTINGS, *words],
                stdin=given, stdout=subprocess.PIPE, stderr=told, env=kept, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise TestbedError("git is not installed", "apt-get install git") from error
        output, problem = _answer(process)
        told.seek(0)
        said = told.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    if problem:
        raise GitError(f"git {words[0]}: {problem}")
    if process.returncode:
        reasons = [line for line in said if line.startswith(("error: ", "fatal: "))] or said[-1:]
        raise GitError(reasons[0] if reasons else f"git {words[0]} ended with code {process.returncode}")
    return output


def _answer(process: subprocess.Popen[bytes]) -> tuple[bytes, str]:
    """What a process writes until its end, and why it was ended before; all that it has started ends with it."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    clock = threading.Timer(LIMIT_S, end)
    clock.daemon = True
    clock.start()
    try:
        assert process.stdout is not None
        output = process.stdout.read(MOST_OUTPUT + 1)
        if len(output) <= MOST_OUTPUT:
            process.wait()
            return output, f"timed out after {LIMIT_S:g} s" if late.is_set() else ""
        return b"", f"answers with more than {MOST_OUTPUT // 1_000_000} MB"
    finally:
        clock.cancel()
        _kill(process)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def commit_of(repository: Path, ref: str) -> str | None:
    """The commit (40 hexadecimal digits) that a ref names in a repository, or None when it names none."""
    for name in (ref, f"refs/heads/{ref}", f"refs/remotes/origin/{ref}", f"refs/tags/{ref}"):
        try:
            return (
                git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
                .decode()
                .strip()
            )
        except GitError:
            continue
    return None


def mirror(url: str, directory: Path) -> None:
    """Make, or bring up to date, a bare copy of a repository with all its branches and tags. Raises GitError."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        machine.lock(lock.fileno(), math.inf)
        if not (directory / "HEAD").exists():
            directory.mkdir(exist_ok=True)
            git(directory, "init", "--quiet", "--bare", "--template=", ".")
        heads, tags = "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"
        git(directory, "fetch", "--quiet", "--force", "--prune", "--no-auto-maintenance", "--", url, heads, tags)


def tree_of_commit(repository: Path, commit: str) -> Tree:
    """All files of a commit.

    Raises:
        GitError: it cannot be read, or holds what no project may (`trees.Collected`), or a submodule.
    """
    entries = []
    listed = git(repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit).decode("utf-8", "surrogateescape")
    room = 0
    for entry in listed.split("\0"):
        if entry:
            head, path = entry.split("\t", 1)
            mode, kind, name, size = head.split()
            if kind != "blob":
                raise GitError(f"{path!a} is a submodule")
            entries.append((mode, name, path))
            room += int(size)
    found = Collected()
    try:
        found.room_for(room)
        for path in (path for _, _, path in entries):
            if problem := path_problem(path):
                raise TreeError(problem)
        for mode, path, content in _contents(repository, entries):
            found.add(
                path, SourceFile(EXECUTABLE if mode == EXECUTABLE else LINK if mode == LINK else REGULAR, content)
            )
    except TreeError as error:
        raise GitError(str(error)) from error
    return found.tree


def _contents(repository: Path, entries: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, bytes]]:
    """(mode, path, content) of each (mode, object, path). Raises GitError."""
    names = "".join(f"{name}\n" for _, name, _ in entries).encode()
    contents, at = git(repository, "cat-file", "--batch", stdin=names), 0
    for mode, name, path in entries:
        end = contents.index(b"\n", at)
        head = contents[at:end].split()
        if len(head) != 3:
            raise GitError(f"lacks the object {name}")
        size = int(head[2])
        yield mode, path, contents[end + 1 : end + 1 + size]
        at = end + size + 2


def tree_of_checkout(directory: Path) -> Tree:
    """The files of a working copy as they are now: tracked ones, and new ones that are not ignored.

    Raises:
        GitError: it cannot be read, or holds what no project may (`trees.Collected`), or a submodule.
    """
    listed = git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    found = Collected()
    plain: dict[Path, bool] = {directory: True}
    try:
        for name in sorted(set(listed.decode("utf-8", "surrogateescape").split("\0")) - {""}):
            path = directory / name
            # deleted, or behind a link that has taken the place of its directory, and git not told yet
            if not (path.is_symlink() or path.exists()) or not _is_plain(path.parent, plain):
                continue
            found.room_for(path.lstat().st_size)
            found.add(name, _file(path, name))
    except TreeError as error:
        raise GitError(str(error)) from error
    except OSError as error:
        raise GitError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error
    return found.tree


def _is_plain(folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder of a working copy is reached through directories alone, and not through links."""
    if folder not in known:
        known[folder] = _is_plain(folder.parent, known) and not folder.is_symlink()
    return known[folder]


def _file(path: Path, name: str) -> SourceFile:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return SourceFile(LINK, os.fsencode(path.readlink()))
    if not stat.S_ISREG(found.st_mode):
        raise GitError(f"{name!a} is a submodule, or no file")
    return SourceFile(EXECUTABLE if found.st_mode & 0o100 else REGULAR, path.read_bytes())
