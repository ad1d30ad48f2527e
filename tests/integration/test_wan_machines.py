"""Sites on several machines: tunnels between their WAN routers, and the shapes of paths that cross them.

What needs netem runs on this machine's kernel, or else in a User-Mode-Linux one, as in `test_wan_kernel`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import wan_router
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import as_data
from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.wan import measure
from discovery_deploy.wan.verdict import summary
from tests.integration import wan_checks
from tests.integration.inside_uml import counts_inside
from tests.integration.machines_bed import REPOSITORY, MachinesWan, machines, plans_of
from tests.integration.machines_bed import experiment as nested

HAS_NETEM = wan_router.kernel_has_netem()
SITES = ("ares", "brest", "cork", "delft", "essen")
ACROSS = (("ares-1", "cork-1"), ("cork-1", "ares-1"), ("brest-1", "essen-1"), ("essen-1", "delft-1"))
"""Hosts on different machines: on one network, and on two."""

pytestmark = pytest.mark.integration
with_netem = pytest.mark.skipif(not HAS_NETEM, reason="this kernel has no netem; test_inside_user_mode_linux runs this")
without_netem = pytest.mark.skipif(HAS_NETEM, reason="for kernels without netem")

RECEIVER = """
import socket
with socket.create_server(("", 5001)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    total = 0
    while data := connection.recv(1 << 16):
        total += len(data)
    print(total, connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""
SENDER = """
import socket, sys
with socket.create_connection((sys.argv[1], 5001)) as connection:
    connection.sendall(bytes(1 << 24))
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachinesWan]:
    with machines(tmp_path_factory.mktemp("three"), SITES, 2, "netns") as wan:
        yield wan


@pytest.fixture(autouse=True)
def _gentle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders, routers and receivers may all share the one CPU of a User-Mode Linux."""
    monkeypatch.setattr(measure, "STREAM_DATAGRAMS_PER_S", 700)


def reaches(wan: MachinesWan, source: str, destination: str, *options: str) -> bool:
    address = next(host.site_address for host in wan.plan.hosts if host.name == destination)
    command = wan.inside(source, "ping", "-q", "-c", "3", "-i", "0.05", "-W", "1", *options, address)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def links(wan: MachinesWan, machine: str) -> dict[str, Any]:
    namespace = f"dd{wan.plan.slot}-router"
    shown = json.loads(wan.anchors.run(machine, "ip", "-n", namespace, "-j", "link", "show"))
    return {link["ifname"]: link for link in shown}


class TestTunnels:
    @pytest.mark.parametrize(("source", "destination"), ACROSS)
    def test_a_full_frame_passes_whole_between_machines(
        self, three: MachinesWan, source: str, destination: str
    ) -> None:
        assert reaches(three, source, destination, "-M", "do", "-s", "1472")
        assert reaches(three, source, destination, "-M", "do", "-s", "1472")  # no smaller MTU has been learned

    def test_tcp_uses_full_frames_between_machines(self, three: MachinesWan) -> None:
        receiver = subprocess.Popen(
            three.inside("essen-1", "python3", "-c", RECEIVER), stdout=subprocess.PIPE, text=True
        )
        with receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            three.run("ares-1", ["python3", "-c", SENDER, three.address("essen")], "", 60)
            total, segment = receiver.stdout.read().split()
        assert int(total) == 1 << 24
        assert int(segment) == 1448  # of 1500 bytes: headers and timestamps

    def test_hosts_know_each_other_only_by_way_of_the_routers(self, three: MachinesWan) -> None:
        for host in three.plan.hosts:
            shown = json.loads(three.run(host.name, ["ip", "-j", "route"], "", 10))
            assert [route.get("gateway") for route in shown if route["dst"] == "default"] == [
                next(site.gateway for site in three.plan.sites if site.name == host.site)
            ]

    def test_machines_themselves_do_not_forward(self, three: MachinesWan) -> None:
        for machine in three.plans:
            assert three.anchors.run(machine, "cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"

    def test_up_again_touches_nothing(self, three: MachinesWan) -> None:
        before = {machine: links(three, machine) for machine in three.plans}
        three.up()
        assert {machine: links(three, machine) for machine in three.plans} == before

    def test_a_lost_tunnel_is_seen_and_mended(self, three: MachinesWan) -> None:
        namespace = f"dd{three.plan.slot}-router"
        assert three.router("machine-1", "status") == "running\n"
        three.anchors.run("machine-1", "ip", "-n", namespace, "link", "del", "peer2")
        assert three.router("machine-1", "status") == "down\n"
        assert not reaches(three, "ares-1", "essen-1")
        three.up()
        assert reaches(three, "ares-1", "essen-1", "-M", "do", "-s", "1472")

    def test_what_comes_out_of_a_tunnel_is_not_joined(self, three: MachinesWan) -> None:
        namespace = f"dd{three.plan.slot}-router"
        program = (
            f"from discovery_deploy.agent import wan_tunnels; print(wan_tunnels.joins_packets({namespace!r}, 'peer1'))"
        )
        path = f"PYTHONPATH={REPOSITORY}"
        assert three.anchors.run("machine-1", "env", path, "python3", "-c", program) == "False\n"


def test_a_plan_that_knows_other_machines_brings_other_tunnels(tmp_path: Path) -> None:
    with machines(tmp_path, SITES[:3], 1, "netns") as wan:
        assert reaches(wan, "ares-1", "cork-1")
        plan = wan.plans["machine-1"]
        only = replace(plan, peers=(replace(plan.peers[0], subnets=()),))
        (plan.directory / "plan.json").write_text(json.dumps(as_data(only)))
        wan.containers("machine-1", "up")
        assert set(links(wan, "machine-1")) == {"lo", "vec0", "peer1"}
        namespace = f"dd{plan.slot}-router"
        assert "10.149.1" not in wan.anchors.run("machine-1", "ip", "-n", namespace, "route")


def test_down_leaves_nothing_on_a_machine(tmp_path: Path) -> None:
    with machines(tmp_path, SITES[:2], 1, "netns") as wan:
        for machine in wan.plans:
            plan = json.dumps(as_data(wan.plans[machine]))
            (tmp_path / f"{machine}.json").write_text(plan)
            for _ in range(2):
                wan.anchors.module(
                    machine, "discovery_deploy.agent.containers", "down", str(tmp_path / f"{machine}.json")
                )
            shown = json.loads(wan.anchors.run(machine, "ip", "-j", "link", "show"))
            assert {link["ifname"] for link in shown} == {"lo", "eth0"}
            assert wan.anchors.run(machine, "ls", "/run/netns") == ""
            assert not wan.plans[machine].directory.exists()


@without_netem
def test_a_router_in_user_mode_linux_is_refused(tmp_path: Path) -> None:
    plan = plans_of(nested(SITES[:2], 1), tmp_path, "auto")["machine-1"]
    with pytest.raises(MachineError, match=r"no netem, and .* no tunnels to other machines \(machine-2\)"):
        wan_router.up(plan)


def as_asked(wan: MachinesWan, network: Network) -> None:
    """Shape, and verify as `verify` does: all pairs within 1 ms. What a busy machine adds goes away by itself."""
    shapes = wan.shape(network)
    report = measure.verify_wan(
        wan.run, wan.points, shapes, Verify(), readback=lambda: wan.readback(shapes), attempts=6
    )
    assert len(report.pairs) == len(SITES) * (len(SITES) - 1)
    assert report.problems == ()
    print(summary(report))


@with_netem
class TestShapes:
    @pytest.mark.parametrize("delay", ["0 ms", "10 ms"])
    def test_every_round_trip_is_twice_the_delay(self, three: MachinesWan, delay: str) -> None:
        as_asked(three, wan_checks.network(default={"delay": delay}))

    def test_every_pair_may_have_its_own_delay(self, three: MachinesWan) -> None:
        constraints = [
            {"between": [a, b], "delay": f"{3 * i + 7 * j} ms"}
            for i, a in enumerate(three.names)
            for j, b in enumerate(three.names)
            if i < j
        ]
        as_asked(three, wan_checks.network(constraints=constraints))

    def test_each_direction_has_its_own_delay(self, three: MachinesWan) -> None:
        wan_checks.each_direction_has_its_own_delay(three)

    def test_loss_and_rate_are_as_asked_and_only_there(self, three: MachinesWan) -> None:
        wan_checks.loss_and_rate_are_as_asked_and_only_there(three)

    def test_up_again_keeps_the_shapes(self, three: MachinesWan) -> None:
        shapes = three.shape(wan_checks.network(default={"delay": "3 ms"}))
        three.up()
        assert three.readback(shapes) == ()


@without_netem
def test_inside_user_mode_linux(tmp_path: Path) -> None:
    assert counts_inside(Path(__file__), tmp_path) == {"passed": 18, "skipped": 2}
