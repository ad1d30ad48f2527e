"""The WAN alone, in whatever this machine's kernel allows: sites without containers, a real router, real probes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from discovery_deploy.agent import probe, site_networks, uml_kernel, wan_router, wan_uml
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Plan, TcProgram, WanRouter, as_data
from discovery_deploy.experiment.model import Verify
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import path_shapes
from tests.integration import wan_checks
from tests.integration.wan_bed import SITE_NAMES, SLOT, Wan, plan_of, wan_sites

pytestmark = pytest.mark.integration

DELAYS = ("0 ms", "1 ms", "10 ms", "37.5 ms", "150 ms")
in_uml = pytest.mark.skipif(wan_router.kernel_has_netem(), reason="about the User-Mode-Linux router")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wan]:
    with wan_sites(tmp_path_factory.mktemp("three"), SITE_NAMES[:3]) as wan:
        yield wan


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wan]:
    with wan_sites(tmp_path_factory.mktemp("eight"), SITE_NAMES, slot=SLOT + 1) as wan:
        yield wan


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Wan]:
    """Two sites whose router a test may break."""
    with wan_sites(tmp_path, SITE_NAMES[:2], slot=SLOT + 2) as wan:
        yield wan


class TestPhysics(wan_checks.OnThreeSites):
    @pytest.mark.parametrize("delay", DELAYS)
    def test_every_round_trip_among_three_sites_is_twice_the_delay(self, three: Wan, delay: str) -> None:
        wan_checks.every_round_trip_is_twice_the_delay(three, delay)

    @pytest.mark.parametrize("delay", DELAYS)
    def test_every_round_trip_among_eight_sites_is_twice_the_delay(self, eight: Wan, delay: str) -> None:
        wan_checks.every_round_trip_is_twice_the_delay(eight, delay)

    def test_every_pair_may_have_its_own_delay(self, eight: Wan) -> None:
        wan_checks.every_pair_may_have_its_own_delay(eight)

    def test_jitter_spreads_but_does_not_shift(self, three: Wan) -> None:
        shapes = three.shape(wan_checks.network(default={"delay": "20 ms", "jitter": "5 ms"}))
        assert three.readback(shapes) == ()
        report = measure.verify_wan(three.run, three.points, shapes, Verify(), attempts=3)
        assert report.problems == ()
        assert min(v.measured.rtt_max_s or 0.0 for v in report.pairs) > 0.043
        assert all(v.measured.jitter_s for v in report.pairs)
        steady = wan_checks.network(default={"delay": "20 ms"})
        three.change(shapes, path_shapes(steady, three.names))
        report = measure.verify_wan(three.run, three.points, shapes, Verify())
        assert {v.problems[0].split(" ms,")[0] for v in report.pairs} == {
            f"{a} -> {b}: jitter asked 5.00" for a, b in shapes
        }

    def test_a_fast_path_is_filled_by_tcp(self, three: Wan) -> None:
        shapes = three.shape(
            wan_checks.network(constraints=[{"from": "ares", "to": "brest", "delay": "5 ms", "rate": "200 Mbit/s"}])
        )

        def wrong() -> dict[str, float | None]:
            measured = measure.measure(three.run, three.points, shapes, Verify(measure=("rate",)))
            rate_bps = measured.pairs["ares", "brest"].rate_bps
            return {} if rate_bps and abs(rate_bps / 200e6 - 1) < 0.15 else {"rate_bps": rate_bps}

        wan_checks.until_good(wrong)

    def test_loss_slows_tcp_as_it_should(self, three: Wan) -> None:
        """1.22 x 1448 bytes / (10 ms x sqrt(0.1 %)) = 45 Mbit/s (Mathis); over 200 where super-packets are lost,
        and where the machine's own congestion control (perhaps BBR, which ignores loss) were used."""
        three.shape(wan_checks.network(default={"delay": "5 ms", "loss": "0.1 %"}))

        def wrong() -> dict[str, float]:
            rate_bps = one_connection_bps(three, "ares", "brest", seconds=5)
            return {} if 20e6 < rate_bps < 120e6 else {"rate_bps": rate_bps}

        wan_checks.until_good(wrong)


