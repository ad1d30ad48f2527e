"""The machine plan and its form in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import machine_plans
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Bind, Host, Peer, Plan, Site, WanRouter, as_data, read

SITE = Site("lyon", 0, "dd7s0", "vec0", "dd7t0", "10.135.0.1", "10.135.0.0/24")
HOST = Host("lyon-1", "lyon", "dd7-lyon-1", "10.135.0.10", "dd7e0", "10.71.0.10", "dd7n0", system=False)
PEER = Peer(
    machine="machine-2", device="peer1", vni=458754, local="192.0.2.1", remote="192.0.2.2", mac="02:dd:07:ff:00:01",
    peer_mac="02:dd:07:ff:01:00", next_hop="169.254.7.2", subnets=("10.135.1.0/24",), gateway="10.135.1.1",
    hosts={"nice-1": "10.135.1.10"},
)  # fmt: skip
PLAN = Plan(
    slot=7, directory=Path("/state/seven"), experiment="seven", base=Path("/images/a"), upper="disk",
    binds=(Bind(Path("/environments"), "/opt"),), authorized_keys=("ssh-ed25519 A me",), sites=(SITE,), hosts=(HOST,),
    router=WanRouter("dd7-router", "netns", 256), peers=(PEER,),
)  # fmt: skip


def through_json(**changes: Any) -> Any:
    return json.loads(json.dumps({**as_data(PLAN), **changes}))


def test_it_comes_back_from_json_as_it_was() -> None:
    assert read(through_json()) == PLAN
    assert read({"slot": 7, "directory": "/s"}) == Plan(7, Path("/s"))


def test_what_another_version_knows_more_is_left_out() -> None:
    management = {"bridge": "dd7m", "address": "10.71.0.1", "prefix_length": 16}
    assert read(through_json(management=management, sites=[{**as_data(PLAN)["sites"][0], "colour": "red"}])) == PLAN


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slot": "7"}, r"plan\.slot: '7' is of another kind"),
        ({"slot": True}, r"plan\.slot: 'True' is of another kind"),
        ({"directory": 3}, r"plan\.directory: '3'"),
        ({"hosts": {}}, r"plan\.hosts: "),
        ({"hosts": [HOST.name]}, r"plan\.hosts\[0\]: is not an object"),
        ({"sites": [{"name": "lyon"}]}, r"plan\.sites\[0\]\.index: is absent"),
        ({"authorized_keys": [["a"]]}, r"plan\.authorized_keys\[0\]: "),
        ({"router": {"namespace": 1}}, r"plan\.router\.namespace: "),
        ({"peers": [{**as_data(PLAN)["peers"][0], "hosts": {"nice-1": None}}]}, r"plan\.peers\[0\]\.hosts\.nice-1: "),
    ],
)
def test_what_is_no_plan_is_told_with_its_place(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(MachineError, match=told):
        read(through_json(**changes))


def test_of_a_plan_that_is_not_understood_the_slot_is_known(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(through_json(directory=str(tmp_path), hosts="many")))
    assert machine_plans.read_plan(tmp_path) == machine_plans.lost_plan(tmp_path, 7)


def test_a_host_at_no_site_of_the_plan_is_told() -> None:
    with pytest.raises(MachineError, match="lyon-1: the plan has no site lyon"):
        Plan(7, Path("/s"), hosts=(HOST,)).site_of(HOST)
