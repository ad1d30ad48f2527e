"""The provider `vagrant`, with a hypervisor and an EnOSlib that exist only on paper."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import machine
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import box
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import acceleration, vagrant
from discovery_deploy.testbeds.base import Lack
from discovery_deploy.testbeds.first_login import Entered
from discovery_deploy.testbeds.vagrant_plan import BOOT_LIMIT_S, NETWORKS, addresses
from tests.unit.testbeds.test_vagrant_plan import experiment


class PaperLibvirt:
    """Machines and networks by name; `stuck` ones cannot be removed."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.up: set[str] = set()
        self.nets: dict[str, str] = {}
        self.stuck: set[str] = set()
        self.made = 0

    def make(self, name: str) -> None:
        if name not in self.there:
            self.made += 1
            self.there[name] = f"identity-{self.made}"
        self.up.add(name)

    def machines(self) -> list[str]:
        return sorted(self.there)

    def running(self) -> list[str]:
        return sorted(self.up)

    def identity(self, machine: str) -> str:
        return self.there[machine]

    def networks(self) -> dict[str, str]:
        return self.nets

    def remove(self, prefix: str) -> list[str]:
        found = self.left(prefix)
        for name in set(found) - self.stuck:
            del self.there[name]
            self.up.discard(name)
        return found

    def left(self, prefix: str) -> list[str]:
        return [name for name in self.machines() if name.startswith(prefix)]


