"""Decisions of the provider `local`: plans, slots, and which commands make what is missing. No root, nothing real."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import machine_plans, nspawn, site_networks
from discovery_deploy.agent.cgroups import Hierarchies, parse_hierarchies
from discovery_deploy.agent.machine import MachineError, own
from discovery_deploy.agent.plan import Bind, Host, Management, Plan, Site, as_data, read
from discovery_deploy.agent.site_networks import Inside, Observed
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import local
from discovery_deploy.testbeds.base import HOLDER

NOTHING = Observed(links={}, addresses=(), routes=(), rules=frozenset(), namespaces=())


def experiment(*hosts: int) -> Experiment:
    """As many sites as numbers, each with so many hosts."""
    sites = [
        {"name": f"s{site}", "hosts": [{"name": f"s{site}-{host + 1}"} for host in range(count)]}
        for site, count in enumerate(hosts)
    ]
    return Experiment.model_validate({"name": "planned", "sites": sites, "deployment": {"backend": {"type": "galera"}}})


def planned(*hosts: int, slot: int = 3, key: str = "ssh-ed25519 AAAA me\n") -> Plan:
    directory = Path("/state/planned")
    return local.machine_plan(experiment(*hosts), slot, directory, Path("/images/x"), Path("/environments"), key)


def test_a_plan_names_everything_after_its_slot() -> None:
    plan = planned(1, 2)
    assert plan.management == Management("dd3m", "10.67.0.1", 16)
    assert plan.sites[1] == Site(
        name="s1", index=1, bridge="dd3s1", router_device="vec1", tap="dd3t1", gateway="10.131.1.1",
        subnet="10.131.1.0/24",
    )  # fmt: skip
    assert plan.hosts[2] == Host(
        name="s1-2", site="s1", namespace="dd3-s1-2", system=True, site_address="10.131.1.11", site_device="dd3e2",
        management_address="10.67.0.12", management_device="dd3n2",
    )  # fmt: skip
    assert plan.authorized_keys == ("ssh-ed25519 AAAA me",)
    assert plan.binds == (Bind(Path("/environments"), "/opt/discovery-deploy"),)


def test_a_plan_is_plain_data_and_the_same_each_time() -> None:
    assert read(json.loads(json.dumps(as_data(planned(2, 1))))) == planned(2, 1)


@pytest.mark.parametrize("slot", [0, 63])
def test_the_largest_plan_has_distinct_names_and_addresses_that_fit(slot: int) -> None:
    plan = planned(*[9] * 64, slot=slot)
    hosts, sites = plan.hosts, plan.sites
    devices = [device for host in hosts for device in (host.site_device, host.management_device)]
    devices += [device for site in sites for device in (site.bridge, site.tap)] + [plan.management.bridge]
    assert len(devices) == len(set(devices)) == 2 * 576 + 2 * 64 + 1
    assert all(len(name) <= 15 and own(slot, name) for name in devices)
    addresses = [address for host in hosts for address in (host.site_address, host.management_address)]
    addresses += [site.gateway for site in sites] + [plan.management.address]
    assert len(addresses) == len(set(addresses))
    wide = machine_plans.slot_networks(slot)
    assert all(any(ipaddress.IPv4Address(text) in network for network in wide) for text in addresses)
    assert all(network.subnet_of(wide[0]) or network.subnet_of(wide[1]) for network in site_networks.networks(plan))


def test_slots_share_no_network() -> None:
    networks = [network for slot in range(machine_plans.SLOTS) for network in machine_plans.slot_networks(slot)]
    assert len({str(network) for network in networks}) == 128
    assert not any(a.overlaps(b) for index, a in enumerate(networks) for b in networks[:index])


@pytest.mark.parametrize("slot", [-1, 64])
def test_a_slot_out_of_range_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match=r"not in 0\.\.63"):
        planned(1, slot=slot)


def test_more_hosts_at_a_site_than_addresses_are_refused() -> None:
    assert planned(245).hosts[-1].site_address == "10.131.0.254"
    with pytest.raises(TestbedError, match='site "s1" has 246 hosts'):
        planned(1, 246)


def test_a_device_belongs_to_its_slot_and_to_no_longer_number() -> None:
    assert own(1, "dd1m")
    assert own(1, "dd1-paris-1")
    assert not own(1, "dd12m")
    assert not own(1, "xdd1m")
    assert not own(12, "dd1m")


def observed(*addresses: tuple[str, str], routes: tuple[tuple[str, str], ...] = ()) -> Observed:
    return Observed(links={}, addresses=addresses, routes=routes, rules=frozenset(), namespaces=())


@pytest.mark.parametrize(
    ("seen", "busy"),
    [
        (observed(), set()),
        (observed(("eth0", "10.64.3.4/24")), {0}),
        (observed(("eth0", "10.129.3.4/8"), ("tun0", "10.66.0.1/32")), {2}),
        (observed(routes=(("tun0", "10.128.0.0/14"),)), {0, 1, 2, 3}),
        (observed(routes=(("tun0", "10.0.0.0/8"), ("", "192.168.0.0/16"))), set()),
        (observed(("dd5m", "10.69.0.1/16")), {5}),
    ],
)
def test_slots_whose_networks_are_in_use_are_not_taken(seen: Observed, busy: set[int]) -> None:
    assert set(range(64)) - set(machine_plans.free_slots([], seen)) == busy


def test_claimed_slots_are_not_taken() -> None:
    assert machine_plans.free_slots([0, 2], NOTHING)[:3] == [1, 3, 4]


def test_a_collision_says_who_uses_what_but_not_of_our_own_devices() -> None:
    plan = planned(1)
    seen = observed(("dd3m", "10.67.0.1/16"), ("eth1", "10.131.0.200/26"))
    assert site_networks.collisions(site_networks.networks(plan), 3, seen) == [
        "10.131.0.0/24 is used by eth1 (10.131.0.200/26)"
    ]


def complete(plan: Plan) -> tuple[Observed, list[Inside]]:
    """What is observed when all of a plan is there."""
    management = plan.management.bridge
    bridge_of = {site.name: site.bridge for site in plan.sites}
    links: dict[str, dict[str, Any]] = {name: {} for name in (management, *bridge_of.values())}
    for host in plan.hosts:
        links[host.site_device] = {"master": bridge_of[host.site]}
        links[host.management_device] = {"master": management}
    seen = Observed(
        links=links,
        addresses=((management, f"{plan.management.address}/16"),),
        routes=tuple((management, host.site_address) for host in plan.hosts),
        rules=frozenset(site_networks.rules(plan)),
        namespaces=tuple(host.namespace for host in plan.hosts),
    )
    insides = [
        Inside(
            addresses=frozenset({("lo", "127.0.0.1"), ("eth0", host.site_address), ("mgmt0", host.management_address)}),
            devices=frozenset({"lo", "eth0", "mgmt0"}),
            gateway=plan.sites[0].gateway,
        )
        for host in plan.hosts
    ]
    return seen, insides


def test_nothing_is_made_when_all_is_there() -> None:
    plan = planned(2)
    seen, insides = complete(plan)
    assert site_networks.shared_commands(plan, seen) == []
    for host, inside in zip(plan.hosts, insides, strict=True):
        assert site_networks.host_commands(plan, host, seen, inside) == []
        assert site_networks.inside_commands(plan, host, inside) == []


def test_a_new_host_gets_its_namespace_before_its_links() -> None:
    plan = planned(1)
    lines = site_networks.host_commands(plan, plan.hosts[0], NOTHING, None)
    assert lines == [
        "netns add dd3-s0-1",
        "link add dd3e0 type veth peer name eth0 netns dd3-s0-1",
        "link set dd3e0 master dd3s0 addrgenmode none txqueuelen 10000 up",
        "link add dd3n0 type veth peer name mgmt0 netns dd3-s0-1",
        "link set dd3n0 master dd3m addrgenmode none txqueuelen 10000 up",
        "link set dd3n0 type bridge_slave isolated on",
        "route replace 10.131.0.10/32 via 10.67.0.10 dev dd3m",
    ]


def test_only_a_missing_link_is_made_anew() -> None:
    plan = planned(1)
    seen, (inside,) = complete(plan)
    del seen.links["dd3e0"]
    assert site_networks.host_commands(plan, plan.hosts[0], seen, inside) == [
        "link add dd3e0 type veth peer name eth0 netns dd3-s0-1",
        "link set dd3e0 master dd3s0 addrgenmode none txqueuelen 10000 up",
    ]


def test_a_link_without_its_other_end_or_in_another_bridge_is_replaced() -> None:
    plan = planned(1)
    seen, (inside,) = complete(plan)
    seen.links["dd3n0"]["master"] = "br0"
    halved = Inside(inside.addresses, inside.devices - {"eth0"}, inside.gateway)
    lines = site_networks.host_commands(plan, plan.hosts[0], seen, halved)
    assert [line for line in lines if "del" in line] == ["link del dd3e0", "link del dd3n0"]
    assert sum("link add" in line for line in lines) == 2


def test_a_name_without_a_namespace_is_removed_first() -> None:
    plan = planned(1)
    seen = Observed(links={}, addresses=(), routes=(), rules=frozenset(), namespaces=(), broken=("dd3-s0-1",))
    assert site_networks.host_commands(plan, plan.hosts[0], seen, None)[:2] == [
        "netns del dd3-s0-1",
        "netns add dd3-s0-1",
    ]


def test_inside_a_lost_address_comes_back_and_the_gateway_with_it() -> None:
    plan = planned(1)
    _, (inside,) = complete(plan)
    without = Inside(inside.addresses - {("eth0", "10.131.0.10")}, inside.devices, inside.gateway)
    assert site_networks.inside_commands(plan, plan.hosts[0], without) == [
        "link set eth0 address 02:dd:0a:83:00:0a addrgenmode none txqueuelen 10000 up",
        "address replace 10.131.0.10/24 dev eth0",
        "route replace default via 10.131.0.1 dev eth0 congctl cubic",
    ]


def test_rules_name_their_networks_so_that_nothing_else_is_touched() -> None:
    plan = planned(1, 1, 1, slot=0)
    assert site_networks.rules(plan) == [
        "pref 5000 to 10.64.0.0/16 iif lo lookup main",
        "pref 5001 to 10.64.0.0/16 unreachable",
        "pref 5000 to 10.128.0.0/22 iif lo lookup main",
        "pref 5001 to 10.128.0.0/22 unreachable",
    ]


def test_all_names_are_in_every_hosts_file_with_their_site_addresses() -> None:
    plan = planned(1, 1)
    text, mode = nspawn.identity_files(plan, plan.hosts[1])["etc/hosts"]
    assert text == "127.0.0.1 localhost\n10.131.0.10 s0-1\n10.131.1.10 s1-1\n"
    assert mode == 0o644


def test_keys_are_readable_by_root_alone() -> None:
    plan = planned(1)
    assert nspawn.identity_files(plan, plan.hosts[0])["root/.ssh/authorized_keys"] == (
        "ssh-ed25519 AAAA me\n",
        0o600,
    )


def supervisor(plan: Plan, hybrid: bool) -> list[str]:
    groups = [Path("/sys/fs/cgroup/dd3/s0-1/loop/cgroup.procs")]
    return nspawn.supervisor_text(plan, plan.hosts[0], groups, hybrid).splitlines()


def test_a_supervisor_joins_its_groups_before_anything_else_and_stops_at_the_first_failure() -> None:
    lines = supervisor(planned(1), hybrid=False)
    assert lines[0] == "set -eu"
    assert next(line for line in lines if not line.startswith(("set", "umask"))) == (
        "echo $$ > /sys/fs/cgroup/dd3/s0-1/loop/cgroup.procs"
    )


def test_a_hybrid_machine_shows_hosts_only_its_v2_hierarchy() -> None:
    remount = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    assert remount in supervisor(planned(1), hybrid=True)
    assert remount not in supervisor(planned(1), hybrid=False)


def test_files_are_volatile_unless_the_plan_says_disk() -> None:
    def mount(upper: str) -> str:
        lines = supervisor(replace(planned(1), upper=upper), False)
        (line,) = (line for line in lines if line.startswith("mount -t overlay") and "upperdir" in line)
        return line

    assert ",volatile " in mount("volatile")
    assert "volatile" not in mount("disk")


def test_paths_with_spaces_reach_nspawn_whole() -> None:
    plan = replace(planned(1), directory=Path("/state/a b"), binds=(Bind(Path("/x/ z"), "/opt"),))
    lines = supervisor(plan, False)
    (line,) = (line for line in lines if "systemd-nspawn" in line)
    assert "'--directory=/state/a b/hosts/s0-1/root'" in line
    assert "'--bind-ro=/state/a b/hosts/s0-1/binds/0:/opt'" in line
    assert any("'ro,lowerdir=/x/ z:/state/a b/hosts/s0-1/binds/empty'" in line for line in lines)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "$(id)"])
def test_a_host_whose_name_is_none_has_no_folder(name: str) -> None:
    plan = planned(1)
    with pytest.raises(MachineError, match="is not a name of a host"):
        nspawn.folder(plan, replace(plan.hosts[0], name=name))


HYBRID = """\
22 21 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
23 22 0:21 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
24 22 0:22 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
25 22 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
26 22 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
PURE = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def test_control_groups_are_found_on_hybrid_and_on_pure_machines() -> None:
    top = Path("/sys/fs/cgroup")
    assert parse_hierarchies(HYBRID) == Hierarchies(top / "unified", (top / "memory", top / "systemd"))
    assert parse_hierarchies(PURE) == Hierarchies(top, ())


