"""Hosts of a machine plan on ONE machine: namespaces, site networks and systemd-nspawn containers.

    python3 -m discovery_deploy.agent.containers up|down|status PLAN

`up` makes what is missing and touches nothing that is well; `down` removes everything from any state. Standard library
only, together with `machine.py`, `cgroups.py`, `site_networks.py`, `nspawn.py` and `wan_router.py`: shipped to a
reserved machine as they are, they do there what they do here. The plan is described in docs/providers/local.md.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import cgroups, machine, nspawn, site_networks, wan_router
from discovery_deploy.agent.machine import (
    MachineError,
    claim,
    entries,
    give_back,
    hold,
    namespaces,
    own,
    private,
    processes_in,
    remove_own,
    run,
    session,
)
from discovery_deploy.agent.plan import Host, Plan, read

INOTIFY_INSTANCES = 1024
"""Of fs.inotify.max_user_instances; with the usual 128, containers beyond about 16 hang while they start."""

_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_NSPAWN = Path("/run/systemd/nspawn")

_PACKAGE_OF = {
    "ip": "iproute2",
    "ping": "iputils-ping",
    "systemd-nspawn": "systemd-container",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
}


def missing_commands() -> dict[str, str]:
    """Command -> Debian package, of what this machine does not have."""
    return machine.missing_commands(_PACKAGE_OF)


def up(plan: Plan, tell: Callable[[str], None] = lambda line: None) -> None:
    """Make every network, namespace, container and the router of a plan, and wait until all hosts are ready.

    Repeated, it mends: a dead container is started again with its files, a missing link is made anew, and what lives
    is not touched.

    Args:
        plan: the machine plan.
        tell: takes one short line for the person who waits.

    Raises:
        MachineError: naming every host that failed, with the end of its log.
    """
    directory = plan.directory
    _need_root()
    with hold(directory, own=True), _full_disk(directory):
        private(directory)
        _check(plan)
        if not claim(plan.slot, directory):
            raise MachineError(f"slot {plan.slot} of this machine is taken", "reserve with another slot")
        _remove_strangers(plan)
        for name in site_networks.up(plan):
            cgroups.end(plan.slot, name)  # it would go on in a namespace that has lost its name
        _start(plan, tell)
        if plan.router:
            _check_gateway(plan)


def _start(plan: Plan, tell: Callable[[str], None]) -> None:
    """Start the router, and containers beside it, so many at once as the machine can start."""
    containers = [host for host in plan.hosts if host.system]
    stop = threading.Event()
    with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(nspawn.AT_ONCE) as pool, _stopping(stop):
        work: dict[str, Future[None]] = {}
        if plan.router:
            work["WAN router"] = beside.submit(_router_up, plan)
        work |= {host.name: pool.submit(_host_up, plan, host, tell, stop) for host in containers}
        failures = {name: error for name, future in work.items() if (error := future.exception())}
    for error in failures.values():
        if not isinstance(error, MachineError):
            raise error
    if failures:
        known = [(name, error) for name, error in failures.items() if isinstance(error, MachineError)]
        raise MachineError("\n".join(f"{name}: {error.what}" for name, error in known), known[0][1].advice)


def _check_gateway(plan: Plan) -> None:
    """Whether a host reaches its gateway: the machine's packet filter may see, and drop, what crosses a bridge."""
    host, site = plan.hosts[0], plan.sites[0]
    ping = ("ping", "-q", "-c", "1", "-w", "3", site.gateway)
    try:
        run("ip", "netns", "exec", host.namespace, *ping, keeps_lock=False)
    except MachineError as error:
        raise MachineError(
            f"{host.name} does not reach its gateway {site.gateway} across the bridge {site.bridge}",
            "is it the machine's packet filter? try `sysctl -w net.bridge.bridge-nf-call-iptables=0`",
        ) from error


def _router_up(plan: Plan) -> None:
    """Start the router; its processes join the slot's control groups, where they are found without its files."""
    wan_router.up(plan)
    record = plan.directory / "router" / "process"
    if record.exists():  # a router in a namespace has none
        cgroups.adopt(plan.slot, "router", session(int(record.read_text().split()[0])))


def _host_up(plan: Plan, host: Host, tell: Callable[[str], None], stop: threading.Event) -> None:
    with _full_disk(plan.directory):
        nspawn.up(plan, host, tell, stop)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Tell waiting threads to give up when the main thread is interrupted."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


@contextmanager
def _full_disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(
            f"{error.filename or directory}: {error.strerror}",
            f"see `df -h {directory}` and `df -i {directory}`; free space, then try again",
        ) from error