def one_connection_bps(wan: Wan, source: str, destination: str, seconds: float) -> float:
    """What one TCP connection carries, as frames."""

    def task(site: str, **spec: object) -> dict[str, float]:
        command = ["python3", "-I", "-S", "-", json.dumps({"task": "bulk", "port": measure.PORT, **spec})]
        answer: dict[str, float] = json.loads(wan.run(f"{site}-1", command, Path(probe.__file__).read_text(), 60))
        return answer

    address = wan.address(destination)
    with ThreadPoolExecutor() as pool:
        receiver = pool.submit(task, destination, address=address, limit_s=seconds + 10)
        task(source, to=address, connections=1, duration_s=seconds)
    return receiver.result()["rate_bps"]


class TestVerification:
    @pytest.mark.parametrize("what", wan_checks.SABOTAGE)
    def test_readback_sees_what_was_changed_by_hand(self, three: Wan, what: str) -> None:
        wan_checks.readback_sees(three, *wan_checks.SABOTAGE[what])

    def test_readback_sees_super_packets(self, three: Wan) -> None:
        shapes = three.shape(wan_checks.network(default={"loss": "1 %"}))
        assert three.readback(shapes) == ()
        wan_router.apply(three.plan, TcProgram(super_packets=True, devices={}))
        assert three.readback(shapes)[0] == "vec0 towards ares: takes super-packets (TSO, GSO), which shaping needs off"
        assert three.readback(three.shape(wan_checks.network())) == ()

    def test_a_pair_shaped_by_hand_is_flagged_both_ways(self, three: Wan) -> None:
        shapes = three.shape(wan_checks.network(default={"delay": "10 ms"}))
        wan_router.run(three.plan, "tc qdisc change dev vec1 parent 1:10 handle 10: netem delay 15ms limit 10000")

        def wrong() -> dict[str, object]:
            report = measure.verify_wan(three.run, three.points, shapes, Verify())
            flagged = {(v.measured.source, v.measured.destination) for v in report.pairs if v.problems}
            return {} if flagged == {("ares", "brest"), ("brest", "ares")} else {"problems": report.problems}

        wan_checks.until_good(wrong)

    def test_a_program_that_tc_refuses_names_the_line(self, three: Wan) -> None:
        program = TcProgram(True, {"vec0": ("qdisc replace dev vec0 root pfifo", "qdisc replace dev vec9 root pfifo")})
        with pytest.raises(MachineError, match=r'Cannot find device "vec9"(?s:.*)line 2 is "qdisc replace dev vec9'):
            wan_router.apply(three.plan, program)

    def test_a_program_for_a_device_that_is_none_is_refused(self, three: Wan) -> None:
        with pytest.raises(MachineError, match="the WAN router has no device vec9"):
            wan_router.apply(three.plan, TcProgram(True, {"vec0": (), "vec9": ()}))


