"""Control groups of a plan: one group per slot, one below it per host, in every hierarchy that matters.

What runs in a group belongs to the plan, so it is found and ended without looking at names of processes. Works with
pure cgroup v2 and with a machine that keeps controllers in v1 hierarchies beside a v2 one ("hybrid").
Standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from discovery_deploy.agent.machine import MachineError

# Not `cpu`: its groups have no real-time share at first, and probes inside hosts run with a real-time priority.
_V1 = ("name=systemd", "memory", "pids")
_DELEGATED = ("memory", "pids")


@dataclass(frozen=True)
class Hierarchies:
    """Where control groups are mounted on this machine."""

    unified: Path
    """The v2 hierarchy."""
    legacy: tuple[Path, ...]
    """v1 hierarchies whose controllers count a host's memory and processes; empty with pure v2."""

    @property
    def all(self) -> tuple[Path, ...]:
        """The v2 hierarchy, then the others."""
        return (self.unified, *self.legacy)


def parse_hierarchies(mountinfo: str) -> Hierarchies | None:
    """Hierarchies in a text of the form of /proc/self/mountinfo (proc(5)); None when none is v2 and writable."""
    unified: list[Path] = []
    legacy: list[Path] = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point, options = fields.split()[4:6]
        kind, _, super_options = rest.split()[:3]
        if "ro" in options.split(","):
            continue
        if kind == "cgroup2":
            unified.append(Path(point))
        elif kind == "cgroup" and set(_V1) & set(super_options.split(",")):
            legacy.append(Path(point))
    return Hierarchies(unified[0], tuple(legacy)) if unified else None


def hierarchies() -> Hierarchies:
    """Hierarchies of this machine. Raises MachineError when there is no writable v2 hierarchy."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text())
    if found is None:
        raise MachineError(
            "no writable cgroup v2 hierarchy is mounted",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        )
    return found


def make(slot: int, name: str) -> list[Path]:
    """Make the groups of a host; returns the `cgroup.procs` files that its supervisor must write itself into.

    In v2 a group with controllers holds no process itself, so the supervisor has a group of its own (`loop`) beside
    that of the container (`host`).
    """
    found = hierarchies()
    group = found.unified / f"dd{slot}" / name
    for part in ("loop", "host"):
        (group / part).mkdir(parents=True, exist_ok=True)
    for parent in (found.unified, group.parent, group):
        _delegate(parent)
    for hierarchy in found.legacy:
        (hierarchy / f"dd{slot}" / name).mkdir(parents=True, exist_ok=True)
    return [group / "loop" / "cgroup.procs", *(h / f"dd{slot}" / name / "cgroup.procs" for h in found.legacy)]


def adopt(slot: int, name: str, pids: list[int]) -> None:
    """Move processes that run already into a group of the slot; one that has ended is passed over."""
    for hierarchy in hierarchies().all:
        group = hierarchy / f"dd{slot}" / name
        group.mkdir(parents=True, exist_ok=True)
        for pid in pids:
            with suppress(ProcessLookupError):
                _write(group / "cgroup.procs", str(pid))


def _delegate(group: Path) -> None:
    """Give a group's children the controllers that it has itself; without them hosts run, but are not accounted."""
    available = (group / "cgroup.controllers").read_text().split()
    given = (group / "cgroup.subtree_control").read_text().split()
    wanted = [f"+{name}" for name in _DELEGATED if name in available and name not in given]
    if wanted:
        with suppress(OSError):  # the root of a cgroup namespace holds processes and may not delegate
            (group / "cgroup.subtree_control").write_text(" ".join(wanted))


def leader(slot: int, name: str) -> int | None:
    """The container's own process 1, as the machine numbers it; None when there is none."""
    file = hierarchies().unified / f"dd{slot}" / name / "host/payload/init.scope/cgroup.procs"
    for pid in _read_pids(file):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == "1":
                    return pid
    return None


def processes(slot: int, name: str = "") -> list[int]:
    """Processes in the groups of a host, or of the whole slot."""
    top = hierarchies().unified / f"dd{slot}" / name
    return sorted(pid for group in _groups(top) for pid in _read_pids(group / "cgroup.procs"))


def end(slot: int, name: str = "", limit_s: float = 15) -> None:
    """Kill every process of a host, or of the whole slot, and remove its groups.

    Raises:
        MachineError: a process survives being killed for `limit_s` seconds (it waits for a device).
    """
    tops = [hierarchy / f"dd{slot}" / name for hierarchy in hierarchies().all]
    stop = time.monotonic() + limit_s
    while True:
        _kill(tops[0])
        for top in tops:
            _remove(top)
        left = [str(top) for top in tops if top.exists()]
        if not left:
            return
        if time.monotonic() > stop:
            pids = [str(pid) for pid in processes(slot, name)]
            raise MachineError(
                f"{', '.join(left)} cannot be removed; processes in it: {', '.join(pids) or 'none'}",
                "look with `ps -o pid,stat,wchan:30,args -p PID` what they wait for, then try again",
            )
        time.sleep(0.01)


def _kill(top: Path) -> None:
    switch = top / "cgroup.kill"
    if switch.exists():  # since kernel 5.14
        with suppress(FileNotFoundError):
            _write(switch, "1")
        return
    for group in _groups(top):
        for pid in _read_pids(group / "cgroup.procs"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _write(file: Path, text: str) -> None:
    """Write into a file that may not be read (nor created, as `Path.write_text` would)."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _groups(top: Path) -> list[Path]:
    """A group and all below it, the deepest first."""
    return [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]


def _remove(top: Path) -> None:
    for group in _groups(top):
        with suppress(OSError):  # busy until its last process has ended: the caller tries again
            group.rmdir()


def _read_pids(file: Path) -> list[int]:
    try:
        return [int(line) for line in file.read_text().split()]
    except OSError:  # the group has just been removed
        return []
