"""A series of patches on a stated base: read, and applied to a project's files without fuzz or rejects. Pure.

A series is a directory with a file `series`: one patch a line, in order, and a comment that states the base:

    # base: oslo.messaging 16.1.0
    wait-for-the-reply.patch

A hunk applies where all of its old lines are: at the line that it names, or, moved by earlier hunks or by an edit
elsewhere, at the nearest such place. It applies whole or the series does not: there is no partial result.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from discovery_deploy.software.patches.python_syntax import syntax_mistake
from discovery_deploy.software.patches.unified_diff import (
    EXECUTABLE,
    LINK,
    NO_PREFIX,
    REGULAR,
    DiffError,
    DiffProblem,
    FileChange,
    Hunk,
    inside,
    parse,
    split_lines,
)

SERIES = "series"
"""Name of the file that lists the patches."""
NOT_IN_SDISTS = frozenset({".gitignore", ".gitreview", ".gitattributes"})
"""Names of files that git has and that are left out where a source archive is made."""
REWRITTEN = frozenset({"setup.cfg", "PKG-INFO"})
"""Names of files that differ from git's in a source archive."""
_BASE = re.compile(r"#\s*base:\s*(?P<rest>.*)$", re.IGNORECASE)
_SHORTEST_COMMIT = 7
_SHOWN = 60


class SourceFile(NamedTuple):
    """A file of a project."""

    mode: str
    """As git writes it: 100644, 100755, or 120000 for a symbolic link, whose content is where it leads."""
    content: bytes


Tree = Mapping[str, SourceFile]
"""Path inside the project, with "/" -> file."""


class Problem(NamedTuple):
    """Why a series cannot be used, at its place."""

    project: str
    patch: str
    """Name of the file in the series' directory: a patch, or `series` itself."""
    line: int
    """In that file, from 1."""
    file: str
    """The project's file that it is about; "" when it is about none."""
    message: str

    def told(self, directory: str) -> str:
        """One line for a person; `directory` is where the series is."""
        about = f"{self.file}: " if self.file else ""
        return f"{directory}/{self.patch}:{self.line}: {self.project}: {about}{self.message}"


class SeriesError(ValueError):
    """A series that cannot be used, with all that is wrong."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.told(".") for problem in problems))
        self.problems = tuple(problems)


class Base(NamedTuple):
    """What a series is made for."""

    project: str
    version: str
    """Its version, or a commit."""


class Series(NamedTuple):
    """What a `series` file says."""

    base: Base
    base_line: int
    patches: tuple[tuple[str, int], ...]
    """(name, line in the series file), in order."""


def canonical(project: str) -> str:
    """A project's name as package indexes compare it: `oslo.messaging` -> `oslo-messaging`."""
    return re.sub(r"[-_.]+", "-", project).lower()


def tree_hash(tree: Tree) -> str:
    """SHA-256 over paths, modes and contents, in hexadecimal."""
    whole = hashlib.sha256()
    for path in sorted(tree):
        file = tree[path]
        whole.update(f"{file.mode} {hashlib.sha256(file.content).hexdigest()} {path}\n".encode())
    return whole.hexdigest()


def parse_series(project: str, text: str) -> Series:
    """Read a `series` file. Raises SeriesError with every mistake in it."""
    base: tuple[Base, int] | None = None
    patches: list[tuple[str, int]] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        stated = _BASE.match(line.strip())
        words = line.partition("#")[0].split()
        problem = None
        if stated:
            parts = stated["rest"].split()
            if base is not None:
                problem = f"a second base; the first is on line {base[1]}"
            elif len(parts) != 2:
                problem = "a base is a project and a version: `# base: oslo.messaging 16.1.0`"
            else:
                base = Base(*parts), number
        elif words:
            problem = _entry_problem(words, [name for name, _ in patches])
            patches += [] if problem else [(words[0], number)]
        if problem:
            problems.append(Problem(project, SERIES, number, "", problem))
    if base is None and not any("base" in problem.message for problem in problems):
        problems.append(Problem(project, SERIES, 1, "", "states no base; begin it with `# base: PROJECT VERSION`"))
    if not patches and not problems:
        problems.append(Problem(project, SERIES, 1, "", "lists no patch"))
    if problems or base is None:
        raise SeriesError(problems)
    return Series(base[0], base[1], tuple(patches))


