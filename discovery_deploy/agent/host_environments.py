"""Runs on a host, as root, by its own Python: puts environments below one directory. Standard library only.

`VERB NAME` on the command line, one JSON value on standard input (`receive`: a compressed tar), one JSON value comes
back. An environment is described by its contents: `[[path, kind, mode, size, text]...]`, sorted by path, where kind is
`directory`, `file` (text: SHA-256) or `link` (text: where it leads). Its contents are kept beside it under `LISTS`.

* `look`: {name: hash of the contents} -> names of those that are there, whole and without anything else in them.
* `begin NAME`: contents -> a new tree of directories, links, and the files that another environment or an older state
  of this one holds; back come the places in the list of the files that are missing.
* `receive NAME`: unpacks files into the new tree.
* `finish NAME`: compares the new tree with the contents and lets it take the place of what is there, if it is right.
* `tidy`: names -> removes every other environment that no process uses, and what was begun and never finished.
* `clear`: removes all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENVIRONMENTS = Path("/opt/discovery-deploy")
LISTS = Path("/var/lib/discovery-deploy/environments")
"""Contents of the environments that are there: `<name>.json`."""
NEW, OLD = ".new", ".old"
"""Endings of trees (hidden ones) that are being made, and that are about to go."""
BLOCK = 1 << 20

Entry = tuple[str, str, int, int, str]


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def entries_of(text: str) -> list[Entry]:
    """The entries of a contents list. Raises ValueError when a path leads out of the environment."""
    entries = [(path, kind, mode, size, told) for path, kind, mode, size, told in json.loads(text)]
    for path, *_ in entries:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path} is outside the environment")
    return entries


def is_right(path: Path, entry: Entry) -> bool:
    """Whether there is at a path what an entry tells: kind, owner, mode, size, content."""
    _, kind, mode, size, told = entry
    try:
        found = path.lstat()
        if kind == "link":
            return stat.S_ISLNK(found.st_mode) and str(path.readlink()) == told
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) != (os.geteuid(), os.getegid(), mode):
            return False
        if kind == "directory":
            return stat.S_ISDIR(found.st_mode)
        return stat.S_ISREG(found.st_mode) and found.st_size == size and sha256_of(path) == told
    except OSError:
        return False


def present(root: Path) -> Iterator[str]:
    """Every path below a directory, relative to it."""
    for folder, folders, files in os.walk(root):
        start = folder[len(str(root)) + 1 :]
        yield from (f"{start}/{name}" if start else name for name in (*folders, *files))


def strange(root: Path, entries: list[Entry]) -> list[str]:
    """Paths below a directory that are not as the entries tell, missing, or not told of."""
    wrong = [entry[0] for entry in entries if not is_right(root / entry[0], entry)]
    return wrong + sorted(set(present(root)) - {entry[0] for entry in entries})


def look(wanted: dict[str, str]) -> list[str]:
    """Names of the wanted environments that are there as they should be."""
    right = []
    for name, sha256 in wanted.items():
        try:
            text = (LISTS / f"{name}.json").read_text(encoding="utf-8")
        except OSError:
            continue
        root = ENVIRONMENTS / name
        if hashlib.sha256(text.encode()).hexdigest() == sha256 and root.is_dir() and not root.is_symlink():
            right += [name] if not strange(root, entries_of(text)) else []
    return right


def begin(name: str, text: str) -> list[int]:
    """A new tree with what is on this host already; the places of the files that must be sent."""
    entries = entries_of(text)
    for folder in (ENVIRONMENTS, LISTS):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    new = ENVIRONMENTS / f".{name}{NEW}"
    remove(new)
    new.mkdir(mode=0o755)
    others = [path for path in sorted(ENVIRONMENTS.iterdir()) if not path.name.startswith(".") and path.is_dir()]
    missing = []
    for place, entry in enumerate(entries):
        path, kind, mode, _, told = entry
        if kind == "directory":
            (new / path).mkdir(mode=0o700)
            (new / path).chmod(mode)
        elif kind == "link":
            (new / path).symlink_to(told)
        else:
            source = next((other / path for other in others if is_right(other / path, entry)), None)
            if source is None:
                missing.append(place)
            else:
                os.link(source, new / path)
    (LISTS / f"{name}.json{NEW}").write_text(text, encoding="utf-8")
    return missing


def receive(name: str) -> None:
    """Unpack what comes on standard input; ends the program when that fails."""
    command = ["tar", "--extract", "--gzip", "--file=-", "--directory", str(ENVIRONMENTS / f".{name}{NEW}")]
    code = subprocess.run([*command, "--no-same-permissions", "--numeric-owner"], check=False).returncode
    if code:
        sys.exit(f"{name} could not be unpacked (tar's exit code: {code})")


def finish(name: str) -> list[str]:
    """What is wrong with the new tree; when nothing is, it is the environment from now on."""
    new, old, root = ENVIRONMENTS / f".{name}{NEW}", ENVIRONMENTS / f".{name}{OLD}", ENVIRONMENTS / name
    text = (LISTS / f"{name}.json{NEW}").read_text(encoding="utf-8")
    entries = entries_of(text)
    for path, kind, mode, _, _ in entries:
        if kind == "file" and (new / path).is_file():
            (new / path).chmod(mode)
    new.chmod(0o755)
    wrong = strange(new, entries)
    if wrong:
        return wrong
    remove(old)
    if root.exists() or root.is_symlink():
        root.rename(old)
    new.rename(root)
    (LISTS / f"{name}.json{NEW}").rename(LISTS / f"{name}.json")
    remove(old)
    return []


def tidy(names: list[str]) -> list[str]:
    """Remove what is neither named nor used by a process; names of what went."""
    gone = []
    for path in sorted(ENVIRONMENTS.iterdir()) if ENVIRONMENTS.is_dir() else []:
        if path.name not in names and not (path.is_dir() and is_used(path)):
            remove(path)
            gone.append(path.name)
    for path in sorted(LISTS.iterdir()) if LISTS.is_dir() else []:
        if not (ENVIRONMENTS / path.name[: -len(".json")]).is_dir():
            path.unlink()
    return gone


def is_used(root: Path) -> bool:
    """Whether a process was started from a tree or has a file of it mapped."""
    wanted = f"{root}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "maps"):
            try:
                if wanted in (process / name).read_bytes() and process.name != str(os.getpid()):
                    return True
            except OSError:  # it has ended meanwhile
                continue
    return False


def clear() -> list[str]:
    """Remove everything."""
    for path in (ENVIRONMENTS, LISTS):
        remove(path)
    return []


def remove(path: Path) -> None:
    """A tree, a file or a link; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(verb: str, *names: str) -> None:
    """Do what a verb says."""
    if verb == "receive":
        receive(*names)
        return
    text = sys.stdin.read()
    acts: dict[str, Callable[[], Any]] = {
        "look": lambda: look(json.loads(text)),
        "begin": lambda: begin(names[0], text),
        "finish": lambda: finish(names[0]),
        "tidy": lambda: tidy(json.loads(text)),
        "clear": clear,
    }
    json.dump(acts[verb](), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
