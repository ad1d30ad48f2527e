"""From constraints to the shape of every path."""

from __future__ import annotations

from typing import Any

import pytest

from discovery_deploy.experiment.model import Network
from discovery_deploy.wan.shapes import (
    UNLIMITED_BPS,
    Pair,
    PathShape,
    limit_packets,
    path_shapes,
    queue_limit,
)
from tests.unit.wan.three_sites import NAMES


def network(**fields: Any) -> Network:
    return Network.model_validate(fields)


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(network(**fields), NAMES)


class TestShapes:
    def test_every_ordered_pair_has_one(self) -> None:
        assert list(shapes_of()) == sorted((a, b) for a in NAMES for b in NAMES if a != b)

    def test_what_a_constraint_leaves_out_comes_from_the_default(self) -> None:
        shapes = shapes_of(
            default={"delay": "10 ms", "jitter": "1 ms", "rate": "1 Gbit/s"},
            constraints=[
                {"between": ["ares", "brest"], "loss": "5 %"},
                {"from": "cork", "to": "ares", "delay": "0 s", "jitter": "0 s"},
            ],
        )
        assert shapes["ares", "brest"] == PathShape(delay_s=0.01, jitter_s=0.001, loss=0.05, rate_bps=1e9)
        assert shapes["brest", "ares"] == shapes["ares", "brest"]
        assert shapes["cork", "ares"] == PathShape(delay_s=0.0, rate_bps=1e9)
        assert shapes["ares", "cork"] == PathShape(delay_s=0.01, jitter_s=0.001, rate_bps=1e9)

    def test_a_site_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="dover"):
            shapes_of(constraints=[{"between": ["ares", "dover"], "delay": "1 ms"}])

    def test_it_reads_as_in_the_file(self) -> None:
        assert str(PathShape(delay_s=0.0375, jitter_s=0.005, loss=0.001, rate_bps=2e7)) == (
            "37.5 ms, jitter 5 ms, loss 0.1 %, 20 Mbit/s"
        )


class TestQueueLimit:
    @pytest.mark.parametrize(
        ("delay_s", "rate_bps", "packets"),
        [
            (0.0, 1e9, 1000),
            (0.1, 8 * 1514 * 1000, 1100),
            (0.1, 8 * 1514 * 1000 + 1, 1101),
            (0.15, 20e6, 1248),
            (0.15, UNLIMITED_BPS, 124_845),
        ],
    )
    def test_holds_what_is_on_its_way_and_a_thousand_that_wait(
        self, delay_s: float, rate_bps: float, packets: int
    ) -> None:
        assert queue_limit(delay_s, rate_bps) == packets

    @pytest.mark.parametrize(("delay_s", "rate_bps"), [(-0.1, 1e6), (0.1, 0.0), (0.1, -1.0)])
    def test_refuses_what_makes_no_sense(self, delay_s: float, rate_bps: float) -> None:
        with pytest.raises(ValueError, match="no queue"):
            queue_limit(delay_s, rate_bps)

    def test_jitter_counts_as_delay(self) -> None:
        steady, shaky = PathShape(delay_s=0.02, rate_bps=1e9), PathShape(delay_s=0.01, jitter_s=0.01, rate_bps=1e9)
        assert limit_packets(shaky) == limit_packets(steady)