def _entry_problem(words: list[str], earlier: list[str]) -> str | None:
    name, options = words[0], words[1:]
    if inside(name):
        return f'"{name}" is not a file beside the series'
    if options not in ([], ["-p1"]):
        return f'"{" ".join(options)}": patches are applied with -p1, and with no other option'
    return f'"{name}" is listed twice' if name in earlier else None


def base_problem(series: Series, project: str, version: str) -> Problem | None:
    """Why a series is not for a source, or None when it is.

    Args:
        project: the source's name.
        version: its version, or the whole commit that it is.
    """
    stated = series.base
    if canonical(stated.project) != canonical(project):
        message = f"is made for {stated.project}, not for {project}"
    elif stated.version == version or _same_commit(stated.version, version):
        return None
    else:
        message = f"is made for {stated.project} {stated.version}; the source here is {version}"
    return Problem(project, SERIES, series.base_line, "", message)


def _same_commit(stated: str, commit: str) -> bool:
    return len(commit) == 40 and len(stated) >= _SHORTEST_COMMIT and commit.startswith(stated)


def _silent(note: str) -> None:
    """Takes notes that nobody wants."""


def apply_series(
    project: str,
    tree: Tree,
    series: Series,
    patches: Mapping[str, bytes],
    of_sdist: bool = False,
    note: Callable[[str], None] = _silent,
    compiled: bool = False,
) -> Tree:
    """The project's files after all patches.

    Args:
        project: its name, for messages.
        tree: its files; not changed.
        patches: name -> content, of all that the series lists.
        of_sdist: the files are a source archive's: changes of files that it lacks by its nature are left out.
        note: told of each such change.
        compiled: whether the Python files that the series changes must be such.
    Raises:
        SeriesError: every patch that cannot be read or, when all can, all of the first that does not apply; or every
            file that is no Python afterwards.
    """
    changes: list[tuple[str, tuple[FileChange, ...]]] = []
    problems: list[Problem] = []
    for name, line in series.patches:
        if name not in patches:
            problems.append(Problem(project, SERIES, line, "", f'there is no "{name}" beside it'))
            continue
        try:
            changes.append((name, parse(patches[name])))
        except DiffError as error:
            problems.append(_placed(project, name, error.problem))
    if problems:
        raise SeriesError(problems)
    before = tree
    for name, wanted in changes:
        if of_sdist:
            wanted, left_out = _without(wanted, tree)
            for path in left_out:
                note(f"{project}: {name}: {path} is left out: source archives have none")
        tree, found = _patched(tree, wanted)
        if found:
            raise SeriesError([_placed(project, name, _explained(problem, project, of_sdist)) for problem in found])
    if compiled and (problems := _no_python(project, before, tree, changes)):
        raise SeriesError(problems)
    return tree


def _without(changes: Sequence[FileChange], tree: Tree) -> tuple[tuple[FileChange, ...], list[str]]:
    """Changes without those of files that no source archive has, and the paths of those."""
    kept, left_out = [], []
    for change in changes:
        needed = change.origin or change.path
        if change.kind != "new" and needed not in tree and needed.rpartition("/")[2] in NOT_IN_SDISTS:
            left_out.append(needed)
        else:
            kept.append(change)
    return tuple(kept), left_out


def _explained(problem: DiffProblem, project: str, of_sdist: bool) -> DiffProblem:
    """A problem, with its reason where that is the archive's nature."""
    name = problem.file.rpartition("/")[2]
    if not of_sdist or name not in REWRITTEN or "does not apply" not in problem.message:
        return problem
    way = f"take git's files as the base: `sources: {{{project}: {{git: URL, ref: TAG}}}}`"
    return problem._replace(message=f"{problem.message}; a source archive's {name} is not git's: {way}")


