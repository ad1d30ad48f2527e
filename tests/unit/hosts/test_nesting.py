"""Hosts as containers on other providers' machines: which machines, their plans, and who shapes what."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import nspawn, wan_tunnels
from discovery_deploy.agent.plan import Plan, TcProgram, as_data, read
from discovery_deploy.experiment.model import Experiment, Network
from discovery_deploy.experiment.provider_models import Grid5000, Static
from discovery_deploy.hosts import nesting
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import local
from discovery_deploy.wan import tc
from discovery_deploy.wan.plan import wan_plan
from discovery_deploy.wan.shapes import PathShape, path_shapes

VAGRANT: dict[str, Any] = {"type": "vagrant", "hosts_per_machine": 2}
SLOT = 5


def experiment(provider: dict[str, Any], *hosts: int) -> Experiment:
    """As many sites as numbers, each with so many hosts."""
    sites = [
        {"name": f"s{site}", "hosts": [{"name": f"s{site}-{host + 1}"} for host in range(count)]}
        for site, count in enumerate(hosts)
    ]
    return Experiment.model_validate(
        {"name": "nested", "provider": provider, "sites": sites, "deployment": {"backend": {"type": "galera"}}}
    )


def plans(asked: Experiment) -> dict[str, Plan]:
    addresses = {name: f"192.0.2.{index + 1}" for index, name in enumerate(nesting.machines(asked))}
    return nesting.machine_plans(
        asked, addresses, SLOT, Path("/on/it"), Path("/image"), Path("/opt/x"), "ssh-ed25519 A"
    )


class TestMachines:
    def test_hosts_are_direct_unless_it_is_said(self) -> None:
        assert nesting.hosts_per_machine(experiment({"type": "local"}, 1)) is None
        assert nesting.hosts_per_machine(experiment({"type": "vagrant"}, 1)) is None
        assert nesting.hosts_per_machine(experiment(VAGRANT, 1)) == 2
        made: list[dict[str, Any]] = [VAGRANT, {"type": "vagrant"}, {"type": "local"}]
        assert [nesting.hosts_are_containers(experiment(one, 1)) for one in made] == [True, False, True]
        with pytest.raises(ValueError, match="nested: hosts are not nested"):
            nesting.machines(experiment({"type": "vagrant"}, 1))

    def test_machines_are_numbered_in_the_order_of_the_file(self) -> None:
        assert nesting.machines(experiment(VAGRANT, 1, 1, 2)) == {"machine-1": ("s0", "s1"), "machine-2": ("s2",)}

    def test_what_is_asked_of_the_provider_are_direct_hosts(self) -> None:
        asked = nesting.machines_experiment(experiment(VAGRANT, 1, 1, 2))
        assert [(site.name, [host.name for host in site.hosts]) for site in asked.sites] == [
            ("machines-1", ["machine-1", "machine-2"])
        ]
        assert asked.name == "nested"
        assert nesting.hosts_per_machine(asked) is None

    def test_machines_given_by_hand_keep_their_names_and_only_those_that_are_needed_are_asked_for(self) -> None:
        given = [{"host": f"big-{number}", "address": f"192.0.2.{number}"} for number in (7, 3, 9)]
        nested = experiment({"type": "static", "hosts_per_machine": 2, "machines": given}, 2, 1, 1)
        assert nesting.machines(nested) == {"big-7": ("s0",), "big-3": ("s1", "s2")}
        asked = nesting.machines_experiment(nested)
        assert isinstance(asked.provider, Static)
        assert [machine.host for machine in asked.provider.machines] == ["big-7", "big-3"]
        assert [host.name for site in asked.sites for host in site.hosts] == ["big-7", "big-3"]

    def test_sites_whose_machines_are_in_different_places_share_none(self) -> None:
        rennes, lyon = {"g5k_site": "rennes", "cluster": "paravance"}, {"g5k_site": "lyon", "cluster": "nova"}
        provider = {"type": "g5k", "default": rennes, "sites": {"s1": lyon}, "hosts_per_machine": 4}
        nested = experiment(provider, 1, 1, 2, 2)
        assert nesting.machines(nested) == {"machine-1": ("s0", "s2"), "machine-2": ("s3",), "machine-3": ("s1",)}
        asked = nesting.machines_experiment(nested)
        assert isinstance(asked.provider, Grid5000)
        assert asked.provider.default is None
        assert {name: place.g5k_site for name, place in asked.provider.sites.items()} == {
            "machines-1": "rennes", "machines-2": "lyon",
        }  # fmt: skip
        assert [[host.name for host in site.hosts] for site in asked.sites] == [
            ["machine-1", "machine-2"], ["machine-3"],
        ]  # fmt: skip

    def test_a_level_of_a_factor_may_need_more_machines_than_there_are(self) -> None:
        given = {"type": "static", "hosts_per_machine": 1, "machines": [{"host": "big-1", "address": "192.0.2.1"}]}
        one = experiment(given, 1)
        two = one.model_copy(update={"sites": (*one.sites, one.sites[0].model_copy(update={"name": "other"}))})
        with pytest.raises(TestbedError, match="2 machines are needed, 1 can be had"):
            nesting.machines(two)


class TestPlans:
    nested = experiment({"type": "vagrant", "hosts_per_machine": 3}, 1, 2, 3, 1, 2)

    def test_together_they_are_the_plan_of_one_machine(self) -> None:
        whole = local.machine_plan(self.nested, SLOT, Path("/on/it"), Path("/image"), Path("/opt/x"), "ssh-ed25519 A")
        parts = plans(self.nested)
        assert len(parts) == 3
        assert {site for part in parts.values() for site in part.sites} == set(whole.sites)
        assert {host for part in parts.values() for host in part.hosts} == set(whole.hosts)
        assert sum(len(part.hosts) for part in parts.values()) == len(whole.hosts)
        for part in parts.values():
            assert {host.site for host in part.hosts} == {site.name for site in part.sites}
            assert replace(part, sites=whole.sites, hosts=whole.hosts, peers=()) == whole

    def test_every_machine_knows_the_way_to_all_others(self) -> None:
        parts = plans(self.nested)
        for name, part in parts.items():
            assert [peer.machine for peer in part.peers] == [other for other in parts if other != name]
            ways = {subnet for peer in part.peers for subnet in peer.subnets}
            own = {site.subnet for site in part.sites}
            assert ways | own == {site.subnet for plan in parts.values() for site in plan.sites}
            assert not ways & own

    def test_the_two_ends_of_a_tunnel_fit(self) -> None:
        parts = plans(self.nested)
        ends = {(name, peer.machine): peer for name, part in parts.items() for peer in part.peers}
        for (one, other), end in ends.items():
            back = ends[other, one]
            assert (end.vni, end.local, end.mac) == (back.vni, back.remote, back.peer_mac)
        assert len({end.vni for end in ends.values()}) == len(ends) / 2
        assert len({end.mac for end in ends.values()}) == len(ends)
        assert len({peer.device for peer in parts["machine-2"].peers}) == 2

    def test_hosts_know_the_names_of_hosts_on_other_machines(self) -> None:
        part = plans(self.nested)["machine-2"]
        lines = nspawn.identity_files(part, part.hosts[0])["etc/hosts"][0].splitlines()
        assert {line.split()[1] for line in lines[1:]} == {
            host.name for site in self.nested.sites for host in site.hosts
        }

    def test_they_are_plain_data(self) -> None:
        for plan in plans(self.nested).values():
            assert read(json.loads(json.dumps(as_data(plan)))) == plan

    def test_slots_and_pairs_of_machines_share_no_tunnel(self) -> None:
        plan = plans(self.nested)["machine-1"]
        numbers = [
            wan_tunnels.peer(slot, own, other, ("a", "b"), "other", plan).vni
            for slot in (0, 1, 63)
            for own, other in itertools.combinations(range(nesting.MOST_MACHINES), 2)
        ]
        assert len(numbers) == len(set(numbers))
        assert min(numbers) > 0
        assert max(numbers) < 1 << 24


class TestTunnelCommands:
    tunnels = plans(experiment(VAGRANT, 1, 2, 2))["machine-1"].peers
    there = [
        {
            "ifname": tunnel.device,
            "linkinfo": {
                "info_data": {"id": tunnel.vni, "local": tunnel.local, "remote": tunnel.remote, "port": 24789}
            },
        }
        for tunnel in tunnels
    ]

    def test_what_is_as_planned_is_left_alone(self) -> None:
        assert wan_tunnels.wanted_commands(self.tunnels, self.there, "ns") == ([], [])

    def test_what_is_missing_is_made_in_the_routers_namespace(self) -> None:
        removed, made = wan_tunnels.wanted_commands(self.tunnels, self.there[:1], "dd5-router")
        assert removed == []
        assert made == [
            f"link add peer2 address 02:dd:05:ff:00:02 mtu 1500 netns dd5-router type vxlan id {(5 << 16) + 3} "
            "local 192.0.2.1 remote 192.0.2.3 dstport 24789 ttl 64 nolearning udpcsum"
        ]

    def test_one_to_another_address_is_made_anew_and_one_to_nowhere_goes(self) -> None:
        moved = json.loads(json.dumps(self.there))
        moved[0]["linkinfo"]["info_data"]["remote"] = "192.0.2.99"
        removed, made = wan_tunnels.wanted_commands(self.tunnels[:1], moved, "ns")
        assert removed == ["link del peer1", "link del peer2"]
        assert [line.split()[2] for line in made] == ["peer1"]

    def test_routes_to_sites_that_are_no_more_go_before_others_come(self) -> None:
        routes = [
            {"dst": "10.133.9.0/24", "dev": "peer1"},
            {"dst": "10.133.1.0/24", "dev": "peer2"},
            {"dst": "10.133.0.0/24", "dev": "vec0"},
        ]
        lines = wan_tunnels.inside_commands(self.tunnels, routes)
        assert lines[0] == "route del 10.133.9.0/24 dev peer1"
        assert "route replace 10.133.1.0/24 via 169.254.5.2 dev peer1 onlink" in lines
        assert sum(" del " in line for line in lines) == 1

    def test_no_peers_no_tunnels(self) -> None:
        assert wan_tunnels.parsed("") == []


class TestShapes:
    nested = experiment(VAGRANT, 1, 2, 1)
    parts = plans(nested)
    devices = {site.name: site.router_device for plan in parts.values() for site in plan.sites}
    subnets = {site.name: site.subnet for plan in parts.values() for site in plan.sites}

    def shapes(self, **default: str) -> dict[tuple[str, str], PathShape]:
        return path_shapes(Network.model_validate({"default": default}), self.nested.site_names)

    def test_each_machine_gets_what_is_about_its_own_sites(self) -> None:
        program = tc.program(wan_plan(self.shapes(delay="5 ms"), self.devices, self.subnets))
        divided = nesting.of_machines(program, self.parts)
        assert nesting.machines(self.nested) == {"machine-1": ("s0", "s2"), "machine-2": ("s1",)}
        assert {name: set(part.devices) for name, part in divided.items()} == {
            "machine-1": {"vec0", "vec2"}, "machine-2": {"vec1"},
        }  # fmt: skip
        # all sources, also those on other machines
        assert divided["machine-2"].devices["vec1"] == program.devices["vec1"]
        assert sorted(line for part in divided.values() for line in part.lines) == sorted(program.lines)

    def test_whether_packets_may_be_joined_is_told_to_all(self) -> None:
        old, new = self.shapes(delay="5 ms"), self.shapes(delay="5 ms")
        new["s0", "s1"] = new["s0", "s1"].model_copy(update={"loss": 0.1})
        program = tc.changes(*(wan_plan(shapes, self.devices, self.subnets) for shapes in (old, new)))
        assert program is not None
        divided = nesting.of_machines(program, self.parts)
        assert divided["machine-1"] == TcProgram(super_packets=False, devices={})
        assert not divided["machine-2"].super_packets
        assert [line[:27] for line in divided["machine-2"].lines] == ["qdisc change dev vec1 parent"[:27]]

    def test_a_device_of_nobody_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no machine has eth0"):
            nesting.of_machines(
                TcProgram(super_packets=True, devices={"eth0": ("qdisc del dev eth0 root",)}), self.parts
            )

    def test_what_routers_show_is_shown_as_of_one(self) -> None:
        shown: list[dict[str, dict[str, Any]]] = [
            {"qdisc": {"vec0": [1]}, "class": {"vec0": ["a"]}}, {"qdisc": {"vec1": [2]}},
        ]  # fmt: skip
        assert nesting.merged(shown) == {"qdisc": {"vec0": [1], "vec1": [2]}, "class": {"vec0": ["a"]}}


def test_machines_hold_what_their_hosts_need() -> None:
    parts = plans(experiment(VAGRANT, 1, 2, 1))
    wanted = {"s0-1": ("openstack-1", "rally-1"), "s1-1": ("rally-1",), "s1-2": (), "s2-1": ("rally-1", "seed-1")}
    assert nesting.environments_of_machines(parts, wanted) == {
        "machine-1": ("openstack-1", "rally-1", "seed-1"), "machine-2": ("rally-1",),
    }  # fmt: skip


def test_the_lease_has_hosts_in_the_order_of_the_file_and_the_way_to_each() -> None:
    nested = experiment(VAGRANT, 1, 2, 1)
    parts = plans(nested)
    born = {host.name: {"machine_id": f"id of {host.name}"} for part in parts.values() for host in part.hosts}
    ways = {name: {"ProxyCommand": f"to {name}"} for name in parts}
    lease = nesting.lease(nested, parts, born, ways, {"more": 1})
    assert [host.name for host in lease.hosts] == ["s0-1", "s1-1", "s1-2", "s2-1"]
    assert [host.ssh["ProxyCommand"] for host in lease.hosts] == [
        "to machine-1", "to machine-2", "to machine-2", "to machine-1",
    ]  # fmt: skip
    assert lease.site_devices == {"s0": "vec0", "s1": "vec1", "s2": "vec2"}
    assert lease.site_subnets["s2"] == "10.133.2.0/24"
    assert (lease.provider, lease.shaped, lease.software) == ("vagrant", "router", "mounted")
    assert lease.identities["s1-2"] == "id of s1-2"
    assert nesting.plans_of(lease) == parts
