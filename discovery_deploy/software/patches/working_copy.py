"""A project's source under git, to be edited, and back: its commits become a series of patches.

In a working copy the tag `base` names the commit with the source as it is pinned; its message states project and
version, as the series will. Each commit after it is a patch, and its message is the patch's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from discovery_deploy.software.patches.git_trees import GitError, git, tree_of_checkout, tree_of_commit
from discovery_deploy.software.patches.patch_series import (
    SERIES,
    Base,
    Series,
    SeriesError,
    Tree,
    apply_series,
    parse_series,
    tree_hash,
)
from discovery_deploy.software.patches.trees import TreeError, write_tree
from discovery_deploy.system.errors import StateError

TAG = "base"
_MAKER = {"NAME": "discovery-deploy", "EMAIL": "discovery-deploy@localhost", "DATE": "2000-01-01T00:00:00Z"}
_DIFF = ("diff-tree", "-p", "--no-commit-id", "--no-color", "--no-renames", "--no-ext-diff", "--no-textconv",
         "--diff-algorithm=myers", "--no-indent-heuristic", "-U3", "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip
_LONGEST_NAME = 52
_ATTRIBUTES = "* -text -eol -filter -ident -working-tree-encoding !diff !merge\n"
"""A working copy's own attributes, before those of its source: files are kept as they are, and no filter is run."""


def _environment() -> dict[str, str]:
    """The same commits for the same source, whoever makes them."""
    return {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in _MAKER.items()}


