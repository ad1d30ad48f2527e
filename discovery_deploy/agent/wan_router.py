"""The WAN router of one machine: forwards between the site networks and runs the tc program that shapes them.

It owns one device per site, `vec<index>`; the other end is a port of the site's bridge. Where the kernel has netem the
router is a network namespace (mode `netns`), otherwise a User-Mode-Linux process (mode `uml`); the tc program is the
same.
Standard library only, driven by the plan of one machine, so that it can be shipped there:

    python3 -m discovery_deploy.agent.wan_router up|down|status|read PLAN
    python3 -m discovery_deploy.agent.wan_router apply PLAN < PROGRAM
    python3 -m discovery_deploy.agent.wan_router run PLAN COMMAND
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery_deploy.agent import machine, tc_device, uml_kernel, wan_tunnels, wan_uml
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Peer, Plan, TcProgram, WanRouter, read_program
from discovery_deploy.agent.plan import read as read_plan
from discovery_deploy.agent.wan_uml import QUEUE_PACKETS, Port, UmlRouter

BRIDGE_LIMIT_S = 30.0
LOCK_LIMIT_S = 180.0
TC_LIMIT_S = 120.0
CALL_LIMIT_S = 60.0


@dataclass(frozen=True)
class Router:
    """What a plan says about the router."""

    directory: Path
    namespace: str
    asked_mode: str
    memory_mb: int
    ports: tuple[Port, ...]
    tunnels: tuple[Peer, ...] = ()

    @property
    def uml(self) -> UmlRouter:
        """The router as a User-Mode-Linux process, running or not."""
        return UmlRouter(self.directory, self.memory_mb, self.ports)


def memory_mb(sites: int) -> int:
    """Memory of a UML router for a full mesh of sites, in MB.

    The process takes what it uses, 40 MB when idle. Packets on their way live in it: with 64 MB eight TCP connections
    over 150 ms broke down, with 256 MB they had 600 Mbit/s.
    """
    return 256 if sites <= 16 else 384 if sites <= 32 else 512


def router_of(plan: Plan) -> Router:
    """Read the router's part of a plan."""
    directory = plan.directory / "router"
    ports = tuple(
        Port(
            site=site.name,
            bridge=site.bridge,
            device=site.router_device,
            tap=site.tap,
            address=f"{site.gateway}/{site.subnet.split('/')[1]}",
            mac=f"02:dd:{plan.slot % 256:02x}:00:{site.index // 256:02x}:{site.index % 256:02x}",
        )
        for site in plan.sites
    )
    asked = plan.router or WanRouter(f"dd{plan.slot}-router")
    return Router(directory, asked.namespace, asked.mode, asked.memory_mb or memory_mb(len(ports)), ports, plan.peers)


def directory_problem(directory: Path) -> str | None:
    """Why a router here cannot keep its files in a directory, or None: a kernel command line must be able to name it.

    Where the kernel itself has netem every directory will do.
    """
    if re.fullmatch(r"/[\w./+@-]+", str(directory)) or kernel_has_netem():
        return None
    return f"{directory}: a WAN router in User-Mode Linux takes only paths of letters, digits and . _ + @ - /"


def up(plan: Plan) -> bool:
    """Make the router run, with a port in every site's bridge; mend what is missing.

    The bridges may be made at the same time by someone else: they are waited for.

    Returns:
        True when the router was started: then it has no tc program yet. False when it ran already.
    Raises:
        MachineError: with the router's own log when it did not start.
    """
    router = router_of(plan)
    (router.directory / "calls").mkdir(parents=True, exist_ok=True)
    router.directory.chmod(0o700)
    with _lock(router):
        mode = _settle_mode(router)
        started = _uml_up(router) if mode == "uml" else _netns_up(router)
        _attach(router)
        if mode == "uml":
            router.uml.wait_ready()
    return started


def down(plan: Plan) -> None:
    """Remove the router, from any state; only processes, devices and files of this plan's router are touched."""
    router = router_of(plan)
    _remove(router)
    if router.directory.exists():
        shutil.rmtree(router.directory)


def alive(plan: Plan) -> bool:
    """Whether the router runs (with a foot in every site)."""
    router = router_of(plan)
    mode = _recorded_mode(router)
    if mode == "uml":
        return router.uml.alive()
    return mode == "netns" and not _missing_ports(router) and not any(_tunnel_changes(router))


def run(plan: Plan, command: str, limit_s: float = 30.0) -> str:
    """Run one shell command inside the router; what it printed. Raises MachineError when it fails or takes too long."""
    script = f"exec timeout {limit_s:g} sh -c {shlex.quote(command)}"
    return _execute(router_of(plan), script, command, limit_s + 5)


def apply(plan: Plan, program: TcProgram) -> None:
    """Run a tc program.

    Raises:
        MachineError: a device is none of the router's; or with tc's message and the line it is about.
    """
    router = router_of(plan)
    strange = sorted(set(program.devices) - {port.device for port in router.ports})
    if strange:
        raise MachineError(f"the WAN router has no device {', '.join(strange)}", "look at the plan")
    for port in router.ports:
        tc_device.set_segmentation(port.tap, dict.fromkeys(tc_device.SEGMENTATION_COMMANDS, program.super_packets))
    text = "".join(f"{line}\n" for line in program.lines)
    if not text:
        return
    try:
        _tc(router, "tc", text)
    except MachineError as error:
        line = tc_device.refused_line(text, error.what)
        raise MachineError(f"the WAN router refused the tc program: {error.what}{line}") from error


