"""What the modules of OVN, Neutron, Nova and the cloud's content decide; what they do is seen in real deployments."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.playbooks.test_role_modules import cloud, load

ovn = load("module_utils/ovn.py")
libvirt_host = load("library/libvirt_host.py")
nova_cells = load("library/nova_cells.py")
nova_check = load("library/nova_check.py")
nova_compute_units = load("library/nova_compute_units.py")
open_vswitch_state = load("library/open_vswitch_state.py")
openstack_objects = load("library/openstack_objects.py")
ovn_chassis = load("library/ovn_chassis.py")
ovn_database = load("library/ovn_database.py")

STATUS = """\
b2a1
Name: OVN_Southbound
Cluster ID: 3dd3 (3dd3e1a4-0000-4000-8000-000000000001)
Server ID: b2a1 (b2a1e1a4-0000-4000-8000-000000000002)
Address: tcp:10.128.0.10:6644
Status: cluster member
Role: follower
Term: 3
Leader: 77aa
Vote: 77aa

Election timer: 5000
Log: [2, 9]
Connections: ->77aa <-77aa
Disconnections: 0
Servers:
    b2a1 (b2a1 at tcp:10.128.0.10:6644) (self)
    77aa (77aa at tcp:10.128.1.10:6644) last msg 12 ms ago
"""


class TestOvnDatabase:
    """How a member of OVN's databases comes to its file."""

    MEMBERS = ["10.0.0.1", "10.0.1.1", "10.0.2.1"]

    def test_one_server_stands_alone(self) -> None:
        assert ovn_database.decision("10.0.0.1", ["10.0.0.1"], [], None) == "create"

    def test_the_first_of_several_founds_the_cluster_and_the_others_join(self) -> None:
        assert [ovn_database.decision(member, self.MEMBERS, [], None) for member in self.MEMBERS] == [
            "found", "join", "join",
        ]  # fmt: skip

    def test_a_first_member_that_has_lost_its_file_joins_the_others(self) -> None:
        assert ovn_database.decision("10.0.0.1", self.MEMBERS, ["10.0.1.1", "10.0.2.1"], None) == "join"

    @pytest.mark.parametrize("members", [["10.0.0.1"], MEMBERS])
    def test_a_file_that_is_there_is_kept(self, members: list[str]) -> None:
        assert ovn_database.decision("10.0.0.1", members, [], len(members) > 1) == "keep"

    @pytest.mark.parametrize("members", [["10.0.0.1"], MEMBERS])
    def test_a_file_of_another_kind_of_deployment_is_an_error(self, members: list[str]) -> None:
        with pytest.raises(ovn.OvnError, match="destroy"):
            ovn_database.decision("10.0.0.1", members, [], len(members) == 1)

    def test_the_status_of_a_member_is_read(self) -> None:
        assert ovn.parsed_status(STATUS) == {
            "member": True, "self": "10.128.0.10", "leader": "10.128.1.10", "servers": ["10.128.0.10", "10.128.1.10"],
        }  # fmt: skip

    def test_a_server_without_a_leader_says_so(self) -> None:
        assert ovn.parsed_status(STATUS.replace("Leader: 77aa", "Leader: unknown"))["leader"] == ""

    def test_clients_know_every_member(self) -> None:
        assert ovn.connection(["10.0.0.1", "10.0.1.1"], "sb") == "tcp:10.0.0.1:6642,tcp:10.0.1.1:6642"


def registered(commands: list[list[str]]) -> list[str]:
    return [command[2] for command in commands if "Chassis" in command]


