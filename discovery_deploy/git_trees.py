"""The files of a project as git knows them: of a commit, or of a working copy as it is now."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from discovery_deploy.errors import TestbedError
from discovery_deploy.patch_series import EXECUTABLE, LINK, REGULAR, SourceFile, Tree

LIMIT_S = 600.0
_SETTINGS = (
    # a working copy may be another user's; nothing of its configuration is run
    "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
    "-c", "core.autocrlf=false",
)  # fmt: skip


class GitError(Exception):
    """Git failed; what it said, in one line."""


def git(directory: Path, *words: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
    """Standard output of a git command in a directory.

    Raises:
        GitError: it failed.
        TestbedError: git is not installed.
    """
    kept = {
        name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    kept |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *_SETTINGS, *words],
            input=stdin, capture_output=True, check=False, timeout=LIMIT_S, env=kept,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise TestbedError("git is not installed", "apt-get install git") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"no answer within {LIMIT_S:g} s") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise GitError(said[-1] if said else f"git {words[0]} ended with code {done.returncode}")
    return done.stdout


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
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "HEAD").exists():
            directory.mkdir(exist_ok=True)
            git(directory, "init", "--quiet", "--bare", ".")
        heads, tags = "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"
        git(directory, "fetch", "--quiet", "--force", "--prune", "--no-auto-maintenance", "--", url, heads, tags)


def tree_of_commit(repository: Path, commit: str) -> Tree:
    """All files of a commit. Raises GitError; submodules are an error too."""
    entries = []
    for entry in (
        git(repository, "ls-tree", "-r", "-z", "--full-tree", commit).decode("utf-8", "surrogateescape").split("\0")
    ):
        if entry:
            head, path = entry.split("\t", 1)
            mode, kind, name = head.split()
            if kind != "blob":
                raise GitError(f"{path} is a submodule")
            entries.append((mode, name, path))
    names = "".join(f"{name}\n" for _, name, _ in entries).encode()
    contents = git(repository, "cat-file", "--batch", stdin=names)
    tree, at = {}, 0
    for mode, _, path in entries:
        end = contents.index(b"\n", at)
        size = int(contents[at:end].split()[2])
        tree[path] = SourceFile(mode, contents[end + 1 : end + 1 + size])
        at = end + size + 2
    return tree


def tree_of_checkout(directory: Path) -> Tree:
    """The files of a working copy as they are now: tracked ones, and new ones that are not ignored. Raises GitError."""
    listed = git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    tree: dict[str, SourceFile] = {}
    for name in sorted(set(listed.decode("utf-8", "surrogateescape").split("\0")) - {""}):
        path = directory / name
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # deleted, and git not told yet
            continue
        if stat.S_ISLNK(found.st_mode):
            tree[name] = SourceFile(LINK, os.fsencode(path.readlink()))
        elif stat.S_ISREG(found.st_mode):
            tree[name] = SourceFile(EXECUTABLE if found.st_mode & 0o100 else REGULAR, path.read_bytes())
        else:
            raise GitError(f"{name} is a submodule, or no file")
    return tree


def write_tree(tree: Tree, directory: Path) -> None:
    """Write all files below a directory, which must be empty or missing."""
    folders: set[Path] = set()
    for name, file in tree.items():
        path = directory / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        if file.mode == LINK:
            path.symlink_to(os.fsdecode(file.content))
        else:
            path.write_bytes(file.content)
            path.chmod(0o755 if file.mode == EXECUTABLE else 0o644)
