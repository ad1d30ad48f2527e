"""F15: half-written and damaged files, one at a time: a clear error at most, what is whole is told, and the next
command works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.agent import machine, machine_plans
from discovery_deploy.agent.plan import Plan
from discovery_deploy.bench.records import HostFacts, RunRecord
from discovery_deploy.driver.driver import Driver
from discovery_deploy.driver.phases import State
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.software.records import Software
from discovery_deploy.system import files
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.strict import Strict
from discovery_deploy.system.workspace import Workspace
from tests.security.tool import Tool, held, workspace_of
from tests.unit.driver.test_testbed import LOADS, Machines, Silence, experiment

HALVES = ["private alone", "public alone", "not a key", "empty", "of another key", "neither"]


@pytest.mark.parametrize("half", HALVES)
def test_a_half_written_key_is_made_again_and_a_whole_one_is_kept(tmp_path: Path, half: str) -> None:
    workspace = Workspace(tmp_path / "ws")
    first, public = workspace.public_key(), workspace.key.with_suffix(".pub")
    assert workspace.public_key() == first
    if half in ("private alone", "neither"):
        public.unlink()
    if half in ("public alone", "neither"):
        workspace.key.unlink()
    if half in ("not a key", "empty"):
        workspace.key.write_text("x\n" if half == "not a key" else "")
    if half == "of another key":
        public.write_text(Workspace(tmp_path / "other").public_key() + "\n")
    again = workspace.public_key()
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", workspace.key], capture_output=True, text=True, check=True
    ).stdout
    assert again.split()[:2] == derived.split()[:2]
    assert again != first
    assert workspace.key.stat().st_mode & 0o777 == 0o600
    assert list(workspace.path.glob(".id*")) == []


def three(folder: Path) -> dict[str, Workspace]:
    results = folder / "work" / "results"
    return {name: workspace_of(results / name, name) for name in ("first", "second", "third")}


@pytest.mark.parametrize("file", ["state.json", "lease.json", "runs/a-1-0f/record.json", "name"])
def test_status_tells_of_the_others_and_of_who_holds_hosts(tool: Tool, tmp_path: Path, file: str) -> None:
    damaged = three(tmp_path)["second"].path / file
    held(tmp_path, "first")
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"\xff{")
    said = tool("status")
    assert said.code == 6
    assert f"{damaged}: not readable" in said.err
    whole = ("first", "third") if file == "name" else ("first", "second", "third")
    assert all(f"experiment {name}, workspace" in said.out for name in whole)
    assert str(damaged) in said.out
    assert "experiments with hosts on this machine: first (workspace unknown)" in said.out
    damaged.unlink()
    if file != "name":
        assert tool("status").code == 0


ADVICE = {
    "lease.json": "it removes this file too",
    "state.json": "it removes this file too",
    "secrets.json": "it removes this file too",
    "software.json": "Remove this file",
    "facts/lyon-1.json": "Remove this file",
    "runs/a-1-0f/record.json": "Move the folder of this run away",
}


@pytest.mark.parametrize("name", ADVICE)
def test_what_to_do_about_a_damaged_file_is_so(tmp_path: Path, name: str) -> None:
    workspace = workspace_of(tmp_path / "ws", "mine")
    (workspace.path / name).parent.mkdir(parents=True, exist_ok=True)
    (workspace.path / name).write_text("{")
    kinds: dict[str, type[Strict]] = {
        "facts/lyon-1.json": HostFacts,
        "software.json": Software,
        "runs/a-1-0f/record.json": RunRecord,
    }
    with pytest.raises(StateError, match="not readable") as caught:
        workspace.load(name, kinds.get(name, State))
    assert ADVICE[name] in caught.value.advice
    workspace.remove_lease()
    assert (workspace.path / name).exists() == ("it removes this file too" not in caught.value.advice)


def test_a_report_with_damaged_facts_is_no_bug(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "ws", "mine")
    (workspace.path / "facts").mkdir()
    (workspace.path / "facts" / "nantes-1.json").write_bytes(b"\xff")
    driver = Driver(Testbed(experiment(), workspace, Machines(), Silence()), "")
    with pytest.raises(StateError, match=r"facts/nantes-1.json: not readable"):
        driver.provenance()
    (workspace.path / "facts" / "nantes-1.json").unlink()
    driver.provenance()


class Done(Silence):
    """An announcer that keeps what is told at the end of a phase."""

    def __init__(self) -> None:
        super().__init__()
        self.details: list[str] = []

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        self.details.append(detail)


def test_a_report_is_made_without_a_damaged_count_and_names_it(tmp_path: Path) -> None:
    workspace, told = workspace_of(tmp_path / "ws", "mine"), Done()
    driver = Driver(Testbed(experiment(LOADS), workspace, Machines(), told), "")
    deployed = driver.testbed.wanted(driver.settings[0].experiment)["deploy"]
    (workspace.path / "counts").mkdir()
    (workspace.path / "counts" / f"{deployed}.json").write_text('{"schema": 99}')
    page = driver.report()
    name = f"counts/{deployed}.json"
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert text.count(f"could not be read, and is left out: {name}") == 1
    assert told.details == [f"0 runs; not readable, left out: {name}"]
    (workspace.path / name).unlink()
    assert "could not be read" not in driver.report().read_text()


# on the disk before it counts


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was brought to the disk, and of what was renamed, in order."""
    seen: list[str] = []
    replace, rename, fsync = Path.replace, Path.rename, os.fsync

    def synced(descriptor: int) -> None:
        seen.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        seen.append(f"rename {self.name}")
        return replace(self, target)

    def renamed(self: Path, target: Path) -> Path:
        seen.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "sync", lambda: seen.append("sync"))
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "rename", renamed)
    return seen


def test_a_plan_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, acts: list[str]) -> None:
    machine.make_own(tmp_path / "mine")
    acts.clear()
    machine_plans.write_plan(tmp_path / "mine", Plan(3, tmp_path / "mine"))
    (first, hidden), (then, renamed) = (act.split() for act in acts)
    assert (first, then) == ("fsync", "rename")
    assert hidden == renamed
    assert hidden.startswith(".plan.json.")


def test_what_is_made_once_is_on_the_disk_before_it_counts_as_made(tmp_path: Path, acts: list[str]) -> None:
    files.made_once(tmp_path / "images" / "abc", Path.mkdir, "an image", print)
    assert acts == ["sync", "rename .abc.partial"]