class TestRouter:
    def test_up_again_starts_nothing(self, three: Wan) -> None:
        assert wan_router.alive(three.plan)
        assert wan_router.up(three.plan) is False

    def test_clients_at_the_same_time_get_their_own_answers(self, three: Wan) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: wan_router.run(three.plan, f"echo {n}; echo {n} >&2"), range(24)))
        assert answers == [f"{number}\n{number}\n" for number in range(24)]

    def test_much_output_and_strange_input_pass(self, three: Wan) -> None:
        assert len(wan_router.run(three.plan, "seq 1 100000")) == 588_895
        assert wan_router.run(three.plan, "echo '##RC=0=0'; printf '%s' \"a'b\"") == "##RC=0=0\na'b"

    def test_a_command_that_fails_or_hangs(self, three: Wan) -> None:
        with pytest.raises(MachineError, match="exit code 7: bad"):
            wan_router.run(three.plan, "echo bad; exit 7")
        with pytest.raises(MachineError, match="took too long"):
            wan_router.run(three.plan, "sleep 60", limit_s=0.5)
        assert wan_router.run(three.plan, "echo well") == "well\n"

    def test_a_client_that_dies_leaves_nothing_to_the_next(self, three: Wan) -> None:
        plan_file = three.router_directory.parent / "plan.json"
        plan_file.write_text(json.dumps(as_data(three.plan)))
        command = [
            sys.executable,
            "-m",
            "discovery_deploy.agent.wan_router",
            "run",
            str(plan_file),
            "sleep 1; echo late",
        ]
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        calls = three.router_directory / "calls"
        while not any(calls.iterdir()) and client.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        client.kill()
        client.wait()
        assert wan_router.run(three.plan, "echo mine") == "mine\n"
        assert list(calls.iterdir()) == []

    def test_only_the_router_forwards(self, three: Wan) -> None:
        assert wan_router.run(three.plan, "cat /proc/sys/net/ipv4/ip_forward") == "1\n"
        assert Path("/proc/sys/net/ipv4/conf", three.plan.sites[0].tap, "forwarding").read_text() == "0\n"

    def test_facts_say_what_shapes(self, three: Wan) -> None:
        facts = wan_router.facts(three.plan)
        assert facts["mode"] == (three.router_directory / "mode").read_text()
        assert facts["kernel"][0].isdigit()


def router_pid(wan: Wan) -> int:
    return int((wan.router_directory / "process").read_text().split()[0])


def reaches(wan: Wan, limit_s: float) -> bool:
    """Whether the first site reaches the second within a time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if wan_checks.echoes(wan, "ares", "brest", 5, 0.02)["received"] == 5:
            return True
    return False


@in_uml
class TestUserModeLinux:
    def test_a_killed_router_is_named_and_mended(self, own: Wan) -> None:
        shapes = own.shape(wan_checks.network(default={"delay": "5 ms"}))
        assert reaches(own, 5)
        os.kill(router_pid(own), signal.SIGKILL)
        with pytest.raises(MachineError, match=rf"the WAN router \(User-Mode Linux, {own.router_directory}\)"):
            wan_router.read(own.plan)
        assert not wan_router.alive(own.plan)
        assert wan_router.up(own.plan) is True
        assert own.readback(shapes) != ()
        shapes = own.shape(wan_checks.network(default={"delay": "5 ms"}))
        assert own.readback(shapes) == ()
        # Hosts still know their gateway: it has the same hardware address.
        assert reaches(own, 1.5)

    def test_a_router_killed_at_work_is_told_at_once(self, own: Wan) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wan_router.run, own.plan, "sleep 20", 30)
            time.sleep(0.5)
            os.kill(router_pid(own), signal.SIGKILL)
            started = time.monotonic()
            with pytest.raises(MachineError, match="died"):
                waiting.result()
            assert time.monotonic() - started < 10  # of 20

    def test_a_router_that_hangs_is_started_anew(self, own: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        pid = router_pid(own)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(wan_uml, "ANSWER_LIMIT_S", 1.0)
        assert wan_router.up(own.plan) is True
        assert router_pid(own) != pid
        assert wan_router.run(own.plan, "echo well") == "well\n"

    def test_a_router_that_does_not_boot_shows_its_log(self, own: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = wan_uml._INIT.replace("modprobe -d /run -a", "modprobe -d /run -a no_such_module")
        monkeypatch.setattr(wan_uml, "_INIT", broken)
        with pytest.raises(MachineError, match=r"did not start(?s:.*)no_such_module(?s:.*)Kernel panic"):
            wan_router.up(own.plan)
        monkeypatch.undo()
        assert wan_router.up(own.plan) is True

    def test_too_little_memory_on_the_machine_is_told(self, own: Wan) -> None:
        greedy = replace(own.plan, router=WanRouter(f"dd{own.plan.slot}-router", memory_mb=10_000_000))
        with pytest.raises(MachineError, match=r"needs 10000000 MB in /dev/shm(?s:.*)mount -o remount"):
            wan_router.up(greedy)

    def test_with_the_shim_for_processors_with_amx(self, own: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        wan_router.down(own.plan)
        monkeypatch.setenv(uml_kernel.SHIM_VARIABLE, "1")
        assert wan_router.up(own.plan) is True
        maps = Path(f"/proc/{router_pid(own)}/maps").read_text()
        assert str(uml_kernel.shim(own.router_directory)) in maps
        assert "kernel 6" in (told := wan_router.facts_text(wan_router.facts(own.plan)))
        assert told.endswith("with uml_xstate (AMX)")
        inside = wan_router.run(own.plan, "cat /proc/1/environ /proc/1/maps /proc/self/environ /proc/self/maps")
        assert "uml_xstate" not in inside
        assert "LD_PRELOAD" not in inside
        shapes = own.shape(wan_checks.network(default={"delay": "5 ms"}))
        wan_checks.until_good(lambda: wan_checks.wrong_rtts(own, shapes))

    def test_it_runs_at_real_time_priority(self, own: Wan) -> None:
        assert os.sched_getscheduler(router_pid(own)) == os.SCHED_FIFO
        assert os.sched_getparam(router_pid(own)).sched_priority == 50


def traces(plan: Plan) -> dict[str, object]:
    """What of a router could be left on the machine."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    processes = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True).stdout
    return {
        "links": [line for line in links.splitlines() if f" dd{plan.slot}t" in line],
        "namespace": Path(f"/run/netns/dd{plan.slot}-router").exists(),
        "processes": [line for line in processes.splitlines() if str(plan.directory) in line],
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(plan.directory) in line],
        "directory": (plan.directory / "router").exists(),
    }


