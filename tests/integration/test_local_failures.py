"""What the provider `local` says when a machine or an image is not as it must be."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery_deploy.system.errors import TestbedError
from tests.integration.local_bed import LocalBed, experiment

pytestmark = pytest.mark.integration


def test_this_machine_lacks_nothing_and_another_one_is_told_what_to_install(
    bed: LocalBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bed.provider.lacks() == []
    monkeypatch.setenv("PATH", "/nowhere")
    lacks = {lack.what: lack.command for lack in bed.provider.lacks()}
    assert lacks["the command systemd-nspawn"] == "apt-get install -y systemd-container"
    assert lacks["the command mmdebstrap"] == "apt-get install -y mmdebstrap"


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
