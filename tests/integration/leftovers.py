"""What an experiment could leave behind on the machine, taken before and after.

Tests run side by side: what belongs to the state directory of another test does not count.
"""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from discovery_deploy.agent import machine

_OURS = re.compile(r"dd(6[0-3]|[1-5]?[0-9])(?![0-9])")
"""Names of slots of the provider `local` (others belong to tests of the WAN alone)."""


@dataclass(frozen=True)
class _Scope:
    """Whose things are looked at: of all slots but these, and of drivers with this state directory."""

    foreign: dict[int, Path]
    state: Path

    @staticmethod
    def of(state: Path) -> _Scope:
        return _Scope({slot: path for slot, path in machine.claims().items() if path.parent != state}, state)

    def has(self, name: str) -> bool:
        match = _OURS.match(name)
        return match is not None and int(match[1]) not in self.foreign


def _mounts(scope: _Scope) -> set[str]:
    """Mounts with their numbers: one that covers another at the same place is another."""
    found = {(fields[4], fields[0]) for fields in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())}
    # `ip netns` makes /run/netns a mount at its first use and keeps it; below it only our namespaces count.
    others = tuple(f"{path}/" for path in scope.foreign.values())
    return {
        f"{point} ({number})"
        for point, number in found
        if (not point.startswith("/run/netns") or scope.has(Path(point).name))
        and not point.startswith(others)
        and not _of_another_test(point, scope.state)
    }


def _of_another_test(point: str, state: Path) -> bool:
    """Whether a mount is in a test's own folder that is not the one of this state directory (a full disk, say)."""
    return "/pytest-of-" in point and not point.startswith(f"{state.parent}/")


def _cgroups(scope: _Scope) -> set[str]:
    return {str(path) for top in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(top) if scope.has(path.name)}


def _processes(scope: _Scope) -> set[str]:
    """Processes in our control groups, or started by a driver that a test had started."""
    mark = f"DISCOVERY_DEPLOY_STATE={scope.state}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                grouped = any(scope.has(part) for part in (entry / "cgroup").read_text().split("/"))
                started = mark in (entry / "environ").read_bytes()
                identity = machine.identity(int(entry.name))
                if identity and (grouped or started):
                    found.add(f"{identity} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    return found


def _lines(scope: _Scope) -> set[str]:
    lines = {f"mount {point}" for point in _mounts(scope)}
    lines |= {f"link {path.name}" for path in Path("/sys/class/net").iterdir() if scope.has(path.name)}
    lines |= {f"namespace {path.name}" for path in machine.entries(machine.NAMESPACES) if scope.has(path.name)}
    lines |= {f"cgroup {path}" for path in _cgroups(scope)}
    lines |= {f"process {text}" for text in _processes(scope)}
    lines |= {f"claim {slot}" for slot in machine.claims() if slot not in scope.foreign}
    lines |= {f"runtime {path}" for path in Path("/run/systemd/nspawn").glob("*/*") if scope.has(path.name)}
    for kind, ours in (("route", r"dev (dd\d+)"), ("rule", r"^5([01]\d\d):")):
        shown = subprocess.run(["ip", kind, "show"], capture_output=True, text=True, check=True).stdout
        for line in shown.splitlines():
            match = re.search(ours, line)
            if match and scope.has(match[1] if kind == "route" else f"dd{int(match[1]) // 2}"):
                lines.add(f"{kind} {line.strip()}")
    return lines


@dataclass(frozen=True)
class Snapshot:
    """Everything that could be left behind, as lines of text."""

    lines: frozenset[str]

    @staticmethod
    def take(state: Path) -> Snapshot:
        """What is there now and does not belong to others: to slots of another state directory, and its drivers."""
        while True:
            scope = _Scope.of(state)
            lines = _lines(scope)
            if _Scope.of(state) == scope:  # no other test has begun or ended meanwhile
                return Snapshot(frozenset(lines))

    def leftovers(self, before: Snapshot) -> list[str]:
        """What is here and was not there before."""
        return sorted(self.lines - before.lines)


def left_behind(state: Path, before: Snapshot, patience_s: float = 10.0) -> list[str]:
    """What is still here after a release, once what is ending has had its time (a process that exits, say)."""
    deadline = time.monotonic() + patience_s
    while (left := Snapshot.take(state).leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
