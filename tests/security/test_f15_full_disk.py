"""F15: a full disk is told as one, nothing half-written stays, and the next command works."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from discovery_deploy.agent import machine
from discovery_deploy.cli import commands
from discovery_deploy.driver import ansible
from discovery_deploy.results import report
from discovery_deploy.system.errors import StateError
from tests.security.tool import Tool, held, workspace_of

pytestmark = pytest.mark.integration


def fill(place: Path) -> None:
    with suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free block."""
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        (place / "room").mkdir()
        fill(place)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_report_leaves_nothing_half_written_and_the_old_one(full: Path) -> None:
    (full / "ballast").unlink()
    report.write({"report.html": b"old", "runs.csv": b"old"}, full / "room")
    with pytest.raises(StateError, match="No space left"):
        report.write({"report.html": bytes(1 << 20)}, full / "room")
    assert sorted(path.name for path in (full / "room").iterdir()) == ["report.html", "runs.csv"]
    assert (full / "room" / "report.html").read_bytes() == b"old"


def test_no_plan_is_half_written(full: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        machine.replace(full / "room" / "plan.json", "x" * 8192)
    with pytest.raises(OSError, match="No space left"):
        machine.make_own(full / "room" / "mine")
    assert list((full / "room").iterdir()) == []


def test_a_playbook_leaves_no_scratch(full: Path) -> None:
    with pytest.raises(OSError, match="No space left"), ansible._scratch(full / "room" / ".x.playbook") as scratch:
        (scratch / "inventory.json").write_bytes(bytes(8192))
    assert list((full / "room").iterdir()) == []


def test_wherever_it_is_met_it_is_told_with_what_to_do(tool: Tool, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(named: str | None) -> None:
        (full / "room" / "file").write_bytes(bytes(8192))

    monkeypatch.setattr(commands, "status", meet)
    said = tool("status")
    assert said.code == 6
    assert "No space left on device" in said.err
    assert "df -h" in said.err
    assert "bug" not in said.err


def test_hosts_and_workspace_are_released_from_a_full_disk(
    tool: Tool, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (full / "ballast").unlink()
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(full / "state"))
    (tmp_path / "state").rmdir()
    (tmp_path / "state").symlink_to(full / "state")
    (full / "state").mkdir()
    workspace = workspace_of(full / "results" / "mine", "mine")
    hosts = held(tmp_path, "mine", workspace.path)
    monkeypatch.setenv("DISCOVERY_DEPLOY_RESULTS", str(full / "results"))
    fill(full)
    with pytest.raises(StateError, match="No space left"):
        workspace.note("more")
    said = tool("release", "mine")
    assert said.code == 0, said.err
    assert not hosts.exists()
    assert not (workspace.path / "lease.json").exists()
