"""The WAN router in a network namespace, on a kernel that has netem: this machine's, or else a User-Mode-Linux one.

On a machine without netem one test boots User-Mode Linux and runs all the others of this file inside, from the
machine's own files (read-only).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.agent import site_networks, uml_kernel, wan_router
from discovery_deploy.wan import measure
from tests.integration import wan_checks
from tests.integration.inside_uml import counts_inside
from tests.integration.wan_bed import SITE_NAMES, SLOT, Wan, plan_of, wan_sites

HAS_NETEM = wan_router.kernel_has_netem()

pytestmark = pytest.mark.integration
with_netem = pytest.mark.skipif(not HAS_NETEM, reason="this kernel has no netem; test_inside_user_mode_linux runs this")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wan]:
    with wan_sites(tmp_path_factory.mktemp("three"), SITE_NAMES[:3], mode="auto", slot=SLOT + 4) as wan:
        yield wan


@pytest.fixture(autouse=True)
def _gentle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders, router and receivers may all share the one CPU of a User-Mode Linux."""
    monkeypatch.setattr(measure, "STREAM_DATAGRAMS_PER_S", 700)


@with_netem
class TestNamespaceRouter(wan_checks.OnThreeSites):
    def test_auto_chooses_the_namespace_where_the_kernel_has_netem(self, three: Wan) -> None:
        assert (three.router_directory / "mode").read_text() == "netns"
        assert wan_router.facts(three.plan)["mode"] == "netns"
        assert not (three.router_directory / "uml.log").exists()

    @pytest.mark.parametrize("delay", ["0 ms", "10 ms", "37.5 ms"])
    def test_every_round_trip_is_twice_the_delay(self, three: Wan, delay: str) -> None:
        wan_checks.every_round_trip_is_twice_the_delay(three, delay)

    @pytest.mark.parametrize("what", ["delay", "filters"])
    def test_readback_sees_what_was_changed_by_hand(self, three: Wan, what: str) -> None:
        wan_checks.readback_sees(three, *wan_checks.SABOTAGE[what])

    def test_up_again_starts_nothing_and_keeps_the_program(self, three: Wan) -> None:
        shapes = three.shape(wan_checks.network(default={"delay": "3 ms"}))
        assert wan_router.up(three.plan) is False
        assert three.readback(shapes) == ()

    def test_what_is_missing_is_mended(self, three: Wan) -> None:
        three.shape(wan_checks.network())
        subprocess.run(["ip", "link", "del", three.plan.sites[1].tap], check=True)
        assert not wan_router.alive(three.plan)
        assert wan_router.up(three.plan) is True
        shapes = three.shape(wan_checks.network(default={"delay": "3 ms"}))
        assert three.readback(shapes) == ()
        wan_checks.until_good(lambda: wan_checks.wrong_rtts(three, shapes))

    def test_the_machine_itself_does_not_forward(self, three: Wan) -> None:
        assert wan_router.run(three.plan, "cat /proc/sys/net/ipv4/ip_forward") == "1\n"
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"


@with_netem
def test_down_leaves_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SITE_NAMES[:2], mode="netns", slot=SLOT + 5)
    site_networks.up(plan)
    try:
        wan_router.up(plan)
        assert Path("/run/netns", f"dd{plan.slot}-router").exists()
        for _ in range(2):
            wan_router.down(plan)
            links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
            assert f"dd{SLOT + 5}t" not in links
            assert not Path("/run/netns", f"dd{plan.slot}-router").exists()
            assert not (tmp_path / "router").exists()
    finally:
        wan_router.down(plan)
        site_networks.down(SLOT + 5)


@pytest.mark.skipif(HAS_NETEM, reason="the tests of this file have run on this kernel itself")
def test_inside_user_mode_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(uml_kernel.SHIM_VARIABLE, "1")  # whole systems run with it too, on every processor
    assert counts_inside(Path(__file__), tmp_path) == {"passed": 15, "skipped": 1}
