"""What each host of a testbed without a router is told to shape, and what is taken off for the testbed itself."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.lease import LeasedHost
from discovery_deploy.experiment.model import Network
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.wan import egress
from discovery_deploy.wan.shapes import Pair, PathShape, path_shapes
from discovery_deploy.wan.tc import SEGMENTATION_OFF, SEGMENTATION_ON
from tests.unit.wan.test_tc import Tc, random_network
from tests.unit.wan.three_sites import MIXED_NETWORK, NAMES

RECORDED = Path(__file__).parents[2] / "recorded" / "tc_three_sites.json"


@dataclass(frozen=True)
class Host:
    name: str
    site: str
    site_address: str
    site_device: str = "eth1"


HOSTS = (
    Host("ares-2", "ares", "10.0.0.12", "ens3"),
    Host("ares-1", "ares", "10.0.0.11"),
    Host("brest-1", "brest", "10.0.0.21"),
    Host("cork-1", "cork", "172.16.5.31"),
)


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(Network.model_validate(fields), NAMES)


def pairs(seconds: float) -> dict[Pair, float]:
    return {(a, b): seconds for a in NAMES for b in NAMES if a != b}


PROGRAM = """\
# segmentation: off
qdisc replace dev eth1 root pfifo
qdisc replace dev eth1 root handle 1: htb default 0
class add dev eth1 parent 1: classid 1:10 htb rate 10000000000bit burst 5001514 cburst 5001514 quantum 20000
qdisc add dev eth1 parent 1:10 handle 10: netem delay 25ms limit 21641
filter add dev eth1 parent 1: protocol ip prio 1 u32 match ip dst 10.0.0.11/32 flowid 1:10
filter add dev eth1 parent 1: protocol ip prio 1 u32 match ip dst 10.0.0.12/32 flowid 1:10
class add dev eth1 parent 1: classid 1:12 htb rate 20000000bit burst 11514 cburst 11514 quantum 20000
qdisc add dev eth1 parent 1:12 handle 12: netem delay 37.5ms 5ms loss 0.1% limit 1071
filter add dev eth1 parent 1: protocol ip prio 1 u32 match ip dst 172.16.5.31/32 flowid 1:12
"""

NOTHING = """\
# segmentation: on
qdisc replace dev ens3 root pfifo
qdisc del dev ens3 root
"""


class TestPrograms:
    def test_is_this_text(self) -> None:
        shapes = shapes_of(
            constraints=[
                {"between": ["brest", "ares"], "delay": "25 ms"},
                {
                    "from": "brest",
                    "to": "cork",
                    "delay": "37.5 ms",
                    "jitter": "5 ms",
                    "loss": "0.1 %",
                    "rate": "20 Mbit/s",
                },
            ]
        )
        assert egress.programs(shapes, HOSTS)["brest-1"] == PROGRAM

    def test_a_host_with_nothing_to_shape_gets_no_class(self) -> None:
        shapes = shapes_of(constraints=[{"from": "brest", "to": "ares", "delay": "25 ms"}])
        programs = egress.programs(shapes, HOSTS)
        assert programs["ares-2"] == NOTHING
        assert [name for name, text in programs.items() if "netem" in text] == ["brest-1"]

    def test_only_paths_with_something_to_shape_have_a_class(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "cork", "rate": "1 Mbit/s"}])
        text = egress.programs(shapes, HOSTS)["ares-1"]
        assert text.count("class add") == text.count("filter add") == 1
        assert "172.16.5.31" in text

    def test_all_hosts_of_a_site_shape_alike_on_their_own_devices(self) -> None:
        programs = egress.programs(path_shapes(MIXED_NETWORK, NAMES), HOSTS)
        assert programs["ares-1"].replace("dev eth1", "dev ens3") == programs["ares-2"]
        assert "10.0.0.1" not in programs["ares-1"]

    def test_the_order_of_hosts_does_not_matter(self) -> None:
        shapes = path_shapes(MIXED_NETWORK, NAMES)
        assert egress.programs(shapes, HOSTS) == egress.programs(shapes, HOSTS[::-1])

    def test_leased_hosts_are_hosts(self) -> None:
        leased = [LeasedHost(roles=(), management_address="192.0.2.1", **vars(host)) for host in HOSTS]
        shapes = path_shapes(MIXED_NETWORK, NAMES)
        assert egress.programs(shapes, leased) == egress.programs(shapes, HOSTS)

    def test_two_hosts_of_one_address_are_refused(self) -> None:
        twin = Host("cork-2", "cork", "10.0.0.21")
        with pytest.raises(TestbedError, match=r"brest-1 and cork-2 have the same address 10\.0\.0\.21"):
            egress.programs(shapes_of(), (*HOSTS, twin))

    @pytest.mark.parametrize(
        ("shape", "off"),
        [({"delay": "9 ms"}, False), ({"loss": "1 %"}, True), ({"delay": "9 ms", "jitter": "1 ms"}, True)],
    )
    def test_super_packets_are_kept_out_only_where_packets_leave_that_need_it(
        self, shape: dict[str, str], off: bool
    ) -> None:
        programs = egress.programs(shapes_of(constraints=[{"from": "brest", "to": "cork", **shape}]), HOSTS)
        assert programs["brest-1"].startswith(SEGMENTATION_OFF if off else SEGMENTATION_ON)
        assert programs["cork-1"].startswith(SEGMENTATION_ON)


class Device(Tc):
    """As a router's, but the root may go."""

    def run(self, program: str) -> None:
        lines = program.splitlines()
        if lines and " del " in lines[-1]:
            deleted = lines.pop().split()
            assert deleted[:3] + deleted[4:] == ["qdisc", "del", "dev", "root"]
            super().run("\n".join(lines))
            assert self.roots.pop(deleted[3]) == "root pfifo"
            return
        super().run(program)


