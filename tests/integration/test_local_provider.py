"""The provider `local` on this machine: real containers, networks and router."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery_deploy.agent import cgroups, machine, site_networks
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.system.errors import TestbedError
from tests.integration.local_bed import LocalBed, answers, experiment, in_namespace, kill_now, reaches, until

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
    slow, quick = "qdisc replace dev vec0 root netem delay 300ms limit 1000", "qdisc del dev vec0 root"
    shared_bed.provider.shape(three, TcProgram(super_packets=True, devices={"vec0": (slow,)}))
    started = time.monotonic()
    with socket.create_connection((three.at("paris").site_address, 22), timeout=5) as connection:
        assert connection.recv(3) == b"SSH"
    assert time.monotonic() - started < 0.3  # by the WAN, one way alone takes as long
    assert "netem" in {qdisc["kind"] for qdisc in shared_bed.provider.read_shape(three)["qdisc"]["vec0"]}
    shared_bed.provider.shape(three, TcProgram(super_packets=True, devices={"vec0": (quick,)}))


def test_sites_reach_each_other_through_the_router_and_not_around_it(shared_bed: LocalBed, three: Lease) -> None:
    namespace = f"dd{shared_bed.plan(three).slot}-paris-1"
    assert reaches(namespace, three.at("lille").site_address)
    assert not reaches(namespace, three.at("lille").management_address)
    # Not by way of the machine either, when a host tries.
    other = three.at("lille").site_address
    detour = f"ip route add {other}/32 via {shared_bed.plan(three).management.address} dev mgmt0"
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


TRIES = """\
cd /opt/discovery-deploy
for way in remount,rw,bind remount,rw remount,rw,lowerdir=/tmp; do
  mount -o $way /opt/discovery-deploy
  touch new; echo changed > lent; rm lent; mkdir folder
