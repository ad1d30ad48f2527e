"""Ansible module: what a role needs of a host, all lacks named at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: host_check
short_description: What a role needs of a host
description: Fails with every lack in one message; changes nothing.
options:
  paths: {description: Files or directories that must be there., type: list, elements: str, default: []}
  free_mb: {description: Directory -> megabytes that must be free where it is or will be., type: dict, default: {}}
  memory_mb: {description: Megabytes of memory that must be available., type: int, default: 0}
"""


def free_mb(place: str) -> int:
    """Megabytes free in the file system that holds a path, or will hold it."""
    path = Path(place)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2**20


def available_memory_mb(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo's text, in megabytes."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise ValueError("no MemAvailable in /proc/meminfo")


def lacks(paths: list[str], free: dict[str, int], memory_mb: int) -> list[str]:
    """Everything that is not as needed, one sentence each."""
    found = [f"{path} is not there" for path in paths if not os.path.lexists(path)]
    for place, needed in sorted(free.items()):
        present = free_mb(place)
        if present < int(needed):
            found.append(f"{place} needs {needed} MB of disk, {present} MB are free")
    if memory_mb:
        present = available_memory_mb(Path("/proc/meminfo").read_text())
        if present < memory_mb:
            found.append(f"{memory_mb} MB of memory are needed, {present} MB are available")
    return found


def main() -> None:
    """Look, and fail with all lacks."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": []},
            "free_mb": {"type": "dict", "default": {}},
            "memory_mb": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    found = lacks(module.params["paths"], module.params["free_mb"], module.params["memory_mb"])
    if found:
        module.fail_json(msg="; ".join(found))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
