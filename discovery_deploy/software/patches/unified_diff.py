"""Unified diffs, read strictly: every change that a patch file asks for, with the line of each part. Pure.

Git's and quilt's forms (`-p1`), text only; renames and copies as git writes them. What `patch` would guess at is a
mistake here: quoted names, binary changes, counts that are wrong, names that lead outside the project.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

REGULAR, EXECUTABLE, LINK = "100644", "100755", "120000"
"""Modes of files, as git writes them."""
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_MODE = re.compile(rb"(old mode|new mode|new file mode|deleted file mode) (\d{6})$")
_MOVE = re.compile(rb"(rename|copy) (from|to) (.*)$")
_BINARY = (b"GIT binary patch", b"Binary files ")
_HEADERS = (b"index ", b"similarity index ", b"dissimilarity index ")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes -> the program that unpacks it."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NO_PREFIX = "paths have no a/ and b/; make the diff with `git diff --default-prefix`"


Kind = Literal["change", "new", "deleted", "renamed", "copied"]


class Hunk(NamedTuple):
    """Lines that replace others; each line with its end."""

    line: int
    """Of its header in the patch, from 1."""
    start: int
    """The file's line, from 1, where the old ones stand; 0 for a file without lines."""
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]
    old_at: tuple[int, ...]
    """The line in the patch of each old line."""
    leading: int
    """Unchanged lines before the first change."""
    trailing: int
    """Unchanged lines after the last one."""


class FileChange(NamedTuple):
    """What a patch does to one file."""

    line: int
    """In the patch, from 1."""
    path: str
    """Inside the project, with "/"."""
    kind: Kind
    mode: str | None
    """The mode that it gets (new), or that it has (deleted); None when the patch does not say."""
    hunks: tuple[Hunk, ...]
    origin: str = ""
    """The path that a renamed or copied file has before; "" for all others."""
    written: str = ""
    """The path as the patch has it, with its first part; "" when no line names it."""


class DiffProblem(NamedTuple):
    """A place of a patch that cannot be used."""

    line: int
    file: str
    """The file inside the project that it is about; "" when that is not known."""
    message: str


class DiffError(ValueError):
    """A patch with a mistake."""

    def __init__(self, line: int, file: str, message: str) -> None:
        super().__init__(f"{line}: {file}: {message}")
        self.problem = DiffProblem(line, file, message)


def parse(content: bytes) -> tuple[FileChange, ...]:
    """All changes of a patch, in order; text before, between and after them is no part of it.

    Raises:
        DiffError: the first mistake.
    """
    for start, program in _COMPRESSED.items():
        if content.startswith(start):
            raise DiffError(1, "", f"is compressed; unpack it with {program}")
    changes = _Reader(content.removeprefix(BYTE_ORDER_MARK)).changes()
    if not changes:
        raise DiffError(1, "", "changes no file")
    return changes


