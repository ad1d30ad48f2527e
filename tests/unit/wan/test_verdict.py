"""From measurements to a verdict."""

from __future__ import annotations

import random
from typing import Any

import pytest

from discovery_deploy.agent import probe
from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.wan.shapes import (
    Pair,
    PathShape,
    asked_rtt_s,
    path_shapes,
)
from discovery_deploy.wan.verdict import (
    PairMeasurement,
    PairVerdict,
    WanReport,
    jitter_tolerance_s,
    judge,
    rtt_tolerance_s,
    summary,
)
from tests.unit.wan.three_sites import NAMES


def network(**fields: Any) -> Network:
    return Network.model_validate(fields)


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(network(**fields), NAMES)


def measured(source: str, destination: str, rtt_s: float | None, **fields: Any) -> PairMeasurement:
    values: dict[str, Any] = {"sent": 40, "received": 40, "rtt_p99_s": rtt_s, "rtt_max_s": rtt_s, **fields}
    return PairMeasurement(source=source, destination=destination, rtt_median_s=rtt_s, **values)


def verdict(shapes: dict[Pair, PathShape], base_rtt_s: float = 0.0, **of_one: Any) -> tuple[str, ...]:
    """Problems of a WAN as asked, but for what `of_one` says of ares -> brest."""
    verify = of_one.pop("verify", Verify())
    pairs = {pair: measured(*pair, asked_rtt_s(shapes, pair) + base_rtt_s) for pair in shapes}
    pairs["ares", "brest"] = pairs["ares", "brest"].model_copy(update=of_one)
    return judge(shapes, pairs.values(), verify, base_rtt_s, measured_at="2026-01-01T00:00:00+00:00").problems


