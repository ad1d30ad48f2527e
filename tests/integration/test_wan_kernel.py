"""The WAN router in a network namespace, on a kernel that has netem: this machine's, or else a User-Mode-Linux one.

On a machine without netem one test boots User-Mode Linux and runs all the others of this file inside, from the
machine's own files (read-only).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy import measure, site_networks, wan_router
from tests.integration import wan_checks
from tests.integration.wan_bed import SITE_NAMES, SLOT, Wan, plan_of, wan_sites

HAS_NETEM = wan_router.kernel_has_netem()
REPOSITORY = Path(__file__).resolve().parents[2]
BOOT_AND_TESTS_LIMIT_S = 300

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
        subprocess.run(["ip", "link", "del", three.plan["sites"][1]["tap"]], check=True)
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
        assert Path("/run/netns", plan["router"]["namespace"]).exists()
        for _ in range(2):
            wan_router.down(plan)
            links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
            assert f"dd{SLOT + 5}t" not in links
            assert not Path("/run/netns", plan["router"]["namespace"]).exists()
            assert not (tmp_path / "router").exists()
    finally:
        wan_router.down(plan)
        site_networks.down(SLOT + 5)


INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm 2> /dev/null
mkdir -p /run/lib/modules
ln -s "/usr/lib/uml/modules/$(uname -r)" "/run/lib/modules/$(uname -r)"
modprobe -d /run -a sch_netem sch_htb cls_u32 veth bridge
ip link set lo up
cd {repository}
{python} -m pytest -q --color=no --durations=15 -p no:cacheprovider -p no:randomly {test}
echo "EXIT $?"
echo o > /proc/sysrq-trigger
sleep 5
"""


@pytest.mark.skipif(HAS_NETEM, reason="the tests of this file have run on this kernel itself")
def test_inside_user_mode_linux(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_text(INIT.format(repository=REPOSITORY, python=sys.executable, test=Path(__file__)))
    init.chmod(0o700)
    # As for the router: without it whatever else runs on the machine is measured.
    kernel = ["chrt", "-f", "50"] if subprocess.run(["chrt", "-f", "50", "true"], check=False).returncode == 0 else []
    kernel += ["linux.uml", "mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
    kernel += ["con=null", "con0=null,fd:1", "ssl=null", "quiet", "umid=tests", f"uml_dir={tmp_path}/uml"]
    process = subprocess.Popen(
        kernel,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        report, _ = process.communicate(timeout=BOOT_AND_TESTS_LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too, when it did not end by itself
            os.killpg(process.pid, signal.SIGKILL)
    print(report)
    assert re.search(r"^EXIT 0\r?$", report, re.MULTILINE), report
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", report)}
    assert counts == {"passed": 13, "skipped": 1}, report