done 2>&1 | grep -c 'Read-only file system'
ls; cat lent
"""


def test_f16_a_host_cannot_write_into_the_cache_whatever_it_mounts(shared_bed: LocalBed, three: Lease) -> None:
    (shared_bed.environments / "lent").write_text("as it was\n")
    assert shared_bed.ssh(three, "paris-1", TRIES) == "12\nlent\nas it was"
    later = shared_bed.environments / "later"  # an environment that is built while hosts run
    later.mkdir()
    (later / "file").write_text("seen\n")
    assert shared_bed.ssh(three, "paris-1", "cat /opt/discovery-deploy/later/file") == "seen"
    shared_bed.ssh(
        three, "paris-1", "mount -t overlay o -o lowerdir=/opt/discovery-deploy,upperdir=/run,workdir=/run /mnt; true"
    )
    assert sorted(path.name for path in shared_bed.environments.rglob("*")) == ["file", "later", "lent"]
    assert (shared_bed.environments / "lent").read_text() == "as it was\n"


def test_f07_nobody_but_root_reaches_the_files_of_hosts(shared_bed: LocalBed, three: Lease) -> None:
    shared_bed.ssh(three, "paris-1", "cp /bin/true /root/opened; chmod 4755 /root/opened; chmod 755 /root")
    program = shared_bed.state / "three/hosts/paris-1/upper/root/opened"
    assert program.stat().st_mode & 0o7777 == 0o4755
    for parent in (shared_bed.state.parent, shared_bed.state):  # what pytest has made for itself
        parent.chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([program], user=65534, group=65534, extra_groups=[], check=False)
    assert "root" in shared_bed.ssh(three, "paris-1", "runuser -u nobody -- ls /").split()


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
    until(lambda: machine.identity(supervisor) is None)
    assert shared_bed.provider.dead_hosts(three) == ["lille-1"]
    shared_bed.reserve(THREE)


def test_a_dead_router_is_reported_and_comes_back(shared_bed: LocalBed, three: Lease) -> None:
    slot = shared_bed.plan(three).slot
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
    until(lambda: shared_bed.pids(three)["paris-1"]["init"] not in (None, before["init"]))
    until(lambda: answers(three.at("paris").management_address))
    assert (
        shared_bed.ssh(three, "paris-1", "cat /root/file; ls /run/gone 2>&1 | wc -l; test ! -e /run/gone") == "kept\n1"
    )
    assert shared_bed.pids(three)["paris-1"]["supervisor"] == before["supervisor"]


def test_a_missing_link_is_made_anew_under_a_running_host(shared_bed: LocalBed, three: Lease) -> None:
    before = shared_bed.pids(three)
    slot = shared_bed.plan(three).slot
    address = _hardware_address(f"dd{slot}-lyon-1")
    subprocess.run(["ip", "link", "del", f"dd{slot}e1"], check=True)
    assert shared_bed.provider.dead_hosts(three) == ["lyon-1"]
    shared_bed.reserve(THREE)
    assert shared_bed.pids(three) == before
    assert _hardware_address(f"dd{slot}-lyon-1") == address  # its neighbours still know it
    assert reaches(f"dd{slot}-lyon-1", three.at("paris").site_address)


def _hardware_address(namespace: str) -> str:
    return in_namespace(namespace, ["cat", "/sys/class/net/eth0/address"]).stdout


def test_a_bridge_that_passes_nothing_is_said_with_what_may_be_the_cause(shared_bed: LocalBed, three: Lease) -> None:
    plan = shared_bed.plan(three)
    ports = (plan.hosts[0].site_device, plan.sites[0].tap)

    def isolate(state: str) -> None:
        for port in ports:
            machine.run("ip", "link", "set", port, "type", "bridge_slave", "isolated", state)

    isolate("on")
    with pytest.raises(
        TestbedError, match=r"paris-1 does not reach its gateway 10\.\d+\.0\.1 across the bridge dd\d+s0"
    ) as caught:
        shared_bed.reserve(THREE)
    assert "bridge-nf-call-iptables" in caught.value.advice
    isolate("off")
    shared_bed.reserve(THREE)


def test_a_lost_namespace_is_made_anew_and_its_host_started_again(shared_bed: LocalBed, three: Lease) -> None:
    shared_bed.ssh(three, "lyon-1", "echo kept > /root/other")
    slot = shared_bed.plan(three).slot
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
    namespace = f"dd{plan.slot}-paris-1"
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
    assert site_networks.observe(plan.slot).rules == set(site_networks.rules(plan))


def test_no_process_of_an_experiment_listens_on_the_machine(shared_bed: LocalBed, three: Lease) -> None:
    listening = subprocess.run(["ss", "-HlntupO"], capture_output=True, text=True, check=True).stdout
    listeners = {int(pid) for pid in re.findall(r"pid=(\d+)", listening)}
    ours = set(cgroups.processes(shared_bed.plan(three).slot))
    assert len(ours) > 12
    assert listeners & ours == set()


def test_two_experiments_do_not_see_each_other(shared_bed: LocalBed, three: Lease) -> None:
    other = shared_bed.reserve(experiment("other", "rome"))
    slots = [shared_bed.plan(lease).slot for lease in (three, other)]
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


def test_a_machine_that_was_restarted_gets_new_files(shared_bed: LocalBed, three: Lease) -> None:
    # Nothing runs any more, and the boot is another one: what was not yet on disk is lost.
    shared_bed.ssh(three, "lyon-1", "touch /root/unwritten")
    pids = shared_bed.pids(three)["lyon-1"]
    kill_now(pids["init"])
    kill_now(pids["supervisor"])
    born = shared_bed.state / "three/hosts/lyon-1/born.json"
    born.write_text(re.sub(r'"boot_id": "[^"]+"', '"boot_id": "another"', born.read_text()))
    lease = shared_bed.reserve(THREE)
    assert "lyon-1: the machine has been restarted" in "\n".join(shared_bed.said)
    assert "unwritten" not in shared_bed.ssh(lease, "lyon-1", "ls /root")
    changed = {name for name, identity in lease.identities.items() if identity != three.identities[name]}
    assert changed == {"lyon-1"}
