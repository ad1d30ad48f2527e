"""What this machine lacks for a provider, and the exact command that mends it."""

from __future__ import annotations

import shutil
from pathlib import Path

from discovery_deploy.providers.base import Lack, ProviderInterface

DISK_BYTES = 6 * 1024**3
"""Image, environments and a small experiment: about 3 GB; the rest is room for data."""
MEMORY_BYTES = 3 * 1024**3


def _space(path: Path) -> Lack | None:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < DISK_BYTES:
        return Lack(
            what=f"{path}: {free / 1024**3:.1f} GiB free, about {DISK_BYTES / 1024**3:.0f} are needed", command=""
        )
    return None


def _memory() -> Lack | None:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            if available < MEMORY_BYTES:
                return Lack(
                    what=f"memory: {available / 1024**3:.1f} GiB available, 3 are needed for three sites", command=""
                )
    return None


def lacks(provider: ProviderInterface, places: list[Path]) -> list[Lack]:
    """Everything that is missing: the provider's own prerequisites, disk and memory.

    Args:
        places: folders that will hold much (cache, state of the machine).
    """
    general = [_memory(), *(_space(place) for place in places)]
    found = [*provider.lacks(), *(lack for lack in general if lack is not None)]
    return list(dict.fromkeys(found))
