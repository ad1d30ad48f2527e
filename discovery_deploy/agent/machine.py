"""What containers, networks and the router share on one machine: commands, locks, claims of slots, processes.

Standard library only: it is shipped to other machines together with `containers.py` and `wan_router.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLAIMS = Path("/run/discovery-deploy-slots")
"""One link per slot in use on this machine, to the directory of the plan that uses it; gone after a reboot."""

NAMESPACES = Path("/run/netns")

MARK = ".discovery-deploy"
"""File in every directory of ours that is removed with all in it; there from the directory's first moment."""
_MARK_TEXT = "Made by discovery-deploy: `discovery-deploy release` removes this directory with all in it.\n"


LOCK_PAUSE_S = 0.02
"""Between two attempts to take a lock that another process holds."""


class MachineError(Exception):
    """Something on this machine is not as it must be.

    Args:
        what: what happened, and where.
        advice: what to do next.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}\n  {advice}" if advice else what)
        self.what = what
        self.advice = advice


def run(
    *command: str, text: str = "", limit_s: float = 60, keeps_lock: bool = True, good: tuple[int, ...] = (0,)
) -> str:
    """Run a command to its end and return what it printed; a status that is not in `good` is a failure.

    A command that `keeps_lock` inherits the lock of `hold`: when this process is killed, the lock stays taken
    until the command has ended too, so that nobody clears away what it is still making.

    Raises:
        MachineError: the command is missing, fails, or takes longer than `limit_s` seconds.
    """
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            close_fds=not keeps_lock,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise MachineError(f"{command[0]}: no such command", "run `discovery-deploy doctor`") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{' '.join(command)} timed out after {limit_s:g} s") from error
    if done.returncode not in good:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise MachineError(f"{' '.join(command)}: status {done.returncode}: {said}")
    return done.stdout


def missing_commands(packages: dict[str, str]) -> dict[str, str]:
    """Those of the commands (command -> Debian package) that this machine does not have."""
    return {command: package for command, package in packages.items() if shutil.which(command) is None}


@contextmanager
def hold(directory: Path, wait_s: float = 20, own: bool = False) -> Iterator[None]:
    """Hold the lock of a plan's directory, which is made when it is not there.

    The lock is on the directory itself, so there is no lock file to leave behind.

    Args:
        directory: whose lock.
        wait_s: how long another process may hold it, in seconds.
        own: what is made is to be removed with all in it: it gets our mark.
    Raises:
        MachineError: another process holds it for longer than `wait_s` seconds.
    """
    end = time.monotonic() + wait_s
    while True:
        if own and not directory.is_dir():
            make_own(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its last holder has just removed it
        try:
            if not lock(descriptor, max(end - time.monotonic(), 0)):
                raise MachineError(
                    f"{directory} is in use by process {_holder(descriptor) or 'unknown'}",
                    "wait until it has ended, or end it",
                )
            if _is_still(directory, descriptor):
                os.set_inheritable(descriptor, True)
                yield
                return
        finally:
            os.close(descriptor)


def lock(descriptor: int, wait_s: float = 0) -> bool:
    """Take the lock of an open file or directory (flock); it is given back when that is closed.

    Args:
        descriptor: of the open file.
        wait_s: how long another process may hold it, in seconds; `math.inf`: for ever.
    Returns:
        Whether it is held; False when another process still holds it.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= end:
            return False
        time.sleep(LOCK_PAUSE_S)


