"""The provider `local` on this machine: real containers, networks and router."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery_deploy import cgroups, machine, site_networks
from discovery_deploy.errors import TestbedError
from discovery_deploy.providers.base import Lease
from tests.integration.leftovers import Snapshot
from tests.integration.local_bed import LocalBed, experiment, in_namespace, kill_now, reaches

pytestmark = pytest.mark.integration

THREE = experiment("three", "paris", "lyon", "lille")
HOSTS = ("paris-1", "lyon-1", "lille-1")


@pytest.fixture(scope="module")
def three(shared_bed: LocalBed) -> Lease:
    """Three hosts, one a site; every test leaves them running."""
    return shared_bed.reserve(THREE)


def test_hosts_are_reached_as_root_and_have_an_identity_of_their_own(shared_bed: LocalBed, three: Lease) -> None:
    facts = {host: shared_bed.ssh(three, host, "hostname; cat /etc/machine-id; whoami").split() for host in HOSTS}
    assert {host: (words[0], words[2]) for host, words in facts.items()} == {host: (host, "root") for host in HOSTS}
    assert {host: words[1] for host, words in facts.items()} == three.identities
    assert len(set(three.identities.values())) == 3
    assert len(set(three.details["host_keys"].values())) == 3
    assert shared_bed.ssh(three, "paris-1", "systemctl is-system-running") == "running"


def test_hosts_know_each_other_by_name_on_the_site_network(shared_bed: LocalBed, three: Lease) -> None:
    resolved = shared_bed.ssh(three, "lyon-1", f"getent ahostsv4 {' '.join(HOSTS)} | grep STREAM").splitlines()
    assert [line.split()[0] for line in resolved] == [
        three.at(site).site_address for site in ("paris", "lyon", "lille")
    ]


def test_the_machine_reaches_site_addresses_without_the_wan(shared_bed: LocalBed, three: Lease) -> None:
    shared_bed.provider.shape(three, "qdisc replace dev vec0 root netem delay 300ms limit 1000\n")
    started = time.monotonic()
    with socket.create_connection((three.at("paris").site_address, 22), timeout=5) as connection:
        assert connection.recv(3) == b"SSH"
    assert time.monotonic() - started < 0.2
    assert '"netem"' in shared_bed.provider.read_shape(three)
    shared_bed.provider.shape(three, "qdisc del dev vec0 root\n")


def test_sites_reach_each_other_through_the_router_and_not_around_it(shared_bed: LocalBed, three: Lease) -> None:
    namespace = f"dd{shared_bed.plan(three)['slot']}-paris-1"
    assert reaches(namespace, three.at("lille").site_address)
    assert not reaches(namespace, three.at("lille").management_address)
    # Not by way of the machine either, when a host tries.
    other = three.at("lille").site_address
    detour = f"ip route add {other}/32 via {shared_bed.plan(three)['management']['address']} dev mgmt0"
    shared_bed.ssh(three, "paris-1", detour)
    assert not reaches(namespace, other)
    shared_bed.ssh(three, "paris-1", detour.replace(" add ", " del "))


def test_hosts_cannot_change_settings_of_the_machine_but_those_of_their_network(
    shared_bed: LocalBed, three: Lease
) -> None:
    assert shared_bed.ssh(three, "paris-1", "sysctl -n -w net.ipv4.ip_forward=1") == "1"
    refused = shared_bed.ssh(three, "paris-1", "! sysctl -w kernel.pid_max=99999 2>&1")
    assert "pid_max" in refused
    assert shared_bed.ssh(three, "paris-1", "chrt -f 40 echo real time") == "real time"


def test_reserving_again_touches_nothing(shared_bed: LocalBed, three: Lease) -> None:
    before = shared_bed.pids(three)
    assert shared_bed.reserve(THREE) == three
    assert shared_bed.pids(three) == before
    assert shared_bed.provider.dead_hosts(three) == []


def test_a_killed_container_is_reported_and_comes_back_with_its_files(shared_bed: LocalBed, three: Lease) -> None:
    shared_bed.ssh(three, "lyon-1", "echo kept > /root/file")
    before = shared_bed.pids(three)
    kill_now(before["lyon-1"]["init"])
    kill_now(before["lyon-1"]["supervisor"])
    assert shared_bed.provider.dead_hosts(three) == ["lyon-1"]
    shared_bed.reserve(THREE)
    after = shared_bed.pids(three)
    assert shared_bed.provider.dead_hosts(three) == []
    assert shared_bed.ssh(three, "lyon-1", "cat /root/file") == "kept"
    assert {name: after[name] for name in ("paris-1", "lille-1", "router")} == {
        name: before[name] for name in ("paris-1", "lille-1", "router")
    }


def test_a_container_whose_supervisor_alone_was_killed_is_replaced(shared_bed: LocalBed, three: Lease) -> None:
    before = shared_bed.pids(three)["lille-1"]
    kill_now(before["supervisor"])
    assert machine.identity(before["init"]) is not None
    assert shared_bed.provider.dead_hosts(three) == ["lille-1"]
    shared_bed.reserve(THREE)
    assert machine.identity(before["init"]) is None
    assert shared_bed.ssh(three, "lille-1", "hostname") == "lille-1"


def test_a_host_that_powers_itself_off_is_dead(shared_bed: LocalBed, three: Lease) -> None:
    supervisor = shared_bed.pids(three)["lille-1"]["supervisor"]
    shared_bed.ssh(three, "lille-1", "systemctl --no-block poweroff")
    _until(lambda: machine.identity(supervisor) is None)
    assert shared_bed.provider.dead_hosts(three) == ["lille-1"]
    shared_bed.reserve(THREE)


def test_a_dead_router_is_reported_and_comes_back(shared_bed: LocalBed, three: Lease) -> None:
    slot = shared_bed.plan(three)["slot"]
    if three.router == "uml":
        kill_now(int(shared_bed.pids(three)["router"]))
    else:
        subprocess.run(["ip", "netns", "del", f"dd{slot}-router"], check=True)
    assert shared_bed.provider.dead_hosts(three) == ["WAN router"]
    shared_bed.reserve(THREE)
    assert shared_bed.provider.dead_hosts(three) == []
    assert reaches(f"dd{slot}-paris-1", three.at("lille").site_address)


def test_a_reboot_from_inside_comes_back(shared_bed: LocalBed, three: Lease) -> None:
    before = shared_bed.pids(three)["paris-1"]
    shared_bed.ssh(three, "paris-1", "echo kept > /root/file; touch /run/gone; systemctl --no-block reboot")
    _until(lambda: shared_bed.pids(three)["paris-1"]["init"] not in (None, before["init"]))
    _until(lambda: _answers(three.at("paris").management_address))
    assert (
        shared_bed.ssh(three, "paris-1", "cat /root/file; ls /run/gone 2>&1 | wc -l; test ! -e /run/gone") == "kept\n1"
    )
    assert shared_bed.pids(three)["paris-1"]["supervisor"] == before["supervisor"]


def test_a_missing_link_is_made_anew_under_a_running_host(shared_bed: LocalBed, three: Lease) -> None:
    before = shared_bed.pids(three)
    slot = shared_bed.plan(three)["slot"]
    address = _hardware_address(f"dd{slot}-lyon-1")
    subprocess.run(["ip", "link", "del", f"dd{slot}e1"], check=True)
    assert shared_bed.provider.dead_hosts(three) == ["lyon-1"]
    shared_bed.reserve(THREE)
    assert shared_bed.pids(three) == before
    assert _hardware_address(f"dd{slot}-lyon-1") == address  # its neighbours still know it
    assert reaches(f"dd{slot}-lyon-1", three.at("paris").site_address)


def _hardware_address(namespace: str) -> str:
    return in_namespace(namespace, ["cat", "/sys/class/net/eth0/address"]).stdout


def test_a_lost_namespace_is_made_anew_and_its_host_started_again(shared_bed: LocalBed, three: Lease) -> None:
    shared_bed.ssh(three, "lyon-1", "echo kept > /root/other")
    slot = shared_bed.plan(three)["slot"]
    subprocess.run(["ip", "netns", "del", f"dd{slot}-lyon-1"], check=True)
    assert shared_bed.provider.dead_hosts(three) == ["lyon-1"]
    shared_bed.reserve(THREE)
    assert shared_bed.ssh(three, "lyon-1", "cat /root/other") == "kept"
    assert reaches(f"dd{slot}-lyon-1", three.at("paris").site_address)


def test_another_key_is_given_to_running_hosts(shared_bed: LocalBed, three: Lease, tmp_path: Path) -> None:
    before = shared_bed.pids(three)
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    lease = shared_bed.reserve(THREE, public_key=other.with_suffix(".pub").read_text())
    assert shared_bed.pids(lease) == before
    assert shared_bed.ssh(lease, "paris-1", "hostname", key=other) == "paris-1"
    with pytest.raises(AssertionError, match="Permission denied"):
        shared_bed.ssh(lease, "paris-1", "hostname")
    shared_bed.reserve(THREE)


@contextmanager
def _outsider(machine_address: str, address: str) -> Iterator[str]:
    """A neighbour of the machine whose packets it would pass on, as machines do that forward for others."""
    name, device = "outsider", "outsider0"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        machine.run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        machine.run("ip", "address", "add", f"{machine_address}/24", "dev", device)
        machine.run("ip", "link", "set", device, "up")
        Path(f"/proc/sys/net/ipv4/conf/{device}/forwarding").write_text("1")
        machine.run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        machine.run("ip", "-n", name, "link", "set", "eth0", "up")
        machine.run("ip", "-n", name, "route", "add", "default", "via", machine_address)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
        subprocess.run(["ip", "link", "del", device], check=False)


def _echo_requests(namespace: str) -> int:
    """Echo requests that a namespace has received."""
    lines = in_namespace(namespace, ["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = [line.split() for line in lines if line.startswith("Icmp:")]
    return int(values[names.index("InEchos")])


def test_nothing_from_outside_is_passed_on_to_hosts(shared_bed: LocalBed, three: Lease) -> None:
    plan = shared_bed.plan(three)
    namespace = f"dd{plan['slot']}-paris-1"
    targets = (three.at("paris").management_address, three.at("paris").site_address)
    with _outsider("198.51.100.1", "198.51.100.2") as outsider:
        before = _echo_requests(namespace)
        assert [reaches(outsider, target) for target in targets] == [False, False]
        assert _echo_requests(namespace) == before
        # Without our rules the packets do arrive: the test would see them.
        for rule in site_networks.rules(plan):
            machine.run("ip", "rule", "del", *rule.split())
        assert [reaches(outsider, target) for target in targets] == [False, False]
        assert _echo_requests(namespace) == before + 6
    shared_bed.reserve(THREE)
    assert site_networks.observe(plan["slot"]).rules == set(site_networks.rules(plan))


def test_no_process_of_an_experiment_listens_on_the_machine(shared_bed: LocalBed, three: Lease) -> None:
    listening = subprocess.run(["ss", "-HlntupO"], capture_output=True, text=True, check=True).stdout
    listeners = {int(pid) for pid in re.findall(r"pid=(\d+)", listening)}
    ours = set(cgroups.processes(shared_bed.plan(three)["slot"]))
    assert len(ours) > 12
    assert listeners & ours == set()


def test_two_experiments_do_not_see_each_other(shared_bed: LocalBed, three: Lease) -> None:
    other = shared_bed.reserve(experiment("other", "rome"))
    slots = [shared_bed.plan(lease)["slot"] for lease in (three, other)]
    assert slots[0] != slots[1]
    assert shared_bed.provider.experiments() == ["other", "three"]
    rome, paris = other.at("rome"), three.at("paris")
    seen = {
        (namespace, address): reaches(namespace, address)
        for namespace, host in ((f"dd{slots[0]}-paris-1", rome), (f"dd{slots[1]}-rome-1", paris))
        for address in (host.site_address, host.management_address)
    }
    assert set(seen.values()) == {False}
    shared_bed.provider.release("other", shared_bed.said.append)
    assert shared_bed.provider.dead_hosts(three) == []
    assert shared_bed.provider.experiments() == ["three"]


def test_other_sites_are_another_plan_and_hosts_are_made_anew(bed: LocalBed) -> None:
    before = Snapshot.take(bed.state)
    first = bed.reserve(experiment("grows", "paris"))
    bed.ssh(first, "paris-1", "touch /root/file")
    second = bed.reserve(experiment("grows", "paris", "lyon"))
    assert any("made anew" in line for line in bed.said)
    assert bed.ssh(second, "paris-1", "ls /root") == ""
    assert second.identities["paris-1"] != first.details["machine_ids"]["paris-1"]
    bed.provider.release("grows", bed.said.append)
    assert Snapshot.take(bed.state).leftovers(before) == []
    assert not bed.state.exists()


def _lose_nothing(directory: Path) -> None:
    pass


def _lose_plan(directory: Path) -> None:
    (directory / "plan.json").unlink()


def _cut_plan(directory: Path) -> None:
    text = (directory / "plan.json").read_text()
    (directory / "plan.json").write_text(text[: len(text) // 2])


def _lose_directory(directory: Path) -> None:
    shutil.rmtree(directory)


@pytest.mark.parametrize("damage", [_lose_nothing, _lose_plan, _cut_plan, _lose_directory])
def test_release_leaves_nothing_with_and_without_the_plan(bed: LocalBed, damage: object) -> None:
    before = Snapshot.take(bed.state)
    lease = bed.reserve(experiment("gone", "paris", "lyon"))
    # What a driver that has died may have left running in a host's network.
    probe = subprocess.Popen(["ip", "netns", "exec", f"dd{bed.plan(lease)['slot']}-paris-1", "sleep", "60"])
    assert callable(damage)
    damage(bed.state / "gone")
    assert len(Snapshot.take(bed.state).leftovers(before)) > 20
    bed.provider.release("gone", bed.said.append)
    assert Snapshot.take(bed.state).leftovers(before) == []
    assert probe.wait(5) == -signal.SIGKILL
    assert not bed.state.exists()
    bed.provider.release("gone", bed.said.append)  # once more is no mistake


RESERVE = """
import sys
from pathlib import Path
from tests.integration.local_bed import LocalBed, experiment
bed = LocalBed(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
bed.reserve(experiment("killed", "paris", "lyon", "lille"))
print("done")
"""


def _start_reserving(bed: LocalBed) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", RESERVE, str(bed.image), str(bed.key), str(bed.state.parent)]
    environment = {**os.environ, "DISCOVERY_DEPLOY_STATE": str(bed.state)}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _begun(bed: LocalBed, sign: str) -> bool:
    directory = bed.state / "killed"
    return any(directory.glob(sign)) if "/" in sign or "*" in sign else (directory / sign).exists()


@pytest.mark.parametrize(
    ("sign", "later_s"),
    [("plan.json", 0.0), ("plan.json", 0.06), ("hosts/*/supervise", 0.0), ("hosts/*/pid", 0.05), ("hosts/*/pid", 0.4)],
)
def test_after_kill_9_of_a_reserve_release_leaves_nothing(bed: LocalBed, sign: str, later_s: float) -> None:
    before = Snapshot.take(bed.state)
    process = _start_reserving(bed)
    _until(lambda: _begun(bed, sign), pause_s=0.002)
    time.sleep(later_s)
    process.kill()
    process.wait()
    bed.provider.release("killed", bed.said.append)
    left = Snapshot.take(bed.state).leftovers(before)
    time.sleep(0.3)  # nothing may appear later either
    assert (left, Snapshot.take(bed.state).leftovers(before)) == ([], [])
    assert not bed.state.exists()


def test_after_kill_9_of_a_reserve_the_next_one_goes_on(bed: LocalBed) -> None:
    process = _start_reserving(bed)
    _until(lambda: _begun(bed, "hosts/*/pid"), pause_s=0.002)
    process.kill()
    process.wait()
    lease = bed.reserve(experiment("killed", "paris", "lyon", "lille"))
    assert bed.provider.dead_hosts(lease) == []
    assert [bed.ssh(lease, host, "hostname") for host in HOSTS] == list(HOSTS)


def test_while_one_process_reserves_another_waits_for_it(bed: LocalBed) -> None:
    process = _start_reserving(bed)
    _until(lambda: _begun(bed, "hosts/*/pid"), pause_s=0.002)
    lease = bed.reserve(experiment("killed", "paris", "lyon", "lille"))
    output, _ = process.communicate(timeout=30)
    assert output == "done\n"
    assert bed.provider.dead_hosts(lease) == []


@contextmanager
def _mounted(bed: LocalBed, kind: str, options: str, point: Path) -> Iterator[None]:
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", kind, kind, "-o", options, str(point)], check=True)
    try:
        yield
    finally:
        bed.release_all()
        subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk_is_said_plainly(bed: LocalBed) -> None:
    with _mounted(bed, "tmpfs", "size=20m", bed.state):
        with pytest.raises(
            TestbedError, match=r"full: .*/state/full: \d+ MB free, 3 new hosts need .* MB \(disk full\)"
        ):
            bed.reserve(experiment("full", "paris", "lyon", "lille"))
        (bed.state / "ballast").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space left"):
            (bed.state / "ballast").write_bytes(bytes(30 << 20))
        with pytest.raises(TestbedError, match="No space left on device"):
            bed.reserve(experiment("fuller", "paris"))


def test_a_state_directory_that_cannot_hold_overlays_is_said_plainly(bed: LocalBed, tmp_path: Path) -> None:
    for part in ("lower", "upper", "work"):
        (tmp_path / part).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with _mounted(bed, "overlay", options, bed.state):
        with pytest.raises(TestbedError, match=r"cannot hold the files of hosts .* choose|cannot hold") as caught:
            bed.reserve(experiment("stacked", "paris"))
        assert "DISCOVERY_DEPLOY_STATE" in caught.value.advice
        assert any("overlay" in lack.what or "cannot hold" in lack.what for lack in bed.provider.lacks())


@contextmanager
def _changed_image(bed: LocalBed, folder: Path) -> Iterator[tuple[Path, Path]]:
    """An image with a layer of changes over the real one: (image, layer)."""
    for part in ("layer", "work", "image"):
        (folder / part).mkdir()
    options = f"lowerdir={bed.image},upperdir={folder}/layer,workdir={folder}/work"
    with _mounted(bed, "overlay", options, folder / "image"):
        yield folder / "image", folder / "image"


def test_a_unit_that_fails_in_the_first_boot_is_named(bed: LocalBed, tmp_path: Path) -> None:
    with _changed_image(bed, tmp_path) as (image, layer):
        unit = layer / "etc/systemd/system/broken.service"
        unit.write_text("[Service]\nType=oneshot\nExecStart=/bin/false\n")
        (layer / "etc/systemd/system/multi-user.target.wants/broken.service").symlink_to(unit.name)
        with pytest.raises(TestbedError, match=r"broken: paris-1: systemd says degraded; failed units: broken.service"):
            bed.reserve(experiment("broken", "paris"), image=image)


def test_a_container_that_cannot_start_is_named_with_the_end_of_its_log(bed: LocalBed, tmp_path: Path) -> None:
    with _changed_image(bed, tmp_path) as (image, layer):
        (layer / "usr/lib/systemd/systemd").unlink()
        with pytest.raises(
            TestbedError, match=r"(?s)paris-1: its container has ended; the end of its log:\n.*init"
        ) as caught:
            bed.reserve(experiment("broken", "paris"), image=image)
        assert str(bed.state / "broken/hosts/paris-1/log") in caught.value.advice


def _until(condition: object, limit_s: float = 20, pause_s: float = 0.03) -> None:
    assert callable(condition)
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause_s)


def _answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(3) == b"SSH"
    except OSError:
        return False