class TestOvnChassis:
    """Which chassis are registered and removed."""

    FOUND = {
        "a-fake-1": {"discovery-deploy": "invented", "address": "10.0.0.1", "encapsulation": "198.18.0.9"},
        "real": {},
    }

    def test_what_is_listed_is_read(self) -> None:
        listed = {"data": [["a", ["map", [["address", "10.0.0.1"]]]], ["b", ["map", []]]]}
        assert ovn_chassis.present(json.dumps(listed)) == {"a": {"address": "10.0.0.1"}, "b": {}}

    def test_nothing_is_said_when_all_is_there(self) -> None:
        assert ovn_chassis.commands({"a-fake-1": "10.0.0.1"}, self.FOUND) == []

    def test_what_is_missing_is_registered_with_its_private_row(self) -> None:
        commands = ovn_chassis.commands({"a-fake-1": "10.0.0.1", "a-fake-2": "10.0.0.1"}, self.FOUND)
        assert [command[:3] for command in commands] == [
            ["--id=@e0", "create", "Encap"],
            ["--id=@c0", "create", "Chassis"],
            ["create", "Chassis_Private", 'name="a-fake-2"'],
        ]

    def test_what_is_no_longer_asked_for_goes_and_real_chassis_stay(self) -> None:
        assert ovn_chassis.commands({}, self.FOUND) == [
            ["--if-exists", "chassis-del", "a-fake-1"],
        ]

    def test_one_that_has_moved_is_made_anew(self) -> None:
        commands = ovn_chassis.commands({"a-fake-1": "10.0.5.1"}, self.FOUND)
        assert len(commands) == 4
        assert 'external_ids:address="10.0.5.1"' in commands[2]

    def test_a_name_that_a_real_chassis_has_is_left_to_it(self) -> None:
        assert ovn_chassis.commands({"real": "10.0.0.1", "a-fake-1": "10.0.0.1"}, self.FOUND) == []

    def test_no_two_chassis_have_the_same_address_for_tunnels(self) -> None:
        commands = ovn_chassis.commands({f"host-fake-{number}": "10.0.0.1" for number in range(600)}, {})
        addresses = [word for command in commands if "Encap" in command for word in command if word.startswith("ip=")]
        assert len(set(addresses)) == 600
        assert all(word.startswith(('ip="198.18.', 'ip="198.19.')) for word in addresses)


class TestOpenVswitch:
    """What a switch is told."""

    def test_the_userspace_datapath_has_a_bridge_for_its_tunnels(self) -> None:
        words = open_vswitch_state.settings("h", "10.0.0.1", "tcp:10.0.0.2:6642", "netdev")
        assert 'external_ids:ovn-encap-ip="10.0.0.1"' in words
        assert words.count("datapath_type=netdev") == 3
        assert "br-tunnel" in words

    def test_the_kernels_needs_none(self) -> None:
        words = open_vswitch_state.settings("h", "10.0.0.1", "tcp:10.0.0.2:6642", "system")
        assert words.count("datapath_type=system") == 2
        assert "br-tunnel" not in words

    def test_the_kernel_is_asked_with_a_whole_message(self) -> None:
        message = open_vswitch_state.request("ovs_datapath")
        assert struct.unpack_from("=I", message) == (len(message),)
        assert len(message) % 4 == 0
        assert b"ovs_datapath\0" in message


class TestNovaCheck:
    """Whether processes have reported since they were started."""

    SHOWN = (
        "Id=nova-scheduler.service\nActiveEnterTimestamp=@1700000000\n\n"
        "Id=nova-conductor.service\nActiveEnterTimestamp=\n"
    )

    def service(self, binary: str, at: str | None, state: str = "up", host: str = "h") -> dict[str, Any]:
        return {"binary": binary, "host": host, "state": state, "updated_at": at}

    def test_starts_are_read_and_a_unit_that_never_started_is_late(self) -> None:
        assert nova_check.unit_starts(self.SHOWN) == {"scheduler": 1700000000.0, "conductor": float("inf")}

    def test_times_are_read_as_utc(self) -> None:
        assert nova_check.reported("2023-11-14T22:13:20.000000") == 1700000000.0
        assert nova_check.reported(None) == 0.0

    @pytest.mark.parametrize(
        ("services", "found"),
        [
            ([], ["nova-scheduler has not registered"]),
            ([("nova-scheduler", "2023-11-14T22:13:21", "up", "h")], []),
            ([("nova-scheduler", "2023-11-14T22:13:10", "up", "h")], ["nova-scheduler has not reported"]),
            ([("nova-scheduler", "2023-11-14T22:13:21", "down", "h")], ["nova-scheduler has not reported"]),
            ([("nova-scheduler", "2023-11-14T22:13:21", "up", "other")], ["nova-scheduler has not registered"]),
        ],
    )
    def test_what_is_lacking_is_named(self, services: list[tuple[str, str, str, str]], found: list[str]) -> None:
        listed = [self.service(*entry) for entry in services]
        assert nova_check.lacking(listed, "h", {"scheduler": 1700000000.0}) == found