def make(
    directory: Path,
    base: Base,
    tree: Tree,
    series: Series | None,
    patches: Mapping[str, bytes],
    of_sdist: bool = False,
    note: Callable[[str], None] = print,
) -> int:
    """Make a working copy, with a commit for each patch of a series that there is already.

    Args:
        directory: missing or empty.
        base: project and version (or commit) of the source.
        tree: the source's files.
        series: on that base; None for none.
        patches: name -> content.
        of_sdist: as of `apply_series`; a patch of which nothing is left is no commit.
        note: told of what is left out.
    Returns:
        The number of commits after the base.
    Raises:
        StateError: the directory is not empty, or git failed.
        SeriesError: the series does not apply.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StateError(f"{directory}: is there already", "Choose another directory.")
    steps = _steps(base.project, tree, series, patches, of_sdist, note)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        git(directory, "init", "--quiet", "--initial-branch=main", ".")
        git(directory, "config", "core.autocrlf", "false")
        (directory / ".git" / "info").mkdir(exist_ok=True)
        (directory / ".git" / "info" / "attributes").write_text(_ATTRIBUTES, encoding="utf-8")
        _commit(directory, {}, tree, f"{base.project} {base.version}\n")
        words = ("-a", "--no-sign", "-m", f"{base.project} {base.version}", TAG)
        git(directory, "tag", *words, environment=_environment())
        before = tree
        for message, after in steps:
            _commit(directory, before, after, message)
            before = after
    except GitError as error:
        raise StateError(
            f"{directory}: git: {error}", "Mend the cause, remove the directory, then try again."
        ) from error
    except TreeError as error:
        raise StateError(f"{directory}: {base.project}: {error}", "Choose another source, or directory.") from error
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}", "Choose another directory.") from error
    return len(steps)


def _steps(
    project: str,
    tree: Tree,
    series: Series | None,
    patches: Mapping[str, bytes],
    of_sdist: bool,
    note: Callable[[str], None],
) -> list[tuple[str, Tree]]:
    """(message, files after it) of each patch that changes something. Raises SeriesError."""
    steps = []
    for name, line in series.patches if series else ():
        assert series is not None
        before = tree
        one = series._replace(patches=((name, line),))
        tree = apply_series(project, tree, one, patches, of_sdist=of_sdist, note=note)
        if tree != before:
            steps.append((message_of(name, patches[name]), tree))
    return steps


def _commit(directory: Path, before: Tree, after: Tree, message: str) -> None:
    for path in set(before) - set(after):
        (directory / path).unlink()
    changed = {path: file for path, file in after.items() if before.get(path) != file}
    for path in changed:
        (directory / path).unlink(missing_ok=True)
    write_tree(changed, directory)
    git(directory, "add", "--force", "--all", ".")
    words = ("--quiet", "--allow-empty", "--no-verify", "--no-gpg-sign", "--cleanup=verbatim", "--file=-")
    git(directory, "commit", *words, stdin=message.encode(), environment=_environment())


def message_of(name: str, patch: bytes) -> str:
    """The text before the first change of a patch; its name when there is none. Pure."""
    text = patch.decode("utf-8-sig", "replace")
    head = re.split(r"^(?:diff --git |--- (?=\S))", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return (head or name.rpartition("/")[2].removesuffix(".patch")) + "\n"


def base_of(directory: Path) -> Base:
    """Project and version of a working copy. Raises StateError when it is none."""
    try:
        words = git(directory, "for-each-ref", "--format=%(contents:subject)", f"refs/tags/{TAG}").decode().split()
    except (GitError, OSError) as error:
        raise StateError(f"{directory}: is no working copy: {error}", "Make one with `patch new`.") from error
    if len(words) != 2:
        raise StateError(f"{directory}: has no tag `{TAG}` of `patch new`", "Make a working copy with `patch new`.")
    return Base(*words)


def save(directory: Path, target: Path) -> Series:
    """Write the commits after the base as a series; what an earlier series there listed is replaced.

    The result is applied to the base and compared with the last commit before anything is written.

    Raises:
        StateError: there is nothing to save, something is not committed, or a commit cannot be a patch.
    """
    base = base_of(directory)
    try:
        # (`git status` would run the filters that the directory's configuration names)
        if tree_of_checkout(directory) != tree_of_commit(directory, "HEAD"):
            raise StateError(f"{directory}: holds changes that are not committed", "Commit or stash them.")
        commits = git(directory, "rev-list", "--reverse", "--parents", f"{TAG}..HEAD").decode().splitlines()
        patches = _patches(directory, commits)
        text = f"# base: {base.project} {base.version}\n" + "".join(f"{name}\n" for name in patches)
        series = _verified(directory, base, text, patches)
    except GitError as error:
        raise StateError(f"{directory}: git: {error}", "Mend the cause, then try again.") from error
    try:
        _write(target, base.project, text, patches)
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}", "Choose another directory.") from error
    return series


def _patches(directory: Path, commits: list[str]) -> dict[str, bytes]:
    """Name -> content of the patch that each commit is, in order. Raises GitError, StateError."""
    if not commits:
        raise StateError(f"{directory}: no commit follows the tag `{TAG}`", "Commit your change first.")
    patches = {}
    for number, (commit, *parents) in enumerate((line.split() for line in commits), 1):
        if len(parents) != 1:
            raise StateError(f"{directory}: {commit[:12]} is a merge", "A series is a line: rebase onto `base`.")
        message = git(directory, "log", "-1", "--format=%B", commit).decode("utf-8", "replace").strip()
        diff = git(directory, *_DIFF, parents[0], commit)
        diff = re.sub(rb"^index [0-9a-f]+\.\.[0-9a-f]+( \d+)?\n", b"", diff, flags=re.MULTILINE)
        subject = message.partition("\n")[0]
        words = re.sub(r"[^a-z0-9]+", "-", subject.lower())[:_LONGEST_NAME].strip("-") or "change"
        patches[f"{number:04d}-{words}.patch"] = message.encode() + b"\n\n" + diff
    return patches


def _verified(directory: Path, base: Base, text: str, patches: Mapping[str, bytes]) -> Series:
    """The series, when it makes of the base what the last commit is. Raises GitError, StateError."""
    series = parse_series(base.project, text)
    try:
        made = apply_series(base.project, tree_of_commit(directory, f"refs/tags/{TAG}"), series, patches)
    except SeriesError as error:
        told = "\n".join(problem.told(str(directory)) for problem in error.problems)
        raise StateError(
            f"these commits are no patches:\n{told}", "Change the commits (`git rebase -i base`)."
        ) from error
    if tree_hash(made) != tree_hash(tree_of_commit(directory, "HEAD")):
        raise StateError(f"{directory}: the patches do not make what the last commit is", "Please report this.")
    return series


def _write(target: Path, project: str, text: str, patches: Mapping[str, bytes]) -> None:
    file = target / SERIES
    if file.exists():
        try:
            earlier = parse_series(project, file.read_text(encoding="utf-8"))
        except (SeriesError, UnicodeDecodeError) as error:
            raise StateError(f"{file}: is no series: {error}", "Choose another directory, or remove it.") from error
        for name, _ in earlier.patches:
            if name not in patches:
                (target / name).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    for name, content in patches.items():
        (target / name).write_bytes(content)
    file.write_text(text, encoding="utf-8")