class Bed:
    """The provider, and what it was made to believe."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.libvirt = PaperLibvirt()
        self.provider = vagrant.VagrantProvider(tmp_path / "cache", tmp_path / "state")
        self.asked: list[str] = []
        self.entered: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.limits_s: list[float] = []
        self.broken = ""
        found = acceleration.Acceleration(kvm=False, why="on paper")
        monkeypatch.setattr(vagrant, "BACKENDS", {"libvirt": lambda: self.libvirt})
        monkeypatch.setattr(vagrant.VagrantProvider, "_lacks", lambda provider, backend, name: [])
        monkeypatch.setattr(vagrant.VagrantProvider, "_enoslib", lambda provider, name, backend: self.enoslib)
        monkeypatch.setattr(acceleration, "acceleration", lambda cache, kernel, progress: found)
        monkeypatch.setattr(vagrant, "enter", self.enter)

    def enoslib(self, verb: str, arguments: Mapping[str, Any], progress: Any, limit_s: float) -> Any:
        self.asked.append(verb)
        self.limits_s.append(limit_s)
        if self.broken:
            raise TestbedError(self.broken)
        if verb == "vagrant.release":
            return None
        configuration = arguments["configuration"]
        prefix = next(
            line.split("'")[1] for line in configuration["config_extra"].splitlines() if "default_pre" in line
        )
        names = [one["name_prefix"] for one in configuration["resources"]["machines"]]
        working = self.provider.state / prefix.split("_")[1] / prefix
        working.mkdir(parents=True, exist_ok=True)
        (working / "Vagrantfile").touch()
        for name in names:
            self.libvirt.make(f"{prefix}{name}")
        return [
            {"name": name, "address": f"192.168.121.{number}", "port": 22, "user": "root", "key": f"/keys/{name}"}
            for number, name in enumerate(names, 2)
        ]

    def enter(self, name: str, way: list[str], public_key: str, given: Mapping[str, str]) -> Entered:
        self.entered.append((name, public_key))
        return Entered(address=given[name], device="eth1")

    def reserve(self, asked: Experiment, workspace: Path | None = None) -> Lease:
        return self.provider.reserve(asked, "ssh-ed25519 KEY", Path("image"), self.said.append, workspace)

    def release(self, name: str = "paper") -> None:
        self.provider.release(name, self.said.append)


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(tmp_path, monkeypatch)


def test_a_lease_says_how_hosts_are_reached_and_that_they_shape(bed: Bed) -> None:
    lease = bed.reserve(experiment())
    assert (lease.shaped, lease.software, lease.site_subnets) == ("hosts", "shipped", {})
    paris = lease.at("paris")
    given = addresses(lease.details["network"], ["paris-1", "lyon-1"])
    assert (paris.management_address, paris.site_address) == ("192.168.121.2", given["paris-1"])
    assert (paris.site_device, paris.ssh) == ("eth1", {})
    assert sorted(bed.entered) == [("lyon-1", "ssh-ed25519 KEY"), ("paris-1", "ssh-ed25519 KEY")]


def test_vagrant_has_twice_the_time_that_machines_may_take_to_start_and_less_to_destroy_them(bed: Bed) -> None:
    bed.reserve(experiment())
    bed.release()
    start_s, destroy_s = bed.limits_s
    assert start_s >= 2 * 2 * BOOT_LIMIT_S, "two machines, perhaps one after the other"
    assert 0 < destroy_s < start_s


def test_host_keys_are_kept_while_machines_run_and_forgotten_when_they_are_started(bed: Bed) -> None:
    bed.reserve(experiment())
    known = bed.provider.state / "paper" / vagrant.KNOWN
    known.write_text("paris-1 ssh-ed25519 P\nlyon-1 ssh-ed25519 L\n")  # by ssh, at the first login
    lease = bed.reserve(experiment())
    assert lease.details["host_keys"] == {"paris-1": "ssh-ed25519 P", "lyon-1": "ssh-ed25519 L"}
    bed.libvirt.up.clear()
    assert bed.reserve(experiment()).details["host_keys"] == {}
    assert not known.exists()


def test_reserved_again_machines_that_live_are_left_alone(bed: Bed) -> None:
    first = bed.reserve(experiment())
    assert bed.reserve(experiment()) == first
    assert bed.asked == ["vagrant.reserve"]


def test_a_dead_machine_is_named_and_started_again(bed: Bed) -> None:
    lease = bed.reserve(experiment())
    bed.libvirt.up.discard("dd_paper_lyon-1")
    assert bed.provider.dead_hosts(lease) == ["lyon-1"]
    assert bed.reserve(experiment()) == lease
    assert bed.provider.dead_hosts(lease) == []


@pytest.mark.parametrize("change", [{"memory_mb": 4096}, {"box": "mine"}, {"extra": "# x"}])
def test_machines_of_another_request_are_made_anew(bed: Bed, change: dict[str, Any]) -> None:
    first = bed.reserve(experiment())
    second = bed.reserve(experiment(**change))
    assert not set(first.identities.values()) & set(second.identities.values())
    assert second.details["network"] == first.details["network"]


def test_machines_whose_request_is_lost_are_made_anew(bed: Bed) -> None:
    first = bed.reserve(experiment())
    (bed.provider.state / "paper" / vagrant.ASKED).write_text("{")
    assert not set(first.identities.values()) & set(bed.reserve(experiment()).identities.values())


def test_two_experiments_have_networks_of_their_own(bed: Bed) -> None:
    bed.libvirt.nets["somebody"] = NETWORKS["libvirt"][0]
    networks = [bed.reserve(experiment(name)).details["network"] for name in ("paper", "paper-2")]
    assert networks == list(NETWORKS["libvirt"][1:3])
    assert bed.provider.experiments() == ["paper", "paper-2"]
    bed.release("paper")
    assert bed.provider.experiments() == ["paper-2"]
    assert set(bed.libvirt.there) == {"dd_paper-2_paris-1", "dd_paper-2_lyon-1"}


def test_the_holder_is_known_until_release(bed: Bed, tmp_path: Path) -> None:
    bed.reserve(experiment(), tmp_path / "workspace")
    assert bed.provider.holder("paper") == tmp_path / "workspace"
    bed.release()
    assert bed.provider.holder("paper") is None
    assert not (tmp_path / "state").exists()


def test_release_twice_and_without_any_record(bed: Bed) -> None:
    bed.release()
    bed.reserve(experiment())
    shutil.rmtree(bed.provider.state)
    assert bed.provider.experiments() == ["paper"]
    bed.release()
    bed.release()
    assert bed.libvirt.there == {}
    assert bed.provider.experiments() == []


def test_release_after_a_reservation_that_failed(bed: Bed) -> None:
    bed.broken = "`vagrant up` failed with status 1"
    with pytest.raises(TestbedError, match="vagrant up"):
        bed.reserve(experiment())
    bed.libvirt.make("dd_paper_paris-1")  # Vagrant had made it, and told nobody
    bed.release()
    assert bed.libvirt.there == {}


def test_where_vagrant_cannot_destroy_machines_are_removed_by_name(bed: Bed) -> None:
    bed.reserve(experiment())
    bed.broken = "`vagrant destroy` failed with status 1"
    bed.release()
    assert bed.libvirt.there == {}
    assert any("removed by name" in line for line in bed.said)


def test_what_a_killed_driver_has_left_running_is_ended_before_anything_is_removed(bed: Bed) -> None:
    bed.reserve(experiment())
    mark = {vagrant.MARK: str(bed.provider.state / "paper")}
    others = {vagrant.MARK: str(bed.provider.state / "paper-2")}
    ignores = "trap '' TERM; while :; do sleep 0.1; done"
    with (
        subprocess.Popen(["sh", "-c", ignores], env={**os.environ, **mark}) as left,
        subprocess.Popen(["sleep", "60"], env={**os.environ, **others}) as other,
    ):
        try:
            bed.release()
            assert left.poll() == -signal.SIGKILL
            assert other.poll() is None
        finally:
            left.kill()
            other.kill()


def test_what_cannot_be_removed_is_named_and_still_known(bed: Bed) -> None:
    bed.reserve(experiment())
    bed.libvirt.stuck.add("dd_paper_lyon-1")
    with pytest.raises(TestbedError, match="libvirt still has dd_paper_lyon-1"):
        bed.release()
    assert bed.provider.experiments() == ["paper"]
    bed.libvirt.stuck.clear()
    bed.release()
    assert bed.provider.experiments() == []


def test_more_hosts_than_addresses_are_refused_before_anything_is_made(bed: Bed) -> None:
    asked = experiment().model_dump(mode="json")
    for site in asked["sites"]:
        (first,) = site["hosts"]
        site["hosts"] = [first, *({**first, "name": f"{site['name']}-x{number}"} for number in range(119))]
    with pytest.raises(TestbedError, match="240 hosts; Vagrant's network holds 236"):
        bed.reserve(Experiment.model_validate(asked))
    assert bed.asked == []


def test_a_box_whose_kernel_machines_start_is_in_use(bed: Bed) -> None:
    bed.reserve(experiment())
    working = bed.provider.state / "paper" / "dd_paper_"
    (working / "Vagrantfile").write_text("backend.kernel = '/cache/boxes/00ff/vmlinuz'\n")
    assert vagrant.boxes_in_use(bed.provider.state) == {"00ff": ["paper"]}
    bed.release()
    assert vagrant.boxes_in_use(bed.provider.state) == {}


def test_what_is_lacking_is_told_with_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    provider = vagrant.VagrantProvider(tmp_path / "cache", tmp_path / "state")
    found = {lack.what: lack.command for lack in provider.lacks()}
    assert found["the command vagrant"] == "apt-get install -y vagrant"
    assert found["the command virsh"] == "apt-get install -y libvirt-clients"
    with pytest.raises(TestbedError, match="missing: the command vagrant") as raised:
        provider.reserve(experiment(), "key", tmp_path, print)
    assert "apt-get install -y vagrant" in raised.value.advice


def test_a_libvirt_that_does_not_run_and_an_absent_plugin_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "virsh": "echo 'error: failed to connect' >&2; exit 1", "vagrant": "exit 0", "ssh": "", "dnsmasq": "",
        acceleration.EMULATOR: "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    commands = [lack.command for lack in vagrant.VagrantProvider(tmp_path / "cache", tmp_path / "state").lacks()]
    assert commands == [
        "systemctl start libvirtd.service",
        "apt-get install -y vagrant-libvirt",
        "discovery-deploy box build",
    ]


def test_virtualbox_needs_another_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_commands", lambda packages: {})
    monkeypatch.setattr(box, "boxes", lambda: [("debian/bookworm64", "virtualbox", "12")])
    provider = vagrant.VagrantProvider(tmp_path / "cache", tmp_path / "state")
    (lack,) = provider._lacks("virtualbox", box.NAME)
    assert "`box: debian/bookworm64`" in lack.what
    assert provider._lacks("virtualbox", "debian/bookworm64") == []
    assert provider._lacks("virtualbox", "x/y") == [
        Lack(what='Vagrant has no box "x/y" for virtualbox', command="vagrant box add --provider virtualbox x/y")
    ]


def test_records_hold_nothing_that_cannot_be_read_again(bed: Bed) -> None:
    bed.reserve(experiment())
    directory = bed.provider.state / "paper"
    asked = vagrant.read_request(directory)
    assert asked is not None
    assert asked.machines == ("paris-1", "lyon-1")
    assert set(vagrant.read_ways(directory)) == {"paris-1", "lyon-1"}
    assert {entry["user"] for entry in json.loads((directory / vagrant.WAYS).read_text())} == {"root"}
    assert ast.literal_eval(repr(asked.extra)) == ""