NOTHING = {"links": [], "namespace": False, "processes": [], "mounts": [], "directory": False}


def half_made(plan: Plan, folder: Path) -> None:
    """A router whose maker was killed at work."""
    plan_file = folder / "plan.json"
    plan_file.write_text(json.dumps(as_data(plan)))
    maker = subprocess.Popen([sys.executable, "-m", "discovery_deploy.agent.wan_router", "up", str(plan_file)])
    while not (folder / "router" / "mode").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    maker.kill()
    maker.wait()


class TestDown:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> Iterator[Plan]:
        plan = plan_of(tmp_path, SITE_NAMES[:2], slot=SLOT + 3)
        site_networks.up(plan)
        yield plan
        wan_router.down(plan)
        site_networks.down(SLOT + 3)

    def test_it_leaves_nothing(self, plan: Plan) -> None:
        wan_router.up(plan)
        while_up = traces(plan)
        assert [key for key, found in while_up.items() if not found] in (
            ["namespace", "mounts"],
            ["processes", "mounts"],
        )
        wan_router.down(plan)
        assert traces(plan) == NOTHING
        wan_router.down(plan)
        assert traces(plan) == NOTHING

    def test_nor_without_its_files(self, plan: Plan) -> None:
        wan_router.up(plan)
        for file in (plan.directory / "router").iterdir():
            if file.is_file():
                file.unlink()
        wan_router.down(plan)
        assert traces(plan) == NOTHING

    def test_nor_after_its_maker_was_killed(self, plan: Plan, tmp_path: Path) -> None:
        half_made(plan, tmp_path)
        wan_router.down(plan)
        assert traces(plan) == NOTHING

    def test_a_maker_killed_halfway_is_resumed(self, plan: Plan, tmp_path: Path) -> None:
        half_made(plan, tmp_path)
        wan_router.up(plan)
        assert wan_router.run(plan, "echo well") == "well\n"

    def test_a_bridge_that_does_not_come_is_named(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wan_router, "BRIDGE_LIMIT_S", 0.1)
        subprocess.run(["ip", "link", "del", f"dd{SLOT + 3}s1"], check=True)
        with pytest.raises(MachineError, match=f"bridge dd{SLOT + 3}s1 of site brest is absent"):
            wan_router.up(plan)
        site_networks.up(plan)
        wan_router.up(plan)
        assert wan_router.alive(plan)

    def test_a_router_that_is_not_up_says_so(self, plan: Plan) -> None:
        assert not wan_router.alive(plan)
        with pytest.raises(MachineError, match="the WAN router is not up"):
            wan_router.run(plan, "true")