class TestComputes:
    """Which computes are started, restarted and stopped."""

    def test_what_runs_and_is_not_asked_for_is_stopped(self) -> None:
        shown = "Id=nova-compute@h-fake-1.service\n\nId=nova-compute@h-fake-2.service\n"
        assert nova_compute_units.surplus(shown, ["h-fake-1"]) == ["h-fake-2"]

    @pytest.mark.parametrize(
        ("files", "restarted"),
        [
            ([], []),
            (["/etc/nova-compute/fake.conf"], ["h-fake-1", "h-fake-2"]),
            (["/etc/systemd/system/nova-compute@.service"], ["h-fake-1", "h-fake-2"]),
            (["/etc/systemd/system/nova-compute@h.service.d/libvirt.conf"], []),
            (["/etc/libvirt/qemu.conf"], []),
        ],
    )
    def test_changed_files_restart_those_that_read_them(self, files: list[str], restarted: list[str]) -> None:
        assert nova_compute_units.touched(["h-fake-1", "h-fake-2"], files) == restarted

    def test_the_binding_is_linked_once_also_when_python_has_compiled_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(libvirt_host, "PACKAGES", tmp_path)
        (tmp_path / "libvirt.py").write_text("")
        directory = tmp_path / "linked"
        assert libvirt_host.link_binding(directory)
        (directory / "__pycache__").mkdir()
        assert not libvirt_host.link_binding(directory)
        (directory / "other.py").write_text("")
        assert libvirt_host.link_binding(directory)
        assert [path.name for path in directory.iterdir()] == ["libvirt.py"]

    def test_a_guest_is_believed_when_it_speaks(self) -> None:
        for said, believed in ((b"SeaBIOS\nGUEST-UP at 1.0\n", True), (b"SeaBIOS\n", False)):
            reader, writer = os.pipe()
            os.write(writer, said)
            assert libvirt_host.says(reader, libvirt_host.SIGN, 0.05) is believed
            os.close(writer)
            assert believed or libvirt_host.says(reader, libvirt_host.SIGN, 5.0) is False
            os.close(reader)


class Services:
    """A region's services that remember what they are asked, and answer from tables."""

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []

    def request(
        self, method: str, url: str, token: str = "", body: Any = None, version: str = ""
    ) -> tuple[dict[str, str], dict[str, Any]]:
        path = url.removeprefix("http://x")
        if method == "GET":
            return {}, self.answers[path]
        self.asked.append((method, path, body))
        made = {"id": f"new-{len(self.asked)}", "uuid": "u", "metadata": {}, "hosts": []}
        return {}, {"id": made["id"], **dict.fromkeys(("aggregate", "flavor", "network", "subnet", "router"), made)}


PROVIDERS = {"resource_providers": [{"name": "p-1"}, {"name": "p-2.domain"}]}


def hypervisor(host: str, state: str = "up") -> dict[str, Any]:
    return {
        "state": state,
        "hypervisor_hostname": f"{host}.domain" if host == "p-2" else host,
        "service": {"host": host},
    }


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = object.__new__(openstack_objects.Region)
    made.name, made.token, made.guest, made.limit_s, made.changes = "paris", "t", "", 0, []
    made.zones = {"paris": ["p-1", "p-2"]}
    made.urls = dict.fromkeys(("compute", "image", "network", "identity", "placement"), "http://x")
    made.providers = {"p-1": "p-1", "p-2.domain": "p-2"}
    services = Services({"/resource_providers": PROVIDERS, "/resource_providers?member_of=u": PROVIDERS})
    monkeypatch.setattr(cloud, "request", services.request)
    return SimpleNamespace(region=made, services=services)


