"""Namespaces and networks of a machine plan without containers, and the command that makes them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import containers, machine, machine_plans, site_networks
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import NO_PATH, Plan, as_data
from discovery_deploy.testbeds import local
from tests.integration.leftovers import Snapshot
from tests.integration.local_bed import experiment, in_namespace, reaches

pytestmark = pytest.mark.integration


def bare(directory: Path, slot: int, *sites: str) -> Plan:
    """A plan of hosts that are network namespaces, without a router."""
    plan = local.machine_plan(experiment(directory.name, *sites), slot, directory, directory, directory, "none")
    return replace(plan, hosts=tuple(replace(host, system=False) for host in plan.hosts), router=None, base=NO_PATH)


@pytest.fixture
def slot() -> int:
    return machine_plans.free_slots(machine.slots_in_use(), site_networks.observe(0))[-1]


@pytest.fixture
def plan(tmp_path: Path, slot: int) -> Iterator[Plan]:
    """A plan of two sites that is taken down at the end."""
    plan = bare(tmp_path / "plain", slot, "paris", "lyon")
    yield plan
    containers.down(plan)


def test_sixty_four_namespaces_are_up_and_gone_again(tmp_path: Path, slot: int) -> None:
    before = Snapshot.take(tmp_path)
    plan = bare(tmp_path / "many", slot, *(f"site{index}" for index in range(64)))
    containers.up(plan)
    assert {state["state"] for state in containers.status(plan).values()} == {"running"}
    for host in (plan.hosts[0], plan.hosts[63]):
        machine.run("ping", "-q", "-c", "1", "-W", "2", host.management_address)
        machine.run("ping", "-q", "-c", "1", "-W", "2", host.site_address)
    containers.down(plan)
    assert Snapshot.take(tmp_path).leftovers(before) == []


def test_the_second_up_makes_nothing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    containers.up(plan)
    asked: list[str] = []
    run = machine.run

    def listening(*command: str, text: str = "", **rest: Any) -> str:
        asked.append(text)
        return run(*command, text=text, **rest)

    monkeypatch.setattr(site_networks, "run", listening)
    containers.up(plan)
    assert len(asked) > 4
    assert set(asked) == {""}


def test_the_command_makes_shows_and_removes(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(as_data(plan)))

    def command(verb: str) -> str:
        arguments = [sys.executable, "-m", "discovery_deploy.agent.containers", verb, str(file)]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    command("up")
    shown = json.loads(command("status"))
    assert {name: state["state"] for name, state in shown.items()} == {"lyon-1": "running", "paris-1": "running"}
    command("down")
    assert json.loads(command("status"))["paris-1"] == {
        "state": "dead", "why": f"link {plan.hosts[0].site_device} is gone", "pids": {},
    }  # fmt: skip


def test_hosts_have_no_way_out_by_the_management_network(plan: Plan) -> None:
    containers.up(plan)
    routes = in_namespace(plan.hosts[0].namespace, ["ip", "-4", "route"]).stdout.splitlines()
    assert [line for line in routes if "mgmt0" in line and "scope link" not in line] == []
    assert [line.split()[:5] for line in routes if "default" in line] == [
        ["default", "via", plan.sites[0].gateway, "dev", "eth0"]
    ]
    assert in_namespace(plan.hosts[0].namespace, ["ip", "-6", "-o", "address", "show", "dev", "eth0"]).stdout == ""
    for bridge in (plan.management.bridge, plan.sites[0].bridge):
        Path(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding").write_text("1")
    containers.up(plan)
    for bridge in (plan.management.bridge, plan.sites[0].bridge):
        assert Path(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding").read_text() == "0\n"
        assert Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").read_text() == "1\n"


def test_two_hosts_of_a_site_reach_each_other_only_by_the_site_network(tmp_path: Path, slot: int) -> None:
    plan = bare(tmp_path / "pair", slot, "paris", "lyon")
    first, other = plan.hosts
    second = replace(other, site="paris", site_address=first.site_address.removesuffix("10") + "11")
    plan = replace(plan, hosts=(first, second))
    try:
        containers.up(plan)
        assert reaches(first.namespace, second.site_address)
        assert not reaches(first.namespace, second.management_address)
    finally:
        containers.down(plan)


def test_addresses_in_use_are_refused_with_who_uses_them(plan: Plan) -> None:
    machine.run("ip", "link", "add", "occupied0", "type", "bridge")
    try:
        machine.run("ip", "address", "add", f"{plan.sites[1].gateway}/30", "dev", "occupied0")
        with pytest.raises(MachineError, match=rf"{plan.sites[1].subnet} is used by occupied0"):
            containers.up(plan)
        assert plan.slot not in machine_plans.free_slots(set(), site_networks.observe(0))
    finally:
        machine.run("ip", "link", "del", "occupied0")


def test_a_slot_belongs_to_one_directory(plan: Plan, tmp_path: Path) -> None:
    containers.up(plan)
    thief = replace(plan, directory=tmp_path / "thief")
    for act in (containers.up, containers.down):
        with pytest.raises(MachineError, match=f"slot {plan.slot} of this machine"):
            act(thief)
    assert {state["state"] for state in containers.status(plan).values()} == {"running"}


def test_a_name_without_a_namespace_is_mended(plan: Plan) -> None:
    containers.up(plan)
    namespace = plan.hosts[0].namespace
    machine.run("ip", "netns", "del", namespace)
    (machine.NAMESPACES / namespace).touch()  # what a killed `ip netns add` leaves
    assert containers.status(plan)["paris-1"]["state"] == "dead"
    containers.up(plan)
    assert containers.status(plan)["paris-1"]["state"] == "running"


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(["flock", str(tmp_path), "sleep", "60"])
    try:
        while f":{tmp_path.stat().st_ino} " not in Path("/proc/locks").read_text():
            time.sleep(0.01)
        with (
            pytest.raises(MachineError, match=f"is in use by process {holder.pid}"),
            machine.hold(tmp_path, wait_s=0.1),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


OUTLIVED = """
import sys
from pathlib import Path
from discovery_deploy.agent import machine
with machine.hold(Path(sys.argv[1])):
    machine.run("sh", "-c", "echo begun > $1/begun; sleep 1.5", "sh", sys.argv[1])
"""


def test_a_command_that_outlives_its_killed_parent_keeps_the_lock(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", OUTLIVED, str(tmp_path)])
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    with pytest.raises(MachineError, match="is in use"), machine.hold(tmp_path, wait_s=0.1):
        pass
    with machine.hold(tmp_path, wait_s=5):
        pass
