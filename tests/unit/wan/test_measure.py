"""How probes are spread over sites and time, and how their answers become measurements; no probe is run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest

from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.wan import measure
from discovery_deploy.wan.measure import Point
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s, path_shapes

NAMES = ("ares", "brest", "cork")
HERE = [Point(name, measure.HERE, f"10.0.{i}.10", f"10.0.{i}.1", f"/net/{name}") for i, name in enumerate(NAMES)]
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
        self.base_s: Callable[[int], float] = lambda attempt: BASE_S
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
        """Of one station alone, or of several that read one clock."""
        sites = {point.address: point.site for point in POINTS}
        own = [site] if len(spec["stations"]) == 1 else sorted(sites.values())
        results = []
        for here, station in zip(own, spec["stations"], strict=True):
            for address in station["to"]:
                there = sites[address]
                extra_s = self.extra_s((here, there), attempt)
                rtt_s = asked_rtt_s(self.shapes, (here, there)) + self.base_s(attempt) + extra_s
                there_s = self.shapes[here, there].delay_s + self.base_s(attempt) / 2 if len(own) > 1 else None
                results.append(self.echoes(spec["count"], rtt_s, there_s))
            results += [self.echoes(spec["count"], self.base_s(attempt) / 2, None)] if station["gateway"] else []
        return {"scheduling": "fifo", "results": results}

    def echoes(self, count: int, rtt_s: float, there_s: float | None) -> dict[str, Any]:
        back_s = None if there_s is None else rtt_s - there_s
        return {
            **{"sent": count, "received": count, "median_s": rtt_s, "p99_s": rtt_s, "max_s": rtt_s},
            **{
                way: {"count": 0 if median_s is None else count, "median_s": median_s, "jitter_s": median_s and 0.0}
                for way, median_s in (("there", there_s), ("back", back_s))
            },
        }

    def stream(self, site: str, spec: dict[str, Any], attempt: int) -> dict[str, Any]:
        sent = [{"to": o["to"], "sent": o["count"], "seconds": 1.0} for o in spec["send"]]
        received = {
            p.address: {"received": round(1000 * self.received_share), "rate_bps": 19e6}
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
    def schedule(self, sites: int, rate_bps: float | None = None, **verify: Any) -> tuple[int, float]:
        shapes = [PathShape(rate_bps=rate_bps)] * sites * (sites - 1)
        return measure.echo_schedule(shapes, Verify.model_validate(verify))

    def test_few_sites_are_measured_as_the_file_says(self) -> None:
        assert self.schedule(3) == (40, 0.01)
        assert self.schedule(3, probes=2000) == (2000, 0.01)

    def test_many_sites_do_not_flood_the_router(self) -> None:
        count, interval_s = self.schedule(16)
        assert 16 * 15 / 2 / interval_s <= measure.ECHOES_PER_S
        assert 7 <= count <= 40
        assert self.schedule(64) == (7, 64 * 63 / 2 / measure.ECHOES_PER_S)

    def test_a_slow_path_is_not_filled_with_echoes(self) -> None:
        count, interval_s = self.schedule(3, rate_bps=100e3)
        assert count == 38
        assert 98 * 8 / interval_s == pytest.approx(30e3)

    @pytest.mark.parametrize(
        ("loss", "tolerance", "datagrams"), [(0.0, "2 %", 500), (0.05, "2 %", 1900), (0.5, "1 %", 20_000)]
    )
    def test_loss_is_counted_on_enough_datagrams(self, loss: float, tolerance: str, datagrams: int) -> None:
        assert measure.loss_datagrams(loss, Verify.model_validate({"loss_tolerance": tolerance})) == datagrams


class TestMeasure:
    def test_every_pair_is_asked_once_and_both_orders_have_what_was_measured(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "delay": "30 ms"}])
        hosts = Hosts(shapes)
        measured = measure.measure(hosts, POINTS, shapes, Verify())
        assert {pair: m.rtt_median_s for pair, m in measured.pairs.items()} == pytest.approx(
            {pair: asked_rtt_s(shapes, pair) + BASE_S for pair in shapes}
        )
        assert {(m.sent, m.received, m.loss, m.rate_bps) for m in measured.pairs.values()} == {(40, 40, None, None)}
        assert measured.base_rtt_s == pytest.approx(BASE_S)
        assert measured.probe_scheduling == "fifo"
        asked = {host: spec["stations"][0]["to"] for host, spec in hosts.calls}
        assert asked == {"ares-1": ["10.0.1.10", "10.0.2.10"], "brest-1": ["10.0.2.10"]}
        assert {m.one_way_median_s for m in measured.pairs.values()} == {None}

    def test_where_all_read_one_clock_each_direction_is_seen(self) -> None:
        shapes = shapes_of(default={"delay": "1 ms"}, constraints=[{"from": "ares", "to": "brest", "delay": "30 ms"}])
        hosts = Hosts(shapes)
        measured = measure.measure(hosts, HERE, shapes, Verify())
        assert [host for host, _ in hosts.calls] == [measure.HERE]
        assert [station["namespace"] for station in hosts.calls[0][1]["stations"]] == [
            "/net/ares",
            "/net/brest",
            "/net/cork",
        ]
        assert {pair: m.one_way_median_s for pair, m in measured.pairs.items()} == pytest.approx(
            {pair: shape.delay_s + BASE_S / 2 for pair, shape in shapes.items()}
        )

    def test_a_way_that_loses_all_is_not_the_one_of_requests(self) -> None:
        shapes = shapes_of(constraints=[{"from": "ares", "to": "brest", "loss": "100 %"}])
        assert measure.asking_order(shapes, ("ares", "brest")) == ("brest", "ares")
        assert measure.asking_order(shapes, ("cork", "ares")) == ("ares", "cork")

    def test_it_waits_longer_than_the_longest_round_trip(self) -> None:
        shapes = shapes_of(default={"delay": "150 ms", "jitter": "20 ms"})
        hosts = Hosts(shapes)
        measure.measure(hosts, POINTS, shapes, Verify())
        assert {spec["wait_s"] for _, spec in hosts.calls} == {0.84}

    def test_loss_is_a_share_of_what_was_sent(self) -> None:
        shapes = shapes_of(default={"delay": "10 ms", "loss": "5 %"})
        hosts = Hosts(shapes, received_share=1.8)
        verify = Verify(measure=("loss",))
        measured = measure.measure(hosts, POINTS, shapes, verify)
        assert {m.loss for m in measured.pairs.values()} == {1 - 1800 / 1900}
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
        assert len(hosts.calls) == 2
        assert report.probe_scheduling == "fifo"

    def test_what_goes_away_by_itself_is_no_problem(self) -> None:
        shapes = shapes_of()
        hosts = Hosts(shapes)
        hosts.extra_s = lambda pair, attempt: 0.005 if pair == ("ares", "cork") and attempt == 1 else 0.0
        report = measure.verify_wan(hosts, POINTS, shapes, Verify())
        assert report.problems == ()
        (again,) = [spec for host, spec in hosts.calls[2:]]
        assert again["stations"] == [{"to": ["10.0.2.10"], "gateway": "10.0.0.1", "namespace": None}]
        assert len(report.pairs) == 6

    def test_each_measurement_is_judged_by_what_the_testbed_took_then(self) -> None:
        """At first it is slow for all, but by the tolerance too slow for one; alone that one is fast."""
        shapes, slow_s = shapes_of(), 0.0009
        hosts = Hosts(shapes)
        hosts.base_s = lambda attempt: BASE_S + (slow_s if attempt == 1 else 0.0)
        hosts.extra_s = lambda pair, attempt: 0.0012 if pair == ("ares", "cork") and attempt == 1 else 0.0003
        report = measure.verify_wan(hosts, POINTS, shapes, Verify())
        assert len(hosts.calls) == 3
        assert report.problems == ()
        bases = {(pair.measured.source, pair.measured.destination): report.base_of(pair) for pair in report.pairs}
        again = {("ares", "cork"), ("cork", "ares")}
        subtracted_s = min(BASE_S + slow_s, Verify().rtt_tolerance)
        assert bases == {pair: pytest.approx(BASE_S if pair in again else subtracted_s) for pair in shapes}
        assert report.base_rtt_s == pytest.approx(BASE_S + slow_s)

    def test_what_stays_is(self) -> None:
        shapes = shapes_of()
        hosts = Hosts(shapes)
        hosts.extra_s = lambda pair, attempt: 0.005 if pair == ("ares", "cork") else 0.0
        report = measure.verify_wan(hosts, POINTS, shapes, Verify(), readback=lambda: ["tc shows another"], attempts=3)
        assert len(hosts.calls) == 4
        assert report.readback_problems == ("tc shows another",)
        assert len(report.problems) == 3
        assert report.problems[1].startswith("ares -> cork: RTT asked 0.00 ms, measured 5.20 ms")


def test_one_site_has_no_wan_and_nothing_to_measure() -> None:
    def runner(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        raise AssertionError("no probe is needed")

    report = measure.verify_wan(runner, POINTS[:1], {}, Verify(measure=("rtt", "loss", "rate")))
    assert (report.pairs, report.problems, report.probe_scheduling) == ((), (), "")
