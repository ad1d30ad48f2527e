"""One flat network without a router: hosts are network namespaces on one bridge, which is in a namespace of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from discovery_deploy.egress_hosts import HostsShaper
from discovery_deploy.measure import Point

LAN = "ddegress-lan"


@dataclass(frozen=True)
class FlatHost:
    """A network namespace."""

    name: str
    site: str
    site_address: str
    site_device: str
    """Another on each host: all of them share /run."""

    @property
    def namespace(self) -> str:
        return f"ddegress-{self.name}"


HOSTS = tuple(
    FlatHost(name, name.partition("-")[0], f"10.99.0.{11 + index}", f"ddeg{index}")
    for index, name in enumerate(("ares-1", "ares-2", "brest-1", "cork-1"))
)
DRIVER = FlatHost("driver", "", "10.99.0.1", "ddeg9")
"""On the same network, but no host of the experiment."""


def sh(*lines: str) -> None:
    for line in lines:
        subprocess.run(line, shell=True, check=True)


class Bed:
    """The hosts, and what is on each."""

    points = tuple(Point(host.site, host.name, host.site_address) for host in HOSTS if host.name.endswith("-1"))
    sites = tuple(point.site for point in points)

    @property
    def shaper(self) -> HostsShaper:
        return HostsShaper(self.run, HOSTS)

    def run(self, host: str, command: Sequence[str], stdin: str = "", timeout_s: float = 60.0) -> str:
        """A `measure.Runner`."""
        done = subprocess.run(
            ["ip", "netns", "exec", f"ddegress-{host}", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{host}: {done.stderr}")
        return done.stdout

    def far(self, delay: str | None) -> None:
        """Let the network itself take this long from any host to any other, one way; None: no time."""
        for host in HOSTS:
            change = f"replace dev {host.site_device}b root netem delay {delay}" if delay else ""
            sh(f"tc -n {LAN} qdisc {change or f'del dev {host.site_device}b root'}")


def _away() -> None:
    for host in (*HOSTS, DRIVER):
        subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", LAN], capture_output=True, check=False)


@contextlib.contextmanager
def flat_network() -> Iterator[Bed]:
    """Hosts that reach each other; nothing of them is left at the end, but what a test puts into /run."""
    _away()
    try:
        sh(f"ip netns add {LAN}", f"ip -n {LAN} link add lan type bridge", f"ip -n {LAN} link set lan up")
        for host in (*HOSTS, DRIVER):
            name, device = host.namespace, host.site_device
            sh(
                f"ip netns add {name}",
                f"ip link add {device} netns {name} type veth peer name {device}b netns {LAN}",
                f"ip -n {LAN} link set {device}b master lan up",
                f"ip -n {name} addr add {host.site_address}/24 dev {device}",
                f"ip -n {name} link set {device} up",
                f"ip -n {name} link set lo up",
            )
        yield Bed()
    finally:
        _away()
