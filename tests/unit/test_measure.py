"""How probes are spread over sites and time, and how their answers become measurements; no probe is run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest

from discovery_deploy import measure
from discovery_deploy.errors import MeasurementError
from discovery_deploy.measure import Point
from discovery_deploy.model import Network, Verify
from discovery_deploy.wan import Pair, PathShape, asked_rtt_s, path_shapes

NAMES = ("ares", "brest", "cork")
POINTS = [Point(name, f"{name}-1", f"10.0.{i}.10", f"10.0.{i}.1") for i, name in enumerate(NAMES)]
BASE_S = 0.0002


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(Network.model_validate(fields), NAMES)


class Hosts:
    """A runner that answers as probes on a WAN of some shapes would."""

    def __init__(self, shapes: dict[Pair, PathShape], received_share: float = 1.0) -> None:
        self.shapes = shapes
        self.received_share = received_share
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.extra_s: Callable[[Pair, int], float] = lambda pair, attempt: 0.0
        self._lock = threading.Lock()

    def __call__(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        assert command[:4] == ["python3", "-I", "-S", "-"]
        assert "def measure_rtt" in stdin
        spec = json.loads(command[4])
        with self._lock:
            self.calls.append((host, spec))
            attempt = sum(of == host and s["task"] == spec["task"] for of, s in self.calls)
        site = host.removesuffix("-1")
        return json.dumps({"rtt": self.rtt, "stream": self.stream}[spec["task"]](site, spec, attempt))

    def rtt(self, site: str, spec: dict[str, Any], attempt: int) -> dict[str, Any]:
        results = {}
        for address in spec["destinations"]:
            other = next((p.site for p in POINTS if p.address == address), None)
            rtt_s = BASE_S / 2
            if other:
                rtt_s = asked_rtt_s(self.shapes, (site, other)) + BASE_S + self.extra_s((site, other), attempt)
            count = spec["count"]
            results[address] = {"sent": count, "received": count, "median_s": rtt_s, "p99_s": rtt_s, "max_s": rtt_s}
        return {"scheduling": "fifo", "results": results}

    def stream(self, site: str, spec: dict[str, Any], attempt: int) -> dict[str, Any]:
        sent = [{"to": o["to"], "sent": o["count"], "seconds": 1.0} for o in spec["send"]]
        received = {
            p.address: {
                "received": round(1000 * self.received_share),
                "rate_bps": 19e6,
                "one_way_median_s": self.shapes[p.site, site].delay_s,
            }
            for p in POINTS
            if p.site != site
        }
        return {"scheduling": "other", "sent": sent, "received": received}


class TestRounds:
    @pytest.mark.parametrize("count", [2, 3, 4, 7, 16, 64])
    def test_every_pair_meets_once_and_no_site_is_twice_in_a_round(self, count: int) -> None:
        sites = [f"s{number:02}" for number in range(count)]
        rounds = list(measure.rounds(sites))
        assert sorted(tuple(sorted(pair)) for round_ in rounds for pair in round_) == sorted(combinations(sites, 2))
        for round_ in rounds:
            standing = [site for pair in round_ for site in pair]
            assert len(standing) == len(set(standing))
        assert len(rounds) == count - 1 + count % 2


class TestSchedule:
    def schedule(self, pairs: int, rate_bps: float | None = None, **verify: Any) -> tuple[int, float]:
        return measure.echo_schedule([PathShape(rate_bps=rate_bps)] * pairs, Verify.model_validate(verify))

    def test_few_sites_are_measured_as_the_file_says(self) -> None:
        assert self.schedule(6) == (40, 0.01)
        assert self.schedule(6, probes=2000) == (2000, 0.01)

    def test_many_sites_do_not_flood_the_router(self) -> None:
        assert self.schedule(240) == (40, 0.06)
        assert self.schedule(64 * 63) == (9, 1.008)

    def test_a_slow_path_is_not_filled_with_echoes(self) -> None:
        count, interval_s = self.schedule(6, rate_bps=100e3)
        assert count == 40
        assert 2 * 98 * 8 / interval_s == pytest.approx(30e3)

    @pytest.mark.parametrize(
        ("loss", "tolerance", "datagrams"), [(0.0, "2 %", 500), (0.05, "2 %", 1900), (0.5, "1 %", 20_000)]
    )
    def test_loss_is_counted_on_enough_datagrams(self, loss: float, tolerance: str, datagrams: int) -> None:
        assert measure.loss_datagrams(loss, Verify.model_validate({"loss_tolerance": tolerance})) == datagrams


class TestMeasure:
    def test_every_ordered_pair_is_measured_from_its_source(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "delay": "30 ms"}])
        hosts = Hosts(shapes)
        measured = measure.measure(hosts, POINTS, shapes, Verify())
        assert {pair: m.rtt_median_s for pair, m in measured.pairs.items()} == pytest.approx(
            {pair: asked_rtt_s(shapes, pair) + BASE_S for pair in shapes}
        )
        assert {(m.sent, m.received, m.loss, m.rate_bps) for m in measured.pairs.values()} == {(40, 40, None, None)}
        assert measured.base_rtt_s == pytest.approx(BASE_S)
        assert measured.probe_scheduling == "fifo"
        assert sorted(host for host, _ in hosts.calls) == ["ares-1", "brest-1", "cork-1"]

    def test_it_waits_longer_than_the_longest_round_trip(self) -> None:
        shapes = shapes_of(default={"delay": "150 ms", "jitter": "20 ms"})
        hosts = Hosts(shapes)
        measure.measure(hosts, POINTS, shapes, Verify())
        assert {spec["wait_s"] for _, spec in hosts.calls} == {0.84}

    def test_loss_is_a_share_of_what_was_sent_and_delay_needs_a_shared_clock(self) -> None:
        shapes = shapes_of(default={"delay": "10 ms", "loss": "5 %"})
        hosts = Hosts(shapes, received_share=1.8)
        verify = Verify(measure=("loss",))
        measured = measure.measure(hosts, POINTS, shapes, verify)
        assert {m.loss for m in measured.pairs.values()} == {1 - 1800 / 1900}
        assert {m.one_way_median_s for m in measured.pairs.values()} == {None}
        shared = measure.measure(hosts, POINTS, shapes, verify, shared_clock=True)
        assert {m.one_way_median_s for m in shared.pairs.values()} == {0.01}
        assert measured.probe_scheduling == "other"

    def test_a_path_that_loses_all_gets_no_stream(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "loss": "100 %"}])
        measured = measure.measure(Hosts(shapes), POINTS, shapes, Verify(measure=("loss",)))
        assert {pair for pair, m in measured.pairs.items() if m.loss is None} == {("ares", "brest"), ("brest", "ares")}

    def test_only_paths_with_a_rate_have_it_measured(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "rate": "20 Mbit/s"}])
        hosts = Hosts(shapes)
        measured = measure.measure(hosts, POINTS, shapes, Verify(measure=("rate",)))
        assert {pair for pair, m in measured.pairs.items() if m.rate_bps} == {("ares", "brest")}
        (order,) = next(spec["send"] for host, spec in hosts.calls if host == "ares-1")
        assert order["size"] == 1472
        assert order["size"] + 42 == pytest.approx(20e6 * 1.25 / 8 * order["gap_s"])

    def test_rates_measured_at_once_stay_within_what_datagrams_fill(self) -> None:
        pairs = [("a", "b"), ("b", "a"), ("c", "d")]
        shapes = {pair: PathShape(rate_bps=80e6) for pair in pairs}
        assert list(measure._within_budget(pairs, shapes)) == [[("a", "b")], [("b", "a")], [("c", "d")]]
        shapes = {pair: PathShape(rate_bps=50e6) for pair in pairs}
        assert list(measure._within_budget(pairs, shapes)) == [pairs]

    def test_an_answer_that_is_none_names_the_host(self) -> None:
        def runner(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
            return "bash: python3: command not found"

        with pytest.raises(MeasurementError, match="ares-1: the probe answered 'bash: python3"):
            measure.measure(runner, POINTS, shapes_of(), Verify())


class TestVerifyWan:
    def test_what_is_as_asked_is_measured_once(self) -> None:
        shapes = shapes_of(default={"delay": "25 ms"})
        hosts = Hosts(shapes)
        report = measure.verify_wan(hosts, POINTS, shapes, Verify())
        assert report.problems == ()
        assert len(hosts.calls) == 3
        assert report.probe_scheduling == "fifo"

    def test_what_goes_away_by_itself_is_no_problem(self) -> None:
        shapes = shapes_of()
        hosts = Hosts(shapes)
        hosts.extra_s = lambda pair, attempt: 0.005 if pair == ("ares", "cork") and attempt == 1 else 0.0
        report = measure.verify_wan(hosts, POINTS, shapes, Verify())
        assert report.problems == ()
        (again,) = [spec for host, spec in hosts.calls[3:]]
        assert again["destinations"] == ["10.0.2.10", "10.0.0.1"]
        assert len(report.pairs) == 6

    def test_what_stays_is(self) -> None:
        shapes = shapes_of()
        hosts = Hosts(shapes)
        hosts.extra_s = lambda pair, attempt: 0.005 if pair == ("ares", "cork") else 0.0
        report = measure.verify_wan(hosts, POINTS, shapes, Verify(), readback=lambda: ["tc shows another"], attempts=3)
        assert len(hosts.calls) == 5
        assert report.readback_problems == ("tc shows another",)
        assert len(report.problems) == 2
        assert report.problems[1].startswith("ares -> cork: RTT asked 0.00 ms, measured 5.20 ms")


def test_one_site_has_no_wan_and_nothing_to_measure() -> None:
    def runner(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        raise AssertionError("no probe is needed")

    report = measure.verify_wan(runner, POINTS[:1], {}, Verify(measure=("rtt", "loss", "rate")))
    assert (report.pairs, report.problems, report.probe_scheduling) == ((), (), "")
