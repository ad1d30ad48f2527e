"""What an experiment could leave behind on the machine, taken before and after."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from discovery_deploy import machine

_OURS = re.compile(r"dd(6[0-3]|[1-5]?[0-9])(?![0-9])")
"""Names of slots of the provider `local` (others belong to tests of the WAN alone)."""


def _mounts() -> set[str]:
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    # `ip netns` makes /run/netns a mount at its first use and keeps it; below it only our namespaces count.
    return {point for point in points if not point.startswith("/run/netns") or _OURS.match(Path(point).name)}


def _cgroups() -> set[str]:
    return {str(path) for top in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(top) if _OURS.match(path.name)}


def _processes() -> set[str]:
    """Processes in our control groups, or started by a driver that a test had started."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                grouped = any(_OURS.match(part) for part in (entry / "cgroup").read_text().split("/"))
                started = b"DISCOVERY_DEPLOY_STATE=" in (entry / "environ").read_bytes()
                identity = machine.identity(int(entry.name))
                if identity and (grouped or started):
                    found.add(f"{identity} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    return found


@dataclass(frozen=True)
class Snapshot:
    """Everything that could be left behind, as lines of text."""

    lines: frozenset[str]

    @staticmethod
    def take() -> Snapshot:
        """What is there now."""
        lines = {f"mount {point}" for point in _mounts()}
        lines |= {f"link {path.name}" for path in Path("/sys/class/net").iterdir() if _OURS.match(path.name)}
        lines |= {f"namespace {path.name}" for path in machine.entries(machine.NAMESPACES) if _OURS.match(path.name)}
        lines |= {f"cgroup {path}" for path in _cgroups()}
        lines |= {f"process {text}" for text in _processes()}
        lines |= {f"claim {slot}" for slot in machine.claims()}
        lines |= {f"runtime {path}" for path in Path("/run/systemd/nspawn").glob("*/*") if _OURS.match(path.name)}
        for kind, ours in (("route", rf"dev {_OURS.pattern}"), ("rule", r"^5(0\d\d|1[01]\d|12[0-7]):")):
            shown = subprocess.run(["ip", kind, "show"], capture_output=True, text=True, check=True).stdout
            lines |= {f"{kind} {line.strip()}" for line in shown.splitlines() if re.search(ours, line)}
        return Snapshot(frozenset(lines))

    def leftovers(self, before: Snapshot) -> list[str]:
        """What is here and was not there before."""
        return sorted(self.lines - before.lines)