def read(plan: Plan) -> dict[str, Any]:
    """What tc shows in the router: that of `tc_device.shown`, and "segmentation": {device: whether its port
    takes super-packets}.
    """
    router = router_of(plan)

    def tc(options: Sequence[str], lines: str) -> str:
        return _tc(router, " ".join(["tc", *options]), lines)

    try:
        found = tc_device.shown([port.device for port in router.ports], tc)
    except tc_device.DeviceError as error:
        raise MachineError(error.what) from error
    found["segmentation"] = {port.device: any(tc_device.segmentation(port.tap).values()) for port in router.ports}
    return found


def facts(plan: Plan) -> dict[str, str]:
    """What shapes the WAN: `mode`, `kernel` and `scheduling` of the router, and `preloaded`, its shim or "".

    Raises:
        MachineError: it is not up.
    """
    router = router_of(plan)
    kernel = run(plan, "uname -r").strip()
    scheduling = router.directory / "scheduling"
    mode = str(_recorded_mode(router))
    return {
        "mode": mode,
        "kernel": kernel,
        "scheduling": scheduling.read_text() if scheduling.exists() else "kernel",
        "preloaded": uml_kernel.SHIM if mode == "uml" and router.uml.has_shim() else "",
    }


def facts_text(found: Mapping[str, str]) -> str:
    """Mode, kernel and shim of what `facts` has found, for the report."""
    shim = f" with {found['preloaded']} (AMX)" if found["preloaded"] else ""
    return f"{found['mode']}, kernel {found['kernel']}{shim}"


def _settle_mode(router: Router) -> str:
    """The mode to run in, recorded; a router of another mode is removed first."""
    recorded = _recorded_mode(router)
    mode = router.asked_mode
    if mode == "auto":
        mode = recorded or ("netns" if kernel_has_netem() else "uml")
    if mode not in ("netns", "uml"):
        raise MachineError(f'no router mode "{mode}"', "Write netns, uml or auto.")
    if mode == "uml" and router.tunnels:
        names = ", ".join(tunnel.machine for tunnel in router.tunnels)
        raise MachineError(
            f"this kernel has no netem, and a WAN router in User-Mode Linux has no tunnels to other machines ({names})",
            "Take machines whose kernel has netem (Debian's has: modprobe sch_netem), or put all sites on one.",
        )
    problem = directory_problem(router.directory) if mode == "uml" else None
    if problem:
        raise MachineError(problem, "Choose another directory.")
    if recorded not in (None, mode):
        _remove(router)
    machine.replace(router.directory / "mode", mode)
    return mode


def _recorded_mode(router: Router) -> str | None:
    path = router.directory / "mode"
    return path.read_text() if path.exists() else None


def kernel_has_netem() -> bool:
    """Whether this kernel shapes: tried in a namespace without a name, which ends with the command."""
    return tc_device.kernel_lacks() is None


def _call(command: Sequence[str], text: str = "") -> str:
    return machine.run(*command, text=text, limit_s=CALL_LIMIT_S)


