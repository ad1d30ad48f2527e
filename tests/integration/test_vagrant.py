"""The provider `vagrant`: real machines by Vagrant and libvirt, emulated where guests do not run on the processor."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.software import box, stack
from discovery_deploy.software.enoslib_environment import enoslib_python
from discovery_deploy.testbeds.vagrant_plan import prefix
from discovery_deploy.wan.verdict import WanReport
from tests.integration.priority import before_all_else, emulators
from tests.integration.vagrant_bed import VagrantBed
from tests.integration.whole_experiment import until_valid

pytestmark = [pytest.mark.integration, pytest.mark.machines, pytest.mark.timeout(1500)]

NAME = "vagrant-test"
EXPERIMENT = f"""\
name: {NAME}
provider: {{type: vagrant, memory_mb: 512}}
sites: [{{name: paris}}, {{name: lyon}}]
network: {{default: {{delay: 25 ms}}, compensate: true}}
deployment: {{backend: {{type: mariadb, site: paris}}}}
"""
WHOLE = f"""\
{EXPERIMENT.replace(NAME, "vagrant-whole").replace("512", "2048")}
question: Does all of it work on machines of Vagrant?
campaign:
  bench_site: lyon
  scenarios: [{{task: keystone/authenticate_user_and_validate_token, times: 5}}]
"""
HOSTS = ("paris-1", "lyon-1")
START_S = 900.0


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VagrantBed]:
    """libvirt of our own, and the box."""
    bed = VagrantBed(tmp_path_factory.mktemp("vagrant"))
    try:
        bed.wait_for_libvirt()
        (bed.directory / f"{NAME}.yaml").write_text(EXPERIMENT)
        with pytest.MonkeyPatch.context() as patched:  # what needs the network is made where it is
            patched.setenv("VAGRANT_HOME", bed.variables["VAGRANT_HOME"])
            box.build(stack.cache_directory(), print)
            enoslib_python(stack.cache_directory(), print)
        assert bed.well("box", "build", limit_s=START_S).split() == [box.NAME, box.box_version(box.box_hash())]
        yield bed
    finally:
        bed.stop()


def workspace(bed: VagrantBed) -> Path:
    return bed.directory / "results" / NAME


def reserve(bed: VagrantBed) -> dict[str, str]:
    """Reserve, through the command line; host -> identity."""
    bed.well("reserve", f"{NAME}.yaml", limit_s=START_S)
    identities: dict[str, str] = json.loads((workspace(bed) / "lease.json").read_text())["identities"]
    return identities


def on(bed: VagrantBed, host: str, command: str) -> str:
    return bed.well("ssh", "--experiment", NAME, host, command, limit_s=120.0)


def everything(bed: VagrantBed, experiment: str = NAME) -> list[str]:
    """Names of what libvirt has of an experiment."""
    volumes = [line.split()[0] for pool in bed.virsh("pool-list", "--name") for line in bed.virsh("vol-list", pool)]
    names = [*bed.virsh("list", "--all", "--name"), *bed.virsh("net-list", "--all", "--name"), *volumes]
    return [name for name in names if name.startswith(prefix(experiment))]


def test_machines_are_reserved_mended_and_given_back(bed: VagrantBed) -> None:
    first = reserve(bed)
    assert set(first) == set(HOSTS)

    # Root enters with the experiment's key, hosts know each other by name on the network of the sites.
    assert on(bed, "paris-1", "id -u; hostname; . /etc/os-release; echo $ID-$VERSION_ID").split() == [
        "0", "paris-1", "debian-12",
    ]  # fmt: skip
    lease = json.loads((workspace(bed) / "lease.json").read_text())
    addresses = {host["name"]: host["site_address"] for host in lease["hosts"]}
    assert on(bed, "paris-1", "getent ahostsv4 lyon-1 | head -n 1").split()[0] == addresses["lyon-1"]
    device = next(host["site_device"] for host in lease["hosts"] if host["name"] == "paris-1")
    assert f" dev {device} " in on(bed, "paris-1", f"ip route get {addresses['lyon-1']}")

    # The machines' own kernels shape what they send.
    with before_all_else(emulators(f"guest={prefix(NAME)}")):
        done = bed.run(sys.executable, "-m", "tests.integration.shape_and_measure", f"{NAME}.yaml", limit_s=300.0)
    assert done.returncode == 0, done.stderr
    report = WanReport.model_validate_json(done.stdout)
    assert report.problems == ()
    for pair in report.pairs:
        assert pair.asked_rtt_s == 0.05
        assert pair.measured.rtt_median_s == pytest.approx(pair.asked_rtt_s, abs=0.001)

    # Reserved again, they are left alone.
    uptime = on(bed, "lyon-1", "cut -d. -f1 /proc/uptime")
    assert reserve(bed) == first
    assert int(on(bed, "lyon-1", "cut -d. -f1 /proc/uptime")) >= int(uptime)

    # One that died is seen, and comes back as what it was.
    bed.virsh("destroy", f"{prefix(NAME)}lyon-1")
    assert reserve(bed) == first
    assert on(bed, "lyon-1", "hostname").strip() == "lyon-1"

    # Without a workspace and without Vagrant's records, all is found by name.
    for record in (bed.directory / "state" / "vagrant" / NAME / prefix(NAME)).glob("*"):
        record.rename(bed.directory / f"lost-{record.name.strip('.')}")
    assert everything(bed) != []
    bed.well("release", NAME, limit_s=300.0)
    assert everything(bed) == []
    assert not (bed.directory / "state").exists()
    bed.well("release", NAME, limit_s=300.0)


@pytest.mark.extended
def test_what_a_killed_reservation_leaves_is_given_back(bed: VagrantBed) -> None:
    """A driver that is killed while Vagrant starts machines leaves nothing that `release` does not find."""
    bed.kill_when(lambda: any(name.endswith("1") for name in everything(bed)), "reserve", f"{NAME}.yaml")
    assert everything(bed) != []
    bed.well("release", NAME, limit_s=300.0)
    assert everything(bed) == []


@pytest.mark.extended
@pytest.mark.timeout(5400)
def test_a_whole_experiment_from_its_file_to_its_report(bed: VagrantBed) -> None:
    (bed.directory / "vagrant-whole.yaml").write_text(WHOLE)
    page = until_valid(functools.partial(bed.tool, limit_s=5000.0), "vagrant-whole.yaml", 0.05)
    assert "machines of Vagrant" in page
    shown = bed.well("openstack", "-e", "vagrant-whole", "lyon", "endpoint", "list", "-f", "json", limit_s=600.0)
    assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"paris", "lyon"}
    bed.well("release", "vagrant-whole", limit_s=300.0)
    assert everything(bed, "vagrant-whole") == []
