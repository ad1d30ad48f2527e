"""Sites without containers for tests of the WAN alone: a bridge each, and hosts that are only network namespaces."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from discovery_deploy import wan_router
from discovery_deploy.wan_router import Plan

SITE_NAMES = ("ares", "brest", "cork", "delft", "essen", "faro", "gent", "hull")


def plan_of(directory: Path, names: Sequence[str], mode: str = "auto", slot: int = 90) -> Plan:
    """A machine plan of sites with one host each that has no system."""
    sites: list[dict[str, Any]] = []
    hosts: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        network = f"10.{128 + slot}.{index}"
        sites.append(
            {
                "name": name,
                "index": index,
                "bridge": f"dd{slot}s{index}",
                "router_device": f"vec{index}",
                "tap": f"dd{slot}t{index}",
                "gateway": f"{network}.1",
                "subnet": f"{network}.0/24",
            }
        )
        hosts.append(
            {
                "name": f"{name}-1",
                "site": name,
                "namespace": f"dd{slot}-{name}-1",
                "system": False,
                "site_address": f"{network}.10",
                "site_device": f"dd{slot}e{index}",
            }
        )
    router = {"mode": mode, "namespace": f"dd{slot}-router", "memory_mb": wan_router.memory_mb(len(names))}
    return {
        "experiment": "wan-alone",
        "slot": slot,
        "directory": str(directory),
        "sites": sites,
        "hosts": hosts,
        "router": router,
    }


def _ip(lines: Sequence[str], namespace: str | None = None) -> None:
    if not lines:
        return
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def make_sites(plan: Plan) -> None:
    """Bridges, namespaces and the links between them."""
    for site in plan["sites"]:
        _ip([f"link add {site['bridge']} type bridge", f"link set {site['bridge']} up"])
    for host in plan["hosts"]:
        site = next(site for site in plan["sites"] if site["name"] == host["site"])
        subprocess.run(["ip", "netns", "add", host["namespace"]], check=True)
        _ip(
            [
                f"link add {host['site_device']} type veth peer name eth0 netns {host['namespace']}",
                f"link set {host['site_device']} master {site['bridge']} up",
            ]
        )
        _ip(
            [
                "link set lo up",
                f"addr add {host['site_address']}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {site['gateway']}",
            ],
            host["namespace"],
        )


def remove_sites(plan: Plan) -> None:
    """Remove what `make_sites` made, as far as it is there."""
    links = {name for _, name in socket.if_nameindex()}
    devices = [host["site_device"] for host in plan["hosts"]] + [site["bridge"] for site in plan["sites"]]
    _ip([f"link del {device}" for device in devices if device in links])
    for host in plan["hosts"]:
        if Path("/run/netns", host["namespace"]).exists():
            subprocess.run(["ip", "netns", "del", host["namespace"]], check=True)


@contextlib.contextmanager
def wan_sites(directory: Path, names: Sequence[str], mode: str = "auto", slot: int = 90) -> Iterator[Plan]:
    """Sites with a running router."""
    plan = plan_of(directory, names, mode, slot)
    remove_sites(plan)
    try:
        make_sites(plan)
        wan_router.up(plan)
        yield plan
    finally:
        wan_router.down(plan)
        remove_sites(plan)


def run_in_namespace(plan: Plan) -> Any:
    """A `measure.Runner` for such hosts."""
    namespaces = {host["name"]: host["namespace"] for host in plan["hosts"]}

    def run(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", namespaces[host], *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{host}: {done.stderr}")
        return done.stdout

    return run
