"""What tc shows, compared with what was asked, on what was recorded from a router."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.model import Network
from discovery_deploy.wan import tc
from discovery_deploy.wan.plan import wan_plan
from discovery_deploy.wan.shapes import path_shapes
from tests.unit.wan.three_sites import DEVICES, MIXED_NETWORK, NAMES, SUBNETS

RECORDED = Path(__file__).parents[2] / "recorded" / "tc_three_sites.json"
"""Taken (tc 6.1, kernel 6.1) from a router that had `MIXED_NETWORK`."""


class TestReadback:
    shapes = path_shapes(MIXED_NETWORK, NAMES)

    def problems(self, shown: dict[str, Any]) -> tuple[str, ...]:
        return tc.problems(wan_plan(self.shapes, DEVICES, SUBNETS), shown)

    @pytest.fixture
    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(RECORDED.read_text())
        return shown

    def netem(self, shown: dict[str, Any], device: str, parent: str) -> dict[str, Any]:
        qdisc: dict[str, Any] = next(q for q in shown["qdisc"][device] if q.get("parent") == parent)
        return qdisc

    def test_what_tc_showed_is_what_was_asked(self, shown: dict[str, Any]) -> None:
        assert self.problems(shown) == ()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"delay": "25.1 ms"}, "ares -> brest (vec1): delay asked 25.1 ms, tc shows 37.499 ms"),
            ({"jitter": "4.99 ms"}, "ares -> brest (vec1): jitter asked 4.99 ms, tc shows 5 ms"),
            ({"loss": "0.2 %"}, "ares -> brest (vec1): loss asked 0.2 %, tc shows 0.1 %"),
            ({"rate": "20.1 Mbit/s"}, "ares -> brest (vec1): rate asked 20.1 Mbit/s, tc shows 20 Mbit/s"),
            ({"delay": "150 ms"}, "ares -> brest (vec1): queue asked 1256 packets, tc shows 1071"),
        ],
    )
    def test_every_value_is_compared(self, shown: dict[str, Any], change: dict[str, str], message: str) -> None:
        asked = {"delay": "37.5 ms", "jitter": "5 ms", "loss": "0.1 %", "rate": "20 Mbit/s", **change}
        one = path_shapes(Network.model_validate({"constraints": [{"from": "ares", "to": "brest", **asked}]}), NAMES)[
            "ares", "brest"
        ]
        shapes = {**self.shapes, ("ares", "brest"): one}
        assert message in tc.problems(wan_plan(shapes, DEVICES, SUBNETS), shown)

    def test_a_class_that_is_gone(self, shown: dict[str, Any]) -> None:
        del shown["class"]["vec1"][0]
        assert self.problems(shown) == ("ares -> brest (vec1): no class 1:10",)

    def test_a_netem_that_is_gone(self, shown: dict[str, Any]) -> None:
        shown["qdisc"]["vec1"].remove(self.netem(shown, "vec1", "1:10"))
        assert self.problems(shown) == ("ares -> brest (vec1): no netem, but nothing",)

    def test_another_queue_in_its_place(self, shown: dict[str, Any]) -> None:
        self.netem(shown, "vec1", "1:10")["kind"] = "pfifo"
        assert self.problems(shown) == ("ares -> brest (vec1): no netem, but pfifo",)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"duplicate": {"duplicate": 0.01, "correlation": 0}}, "duplicate"),
            ({"reorder": {"reorder": 0.25, "correlation": 0}}, "reorder"),
            ({"corrupt": {"corrupt": 0.25, "correlation": 0}}, "corrupt"),
            ({"ecn": True}, "ecn"),
            ({"gap": 5}, "gap"),
            ({"delay": {"delay": 0.0375, "jitter": 0.005, "correlation": 0.25}}, "delay correlation"),
            ({"loss-random": {"loss": 0.001, "correlation": 0.25}}, "loss-random correlation"),
        ],
    )
    def test_what_nobody_asked_of_netem(self, shown: dict[str, Any], options: dict[str, Any], word: str) -> None:
        self.netem(shown, "vec1", "1:10")["options"].update(options)
        assert self.problems(shown) == (f"ares -> brest (vec1): netem also has {word}",)

    def test_no_htb_at_the_root(self, shown: dict[str, Any]) -> None:
        shown["qdisc"]["vec2"] = [{"kind": "noqueue", "handle": "0:", "root": True, "options": {}}]
        assert self.problems(shown) == ("vec2 towards cork: no htb of ours at the root, but noqueue",)

    def test_a_filter_that_is_gone(self, shown: dict[str, Any]) -> None:
        shown["filter"]["vec0"] = [f for f in shown["filter"]["vec0"] if f.get("options", {}).get("flowid") != "1:12"]
        assert self.problems(shown) == (
            "cork -> ares (vec0): packets from 10.218.2.0/24 should go to class 1:12, tc shows []",
        )

    def test_filters_that_send_elsewhere(self, shown: dict[str, Any]) -> None:
        wrong = next(f for f in shown["filter"]["vec0"] if f.get("options", {}).get("flowid") == "1:12")
        wrong["options"]["flowid"] = "1:11"
        first, second = self.problems(shown)
        assert first.startswith("brest -> ares (vec0): packets from 10.218.1.0/24 should go to class 1:11, tc shows [")
        assert second.endswith("should go to class 1:12, tc shows []")

    @pytest.mark.parametrize(
        ("table", "entry", "word"),
        [
            ("class", "class htb 1:99 root prio 0 rate 1Kbit ceil 1Kbit burst 1b cburst 1b", "1:99"),
            ("filter", {"kind": "matchall", "options": {"flowid": "1:99"}}, "of matchall"),
            ("filter", {"kind": "u32", "options": {"match": {"value": "0", "mask": "0", "off": 0}}}, "none"),
        ],
    )
    def test_what_is_not_ours(self, shown: dict[str, Any], table: str, entry: Any, word: str) -> None:
        shown[table]["vec2"].append(entry)
        assert self.problems(shown) == (f"vec2 towards cork: class or filter {word} is not ours",)

    def test_super_packets_where_packets_are_lost(self, shown: dict[str, Any]) -> None:
        shown["segmentation"]["vec1"] = True
        assert self.problems(shown) == ("vec1 towards brest: takes super-packets (TSO, GSO), which shaping needs off",)