def _no_python(
    project: str, before: Tree, after: Tree, changes: Sequence[tuple[str, Sequence[FileChange]]]
) -> list[Problem]:
    """What a series made no Python of, at the last patch that changed it."""
    last = {change.path: (name, change.line) for name, wanted in changes for change in wanted}
    problems = []
    for path, (name, line) in last.items():
        if not path.endswith(".py") or path not in after or after[path] == before.get(path):
            continue
        mistake = syntax_mistake(after[path].content)
        if mistake and (path not in before or syntax_mistake(before[path].content) is None):  # a template stays one
            problems.append(Problem(project, name, line, path, f"is no Python afterwards: {mistake}"))
    return problems


def _placed(project: str, patch: str, problem: DiffProblem) -> Problem:
    return Problem(project, patch, problem.line, problem.file, problem.message)


def _patched(tree: Tree, changes: Sequence[FileChange]) -> tuple[Tree, list[DiffProblem]]:
    """The tree after one patch, and what of it does not apply."""
    gone = {change.origin for change in changes if change.kind == "renamed"}
    result = {path: file for path, file in tree.items() if path not in gone}
    folders = {path[:end] for path in tree for end, letter in enumerate(path) if letter == "/"}
    problems: list[DiffProblem] = []
    for change in changes:
        try:
            made = _changed(result, folders, change, tree)
        except _MismatchError as error:
            problems += error.problems
            continue
        if made is None:
            del result[change.path]
        else:
            result[change.path] = made
    return result, problems


class _MismatchError(Exception):
    def __init__(self, problems: Sequence[DiffProblem]) -> None:
        super().__init__()
        self.problems = problems


def _changed(tree: Tree, folders: set[str], change: FileChange, before: Tree) -> SourceFile | None:
    """The file that a change makes, or None when it takes it away. Raises _MismatchError."""
    problem = _place_problem(tree, folders, change)
    if not problem and change.origin:
        origin = before.get(change.origin)
        if origin is None or origin.mode == LINK:
            problem = f'"{change.origin}", its earlier name, is {"not there" if origin is None else "a symbolic link"}'
    if problem:
        raise _MismatchError([DiffProblem(change.line, change.path, problem)])
    present = before.get(change.origin) if change.origin else tree.get(change.path)
    if change.kind == "new" or present is None:
        content = _apply_hunks(b"", change)
        return SourceFile(change.mode or REGULAR, content)
    content = _apply_hunks(present.content, change)
    if change.kind == "deleted":
        if content:
            message = "is to be deleted, but the patch does not take all of its lines away"
            raise _MismatchError([DiffProblem(change.line, change.path, message)])
        return None
    return SourceFile(change.mode or present.mode, content)


def _place_problem(tree: Tree, folders: set[str], change: FileChange) -> str | None:
    """Why a change cannot be made where it is to be."""
    path = change.path
    for end, letter in enumerate(path):
        above = tree.get(path[:end]) if letter == "/" else None
        if above is not None:
            return f'"{path[:end]}" is {"a symbolic link" if above.mode == LINK else "a file"}, not a directory'
    present = tree.get(path)
    if path in folders:
        return "is a directory"
    if change.kind in ("new", "renamed", "copied"):
        return "is to be new, but is there already" if present is not None else None
    if present is None:
        return NO_PREFIX if change.written in tree else "is not there"
    if present.mode == LINK:
        return "is a symbolic link; patches change files only"
    if change.kind == "deleted" and change.mode not in (None, present.mode):
        return f"has the mode {present.mode}, not {change.mode}"
    return None


