"""What is taken off for the testbed itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.wan import compensation
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s, path_shapes
from discovery_deploy.wan.verdict import WanReport, judge, unmeasured
from tests.unit.wan.test_tc import random_network
from tests.unit.wan.three_sites import NAMES

RECORDED = Path(__file__).parents[2] / "recorded" / "tc_three_sites.json"


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(Network.model_validate(fields), NAMES)


def pairs(seconds: float) -> dict[Pair, float]:
    return {(a, b): seconds for a in NAMES for b in NAMES if a != b}


class TestCompensation:
    def applied_ms(self, shapes: dict[Pair, PathShape], base_s: dict[Pair, float]) -> tuple[float, float]:
        applied = compensation.compensate(shapes, base_s, Verify())
        return 1e3 * applied["ares", "brest"].delay_s, 1e3 * applied["brest", "ares"].delay_s

    def test_half_of_the_testbed_is_taken_off_each_way(self) -> None:
        shapes = shapes_of(default={"delay": "10 ms"})
        assert self.applied_ms(shapes, pairs(0.003)) == pytest.approx((8.5, 8.5))

    @pytest.mark.parametrize(("source", "applied"), [("ares", (0.0, 14.0)), ("brest", (14.0, 0.0))])
    def test_what_one_way_has_not_the_other_gives(self, source: str, applied: tuple[float, float]) -> None:
        other = "brest" if source == "ares" else "ares"
        constraint = {"from": source, "to": other, "delay": "1 ms"}
        shapes = shapes_of(default={"delay": "20 ms"}, constraints=[constraint])
        assert self.applied_ms(shapes, pairs(0.007)) == pytest.approx(applied)

    def test_jitter_loss_and_rate_stay(self) -> None:
        shape = PathShape(delay_s=0.01, jitter_s=0.008, loss=0.1, rate_bps=1e6)
        shapes = shapes_of() | {("ares", "brest"): shape, ("brest", "ares"): PathShape(delay_s=0.01)}
        applied = compensation.compensate(
            shapes, pairs(0.0) | {("ares", "brest"): 0.01, ("brest", "ares"): 0.01}, Verify()
        )
        assert applied["ares", "brest"] == shape.model_copy(update={"delay_s": 0.008})
        assert applied["brest", "ares"].delay_s == pytest.approx(0.002)

    def test_the_mean_of_both_directions_counts_or_the_only_one(self) -> None:
        shapes = shapes_of(default={"delay": "10 ms"})
        one = pairs(0.002) | {("brest", "ares"): 0.004}
        assert self.applied_ms(shapes, one) == pytest.approx((8.5, 8.5))
        del one["ares", "brest"]
        assert self.applied_ms(shapes, one) == pytest.approx((8.0, 8.0))

    def test_every_pair_that_is_too_far_is_named_with_both_numbers(self) -> None:
        shapes = shapes_of(
            default={"delay": "2 ms"}, constraints=[{"from": "ares", "to": "cork", "delay": "20 ms", "jitter": "20 ms"}]
        )
        far = pairs(0.0031) | {("ares", "brest"): 0.0101, ("brest", "ares"): 0.0101}
        far |= {("ares", "cork"): 0.009, ("cork", "ares"): 0.009}
        with pytest.raises(MeasurementError) as refused:
            compensation.compensate(shapes, far, Verify())
        assert refused.value.what.splitlines() == [
            "ares <-> brest: RTT asked 4.00 ms, the testbed alone takes 10.10 ms",
            "ares <-> cork: RTT asked 22.00 ms (jitter leaves 2.00 ms of it), the testbed alone takes 9.00 ms",
        ]
        assert "longer delays" in refused.value.advice

    @pytest.mark.parametrize(("base_s", "well"), [(0.00499, True), (0.00501, False)])
    def test_as_much_more_as_the_verification_accepts_is_no_mistake(self, base_s: float, well: bool) -> None:
        shapes = shapes_of(default={"delay": "2 ms"})
        if well:
            assert self.applied_ms(shapes, pairs(base_s)) == (0.0, 0.0)
        else:
            with pytest.raises(MeasurementError):
                compensation.compensate(shapes, pairs(base_s), Verify())

    def test_where_nothing_is_asked_nothing_is_taken(self) -> None:
        assert compensation.compensate(shapes_of(), pairs(0.0009), Verify()) == shapes_of()

    def test_all_of_a_delay_leaves_a_path_unshaped(self) -> None:
        shapes = shapes_of(default={"delay": "0.3 ms"})
        assert compensation.compensate(shapes, pairs(0.0006), Verify()) == shapes_of()

    def test_a_pair_that_did_not_answer(self) -> None:
        base_s = pairs(0.001)
        del base_s["ares", "cork"], base_s["cork", "ares"]
        with pytest.raises(MeasurementError, match="ares <-> cork: the testbed's own RTT is not known"):
            compensation.compensate(shapes_of(default={"delay": "2 ms"}), base_s, Verify())

    @pytest.mark.parametrize("seed", range(50))
    def test_what_is_applied_and_the_testbed_are_what_was_asked(self, seed: int) -> None:
        chance = random.Random(seed)
        shapes = path_shapes(random_network(chance), NAMES)
        base_s = {pair: chance.uniform(0, 0.002) for pair in shapes}
        verify = Verify.model_validate({"rtt_tolerance": "2 ms"})
        applied = compensation.compensate(shapes, base_s, verify)
        for a, b in shapes:
            asked_s, base = asked_rtt_s(shapes, (a, b)), (base_s[a, b] + base_s[b, a]) / 2
            can_s = sum(max(0.0, s.delay_s - s.jitter_s) for s in (shapes[a, b], shapes[b, a]))
            assert asked_rtt_s(applied, (a, b)) == pytest.approx(asked_s - min(base, can_s), abs=1e-8)
            assert applied[a, b].delay_s >= min(shapes[a, b].jitter_s, shapes[a, b].delay_s)


class TestCorrection:
    """What is taken off is corrected by what was measured with it taken off."""

    def base(self, rtt_s: float, late_s: float = 0.0) -> compensation.BaseRtts:
        known = (compensation.BaseRtt(source=a, destination=b, rtt_s=rtt_s, late_s=late_s) for a, b in pairs(rtt_s))
        return compensation.BaseRtts(measured_at="t", identities={}, pairs=tuple(known))

    def report(self, shapes: dict[Pair, PathShape], errors_s: dict[Pair, float]) -> WanReport:
        found = [
            unmeasured(pair).model_copy(
                update={"sent": 9, "received": 9, "rtt_median_s": asked_rtt_s(shapes, pair) + error_s}
            )
            for pair, error_s in errors_s.items()
        ]
        return judge(shapes, found, Verify(), 0.0, measured_at="t")

    def corrected(
        self, delay_ms: float, base: compensation.BaseRtts, errors_s: dict[Pair, float]
    ) -> dict[Pair, float] | None:
        """RTTs in ms that are then shaped."""
        shapes = shapes_of(default={"delay": f"{delay_ms} ms"})
        better = compensation.corrected(base, shapes, self.report(shapes, errors_s), Verify())
        if better is None:
            return None
        assert better.by_pair() == base.by_pair()
        applied = compensation.compensate(shapes, better.by_pair(), Verify(), better.late())
        return {pair: round(1e3 * asked_rtt_s(applied, pair), 6) for pair in shapes}

    def test_what_shaped_paths_take_more_is_taken_off_too(self) -> None:
        found = self.corrected(25, self.base(0.001), pairs(0.0016))
        assert found == dict.fromkeys(pairs(0), 47.4)

    def test_what_was_too_much_is_given_back(self) -> None:
        found = self.corrected(25, self.base(0.008), pairs(-0.006))
        assert found == dict.fromkeys(pairs(0), 48.0)

    def test_a_second_one_adds_to_the_first(self) -> None:
        found = self.corrected(25, self.base(0.001, late_s=0.0016), pairs(0.0006))
        assert found == dict.fromkeys(pairs(0), 46.8)

    def test_only_where_a_path_is_off_by_more_than_half_of_what_is_accepted(self) -> None:
        assert self.corrected(25, self.base(0.001), pairs(0.00049)) is None
        one = pairs(0.0003) | {("ares", "brest"): 0.0007}  # the other way: 0.3 ms, hence 0.5 ms of both
        found = self.corrected(25, self.base(0.001), one)
        assert found == dict.fromkeys(pairs(0), 49.0) | {("ares", "brest"): 48.5, ("brest", "ares"): 48.5}

    def test_what_was_not_measured_stays(self) -> None:
        assert self.corrected(25, self.base(0.001), {}) is None

    @pytest.mark.parametrize(("delay_ms", "base_s", "error_s"), [(1, 0.0025, 0.0009), (25, 0.0, -0.002)])
    def test_where_no_more_can_be_taken_or_given_back_nothing_is_corrected(
        self, delay_ms: float, base_s: float, error_s: float
    ) -> None:
        assert self.corrected(delay_ms, self.base(base_s), pairs(error_s)) is None

    def test_lateness_is_no_reason_to_refuse_a_short_path(self) -> None:
        """It was seen on shaped paths; one with nothing left to shape has none."""
        shapes = shapes_of(default={"delay": "0.5 ms"})
        late = self.base(0.001, late_s=0.003)
        assert compensation.compensate(shapes, late.by_pair(), Verify(), late.late()) == shapes_of()
