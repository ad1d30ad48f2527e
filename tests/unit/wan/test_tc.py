"""The WAN as a plan, and the programs that tc is given."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from discovery_deploy.experiment.model import Network
from discovery_deploy.wan import tc
from discovery_deploy.wan.plan import wan_plan
from discovery_deploy.wan.shapes import (
    Pair,
    PathShape,
    path_shapes,
)
from discovery_deploy.wan.tc import SEGMENTATION_OFF, SEGMENTATION_ON
from tests.unit.wan.three_sites import DEVICES, MIXED_NETWORK, NAMES, SUBNETS


def network(**fields: Any) -> Network:
    return Network.model_validate(fields)


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(network(**fields), NAMES)


PROGRAM = """\
# segmentation: off
qdisc replace dev vec0 root pfifo
qdisc replace dev vec0 root handle 1: htb default 0
class add dev vec0 parent 1: classid 1:11 htb rate 10000000000bit burst 5001514 cburst 5001514 quantum 20000
qdisc add dev vec0 parent 1:11 handle 11: netem delay 25ms limit 21641
filter add dev vec0 parent 1: protocol ip prio 1 u32 match ip src 10.218.1.0/24 flowid 1:11
qdisc replace dev vec1 root pfifo
qdisc replace dev vec1 root handle 1: htb default 0
class add dev vec1 parent 1: classid 1:10 htb rate 20000000bit burst 11514 cburst 11514 quantum 20000
qdisc add dev vec1 parent 1:10 handle 10: netem delay 37.5ms 5ms loss 0.1% limit 1071
filter add dev vec1 parent 1: protocol ip prio 1 u32 match ip src 10.218.0.0/24 flowid 1:10
"""

CHANGES = """\
# segmentation: on
class change dev vec1 parent 1: classid 1:10 htb rate 10000000000bit burst 5001514 cburst 5001514 quantum 20000
qdisc change dev vec1 parent 1:10 handle 10: netem delay 25ms limit 21641
"""


def tc_program(shapes: dict[Pair, PathShape], devices: dict[str, str], subnets: dict[str, str]) -> str:
    return tc.text(tc.program(wan_plan(shapes, devices, subnets)))


def tc_changes(old: dict[Pair, PathShape], new: dict[Pair, PathShape], devices: dict[str, str]) -> str:
    found = tc.changes(wan_plan(old, devices, SUBNETS), wan_plan(new, devices, SUBNETS))
    return tc.text(found) if found else ""


class Tc:
    """A router's state after tc programs: enough of tc for ours, and strict about the rest."""

    def __init__(self) -> None:
        self.roots: dict[str, str] = {}
        self.classes: dict[tuple[str, str], str] = {}
        self.netems: dict[tuple[str, str], str] = {}
        self.filters: dict[tuple[str, str], str] = {}
        self.segmentation = ""

    def run(self, program: str) -> None:
        for line in program.splitlines():
            if line.startswith("#"):
                self.segmentation = line
                continue
            kind, verb, _, device, rest = line.split(" ", 4)
            if kind == "qdisc" and rest.startswith("root"):
                assert verb == "replace"
                assert rest == "root pfifo" or self.roots[device] == "root pfifo", "htb refuses to be replaced by htb"
                self.roots[device] = rest
                for table in (self.classes, self.netems, self.filters):
                    for key in [key for key in table if key[0] == device]:
                        del table[key]
                continue
            self._one(kind, verb, device, rest)

    def _one(self, kind: str, verb: str, device: str, rest: str) -> None:
        patterns = {
            "class": r"parent 1: classid (?P<key>1:\w+) (?P<options>htb .*)",
            "qdisc": r"parent (?P<key>1:(\w+)) handle \2: (?P<options>netem .*)",
            "filter": r"parent 1: protocol ip prio 1 u32 match ip (?P<key>(?:src|dst) \S+) flowid (?P<options>1:\w+)",
        }
        table = {"class": self.classes, "qdisc": self.netems, "filter": self.filters}[kind]
        found = re.fullmatch(patterns[kind], rest)
        assert found, f"{kind} {rest}"
        key = (device, found["key"])
        assert verb == ("change" if key in table else "add")
        if kind != "class":
            assert (device, found["options" if kind == "filter" else "key"]) in self.classes
        table[key] = found["options"]

    def state(self) -> tuple[Any, ...]:
        return self.roots, self.classes, self.netems, self.filters, self.segmentation