def _need_root() -> None:
    if os.geteuid() != 0:
        raise MachineError("containers and networks need root", "run it as root, for example with sudo")


def _check(plan: Plan) -> None:
    """What would fail later with a worse message."""
    lacking = missing_commands()
    if lacking:
        packages = " ".join(sorted(set(lacking.values())))
        raise MachineError(f"missing commands: {', '.join(lacking)}", f"apt-get install -y {packages}")
    cgroups.hierarchies()
    if any(host.system for host in plan.hosts):
        nspawn.check(plan)
        raise_inotify()


def inotify_can_do() -> bool:
    """Whether the limit on inotify instances is what containers need, or `up` can raise it; changes nothing."""
    return int(_INOTIFY.read_text()) >= INOTIFY_INSTANCES or os.access(_INOTIFY, os.W_OK)


def raise_inotify() -> None:
    """Raise the limit on inotify instances to what containers need. Raises MachineError when it cannot."""
    if int(_INOTIFY.read_text()) >= INOTIFY_INSTANCES:
        return
    try:
        _INOTIFY.write_text(str(INOTIFY_INSTANCES))
    except OSError as error:
        raise MachineError(
            f"fs.inotify.max_user_instances is {_INOTIFY.read_text().strip()}, containers need {INOTIFY_INSTANCES}, "
            f"and it cannot be raised: {error.strerror}",
            f"sysctl -w fs.inotify.max_user_instances={INOTIFY_INSTANCES}",
        ) from error


def _remove_strangers(plan: Plan) -> None:
    """Remove hosts that are on disk but no longer in the plan."""
    known = {host.name for host in plan.hosts}
    for entry in entries(plan.directory / "hosts"):
        if entry.name not in known:
            cgroups.end(plan.slot, entry.name)
            shutil.rmtree(entry)


def status(plan: Plan) -> dict[str, dict[str, Any]]:
    """Host -> {"state": "running" or "dead", "why": text when dead, "pids": {"supervisor", "init"}}.

    Looks only at files of the kernel: cheap enough to ask often.
    """
    found = {}
    for host in plan.hosts:
        why = site_networks.missing(plan, host)
        pids: dict[str, int | None] = {}
        if host.system:
            dead, pids = nspawn.status(plan, host)
            why = dead or why
        found[host.name] = {"state": "dead" if why else "running", "why": why, "pids": pids}
    return found


def down(plan: Plan, known: bool = False) -> None:
    """Remove everything that a plan has made, or may have made, on this machine.

    Only `slot` and `directory` of the plan are needed: what is there is found by the slot.

    Args:
        plan: the machine plan.
        known: the directory is ours, also without our mark.
    Raises:
        MachineError: something could not be removed.
    """
    _need_root()
    slot, directory = plan.slot, plan.directory
    with hold(directory, own=True):
        if not claim(slot, directory):
            raise MachineError(f"slot {slot} of this machine belongs to another experiment", "look at `status`")
        if plan.router:
            wan_router.down(plan)
        cgroups.end(slot)
        _end_processes(processes_in(namespaces(slot)))
        site_networks.down(slot)
        _remove_runtime(slot)
        remove_own(directory, known)
        give_back(slot, directory)


def _end_processes(pids: Iterable[int]) -> None:
    """Kill what still runs in the plan's network namespaces: probes and commands of a driver that has died."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _remove_runtime(slot: int) -> None:
    """Remove what systemd-nspawn leaves behind in /run."""
    for parent in ("propagate", "unix-export", "locks"):
        for entry in entries(_NSPAWN / parent):
            if own(slot, entry.name):
                entry.rmdir()
        with suppress(OSError):  # not empty, or not there
            (_NSPAWN / parent).rmdir()
    with suppress(OSError):
        _NSPAWN.rmdir()


def main(arguments: list[str]) -> int:
    """The command: up, down or status of a plan file; the exit status."""
    if len(arguments) != 2 or arguments[0] not in ("up", "down", "status"):
        print("usage: python3 -m discovery_deploy.agent.containers up|down|status PLAN", file=sys.stderr)
        return 2
    try:
        plan = read(json.loads(Path(arguments[1]).read_text()))
        if arguments[0] == "up":
            up(plan, lambda line: print(line, file=sys.stderr, flush=True))
        elif arguments[0] == "down":
            down(plan)
        else:
            print(json.dumps(status(plan), indent=2, sort_keys=True))
    except MachineError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
