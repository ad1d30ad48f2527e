"""One flat network without a router: hosts are network namespaces on one bridge, which is in a namespace of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from discovery_deploy.wan.egress_hosts import HostsShaper
from discovery_deploy.wan.measure import Point

LAN = "ddegress-lan"
ACTS = """
import contextlib, io, json, sys
while line := sys.stdin.readline():
    source, text = json.loads(line)
    given, sys.stdin, answer = sys.stdin, io.StringIO(text), io.StringIO()
    with contextlib.redirect_stdout(answer), contextlib.suppress(SystemExit):
        exec(compile(source, "sent", "exec"), {"__name__": "__main__"})
    sys.stdin = given
    print(json.dumps(answer.getvalue()), flush=True)
"""
"""A Python that stays on a host and runs what is sent there: to start one takes a second in User-Mode Linux."""


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

    def __init__(self) -> None:
        self.pythons: dict[str, subprocess.Popen[str]] = {}

    @property
    def shaper(self) -> HostsShaper:
        return HostsShaper(self.run, HOSTS)

    def run(self, host: str, command: Sequence[str], stdin: str = "", timeout_s: float = 60.0) -> str:
        """A `measure.Runner`."""
        if command[:4] == ["python3", "-I", "-S", "-c"]:
            return self._act(host, command[4], stdin)
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

    def _act(self, host: str, source: str, text: str) -> str:
        """One act at a time on each host, as by ssh."""
        if host not in self.pythons:
            command = ["ip", "netns", "exec", f"ddegress-{host}", "python3", "-I", "-S", "-c", ACTS]
            self.pythons[host] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        python = self.pythons[host]
        assert python.stdin is not None
        assert python.stdout is not None
        python.stdin.write(json.dumps([source, text]) + "\n")
        python.stdin.flush()
        answer: str = json.loads(python.stdout.readline())
        return answer

    def end(self) -> None:
        """Let what was started on hosts end."""
        for python in self.pythons.values():
            python.communicate()

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
    bed = Bed()
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
        yield bed
    finally:
        bed.end()
        _away()
