"""What `doctor` finds, and the commands that it gives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from discovery_deploy.agent import uml_kernel, wan_router, wan_uml
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.cli import doctor
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import cache, image
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import local
from discovery_deploy.testbeds.base import Lack
from discovery_deploy.testbeds.local import LocalProvider


def experiment(sites: int, **deployment: Any) -> Experiment:
    names = [f"s{number}" for number in range(sites)]
    backend = {"type": "mariadb", "site": "s0"}
    return Experiment.model_validate(
        {
            "name": "asked",
            "sites": [{"name": name} for name in names],
            "deployment": {"backend": backend, **deployment},
        }
    )


FULL = ["keystone", "nova", "neutron", "glance", "placement"]


class Usage(NamedTuple):
    free: int


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A provider that lacks nothing and an image that is baked; what is tried on hosts is noted."""
    found: list[str] = []
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(tmp_path / "state"))
    (tmp_path / "cache/images" / image.image_hash()).mkdir(parents=True)
    monkeypatch.setattr(LocalProvider, "lacks", lambda self: [])
    monkeypatch.setattr(LocalProvider, "experiments", lambda self: ["holds-much"])
    monkeypatch.setattr(LocalProvider, "reserve", lambda self, asked, *_: found.append(f"reserve {asked.name}"))
    monkeypatch.setattr(LocalProvider, "release", lambda self, name, _: found.append(f"release {name}"))
    return found


def look(asked: Experiment | None = None) -> doctor.Findings:
    return doctor.look("local", asked, print)


def test_a_host_of_the_image_is_started_and_removed(tried: list[str]) -> None:
    assert look() == doctor.Findings(lacks=())
    assert tried == [f"reserve doctor-{os.getpid()}", f"release doctor-{os.getpid()}"]


def test_a_host_that_does_not_start_is_removed_and_its_advice_is_a_command(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise TestbedError("no way", "try `sysctl -w net.x=0`")

    monkeypatch.setattr(LocalProvider, "reserve", refuse)
    assert look().lacks == (Lack(what="a host does not start: no way", command="sysctl -w net.x=0"),)
    assert tried == [f"release doctor-{os.getpid()}"]


def test_without_an_image_that_is_said(tried: list[str], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache/images")
    found = look()
    assert found.lacks == ()
    assert "no image is baked yet" in found.notes[0]
    assert tried == []


def test_what_the_provider_lacks_comes_first_and_alone(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lack = Lack(what="root", command="sudo -i")
    monkeypatch.setattr(LocalProvider, "lacks", lambda self: [lack])
    assert look().lacks[0] == lack
    assert tried == []


def test_memory_is_that_of_the_asked_experiment(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SITE_MB", {"mariadb": 10**6})
    found = look(experiment(2)).lacks
    assert len(found) == 1
    assert "about 2000756 are needed for 2 sites of asked" in found[0].what
    assert found[0].command == "discovery-deploy release holds-much"
    assert tried == []
    monkeypatch.setattr(LocalProvider, "experiments", lambda self: ["asked"])
    assert look(experiment(2)).lacks == ()  # it has its memory already


def test_disk_space(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(free=3 << 29))
    (cache_lack,) = look().lacks
    assert cache_lack.what.endswith("/cache: 1.5 GiB free, about 6 are needed")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(free=1 << 29))
    state_lack = look().lacks[1]
    assert state_lack.what.endswith(": 0.5 GiB free, about 1 are needed")
    assert state_lack.command == "export DISCOVERY_DEPLOY_STATE=/srv/discovery-deploy  # a directory on a larger disk"


def test_what_is_cached_already_needs_no_more_space(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    full = cache.Entry(name="images/x", octets=5 << 30, used_by=("this version",))
    monkeypatch.setattr(cache, "entries", lambda directory: [full])
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(free=3 << 29))
    assert look().lacks == ()


@pytest.mark.parametrize(
    ("sites", "deployment", "mb"),
    [
        (3, {}, 3 * 240 + 256 + 500),
        (3, {"backend": {"type": "galera"}}, 3 * 320 + 256 + 500),
        (20, {}, 20 * 240 + 384 + 500),
        (
            3,
            {"topology": {"type": "regions"}, "services": FULL},
            3 * 1400 + 756,
        ),
    ],
)
def test_memory_of_an_experiment_is_what_was_measured(sites: int, deployment: dict[str, Any], mb: int) -> None:
    assert doctor.memory_mb(experiment(sites, **deployment)) == mb


@pytest.mark.parametrize(
    ("advice", "command"),
    [
        ("Run: apt-get install -y tcc", "apt-get install -y tcc"),
        ("is it? try `modprobe x`", "modprobe x"),
        ("Look.", ""),
    ],
)
def test_the_command_in_an_advice(advice: str, command: str) -> None:
    assert doctor.command_of(advice) == command


class TestRouter:
    @pytest.fixture(autouse=True)
    def _uml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wan_router, "kernel_has_netem", lambda: False)
        monkeypatch.setattr(wan_uml.UmlRouter, "kill", lambda self: None)
        monkeypatch.setattr(wan_uml.UmlRouter, "wait_ready", lambda self: None)

    def started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: MachineError | None) -> list[Lack]:
        def start(self: wan_uml.UmlRouter) -> None:
            assert (self.directory / "calls").is_dir()
            if error is not None:
                raise error

        monkeypatch.setattr(wan_uml.UmlRouter, "start", start)
        found = list(local._router_start_lacks(tmp_path / "not/there"))
        assert list(tmp_path.iterdir()) == []
        return found

    def test_its_kernel_is_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.started(tmp_path, monkeypatch, None) == []

    @pytest.mark.parametrize(
        ("what", "advice", "command"),
        [
            ("userspace - ptrace set fp regs failed, errno = 14", "", f"export {uml_kernel.SHIM_VARIABLE}=1"),
            ("no memory", "Run: mount -o remount /dev/shm", "mount -o remount /dev/shm"),
        ],
    )
    def test_why_it_does_not_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, advice: str, command: str
    ) -> None:
        found = self.started(tmp_path, monkeypatch, MachineError(what, advice))
        assert found == [Lack(what=what, command=command)]

    def test_tun_is_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str, flags: int) -> int:
            raise PermissionError(1, "Operation not permitted", path)

        monkeypatch.setattr(uml_kernel, "missing_commands", dict)
        monkeypatch.setattr(os, "open", refuse)
        found = list(local._router_lacks())
        assert [lack.what for lack in found] == ["/dev/net/tun: Operation not permitted"]
        assert found[0].command.startswith("modprobe tun; mkdir -p /dev/net; ")