def _is_still(directory: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(directory.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str | None:
    """Process id of whoever took the lock of an open directory, as /proc/locks tells it."""
    inode = os.fstat(descriptor).st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and "->" not in fields and fields[5].endswith(f":{inode}"):
            return fields[4]
    return None


def claim(slot: int, directory: Path) -> bool:
    """Take a slot of this machine for a plan's directory; False when another directory has it.

    One atomic act, the same for every state directory of the machine.
    """
    while True:
        CLAIMS.mkdir(exist_ok=True)
        try:
            (CLAIMS / str(slot)).symlink_to(directory.absolute())
            return True
        except FileExistsError:
            return claims().get(slot) == directory.absolute()
        except FileNotFoundError:
            continue  # the last claim has just gone, and the directory with it


def claims() -> dict[int, Path]:
    """Slot -> directory of the plan that has it."""
    found = {}
    with suppress(FileNotFoundError):
        for link in sorted(CLAIMS.iterdir()):
            with suppress(FileNotFoundError):
                found[int(link.name)] = link.readlink()
    return found


def slots_of(directory: Path) -> list[int]:
    """Slots that a directory has claimed."""
    return [slot for slot, owner in claims().items() if owner == directory.absolute()]


def slots_in_use() -> set[int]:
    """Slots that are claimed, or of which devices or namespaces are there."""
    names = [entry.name for entry in (*Path("/sys/class/net").iterdir(), *entries(NAMESPACES))]
    marked = (re.match(r"dd(\d+)", name) for name in names)
    return {*claims(), *(int(match[1]) for match in marked if match)}


def give_back(slot: int, directory: Path) -> None:
    """Take back the claim of a directory on a slot; nothing happens when it has none."""
    if claims().get(slot) == directory.absolute():
        (CLAIMS / str(slot)).unlink()
        with suppress(OSError):  # not empty: others have claims
            CLAIMS.rmdir()


def entries(directory: Path) -> list[Path]:
    """What is in a directory, in order; nothing when it is not there."""
    return sorted(directory.iterdir()) if directory.is_dir() else []


def own(slot: int, name: str) -> bool:
    """Whether a device or namespace belongs to a slot: its name begins with dd<slot> and no digit follows."""
    return re.match(rf"dd{slot}(?![0-9])", name) is not None


def namespaces(slot: int) -> list[str]:
    """Names of the network namespaces of a slot."""
    return [entry.name for entry in entries(NAMESPACES) if own(slot, entry.name)]


def is_namespace(name: str) -> bool:
    """Whether there is a namespace behind a name; not so when `ip netns add` was killed half-way."""
    try:
        return (NAMESPACES / name).stat().st_dev != NAMESPACES.stat().st_dev
    except FileNotFoundError:
        return False


def identity(pid: int) -> str | None:
    """Text that is the same only for the same process (its id and its start), or None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{pid} {fields[19]}"


def recorded(file: Path) -> int | None:
    """The process whose identity stands in a file, when it still runs."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        return None
    first = text.partition(" ")[0]
    return int(first) if first.isdigit() and identity(int(first)) == text else None


def processes_in(names: Iterable[str]) -> list[int]:
    """Processes whose network namespace is one of the named ones."""
    wanted = set()
    for name in names:
        with suppress(FileNotFoundError):
            wanted.add((NAMESPACES / name).stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino in wanted:
                    found.append(int(entry.name))
    return sorted(found)


def session(leader: int) -> list[int]:
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return sorted(found)


def mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory, the deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{directory.absolute()}/")), reverse=True)


def replace(file: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace a file in one act, on the disk too: after a loss of power it holds the old content or the new one.

    It never exists with other permissions or with half of the content. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(handle)
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def private(directory: Path) -> None:
    """Make a directory, and let nobody else into it: what is below may have modes as hosts need them."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)


def is_own(directory: Path) -> bool:
    """Whether a directory carries our mark."""
    return (directory / MARK).is_file() and not directory.is_symlink() and not (directory / MARK).is_symlink()


def make_own(directory: Path, known: bool = False) -> None:
    """Have a private directory that carries our mark; it gets its name when it has the mark.

    Args:
        directory: to be made, unless it is there.
        known: something else tells that it is ours (an older version made it, without a mark).
    Raises:
        MachineError: somebody else's directory is there.
    """
    while not directory.is_symlink() and not directory.exists():
        with suppress(FileNotFoundError):  # whoever released the last experiment has just removed the parent
            _make_marked(directory)
    _refuse_strange(directory, known)
    if not is_own(directory):
        replace(directory / MARK, _MARK_TEXT)
    directory.chmod(0o700)


def _make_marked(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        replace(new / MARK, _MARK_TEXT)
        new.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise
    finally:
        if new.is_dir():
            _remove_parts(new)


def remove_own(directory: Path, known: bool = False) -> None:
    """Remove a directory of ours with all in it; nothing happens when it is not there.

    The mark goes last, so that a removal that was cut off can be done again.

    Args:
        directory: to be removed.
        known: as of `make_own`.
    Raises:
        MachineError: it is not ours, or something is mounted there: it would be emptied.
    """
    for left in directory.parent.glob(f".{directory.name}.????????"):
        if is_own(left) or not entries(left):  # of a process that was killed in `make_own`
            _remove_parts(left)
    if not directory.is_symlink() and not directory.exists():
        return
    _refuse_strange(directory, known)
    mounted = mounts_below(directory)
    if mounted:
        raise MachineError(f"still mounted: {', '.join(mounted)}", f"umount {' '.join(mounted)}")
    if not is_own(directory):
        with suppress(OSError):  # a full disk is no reason not to remove it
            replace(directory / MARK, _MARK_TEXT)
    _remove_parts(directory)


def _remove_parts(directory: Path) -> None:
    for entry in entries(directory):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()
    (directory / MARK).unlink(missing_ok=True)
    directory.rmdir()


def _refuse_strange(directory: Path, known: bool) -> None:
    if directory.is_symlink() or not directory.is_dir():
        raise MachineError(f"{directory}: is not a directory that discovery-deploy has made", "move it away")
    if not known and not is_own(directory) and entries(directory):
        raise MachineError(
            f"{directory}: has no mark of discovery-deploy ({MARK}), and nothing else tells that it made this "
            "directory; it is left as it is",
            f"look at it: when it is an experiment's, `touch {directory}/{MARK}` and try again; else move it away",
        )