@pytest.mark.parametrize("text", ["", PURE.replace("rw,nosuid", "ro,nosuid"), "\n".join(HYBRID.splitlines()[:-1])])
def test_without_a_writable_v2_hierarchy_there_are_none(text: str) -> None:
    assert parse_hierarchies(text) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"slot": "3"}', '{"experiment": "x"}'])
def test_a_damaged_plan_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert machine_plans.read_plan(tmp_path) is None


def test_a_missing_plan_is_no_plan(tmp_path: Path) -> None:
    assert machine_plans.read_plan(tmp_path / "nowhere") is None


def test_only_another_key_leaves_hosts_as_they_are() -> None:
    assert planned(1, 1).same_hosts(planned(1, 1, key="ssh-ed25519 BBBB you"))
    assert not planned(1, 1).same_hosts(planned(1, 2))
    assert not planned(1, 1).same_hosts(planned(1, 1, slot=4))


def test_hosts_are_known_by_who_reserved_them_and_by_their_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere" / "far"
    monkeypatch.setattr("discovery_deploy.agent.machine.claims", lambda: {5: elsewhere})
    provider = local.LocalProvider(environments=tmp_path, state=tmp_path / "state")
    assert provider.holder("near") is None
    for directory in (tmp_path / "state" / "near", elsewhere, tmp_path / "state" / "cut-off"):
        directory.mkdir(parents=True)
        (directory / "plan.json").write_text(json.dumps({"slot": 5, "experiment": directory.name}))
    (tmp_path / "state" / "cut-off" / "plan.json").write_text("{")
    (tmp_path / "state" / "near" / HOLDER).write_text("/results/near\n")
    assert provider.holder("near") == Path("/results/near")
    assert provider.holder("cut-off") is None
    assert {plan.experiment for plan in local.known_plans(tmp_path / "state")} == {"near", "far"}
    with local.plans_held(tmp_path / "empty") as plans:
        assert [plan.experiment for plan in plans] == ["far"]
    assert not (tmp_path / "empty").exists(), "looking leaves nothing behind"


def test_the_state_is_the_same_whatever_way_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A release by another name of the directory must find the hosts, which are known by their paths."""
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to("state")
    for name in ("state", "link", "link/../link"):
        monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(tmp_path / name))
        assert local.state_directory() == tmp_path / "state"
