"""A host that was given by hand is left as it was found, whatever an experiment did to it.

Runs there as root, with `given_host`, as a program on standard input: `python3 -I -S - REQUEST`. Standard library only.
The answer is the last line of the output, a JSON object. It may be killed at any moment and done again.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import host_packages
from discovery_deploy.agent.given_host import (
    AT_WORK,
    FOUND,
    HELD,
    KEPT,
    LEAVING,
    Files,
    HostError,
    Traces,
    examine,
    hold,
    is_holder,
    known,
    locked,
    look,
    move,
    own_discipline,
    run,
    take_key,
    unit_states,
)
from discovery_deploy.agent.tc_device import DeviceError, HostDevice

RESTORING = "restoring"
"""File that says: all of the experiment is gone, and what was found is being put back."""


def clean(files: Files, request: dict[str, Any]) -> dict[str, Any]:
    """Everything of the experiment away, and what was found back in its place; also when only a part is there."""
    if not files.home.is_dir():
        take_key(files, request["mark"])
        return {"state": "not held"}
    with locked(files):
        marker = files.read(HELD)
        if marker is not None and not is_holder(marker, request):
            return {"state": "held by another", "held_by": marker}
        (files.home / LEAVING).touch()
        found = files.read(FOUND)
        if found is not None:
            if not (files.home / RESTORING).exists():
                stop_all(request["traces"], found)
                forget_software(request["remove_packages"], request["traces"]["users"])
                remove_all(files, request["traces"], found)
                (files.home / RESTORING).touch()
            put_back(files, found)
            restore_units(found, request["traces"])
            remove_users(request["traces"], found)
        take_key(files, request["mark"])
        shutil.rmtree(files.home)
    if found is None or found["ours_alone"]:
        with suppress(OSError):  # something else is in it
            files.home.parent.rmdir()
    return {"state": "as it was found"}


def stop_all(traces: Traces, found: dict[str, Any]) -> None:
    """Virtual machines, units, processes, network devices and queueing disciplines of an experiment."""
    units = unit_states(traces["units"])
    working = [name for name, unit in units.items() if unit["ActiveState"] in AT_WORK]
    if "libvirtd.service" in working:
        for name in run("virsh", "list", "--name").split():
            run("virsh", "destroy", name, good=(0, 1))  # it may have ended by itself
        for name in run("virsh", "list", "--all", "--name").split():
            run("virsh", "undefine", name)
    if working:
        run("systemctl", "kill", "--kill-who=all", "--signal=KILL", *working)
    tired = [name for name, unit in units.items() if unit["ActiveState"] in (*AT_WORK, "failed")]
    if tired:
        run("systemctl", "stop", *tired)
    failed = [name for name, unit in unit_states(traces["units"]).items() if unit["ActiveState"] == "failed"]
    if failed:
        run("systemctl", "reset-failed", *failed)
    kill_processes([name for name in traces["users"] if name not in found["users"]], traces["programs"])
    remove_networks(traces, found)


def kill_processes(users: Iterable[str], programs: Iterable[str]) -> None:
    """End processes of users, and those that were started from directories."""
    numbers = {pwd.getpwnam(name).pw_uid for name in users if known(pwd.getpwnam, name)}
    starts = tuple(f"{directory}/".encode() for directory in programs)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if entry.stat().st_uid in numbers or any(word.startswith(starts) for word in words[:2]):
                os.kill(int(entry.name), signal.SIGKILL)


def remove_networks(traces: Traces, found: dict[str, Any]) -> None:
    """Devices, namespaces and tables that a switch leaves, and what shapes the WAN."""
    for name in traces["interfaces"]:
        if name not in found["interfaces"] and Path("/sys/class/net", name).exists():
            run("ip", "link", "delete", name, good=(0, 1))  # the kernel removes one with another
    for name in traces["namespaces"]:
        if Path("/run/netns", name).exists():
            run("ip", "netns", "delete", name)
    if shutil.which("nft"):
        for table in traces["tables"]:
            run("nft", f"add table ip {table}; delete table ip {table}")
    device = found["device"]
    try:
        HostDevice(device).remove()
        if Path("/sys/class/net", device).exists() and own_discipline(device):
            run("tc", "qdisc", "del", "dev", device, "root")  # it had none when it was found
    except DeviceError as error:
        raise HostError(f"{device}: {error.what}") from error


def forget_software(remove: bool, accounts: list[str]) -> None:
    """What is kept here about software that was sent; and (if asked) the Debian packages that came with it."""
    try:
        if remove:
            host_packages.remove_packages({"accounts": accounts})
        host_packages.forget()
    except host_packages.PackageError as error:
        raise HostError(str(error)) from error


def remove_all(files: Files, traces: Traces, found: dict[str, Any]) -> None:
    """Files and directories of an experiment; all that was there before is in our folder."""
    for path in files.expand(traces["paths"]):
        files.remove(path)
    for path in files.expand(traces["scratch"]):
        if path not in found["scratch"]:
            files.remove(path)
    for path in traces["contents"]:
        place = files.at(path)
        for entry in sorted(place.iterdir()) if place.is_dir() else []:
            files.remove(files.named(entry))
        if path.startswith("/run/") and path not in found["contents"]:
            files.remove(path)


def put_back(files: Files, found: dict[str, Any]) -> None:
    """What was moved aside, in its place again."""
    kept = files.home / KEPT
    for path in found["paths"]:
        if os.path.lexists(kept / path.lstrip("/")):
            move(kept / path.lstrip("/"), files.at(path))
    for path, (mode, user, group) in found["contents"].items():
        aside = kept / path.lstrip("/")
        for entry in sorted(aside.iterdir()) if aside.is_dir() else []:
            move(entry, files.at(path) / entry.name)
        if files.at(path).is_dir():
            files.at(path).chmod(mode)
            os.chown(files.at(path), user, group)


def restore_units(found: dict[str, Any], traces: Traces) -> None:
    """Units that began at boot do so again; timers that ran run."""
    run("systemctl", "daemon-reload")
    for name, unit in unit_states(traces["units"]).items():
        if found["units"].get(name) == "enabled" and unit["UnitFileState"] == "disabled":
            run("systemctl", "enable", "--quiet", name)
    timers = found.get("timers", [])
    if timers:
        run("systemctl", "start", *timers)


def remove_users(traces: Traces, found: dict[str, Any]) -> None:
    """Users and groups that were not there before."""
    for name in traces["users"]:
        if name not in found["users"] and known(pwd.getpwnam, name):
            run("userdel", name)
        if name not in found["groups"] and known(grp.getgrnam, name):
            run("groupdel", name)


def hold_anew(files: Files, request: dict[str, Any]) -> dict[str, Any]:
    """As `hold`; a release that was cut off is brought to its end before, and it is another host then."""
    if (files.home / LEAVING).exists():
        clean(files, {**request, "remove_packages": False})
    return hold(files, request)


def main() -> None:
    """One act; what cannot be done is in the answer too."""
    os.environ["PATH"] = host_packages.PROGRAMS  # who becomes root keeps a user's, without /usr/sbin
    request = json.loads(sys.argv[1])
    acts = {"examine": examine, "hold": hold_anew, "clean": clean, "look": look}
    try:
        if os.geteuid() != 0:
            name = pwd.getpwuid(os.geteuid()).pw_name
            raise HostError(f"{name} is not root: give `become: true`, or root as `user`")
        answer = acts[request["act"]](Files(), request)
    except (HostError, OSError) as error:
        answer = {"failed": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
