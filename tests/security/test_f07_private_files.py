"""F7: hosts' files and images have set-uid programs and users' numbers that are others' here: nobody else may enter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.agent import machine
from discovery_deploy.software import image
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds.vagrant import VagrantProvider
from tests.unit.testbeds.test_vagrant_plan import experiment
from tests.unit.testbeds.test_vagrant_provider import Bed


@pytest.fixture(params=[0o022, 0o077, 0o000])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.usefixtures("_umask")
def test_images_and_logs_are_private_whatever_the_umask_and_the_cache_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    (cache / "images").mkdir()
    (cache / "images").chmod(0o755)  # as an older version left it
    monkeypatch.setattr(image, "apt_sources", dict)
    monkeypatch.setattr(image, "apt_acquire_options", list)
    monkeypatch.setattr(image, "run_logged", lambda command, log, what, told, stdin: Path(command[-2]).mkdir())
    monkeypatch.setattr(image, "contained", lambda command: [*command])
    tree = image.base_image(cache, print)
    assert tree.is_dir()
    assert (mode(cache / "images"), mode(cache / "logs")) == (0o700, 0o700)


def test_a_cache_that_is_somebody_else_s_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(machine, "private", refused)
    with pytest.raises(TestbedError, match=r"images: Operation not permitted") as caught:
        image.base_image(tmp_path, print)
    assert "DISCOVERY_DEPLOY_CACHE" in caught.value.advice


@pytest.mark.usefixtures("_umask")
def test_what_an_experiment_has_here_is_private_whatever_the_umask(tmp_path: Path) -> None:
    machine.make_own(tmp_path / "state" / "mine")
    assert mode(tmp_path / "state" / "mine") == 0o700
    (tmp_path / "state" / "mine").chmod(0o755)  # as an older version left it
    machine.make_own(tmp_path / "state" / "mine")
    assert mode(tmp_path / "state" / "mine") == 0o700


def test_vagrant_s_emulator_can_be_started_by_libvirt_s_own_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, monkeypatch)
    bed.reserve(experiment())
    emulator = bed.provider.cache / "boxes" / "emulator"
    assert mode(emulator) == 0o755
    assert mode(emulator.parent) & 0o055 == 0o055
    assert isinstance(bed.provider, VagrantProvider)
    assert mode(bed.provider.state / experiment().name) == 0o700