def _apply_hunks(content: bytes, change: FileChange) -> bytes:
    """A file's content after all hunks. Raises _MismatchError with every hunk that does not apply."""
    old = split_lines(content)
    made: list[bytes] = []
    done = 0
    """Old lines that are in `made`, changed or not."""
    moved = 0
    problems: list[DiffProblem] = []
    for hunk in change.hunks:
        expected = max(hunk.start - (1 if hunk.old else 0), 0) + moved
        place = _place_of(hunk, old, done, expected)
        if place is None:
            problems.append(_why_not(hunk, old, done, expected, change.path))
            continue
        moved += place - expected
        made += [*old[done:place], *hunk.new]
        done = place + len(hunk.old)
    made += old[done:]
    if not problems and any(not line.endswith(b"\n") for line in made[:-1]):
        last = change.hunks[-1]
        problems.append(DiffProblem(last.line, change.path, "leaves a line without a newline before the file's end"))
    if problems:
        raise _MismatchError(problems)
    return b"".join(made)


def _place_of(hunk: Hunk, lines: list[bytes], least: int, expected: int) -> int | None:
    """Where, from 0, the old lines of a hunk stand: the place nearest to the expected one; None when nowhere.

    As with `patch`, fewer unchanged lines before a change than after it mean the file's first lines, and fewer after
    it the last ones.
    """
    count = len(hunk.old)
    last = len(lines) - count
    if not hunk.old:  # nothing says where it belongs but an empty file
        return 0 if not lines and hunk.start == 0 else None
    places: list[int] = sorted(range(least, last + 1), key=lambda place: (abs(place - expected), place))
    if hunk.leading < hunk.trailing:
        places = [place for place in places if place == 0]
    elif hunk.trailing < hunk.leading:
        places = [place for place in places if place == last]
    return next((place for place in places if lines[place : place + count] == list(hunk.old)), None)


def _why_not(hunk: Hunk, lines: list[bytes], least: int, expected: int, path: str) -> DiffProblem:
    """What differs at the place where a hunk should apply."""
    if not hunk.old:
        return DiffProblem(hunk.line, path, "the hunk has no line that says where it belongs; make the diff with -U3")
    if expected < least:
        return DiffProblem(hunk.line, path, "the hunk overlaps with the one before it, or is out of order")
    if _found(hunk.new, lines):
        return DiffProblem(hunk.line, path, "the hunk does not apply; the file looks like its result already")
    if _found(hunk.old, lines):
        ends = "first" if hunk.leading < hunk.trailing else "last"
        where = (
            "above an earlier hunk"
            if hunk.leading == hunk.trailing
            else f"not at the {ends} lines, as its context says"
        )
        return DiffProblem(hunk.line, path, f"the hunk does not apply: the file has its lines, but {where}")
    if _found([line.rstrip(b"\r\n") for line in hunk.old], [line.rstrip(b"\r\n") for line in lines]):
        how = "the file has its lines with other line ends (CRLF, or no newline at the file's end)"
        return DiffProblem(hunk.line, path, f"the hunk does not apply: {how}")
    for index, wanted in enumerate(hunk.old):
        place = expected + index
        present = lines[place] if place < len(lines) else None
        if present != wanted:
            has = "ends before it" if present is None else f"has {_quoted(present)}"
            message = f"the hunk does not apply: line {place + 1} should be {_quoted(wanted)}, the file {has}"
            return DiffProblem(hunk.old_at[index], path, message)
    where = "first" if hunk.leading < hunk.trailing else "last"
    message = f"the hunk does not apply: by its context it changes the file's {where} lines, and they differ"
    return DiffProblem(hunk.line, path, message)


def _found(wanted: Sequence[bytes], lines: Sequence[bytes]) -> bool:
    count = len(wanted)
    return count > 0 and any(list(lines[at : at + count]) == list(wanted) for at in range(len(lines) - count + 1))


def _quoted(line: bytes) -> str:
    text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return f'"{text[:_SHOWN]}..."' if len(text) > _SHOWN else f'"{text}"'


__all__ = [
    "EXECUTABLE", "LINK", "REGULAR", "SERIES", "Base", "Problem", "Series", "SeriesError", "SourceFile", "Tree",
    "apply_series", "base_problem", "canonical", "parse_series", "tree_hash",
]  # fmt: skip
