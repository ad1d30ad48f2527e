"""Ansible module: the computes of a host, each an instance of one systemd unit."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: nova_compute_units
short_description: Every compute of a host runs, and no other
description:
  - C(start) starts all, restarts those whose files have changed, and stops computes that are no longer asked for and
    removes their state; it does not wait for them. C(wait) ends when all run.
options:
  step: {description: What to do., type: str, choices: [start, wait], required: true}
  names: {description: Nova's `host` of each., type: list, elements: str, required: true}
  changed_files: {description: Files that were written anew., type: list, elements: str, default: []}
  limit_s: {description: Seconds until a wait is given up., type: int, default: 60}
"""
STATE = Path("/var/lib/nova-compute")


def unit(name: str) -> str:
    """The unit of a compute."""
    return f"nova-compute@{name}.service"


def touched(names: list[str], changed_files: list[str]) -> list[str]:
    """Computes that must be restarted: all, when what is common to them has changed."""
    own = {name for name in names if any(f"nova-compute@{name}.service.d/" in path for path in changed_files)}
    drivers = {Path(path).stem for path in changed_files if path.startswith("/etc/nova-compute/")}
    common = any(path.endswith("/nova-compute@.service") for path in changed_files)
    # the compute with virtual machines has a drop-in of its own
    libvirt = {name for name in names if Path(f"/etc/systemd/system/{unit(name)}.d/libvirt.conf").exists()}
    chosen = own | (libvirt if "libvirt" in drivers else set())
    chosen |= set(names) - libvirt if "fake" in drivers else set()
    return sorted(names) if common else sorted(chosen)


def surplus(shown: str, names: list[str]) -> list[str]:
    """Computes that run and are not asked for, from `systemctl show`'s lines `Id=...`."""
    running = [line.partition("@")[2].removesuffix(".service") for line in shown.splitlines() if "@" in line]
    return sorted(set(running) - set(names))


def start(module: AnsibleModule, names: list[str], changed_files: list[str]) -> dict:
    """Start, restart and stop as asked."""
    if any(path.startswith("/etc/systemd/") for path in changed_files):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    shown = module.run_command(["systemctl", "show", "--property=Id", "nova-compute@*.service"], check_rc=True)[1]
    stopped = surplus(shown, names)
    if stopped:
        module.run_command(["systemctl", "stop", *map(unit, stopped)], check_rc=True)
    for directory in sorted(STATE.iterdir()) if STATE.is_dir() else []:
        if directory.name not in names:
            shutil.rmtree(directory)
    active = ["systemctl", "show", "--property=ActiveState", "--value", *map(unit, names)]
    states = module.run_command(active, check_rc=True)[1].split() if names else []
    idle = [name for name, state in zip(names, states, strict=True) if state not in ("active", "activating")]
    again = [name for name in touched(names, changed_files) if name not in idle]
    if again:
        module.run_command(["systemctl", "restart", "--no-block", *map(unit, again)], check_rc=True)
    if idle:
        module.run_command(["systemctl", "start", "--no-block", *map(unit, idle)], check_rc=True)
    return {"changed": bool(stopped or again or idle), "stopped": stopped, "restarted": again, "started": idle}


def wait(module: AnsibleModule, names: list[str], limit_s: float) -> None:
    """Until all run; fails at the limit, with the names and the last words of those that do not."""
    until = time.monotonic() + limit_s
    command = ["systemctl", "show", "--property=ActiveState", "--value", *map(unit, names)]
    watch = Watch(list(map(unit, names)))
    while names:
        states = module.run_command(command, check_rc=True)[1].split()
        missing = [name for name, state in zip(names, states, strict=True) if state != "active"]
        if not missing:
            return
        try:
            if time.monotonic() > until:
                raise UnitError(f"after {limit_s:.0f} s")
            watch.look()
        except UnitError as error:
            told = Watch([unit(missing[0])]).told()
            why = f"{error}{told.pop('cause')}"
            module.fail_json(msg=f"computes that do not run: {', '.join(missing)} ({told.pop('state')}): {why}", **told)
        time.sleep(0.5)


def main() -> None:
    """One step."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["start", "wait"], "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "changed_files": {"type": "list", "elements": "str", "default": []},
            "limit_s": {"type": "int", "default": 60},
        }
    )
    values = module.params
    if values["step"] == "start":
        module.exit_json(**start(module, values["names"], values["changed_files"]))
    wait(module, values["names"], values["limit_s"])
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