class TestChanges:
    def test_only_what_changes_on_hosts_that_send_there(self) -> None:
        old = shapes_of(default={"delay": "10 ms"})
        new = shapes_of(default={"delay": "10 ms"}, constraints=[{"from": "ares", "to": "cork", "delay": "20 ms"}])
        line = "qdisc change dev {} parent 1:12 handle 12: netem delay 20ms limit 17513"
        assert egress.changes(old, new, HOSTS) == {
            "ares-1": f"# segmentation: on\n{line.format('eth1')}\n",
            "ares-2": f"# segmentation: on\n{line.format('ens3')}\n",
        }

    def test_nothing_changes_nothing(self) -> None:
        shapes = path_shapes(MIXED_NETWORK, NAMES)
        assert egress.changes(shapes, dict(shapes), HOSTS) == {}
        assert egress.changes(shapes_of(), shapes_of(), HOSTS) == {}

    @pytest.mark.parametrize("way", [1, -1])
    def test_a_path_that_begins_or_ends_to_be_shaped_needs_the_whole_program_of_its_host(self, way: int) -> None:
        flat, slow = shapes_of(), shapes_of(constraints=[{"from": "cork", "to": "ares", "delay": "20 ms"}])
        old, new = (flat, slow)[::way]
        assert egress.changes(old, new, HOSTS) == {"cork-1": egress.programs(new, HOSTS)["cork-1"]}

    def test_other_sites_cannot_be_changed_into(self) -> None:
        fewer = path_shapes(Network(), NAMES[:2])
        with pytest.raises(ValueError, match="sites have changed"):
            egress.changes(shapes_of(), fewer, HOSTS)

    @pytest.mark.parametrize("seed", range(50))
    def test_changes_lead_where_the_whole_programs_lead(self, seed: int) -> None:
        chance = random.Random(seed)
        old, new = (path_shapes(random_network(chance), NAMES) for _ in range(2))
        changes = egress.changes(old, new, HOSTS)
        for host in HOSTS:
            changed, fresh = Device(), Device()
            changed.run(egress.programs(old, HOSTS)[host.name])
            changed.run(changes.get(host.name, ""))
            fresh.run(egress.programs(new, HOSTS)[host.name])
            assert changed.state() == fresh.state()
            fresh.run(egress.programs(new, HOSTS)[host.name])  # repeatable
            assert changed.state() == fresh.state()