def random_network(chance: random.Random) -> Network:
    def shape() -> dict[str, str]:
        delay_ms = chance.choice([0, 1, 10, 37.5, 150])
        choices = {
            "delay": f"{delay_ms} ms",
            "jitter": f"{chance.choice([ms for ms in (0, 1, 5) if ms <= delay_ms])} ms",
            "loss": f"{chance.choice([0, 0.1, 5])} %",
            "rate": f"{chance.choice([1, 20, 1000])} Mbit/s",
        }
        shown = {key: value for key, value in choices.items() if chance.random() < 0.5}
        return {"delay": "5 ms", "jitter": "0 ms", **shown} if "delay" not in shown else {"jitter": "0 ms", **shown}

    pairs = [(a, b) for a in NAMES for b in NAMES if a != b]
    constraints = [{"from": a, "to": b, **shape()} for a, b in chance.sample(pairs, chance.randrange(5))]
    return network(default=shape(), constraints=constraints)


class TestProgram:
    def test_is_this_text_for_two_sites(self) -> None:
        shapes = {pair: s for pair, s in path_shapes(MIXED_NETWORK, NAMES).items() if "cork" not in pair}
        shapes["brest", "ares"] = PathShape(delay_s=0.025)
        two = {name: DEVICES[name] for name in NAMES[:2]}
        assert tc_program(shapes, two, SUBNETS) == PROGRAM

    def test_changes_are_this_text_and_only_of_what_changes(self) -> None:
        old = {pair: PathShape(delay_s=0.025) for pair in shapes_of()}
        old["ares", "brest"] = PathShape(delay_s=0.025, rate_bps=2e7, loss=0.1)
        assert tc_changes(old, shapes_of(default={"delay": "25 ms"}), DEVICES) == CHANGES

    def test_nothing_changes_nothing(self) -> None:
        assert tc_changes(shapes_of(), shapes_of(), DEVICES) == ""

    def test_other_sites_cannot_be_changed_into(self) -> None:
        two = {name: DEVICES[name] for name in NAMES[:2]}
        fewer = path_shapes(network(), NAMES[:2])
        with pytest.raises(ValueError, match="sites have changed"):
            tc.changes(wan_plan(shapes_of(), DEVICES, SUBNETS), wan_plan(fewer, two, SUBNETS))
        with pytest.raises(ValueError, match="not of the sites"):
            wan_plan(fewer, DEVICES, SUBNETS)

    @pytest.mark.parametrize("seed", range(50))
    def test_changes_lead_where_the_whole_program_leads(self, seed: int) -> None:
        chance = random.Random(seed)
        old, new = (path_shapes(random_network(chance), NAMES) for _ in range(2))
        changed, fresh = Tc(), Tc()
        changed.run(tc_program(old, DEVICES, SUBNETS))
        changes = tc_changes(old, new, DEVICES)
        assert "replace" not in changes
        assert " add " not in changes
        changed.run(changes)
        fresh.run(tc_program(new, DEVICES, SUBNETS))
        assert changed.state() == fresh.state()
        fresh.run(tc_program(new, DEVICES, SUBNETS))  # repeatable
        assert changed.state() == fresh.state()

    def test_equal_input_in_any_order_gives_equal_text(self) -> None:
        shapes = path_shapes(MIXED_NETWORK, NAMES)
        shuffled = {pair: shapes[pair] for pair in reversed(list(shapes))}
        devices = {name: DEVICES[name] for name in reversed(NAMES)}
        assert tc_program(shuffled, devices, SUBNETS) == tc_program(shapes, DEVICES, SUBNETS)
        flat = shapes_of()
        assert tc_changes(flat, shuffled, devices) == tc_changes(flat, shapes, DEVICES)

    def test_every_path_has_its_own_class_netem_and_filter_on_sixty_four_sites(self) -> None:
        names = [f"s{number}" for number in range(64)]
        devices = {name: f"vec{number}" for number, name in enumerate(names)}
        subnets = {name: f"10.218.{number}.0/24" for number, name in enumerate(names)}
        router = Tc()
        router.run(tc_program(path_shapes(network(), names), devices, subnets))
        assert len(router.classes) == len(router.netems) == len(router.filters) == 64 * 63
        for device in devices.values():
            classes = {classid for (on, _), classid in router.filters.items() if on == device}
            assert len(classes) == 63

    @pytest.mark.parametrize(
        ("shape", "off"),
        [
            ({}, False),
            ({"delay": "9 ms"}, False),
            ({"loss": "1 %"}, True),
            ({"rate": "1 Gbit/s"}, True),
            ({"delay": "9 ms", "jitter": "1 ms"}, True),
        ],
    )
    def test_super_packets_are_kept_out_where_they_would_cheat(self, shape: dict[str, str], off: bool) -> None:
        program = tc_program(shapes_of(default=shape), DEVICES, SUBNETS)
        assert program.startswith(SEGMENTATION_OFF if off else SEGMENTATION_ON)
