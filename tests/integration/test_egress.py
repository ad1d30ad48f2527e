"""Hosts that shape what they send, on a kernel that has netem: this machine's, or else a User-Mode-Linux one."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import probe, tc_device, wan_router
from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.system.errors import MeasurementError, TestbedError
from discovery_deploy.wan import compensation, measure
from discovery_deploy.wan.compensation import base_rtts
from discovery_deploy.wan.shapes import Pair, PathShape, asked_rtt_s, path_shapes
from tests.integration.egress_bed import DRIVER, HOSTS, Bed, flat_network
from tests.integration.inside_uml import counts_inside
from tests.integration.wan_checks import at_a_pace_that_this_kernel_keeps, inside_uml, until_good

HAS_NETEM = wan_router.kernel_has_netem()
TOLERANCE_S = 0.001

pytestmark = pytest.mark.integration
with_netem = pytest.mark.skipif(not HAS_NETEM, reason="this kernel has no netem; test_inside_user_mode_linux runs this")


@pytest.fixture(scope="module")
def network() -> Iterator[Bed]:
    with flat_network() as bed:
        yield bed


@pytest.fixture
def bed(network: Bed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """On which nothing is shaped, before and after. All hosts may share the one CPU of a User-Mode Linux."""
    monkeypatch.setattr(measure, "STREAM_DATAGRAMS_PER_S", 700)
    yield network
    network.shaper.remove()
    assert not tc_device.RECORDS.exists()


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(Network.model_validate(fields), Bed.sites)


def echoes(bed: Bed, source: str, address: str, count: int = 40, interval_s: float = 0.01) -> dict[str, Any]:
    """What a steady ping gets."""
    asked = {"task": "rtt", "stations": [{"to": [address]}], "count": count, "interval_s": interval_s, "warmup": 3}
    command = ["python3", "-I", "-S", "-", json.dumps({**asked, "wait_s": 2.0})]
    answer = json.loads(bed.run(source, command, Path(probe.__file__).read_text()))
    result: dict[str, Any] = answer["results"][0]
    return result


def wrong_rtts(bed: Bed, shapes: dict[Pair, PathShape]) -> dict[Pair, float]:
    """Pairs whose median RTT is not the asked one, with their errors in seconds."""
    errors_s = {}
    for pair, measured in measure.measure(bed.run, bed.points, shapes, Verify()).pairs.items():
        assert measured.rtt_median_s is not None
        errors_s[pair] = measured.rtt_median_s - asked_rtt_s(shapes, pair)
    return {pair: error_s for pair, error_s in errors_s.items() if abs(error_s) > TOLERANCE_S}


MIXED: dict[str, Any] = {
    "default": {"delay": "10 ms"},
    "constraints": [
        {"from": "ares", "to": "brest", "delay": "5 ms"},
        {"from": "brest", "to": "ares", "delay": "40 ms"},
        {"from": "cork", "to": "ares", "delay": "0 ms"},
    ],
}


@with_netem
class TestHosts:
    def test_round_trips_are_the_delays_of_both_ways(self, bed: Bed) -> None:
        shapes = shapes_of(**MIXED)
        bed.shaper.put(shapes)
        assert bed.shaper.problems(shapes) == ()
        until_good(lambda: wrong_rtts(bed, shapes))

    def test_every_host_of_a_site_is_far_and_all_else_is_near(self, bed: Bed) -> None:
        bed.shaper.put(shapes_of(**MIXED))
        ares_1, ares_2, brest, cork = (host.site_address for host in HOSTS)
        asked_ms = {
            ("ares-2", brest): 45,
            ("brest-1", ares_2): 45,
            ("cork-1", ares_2): 10,
            ("ares-1", ares_2): 0,
            ("ares-2", ares_1): 0,
            ("brest-1", DRIVER.site_address): 0,
            ("driver", brest): 0,
            ("driver", cork): 0,
        }

        def wrong() -> dict[tuple[str, str], float]:
            errors_s = {way: echoes(bed, *way)["median_s"] - ms / 1e3 for way, ms in asked_ms.items()}
            return {way: error_s for way, error_s in errors_s.items() if abs(error_s) > TOLERANCE_S}

        until_good(wrong)

    def test_loss_and_rate_are_as_asked_and_only_there(self, bed: Bed) -> None:
        rate = "5 Mbit/s" if inside_uml() else "20 Mbit/s"
        constraints = [
            {"from": "ares", "to": "brest", "loss": "5 %", "rate": rate},
            {"from": "cork", "to": "brest", "loss": "5 %"},
        ]
        shapes = shapes_of(default={"delay": "2 ms"}, constraints=constraints)
        bed.shaper.put(shapes)
        assert bed.shaper.problems(shapes) == ()

        def wrong() -> dict[Pair, Any]:
            found = {}
            verify = Verify(measure=("loss", "rate"))
            for pair, m in measure.measure(bed.run, bed.points, shapes, verify).pairs.items():
                asked = shapes[pair]
                # 1900 datagrams: 1.5 % are three standard deviations of a loss of 5 %
                good = m.loss is not None and abs(m.loss - asked.loss) < (0.015 if asked.loss else 0.001)
                if asked.rate_bps is not None:
                    good = good and m.rate_bps is not None and abs(m.rate_bps / asked.rate_bps - 1) < 0.02
                if not good:
                    found[pair] = m
            return found

        with at_a_pace_that_this_kernel_keeps():
            until_good(wrong)

    def test_a_change_loses_no_packet(self, bed: Bed) -> None:
        """A ping each 5 ms, while delays, jitter, rates and queues change under it."""
        old = shapes_of(default={"delay": "10 ms"})
        bed.shaper.put(old)
        settings: list[dict[str, str]] = [
            {"delay": "40 ms"},
            {"delay": "1 ms", "rate": "20 Mbit/s"},
            {"delay": "25 ms", "jitter": "5 ms"},
            {"delay": "150 ms", "rate": "100 Mbit/s"},
        ]
        result: dict[str, Any] = {}
        address = next(host.site_address for host in HOSTS if host.name == "brest-1")
        pinging = threading.Thread(target=lambda: result.update(echoes(bed, "ares-1", address, 1600, 0.005)))
        pinging.start()
        pinging.join(0.7)
        for setting in settings:
            new = shapes_of(default=setting)
            bed.shaper.change(old, new)
            old = new
            pinging.join(0.1)
        assert pinging.is_alive(), "the changes must come while echoes are sent"
        assert bed.shaper.problems(old) == ()
        pinging.join()
        assert (result["sent"], result["received"], result["duplicates"], result["unsent"]) == (1600, 1600, 0, 0)
        assert result["max_s"] > 0.25, "some echoes must have seen 150 ms each way"

    def test_the_testbeds_own_time_is_taken_off(self, bed: Bed) -> None:
        bed.far("3ms")
        try:
            base_s = base_rtts(bed.run, bed.points, Verify(), {}).by_pair()
            assert len(base_s) == 6
            assert all(0.006 < rtt_s < 0.008 for rtt_s in base_s.values()), base_s
            asked = shapes_of(**{**MIXED, "constraints": MIXED["constraints"][:2]})
            applied = compensation.compensate(asked, base_s, Verify())
            bed.shaper.put(applied)
            assert bed.shaper.problems(applied) == ()
            until_good(lambda: wrong_rtts(bed, asked))
            with pytest.raises(
                MeasurementError, match=r"ares <-> brest: RTT asked 2\.00 ms, the testbed alone takes 6"
            ):
                compensation.compensate(shapes_of(default={"delay": "1 ms"}), base_s, Verify())
        finally:
            bed.far(None)

    def test_nothing_is_touched_where_nothing_is_to_be_shaped(self, bed: Bed) -> None:
        flat = shapes_of()
        bed.shaper.put(flat)
        assert bed.shaper.problems(flat) == ()
        assert not tc_device.RECORDS.exists()
        slow = shapes_of(constraints=[{"from": "cork", "to": "ares", "loss": "1 %"}])
        bed.shaper.put(slow)
        assert [path.stem for path in tc_device.RECORDS.iterdir()] == [HOSTS[3].site_device]
        bed.shaper.change(slow, flat)
        assert bed.shaper.problems(flat) == ()

    def test_removed_devices_are_what_they_were(self, bed: Bed) -> None:
        """One of them without TSO, one without a part of it."""
        others = {HOSTS[0]: "tso", HOSTS[1]: "tx-tcp-mangleid-segmentation"}
        for host, feature in others.items():
            bed.run(host.name, ["ethtool", "-K", host.site_device, feature, "off"])

        def state() -> list[str]:
            commands = [["tc", "qdisc", "show", "dev", "{}"], ["ethtool", "-k", "{}"]]
            return [
                bed.run(host.name, [word.format(host.site_device) for word in command])
                for host in HOSTS
                for command in commands
            ]

        try:
            before = state()
            shapes = shapes_of(default={"delay": "1 ms", "loss": "1 %"})
            bed.shaper.put(shapes)
            assert "generic-segmentation-offload: off" in state()[1]
            bed.shaper.change(shapes, shapes_of(default={"delay": "1 ms"}))
            assert "generic-segmentation-offload: on" in state()[1]
            bed.shaper.put(shapes)
            for _ in range(2):
                bed.shaper.remove()
                assert state() == before
        finally:
            for host, feature in others.items():
                bed.run(host.name, ["ethtool", "-K", host.site_device, feature, "on"])

    def test_what_another_put_there_is_not_ours_to_take(self, bed: Bed) -> None:
        host = HOSTS[2]
        bed.run(host.name, ["tc", "qdisc", "add", "dev", host.site_device, "root", "handle", "7:", "pfifo"])
        try:
            with pytest.raises(TestbedError, match=r"^brest-1: ddeg2 has a queueing discipline of another: pfifo 7:"):
                bed.shaper.put(shapes_of(default={"delay": "1 ms"}))
            bed.shaper.remove()
            assert "pfifo 7:" in bed.run(host.name, ["tc", "qdisc", "show", "dev", host.site_device])
        finally:
            bed.run(host.name, ["tc", "qdisc", "del", "dev", host.site_device, "root"])

    def test_packets_that_leave_by_another_device_are_told(self, bed: Bed) -> None:
        """They would not be shaped."""
        way = [f"{HOSTS[2].site_address}/32", "dev", "lo"]
        bed.run("ares-2", ["ip", "route", "add", *way])
        try:
            with pytest.raises(TestbedError, match=r"^ares-2: packets to 10\.99\.0\.13 leave by lo, not by ddeg1"):
                bed.shaper.put(shapes_of(default={"delay": "1 ms"}))
        finally:
            bed.run("ares-2", ["ip", "route", "del", *way])

    def test_tc_is_quoted_with_host_and_line(self, bed: Bed) -> None:
        shapes = shapes_of(default={"delay": "1 ms"})
        bed.shaper.put(shapes)
        bed.run("cork-1", ["tc", "qdisc", "del", "dev", HOSTS[3].site_device, "parent", "1:10"])
        (problem,) = bed.shaper.problems(shapes)
        assert problem.startswith("cork -> ares (cork-1: ddeg3): no netem, but ")
        message = r'^cork-1: ddeg3: tc refused the program: (.|\n)*; line 2 is "qdisc change dev ddeg3 parent 1:10'
        with pytest.raises(TestbedError, match=message):
            bed.shaper.change(shapes, shapes_of(default={"delay": "2 ms"}))

    def test_facts_name_kernel_and_congestion_control(self, bed: Bed) -> None:
        release = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
        control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        assert bed.shaper.facts() == f"hosts, kernel {release}; TCP between sites: {control}"


@pytest.mark.skipif(HAS_NETEM, reason="about kernels that cannot shape")
def test_a_kernel_without_netem_is_told_with_every_host_and_only_where_it_is_needed(network: Bed) -> None:
    shaper = network.shaper
    shaper.put(shapes_of())
    assert shaper.problems(shapes_of()) == ()
    with pytest.raises(TestbedError) as refused:
        shaper.put(shapes_of(constraints=[{"between": ["ares", "cork"], "delay": "1 ms"}]))
    lines = refused.value.what.splitlines()
    assert [line.split(":")[0] for line in lines if "has no sch_netem" in line] == ["ares-1", "ares-2", "cork-1"]
    assert "apt-get install" in refused.value.advice
    assert not tc_device.RECORDS.exists()


@pytest.mark.skipif(HAS_NETEM, reason="the tests of this file have run on this kernel itself")
def test_inside_user_mode_linux(tmp_path: Path) -> None:
    assert counts_inside(Path(__file__), tmp_path) == {"passed": 11, "skipped": 2}