class TestReadback:
    """On what was recorded from a router: there a device filters on sources, here on destinations."""

    shapes = path_shapes(MIXED_NETWORK, NAMES)

    @pytest.fixture
    def shown(self) -> dict[str, Any]:
        """What ares-1 shows: the classes that the router has towards brest and towards cork from ares, as its own."""
        recorded: dict[str, Any] = json.loads(RECORDED.read_text())
        qdiscs = [q for q in recorded["qdisc"]["vec1"] if q.get("root")]
        qdisc = next(q for q in recorded["qdisc"]["vec1"] if q.get("parent") == "1:10")
        qdiscs.append({**qdisc, "handle": "11:", "parent": "1:11"})
        line = next(line for line in recorded["class"]["vec1"] if " 1:10 " in line).replace(" 1:10 ", " 1:11 ")
        match = {"value": "a000015", "mask": "ffffffff", "offmask": "", "off": 16}
        filters = [{"kind": "u32", "options": {"flowid": "1:11", "match": match}}]
        return {"qdisc": {"eth1": qdiscs}, "class": {"eth1": [line]}, "filter": {"eth1": filters}, "segmentation": {}}

    def problems(self, shown: dict[str, Any], **changed: Any) -> tuple[str, ...]:
        shapes = {pair: PathShape() for pair in self.shapes} | {("ares", "brest"): self.shapes["ares", "brest"]}
        idle: dict[str, Any] = {"qdisc": {}, "class": {}, "filter": {}, "segmentation": {}}
        by_host = {name: json.dumps(idle) for name in ("ares-2", "brest-1", "cork-1")}
        ares_2 = {**shown, **{key: {"ens3": shown[key].get("eth1")} for key in ("qdisc", "class", "filter")}}
        by_host |= {"ares-1": json.dumps(shown), "ares-2": json.dumps(ares_2)}
        return egress.readback_problems(shapes, by_host | changed, HOSTS)

    def test_what_tc_showed_is_what_was_asked(self, shown: dict[str, Any]) -> None:
        assert self.problems(shown) == ()

    def test_names_path_host_and_device(self, shown: dict[str, Any]) -> None:
        shown["filter"]["eth1"][0]["options"]["match"]["value"] = "a000016"
        assert self.problems(shown)[0] == (
            "ares -> brest (ares-1: eth1): packets to 10.0.0.21/32 should go to class 1:11, "
            "tc shows ['to 10.0.0.22/32']"
        )

    def test_a_filter_on_sources_is_none_on_destinations(self, shown: dict[str, Any]) -> None:
        shown["filter"]["eth1"][0]["options"]["match"]["off"] = 12
        assert self.problems(shown)[0].endswith("tc shows ['from 10.0.0.21/32']")

    def test_super_packets_where_packets_are_lost(self, shown: dict[str, Any]) -> None:
        shown["segmentation"]["eth1"] = True
        assert self.problems(shown) == ("ares-1: eth1: takes super-packets (TSO, GSO), which shaping needs off",)

    def test_what_is_left_where_nothing_is_to_be_shaped(self, shown: dict[str, Any]) -> None:
        def left(root: dict[str, Any]) -> tuple[str, ...]:
            return self.problems(shown, **{"cork-1": json.dumps({"qdisc": {"eth1": [{"root": True, **root}]}})})

        assert left({"kind": "htb", "handle": "1:"}) == ("cork-1: eth1: nothing is to be shaped, but tc shows htb",)
        assert left({"kind": "mq", "handle": "0:"}) == ()
