"""Ansible module: units stopped and what they left removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: gone
short_description: Units stopped, files and directories removed
description:
  - Also when only a part is there, or nothing. Units are killed, since what they would still save is removed.
options:
  units: {description: systemd units to stop; unknown ones count as stopped., type: list, elements: str, default: []}
  paths: {description: Files and directories to remove., type: list, elements: path, default: []}
  contents: {description: Directories to empty., type: list, elements: path, default: []}
"""


def remove(path: Path) -> bool:
    """Remove a file or a tree. Returns whether it was there."""
    if not os.path.lexists(path):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return True


def units_in(states: tuple[str, ...], shown: str) -> list[str]:
    """Units in one of these states, from `systemctl show`'s blocks of properties."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    return [block["Id"] for block in blocks if block.get("ActiveState") in states]


RUNNING = ("active", "activating", "reloading", "deactivating")
NOT_AT_REST = (*RUNNING, "failed")


def main() -> None:
    """Stop, then remove; `removed` and `stopped` name what was there."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "paths": {"type": "list", "elements": "path", "default": []},
            "contents": {"type": "list", "elements": "path", "default": []},
        }
    )
    stopped: list[str] = []
    show = ["systemctl", "show", "--property=Id,ActiveState", *module.params["units"]]
    if module.params["units"]:
        stopped = units_in(NOT_AT_REST, module.run_command(show, check_rc=True)[1])
    if stopped:
        running = units_in(RUNNING, module.run_command(show, check_rc=True)[1])
        if running:
            module.run_command(["systemctl", "kill", "--kill-who=all", "--signal=KILL", *running], check_rc=True)
        module.run_command(["systemctl", "stop", *stopped], check_rc=True)
        failed = units_in(("failed",), module.run_command(show, check_rc=True)[1])
        if failed:  # a failed unit stays failed after a stop; the next deployment must not inherit that
            module.run_command(["systemctl", "reset-failed", *failed], check_rc=True)
    places = [Path(path) for path in module.params["paths"]]
    for directory in module.params["contents"]:
        if Path(directory).is_dir():
            places += sorted(Path(directory).iterdir())
    try:
        removed = [str(place) for place in places if remove(place)]
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: cannot be removed: {error.strerror}")
    if any(place.startswith("/etc/systemd/") for place in removed):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    module.exit_json(changed=bool(stopped or removed), stopped=stopped, removed=removed)


if __name__ == "__main__":
    main()