def inside(path: str) -> str | None:
    """Why a path is not one inside a project, or None when it is."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        return f'"{path}" leads outside the project'
    if not path or "" in parts or "." in parts:
        return f'"{path}" is not a plain path'
    if any(part.lower() == ".git" for part in parts):
        return f'"{path}" is git\'s own'
    return None


class _Reader:
    """Goes through the lines of one patch."""

    def __init__(self, content: bytes) -> None:
        self.lines = split_lines(content)
        self.at = 0

    @property
    def number(self) -> int:
        """Of the present line, from 1."""
        return self.at + 1

    def present(self, ahead: int = 0) -> bytes:
        """A line without its end; b"" after the last."""
        place = self.at + ahead
        return self.lines[place].rstrip(b"\r\n") if place < len(self.lines) else b""

    def changes(self) -> tuple[FileChange, ...]:
        found = []
        while self.at < len(self.lines):
            line = self.present()
            if line.startswith(b"diff --git "):
                found.append(self._git())
            elif self._at_names():
                found.append(self._change(self.number, None, {}, {}))
            elif _HUNK.match(line):
                raise DiffError(self.number, "", "a hunk before any file is named")
            elif line.startswith(_BINARY):
                raise DiffError(self.number, "", "a binary change; patches hold text")
            else:
                self.at += 1
        return tuple(found)

    def _at_names(self) -> bool:
        return self.present().startswith(b"--- ") and self.present(1).startswith(b"+++ ")

    def _git(self) -> FileChange:
        """A section that begins with `diff --git`."""
        first = self.number
        named = self.present().removeprefix(b"diff --git ")
        half = len(named) // 2
        path = None
        if named[:half] == named[half + 1 :]:
            raise DiffError(first, named[:half].decode("utf-8", "backslashreplace"), NO_PREFIX)
        if named[:half].partition(b"/")[2] == named[half + 1 :].partition(b"/")[2]:
            path = self._stripped(named[:half])
        self.at += 1
        modes: dict[str, str] = {}
        move: dict[str, str] = {}
        while self.at < len(self.lines):
            line = self.present()
            if mode := _MODE.match(line):
                modes[mode[1].decode()] = mode[2].decode()
            elif way := _MOVE.match(line):
                move |= {"kind": way[1].decode(), way[2].decode(): self._checked(way[3].decode("utf-8", "replace"))}
            elif line.startswith(_BINARY):
                raise DiffError(self.number, path or "", "a binary change; patches hold text")
            elif not line.startswith(_HEADERS):
                break
            self.at += 1
        if move and not {"from", "to"} <= set(move):
            raise DiffError(first, path or "", "a rename or copy lacks one of its two names")
        return self._change(first, move.get("to", path), modes, move)

    def _change(self, first: int, path: str | None, modes: dict[str, str], move: dict[str, str]) -> FileChange:
        """What follows the header of a file: names and hunks, or nothing but modes or a new name."""
        kind: Kind = "change"
        if move:
            kind = "renamed" if move["kind"] == "rename" else "copied"
        elif "new file mode" in modes:
            kind = "new"
        elif "deleted file mode" in modes:
            kind = "deleted"
        hunks: list[Hunk] = []
        written = ""
        if self._at_names():
            first_name = self.number
            written = self.present().removeprefix(b"--- ").partition(b"\t")[0].decode("utf-8", "backslashreplace")
            old, new = self._name(b"--- "), self._name(b"+++ ")
            if old is None and new is None:
                raise DiffError(first_name, "", "both names are /dev/null")
            if move and (old, new) != (move["from"], move["to"]):
                raise DiffError(first_name, path or "", "the names are not those of the rename or copy above")
            if not move and old is not None and new is not None and old != new:
                raise DiffError(first_name, old, f'is called "{new}" afterwards; only patches of git\'s rename files')
            if not move:
                kind = "new" if old is None else "deleted" if new is None else kind
            path = new or old
            while _HUNK.match(self.present()):
                hunks.append(self._hunk(path or ""))
            if not hunks:
                raise DiffError(self.number, path or "", "no hunk follows the names")
        if path is None:
            raise DiffError(first, "", "the two names are not the same; only patches of git's rename files")
        mode = modes.get({"new": "new file mode", "deleted": "deleted file mode"}.get(kind, "new mode"))
        if mode not in (None, REGULAR, EXECUTABLE):
            what = "a symbolic link" if mode == LINK else f"the mode {mode}"
            raise DiffError(first, path, f"{what}; patches make files of mode {REGULAR} or {EXECUTABLE}")
        if not hunks and not modes and not move:
            raise DiffError(first, path, "nothing follows its header")
        return FileChange(first, path, kind, mode, tuple(hunks), move.get("from", ""), written)

    def _name(self, mark: bytes) -> str | None:
        """The path of a `---` or `+++` line; None for /dev/null."""
        text = self.present().removeprefix(mark).partition(b"\t")[0]
        path = None if text.rstrip() == b"/dev/null" else self._stripped(text)
        self.at += 1
        return path

    def _stripped(self, name: bytes) -> str:
        """A name without its first part (`-p1`), refused when it is not inside the project."""
        text = name.decode("utf-8", "backslashreplace")
        if text.startswith("/"):
            raise DiffError(self.number, text, f'"{text}" leads outside the project')
        path = text.partition("/")[2]
        if not path and not text.startswith('"'):
            raise DiffError(self.number, text, f'"{text}" has no first part such as "a/" (`-p1`); {NO_PREFIX}')
        return self._checked(path if not text.startswith('"') else text)

    def _checked(self, path: str) -> str:
        """A path inside the project. Raises DiffError for any other."""
        if path.startswith('"'):
            raise DiffError(self.number, path, "quoted names are not supported; use plain names")
        problem = inside(path)
        if problem:
            raise DiffError(self.number, path, problem)
        return path

    def _hunk(self, file: str) -> Hunk:
        header = self.number
        match = _HUNK.match(self.present())
        assert match is not None
        start, old_left, _, new_left = (1 if group is None else int(group) for group in match.groups())
        self.at += 1
        body: list[tuple[int, bytes, bytes]] = []
        while old_left or new_left:
            mark, text = self._body_line(file, old_left, new_left)
            body.append((self.number, mark, text))
            old_left -= mark != b"+"
            new_left -= mark != b"-"
            self.at += 1
            if self.present().startswith(b"\\"):
                body[-1] = (body[-1][0], mark, text.removesuffix(b"\n"))
                self.at += 1
        if self.present()[:1] in (b"+", b"-", b" ") and not self._at_names() and self.present() not in (b"-- ", b"--"):
            raise DiffError(self.number, file, "the hunk has more lines than its header counts")
        return self._made(header, start, body, file)

    def _body_line(self, file: str, old_left: int, new_left: int) -> tuple[bytes, bytes]:
        """Mark and text of the present line of a hunk."""
        raw = self.lines[self.at] if self.at < len(self.lines) else b""
        if raw in (b"\n", b"\r\n"):  # a blank that an editor took away
            raw = b" " + raw
        mark = raw[:1]
        fits = {b" ": old_left and new_left, b"-": old_left, b"+": new_left}.get(mark)
        if not fits:
            raise DiffError(self.number, file, "the hunk ends here; its header counts more lines")
        if not raw.endswith(b"\n"):
            raise DiffError(self.number, file, "the patch ends within a line; it must end with a newline")
        return mark, raw[1:]

    def _made(self, header: int, start: int, body: list[tuple[int, bytes, bytes]], file: str) -> Hunk:
        old = [(number, text) for number, mark, text in body if mark != b"+"]
        new = tuple(text for _, mark, text in body if mark != b"-")
        marks = [mark for _, mark, _ in body]
        changed = [place for place, mark in enumerate(marks) if mark != b" "]
        if not changed:
            raise DiffError(header, file, "the hunk changes nothing")
        for lines in (tuple(text for _, text in old), new):
            if any(not text.endswith(b"\n") for text in lines[:-1]):
                raise DiffError(header, file, '"\\ No newline at end of file" stands before a line that follows')
        return Hunk(
            line=header,
            start=start,
            old=tuple(text for _, text in old),
            new=new,
            old_at=tuple(number for number, _ in old),
            leading=changed[0],
            trailing=len(marks) - 1 - changed[-1],
        )


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their ends, of which the last may have none; a carriage return is part of its line."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1].removesuffix(b"\n")
    return lines if lines[-1] else lines[:-1]