class TestCloudContent:
    """What is made, changed and left alone."""

    def test_computes_that_are_missing_are_named_with_their_site(self) -> None:
        zones = {"paris": ["p-1", "p-2"], "oslo": ["o-1"]}
        told = openstack_objects.lacking(zones, {"p-1"}, "computes that are not up")
        assert told == "computes that are not up at oslo: o-1; at paris: p-2"
        assert openstack_objects.lacking(zones, {"p-1", "p-2", "o-1"}, "computes") == ""

    def test_the_wait_for_computes_ends_with_their_names(self, region: Any) -> None:
        region.services.answers["/os-hypervisors/detail"] = {"hypervisors": [hypervisor("p-1")]}
        with pytest.raises(cloud.CloudError, match="at paris: p-2"):
            region.region.computes()

    def test_computes_that_nobody_asked_for_are_removed(self, region: Any) -> None:
        up = [hypervisor(name) for name in ("p-1", "p-2", "p-3")]
        services = [{"id": name, "host": name} for name in ("p-1", "p-2", "p-3")]
        region.services.answers |= {
            "/os-hypervisors/detail": {"hypervisors": up},
            "/v2.0/agents": {"agents": [{"host": "p-1"}, {"host": "p-2"}]},
            "/os-services?binary=nova-compute": {"services": services},
        }
        region.region.computes()
        assert region.services.asked == [("DELETE", "/os-services/p-3", None)]

    def test_a_zone_is_made_and_filled(self, region: Any) -> None:
        region.services.answers["/os-aggregates"] = {"aggregates": []}
        region.region.zone_aggregates()
        bodies = [body for _, _, body in region.services.asked]
        assert bodies[0] == {"aggregate": {"name": "paris", "availability_zone": "paris"}}
        assert bodies[2:] == [{"add_host": {"host": "p-1"}}, {"add_host": {"host": "p-2"}}]

    def test_a_zone_that_is_as_wanted_is_left_alone_and_strangers_too(self, region: Any) -> None:
        ours = {
            "id": 1,
            "uuid": "u",
            "name": "paris",
            "hosts": ["p-2", "p-1"],
            "metadata": {"discovery-deploy": "site"},
        }
        other = {"id": 2, "name": "fast", "hosts": ["p-1"], "metadata": {}}
        region.services.answers["/os-aggregates"] = {"aggregates": [ours, other]}
        region.region.zone_aggregates()
        assert region.services.asked == []

    def test_a_compute_that_is_only_novas_member_of_a_zone_is_put_in_again(self, region: Any) -> None:
        ours = {
            "id": 1,
            "uuid": "u",
            "name": "paris",
            "hosts": ["p-2", "p-1"],
            "metadata": {"discovery-deploy": "site"},
        }
        region.services.answers["/os-aggregates"] = {"aggregates": [ours]}
        region.services.answers["/resource_providers?member_of=u"] = {"resource_providers": [{"name": "p-1"}]}
        region.region.zone_aggregates()
        bodies = [body for _, _, body in region.services.asked]
        assert bodies == [{"remove_host": {"host": "p-2"}}, {"add_host": {"host": "p-2"}}]

    def test_a_compute_without_a_resource_provider_is_waited_for(self, region: Any) -> None:
        region.services.answers["/os-hypervisors/detail"] = {"hypervisors": [hypervisor("p-1"), hypervisor("p-2")]}
        region.services.answers["/resource_providers"] = {"resource_providers": [{"name": "p-1"}]}
        with pytest.raises(cloud.CloudError, match="Placement does not know at paris: p-2"):
            region.region.computes()

    def test_a_flavor_of_another_size_is_made_anew(self, region: Any) -> None:
        sizes = openstack_objects.FLAVORS
        listed = [{"id": name, "name": name, **sizes[name]} for name in sizes]
        listed[0]["ram"] = 1
        region.services.answers["/flavors/detail"] = {"flavors": listed}
        region.region.flavors()
        assert [entry[:2] for entry in region.services.asked] == [
            ("DELETE", f"/flavors/{listed[0]['name']}"), ("POST", "/flavors"),
        ]  # fmt: skip

    def test_the_image_is_sent_once(self, region: Any) -> None:
        path = f"/v2/images?visibility=public&name={openstack_objects.IMAGE}"
        region.services.answers[path] = {"images": []}
        region.region.images()
        (_, _, body), (method, _, content) = region.services.asked
        assert (method, len(content)) == ("PUT", openstack_objects.NOISE_BYTES)
        region.services.answers[path] = {"images": [{"id": "i", "status": "active", **body}]}
        region.services.asked.clear()
        region.region.images()
        assert region.services.asked == []

    def test_the_guests_image_names_its_kernel(self, region: Any, tmp_path: Path) -> None:
        for name in ("vmlinuz", "initrd.gz", "blank.img"):
            (tmp_path / name).write_bytes(name.encode())
        for name in ("guest-kernel", "guest-ramdisk", openstack_objects.IMAGE):
            region.services.answers[f"/v2/images?visibility=public&name={name}"] = {"images": []}
        region.region.guest = str(tmp_path)
        region.region.images()
        body = region.services.asked[4][2]
        assert (body["kernel_id"], body["ramdisk_id"]) == ("new-1", "new-3")

    def test_the_catalogue_is_read_by_region(self) -> None:
        entries = [
            {"interface": "public", "region_id": name, "url": f"http://{name}:8774/v2.1/"} for name in ("paris", "oslo")
        ]
        catalogue = [{"type": "compute", "endpoints": entries}]
        assert cloud.endpoint(catalogue, "compute", "oslo") == "http://oslo:8774/v2.1"
        with pytest.raises(cloud.CloudError, match="network in region oslo"):
            cloud.endpoint(catalogue, "network", "oslo")


def test_a_wait_ends_with_the_last_problem() -> None:
    def fail() -> None:
        raise cloud.CloudError("nobody answers")

    with pytest.raises(cloud.CloudError, match="after 0 s: nobody answers"):
        cloud.keep_trying(fail, 0)