class TestVerdict:
    def test_as_asked_is_good(self) -> None:
        assert verdict(shapes_of(default={"delay": "25 ms"}), base_rtt_s=0.0003) == ()

    def test_too_slow_names_pair_asked_and_measured(self) -> None:
        (problem,) = verdict(shapes_of(default={"delay": "25 ms"}), rtt_median_s=0.0532)
        assert problem == (
            "ares -> brest: RTT asked 50.00 ms, measured 53.20 ms (median of 40; 0.00 ms of it are the testbed's), "
            "tolerance 1.00 ms"
        )

    def test_both_directions_count_in_a_round_trip(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "delay": "30 ms"}])
        assert asked_rtt_s(shapes, ("ares", "brest")) == asked_rtt_s(shapes, ("brest", "ares")) == 0.03
        assert verdict(shapes) == ()

    @pytest.mark.parametrize(("extra_s", "good"), [(0.0009, True), (-0.0009, True), (0.0011, False), (-0.0011, False)])
    def test_the_tolerance_holds_both_ways(self, extra_s: float, good: bool) -> None:
        assert (verdict(shapes_of(default={"delay": "5 ms"}), rtt_median_s=0.01 + extra_s) == ()) is good

    @pytest.mark.parametrize(("extra_s", "good"), [(0.0059, True), (0.0061, False)])
    def test_or_as_a_share_of_the_round_trip(self, extra_s: float, good: bool) -> None:
        assert (verdict(shapes_of(default={"delay": "150 ms"}), rtt_median_s=0.3 + extra_s) == ()) is good

    def test_the_testbed_itself_is_forgiven(self) -> None:
        shapes = shapes_of(default={"delay": "5 ms"})
        assert verdict(shapes, base_rtt_s=0.0008, rtt_median_s=0.0117) == ()
        assert verdict(shapes, base_rtt_s=0.0, rtt_median_s=0.0117) != ()

    def test_but_not_when_it_is_slower_than_the_tolerance(self) -> None:
        problems = verdict(shapes_of(default={"delay": "5 ms"}), base_rtt_s=0.005)
        assert len(problems) == 6

    def test_the_error_that_is_told_is_the_one_that_was_judged(self) -> None:
        shapes = shapes_of(default={"delay": "5 ms"})
        pairs = [measured(*pair, asked_rtt_s(shapes, pair) + 0.0014) for pair in shapes]
        report = judge(shapes, pairs, Verify(), 0.0014, measured_at="2026-01-01T00:00:00+00:00")
        assert report.problems == ()
        assert "largest RTT error 0.40 ms" in summary(report)
        assert {report.base_of(pair) for pair in report.pairs} == {Verify().rtt_tolerance}

    def test_jitter_widens_the_tolerance_by_what_a_median_then_spreads(self) -> None:
        shapes = shapes_of(default={"delay": "50 ms", "jitter": "10 ms"})
        tolerances_s = [rtt_tolerance_s(shapes, ("ares", "brest"), Verify(), count) for count in (40, 4000)]
        # 2 % of 100 ms, and 3 x 1.2533 x 8.165 ms / sqrt(n)
        assert tolerances_s == pytest.approx([0.002 + 0.004854, 0.002 + 0.000485], abs=1e-6)

    def test_medians_of_simulated_jitter_stay_within_it(self) -> None:
        shapes = shapes_of(default={"delay": "50 ms", "jitter": "10 ms"})
        chance, outside = random.Random(1), 0
        for _ in range(1000):
            rtts_s = sorted(0.1 + chance.uniform(-0.01, 0.01) + chance.uniform(-0.01, 0.01) for _ in range(41))
            outside += abs(rtts_s[20] - 0.1) > rtt_tolerance_s(shapes, ("ares", "brest"), Verify(), 41)
        assert outside <= 3

    def test_no_reply(self) -> None:
        assert verdict(shapes_of(), rtt_median_s=None, received=0) == ("ares -> brest: no reply to 40 echo requests",)

    def test_no_reply_is_right_where_everything_is_lost(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "loss": "100 %"}])
        lost = {"rtt_median_s": None, "received": 0}
        pairs = [
            measured(*pair, 0.0).model_copy(update=lost if set(pair) == {"ares", "brest"} else {}) for pair in shapes
        ]
        assert judge(shapes, pairs, Verify(), 0.0, measured_at="now").problems == ()

    def test_echoes_lost_where_none_should_be(self) -> None:
        assert verdict(shapes_of(), received=39) == ()
        (problem,) = verdict(shapes_of(), received=36)
        assert problem.startswith("ares -> brest: 4 of 40 echoes lost (10.0 %), asked 0.0 %")

    def test_no_echo_lost_where_half_should_be(self) -> None:
        shapes = shapes_of(default={"loss": "30 %"})
        problems = verdict(shapes)
        assert "ares -> brest: 0 of 40 echoes lost (0.0 %), asked 51.0 % for both ways together" in problems
        assert verdict(shapes, received=20)[0].startswith("ares -> cork")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"loss": 0.02}, "loss asked 5.00 %, measured 2.00 %, tolerance 2.00 %"),
            ({"rate_bps": 24e6}, "rate asked 20.000 Mbit/s, measured 24.000 Mbit/s, tolerance 3.000 Mbit/s"),
            ({"rate_bps": 16e6}, "rate asked 20.000 Mbit/s, measured 16.000 Mbit/s, tolerance 3.000 Mbit/s"),
            (
                {"one_way_median_s": 0.012},
                "one-way delay asked 10.00 ms, measured 12.00 ms (0.00 ms of it are the testbed's), tolerance 1.00 ms",
            ),
            ({"loss": 0.0601, "rate_bps": 19e6, "one_way_median_s": 0.0105}, None),
        ],
    )
    def test_loss_rate_and_one_way_delay(self, fields: dict[str, float], message: str | None) -> None:
        shapes = shapes_of(default={"delay": "10 ms", "loss": "5 %", "rate": "20 Mbit/s"})
        assert verdict(shapes, received=36, **fields) == ((f"ares -> brest: {message}",) if message else ())

    def test_directions_that_were_swapped_are_told_where_they_are_seen(self) -> None:
        constraints = [
            {"from": "ares", "to": "brest", "delay": "5 ms"},
            {"from": "brest", "to": "ares", "delay": "80 ms"},
        ]
        shapes = shapes_of(constraints=constraints)
        right = [measured(*pair, asked_rtt_s(shapes, pair), one_way_median_s=shapes[pair].delay_s) for pair in shapes]
        assert judge(shapes, right, Verify(), 0.0, measured_at="now").problems == ()
        swapped = [m.model_copy(update={"one_way_median_s": shapes[m.destination, m.source].delay_s}) for m in right]
        first, second = judge(shapes, swapped, Verify(), 0.0, measured_at="now").problems
        assert first.startswith("ares -> brest: one-way delay asked 5.00 ms, measured 80.00 ms")
        assert second.startswith("brest -> ares: one-way delay asked 80.00 ms, measured 5.00 ms")

    def test_half_of_the_testbed_s_own_rtt_is_forgiven_each_way(self) -> None:
        shapes = shapes_of(default={"delay": "10 ms"})
        assert verdict(shapes, base_rtt_s=0.0008, one_way_median_s=0.0113) == ()
        assert verdict(shapes, base_rtt_s=0.0, one_way_median_s=0.0113) != ()

    @pytest.mark.parametrize(("jitter_s", "good"), [(0.005, True), (0.0075, True), (0.0, False), (0.009, False)])
    def test_jitter_is_compared_where_it_is_seen(self, jitter_s: float, good: bool) -> None:
        shapes = shapes_of(default={"delay": "20 ms", "jitter": "5 ms"})
        problems = verdict(shapes, jitter_s=jitter_s)
        assert (problems == ()) is good
        assert good or problems[0].startswith("ares -> brest: jitter asked 5.00 ms, measured")

    def test_measured_jitter_of_simulated_delays_is_within_its_tolerance(self) -> None:
        chance, outside = random.Random(1), 0
        tolerance_s = jitter_tolerance_s(0.01, Verify(rtt_tolerance="0 ms"), 40)
        for _ in range(1000):
            found = probe.one_way([chance.uniform(0.01, 0.03) for _ in range(40)])["jitter_s"]
            outside += abs(found - 0.01) > tolerance_s
        assert outside <= 3

    def test_a_reply_where_all_should_be_lost_is_told_even_in_time(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "loss": "100 %"}])
        there, back = verdict(shapes, received=1)
        assert there == "ares -> brest: 1 of 40 echoes came back, asked was a loss of 100 % on the way there"
        assert back == "brest -> ares: 40 of 40 echoes came back, asked was a loss of 100 % on the way back"

    @pytest.mark.parametrize(("rate", "forwards_bps", "good"), [
        ("1 Gbit/s", 350e6, False), ("300 Mbit/s", 350e6, True), ("1 Gbit/s", None, True),
    ])  # fmt: skip
    def test_a_rate_that_the_router_may_not_forward_is_not_as_asked_before_it_is_measured(
        self, rate: str, forwards_bps: float | None, good: bool
    ) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "rate": rate}])
        pairs = [measured(*pair, 0.0) for pair in shapes]
        report = judge(shapes, pairs, Verify(), 0.0, measured_at="now", forwards_bps=forwards_bps)
        assert (report.problems == ()) is good
        assert good or "rate asked 1000.000 Mbit/s, not measured, and more than the 350 Mbit/s" in report.problems[0]
        seen = [m.model_copy(update={"rate_bps": shapes[m.source, m.destination].rate_bps}) for m in pairs]
        report = judge(shapes, seen, Verify(), 0.0, measured_at="now", forwards_bps=forwards_bps)
        assert report.problems == ()

    def test_what_was_not_measured_is_named_and_not_called_as_asked(self) -> None:
        constraints = [
            {"from": "ares", "to": "brest", "loss": "100 %"},
            {"from": "cork", "to": "ares", "rate": "20 Mbit/s", "jitter": "1 ms"},
        ]
        shapes = shapes_of(default={"delay": "5 ms"}, constraints=constraints)
        lost = {"rtt_median_s": None, "received": 0}
        pairs = [
            measured(*pair, 0.01).model_copy(update=lost if set(pair) == {"ares", "brest"} else {}) for pair in shapes
        ]
        report = judge(shapes, pairs, Verify(), 0.0, measured_at="now")
        assert report.problems == ()
        assert summary(report) == (
            "6 ordered pairs as asked where measured, largest RTT error 0.00 ms; not measured, only read back: "
            "RTT (2 of 6 pairs), jitter (1 of 6 pairs), loss (1 of 6 pairs), one-way delay (6 of 6 pairs), "
            "rate (1 of 6 pairs)"
        )
        flat = shapes_of(default={"delay": "5 ms"})
        whole = [measured(*pair, 0.01, one_way_median_s=0.005) for pair in flat]
        report = judge(flat, whole, Verify(), 0.0, measured_at="now")
        assert summary(report) == "6 ordered pairs as asked, largest RTT error 0.00 ms"

    def test_a_record_of_before_one_way_delays_says_that_they_were_not_measured(self) -> None:
        old = measured("ares", "brest", 0.01).model_dump(exclude={"one_way_median_s", "jitter_s"})
        verdict = PairVerdict.model_validate(
            {"asked": {"delay_s": 0.005}, "asked_rtt_s": 0.01, "measured": old, "problems": []}
        )
        assert verdict.not_measured == ("one-way delay",)

    def test_a_pair_that_was_not_measured(self) -> None:
        shapes = shapes_of()
        pairs = [measured(*pair, 0.0) for pair in shapes if pair != ("cork", "ares")]
        report = judge(shapes, pairs, Verify(), 0.0, measured_at="now")
        assert report.problems == ("cork -> ares: not measured",)

    def test_the_report_is_complete_sorted_and_can_be_kept(self) -> None:
        shapes = shapes_of(default={"delay": "1 ms"})
        pairs = [measured(*pair, 0.002) for pair in reversed(list(shapes))]
        report = judge(
            shapes, pairs, Verify(), 0.0001, measured_at="now", readback_problems=["x"], probe_scheduling="fifo"
        )
        assert [(v.measured.source, v.measured.destination) for v in report.pairs] == sorted(shapes)
        assert report.problems == ("x",)
        assert WanReport.model_validate_json(report.model_dump_json()) == report