def _ip(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run lines of `ip` in one process."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        _call(["ip", *(["-n", namespace] if namespace else []), "-batch", "-"], text)


def _links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _namespace_exists(router: Router) -> bool:
    return Path("/run/netns", router.namespace).exists()


def _missing_ports(router: Router) -> list[Port]:
    """Ports without a device in the router's namespace."""
    if not _namespace_exists(router):
        return list(router.ports)
    there = {link.get("ifname") for link in json.loads(_call(["ip", "-n", router.namespace, "-j", "link", "show"]))}
    return [port for port in router.ports if port.device not in there]


def _netns_up(router: Router) -> bool:
    missing = _missing_ports(router)
    if not _namespace_exists(router):
        _call(["ip", "netns", "add", router.namespace])
    settings = "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter"
    _call(["ip", "netns", "exec", router.namespace, "sh", "-c", settings])
    links = _links()
    _ip(f"link del {port.tap}" for port in missing if port.tap in links)
    _ip(f"link add {port.tap} type veth peer name {port.device} netns {router.namespace}" for port in missing)
    lines = ["link set lo up"]
    for port in router.ports:
        lines += [
            f"link set {port.device} address {port.mac} txqueuelen {QUEUE_PACKETS}",
            f"addr replace {port.address} dev {port.device}",
            f"link set {port.device} up",
        ]
    _ip(lines, router.namespace)
    _tunnels_up(router)
    return bool(missing)


def _tunnel_changes(router: Router) -> tuple[list[str], list[str]]:
    """What must be removed from the router, and made, to have the tunnels of the plan."""
    shown = _call(["ip", "-n", router.namespace, "-d", "-j", "link", "show", "type", "vxlan"])
    return wan_tunnels.wanted_commands(router.tunnels, wan_tunnels.parsed(shown), router.namespace)


def _tunnels_up(router: Router) -> None:
    removed, made = _tunnel_changes(router)
    _ip(removed, router.namespace)
    _ip(made)
    for tunnel in router.tunnels:
        wan_tunnels.receives_single_packets(router.namespace, tunnel.device)
    routes = wan_tunnels.parsed(_call(["ip", "-n", router.namespace, "-j", "-4", "route", "show"]))
    _ip(wan_tunnels.inside_commands(router.tunnels, routes), router.namespace)


def _uml_up(router: Router) -> bool:
    if router.uml.alive() and router.uml.as_asked():
        with contextlib.suppress(MachineError):  # one that does not answer is started anew
            router.uml.wait_ready()
            return False
    links = _links()
    _ip(f"tuntap add dev {port.tap} mode tap" for port in router.ports if port.tap not in links)
    # Up before the router opens them: it takes the link's state as it finds it.
    _ip(f"link set {port.tap} txqueuelen {QUEUE_PACKETS} up" for port in router.ports)
    router.uml.start()
    return True


def _attach(router: Router) -> None:
    """Make every port a port of its site's bridge."""
    end = time.monotonic() + BRIDGE_LIMIT_S
    while absent := [port for port in router.ports if port.bridge not in _links()]:
        if time.monotonic() > end:
            raise MachineError(
                f"bridge {absent[0].bridge} of site {absent[0].site} is absent after {BRIDGE_LIMIT_S:g} s",
                "Make the machine's site networks first.",
            )
        time.sleep(0.02)
    _ip(f"link set {port.tap} master {port.bridge} txqueuelen {QUEUE_PACKETS} up" for port in router.ports)


def _remove(router: Router) -> None:
    """End processes, remove devices and namespace; files stay."""
    router.uml.kill()
    links = _links()
    _ip(f"link del {port.tap}" for port in router.ports if port.tap in links)
    if _namespace_exists(router):
        _call(["ip", "netns", "del", router.namespace])


@contextlib.contextmanager
def _lock(router: Router) -> Iterator[None]:
    """One client at a time. Raises MachineError when another one holds the router for too long."""
    with (router.directory / "lock").open("w") as file:
        if not machine.lock(file.fileno(), LOCK_LIMIT_S):
            raise MachineError(f"another process has held {file.name} for {LOCK_LIMIT_S:g} s")
        yield


def _locked_execute(router: Router, script: str, limit_s: float) -> tuple[int, str]:
    """Run a shell script in the router, in its directory. The caller holds the lock."""
    mode = _recorded_mode(router)
    if mode == "uml":
        return router.uml.execute(script, limit_s)
    if mode != "netns" or not _namespace_exists(router):
        raise MachineError(f"the WAN router is not up ({router.directory})", wan_uml.ADVICE_WHEN_DEAD)
    try:
        done = subprocess.run(
            ["ip", "netns", "exec", router.namespace, "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=router.directory,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"the WAN router did not answer within {limit_s:g} s") from error
    return done.returncode, done.stdout


def _execute(router: Router, script: str, what: str, limit_s: float, batch: str | None = None) -> str:
    """Run a shell script in the router; `batch` is put into the file that it calls $BATCH."""
    if not router.directory.exists():
        raise MachineError(f"the WAN router is not up ({router.directory})", wan_uml.ADVICE_WHEN_DEAD)
    with _lock(router):
        calls = router.directory / "calls"
        for leftover in calls.iterdir():  # of clients that died
            leftover.unlink()
        if batch is not None:
            # A new name each time: the file system of a UML router remembers contents by name.
            batch_file = calls / f"{os.urandom(6).hex()}.tc"
            batch_file.write_text(batch)
            script = f"BATCH=calls/{batch_file.name}; {script}"
        code, output = _locked_execute(router, script, limit_s)
    if code:
        reason = "took too long" if code == 124 else f"exit code {code}"
        raise MachineError(f"{what}: {reason}: {output.strip()}")
    return output


def _tc(router: Router, command: str, batch: str) -> str:
    """Run lines of tc in one process; what it printed."""
    return _execute(router, f'exec {command} -batch "$BATCH"', command, TC_LIMIT_S, batch)


def main(arguments: Sequence[str]) -> int:
    """The same verbs as a command; 0, or 3 with the reason on stderr."""
    verbs = ("up", "down", "status", "read", "apply", "run")
    if len(arguments) < 2 or arguments[0] not in verbs:
        print(__doc__, file=sys.stderr)
        return 2
    verb, plan = arguments[0], read_plan(json.loads(Path(arguments[1]).read_text()))
    try:
        if verb == "up":
            print("started" if up(plan) else "running")
        elif verb == "down":
            down(plan)
        elif verb == "status":
            print("running" if alive(plan) else "down")
        elif verb == "read":
            print(json.dumps(read(plan), sort_keys=True))
        elif verb == "apply":
            apply(plan, read_program(json.load(sys.stdin)))
        else:
            print(run(plan, " ".join(arguments[2:])), end="")
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
