"""F1: what names an experiment decides what is removed, so it is looked at where it is read and where it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery_deploy.agent import machine, machine_plans, names
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Plan
from discovery_deploy.bench.records import RunRecord
from discovery_deploy.hosts.nested import Nested
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.testbeds.g5k import G5kProvider
from discovery_deploy.testbeds.local import LocalProvider
from discovery_deploy.testbeds.static import StaticProvider
from discovery_deploy.testbeds.vagrant import VagrantProvider
from tests.security.tool import Tool, held, workspace_of
from tests.synthetic_campaign import campaign

NO_NAMES = ["", ".", "..", "../victim", "/proc/nowhere", "a/b", "A", "-x", "a b", "a\nb", "$(id)", "x" * 21]
"""No path among them leads out of a test's own folder: code without the check would remove what is there."""


def victim_of(folder: Path) -> Path:
    (folder / "victim").mkdir()
    (folder / "victim" / "data").write_text("precious")
    return folder / "victim"


@pytest.mark.parametrize("text", NO_NAMES)
def test_a_workspace_with_no_name_in_its_name_releases_nothing(tool: Tool, tmp_path: Path, text: str) -> None:
    victim, other = victim_of(tmp_path), held(tmp_path, "other")
    workspace = workspace_of(tmp_path / "work" / "ws", "mine")
    (workspace.path / "name").write_text(text.format(victim=victim))
    said = tool("release", "./ws")
    assert (said.code, "is not a name of an experiment" in said.err) == (6, True)
    assert tool("status", "-e", "./ws").code == 6
    assert (victim / "data").read_text() == "precious"
    assert (other / "precious").exists()


@pytest.mark.parametrize("provider", ["static", "vagrant", "g5k", "local"])
def test_nor_does_one_whose_lease_names_another_provider(tool: Tool, tmp_path: Path, provider: str) -> None:
    victim = victim_of(tmp_path)
    workspace = workspace_of(tmp_path / "work" / "ws", "mine")
    text = (workspace.path / "lease.json").read_text().replace('"local"', f'"{provider}"')
    (workspace.path / "lease.json").write_text(text)
    (workspace.path / "name").write_text(str(victim))
    assert tool("release", "./ws").code == 6
    assert (victim / "data").exists()


def test_a_name_that_is_not_utf_8_is_told(tool: Tool, tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "work" / "ws", "mine")
    (workspace.path / "name").write_bytes(b"\xff\xfe")
    said = tool("release", "./ws")
    assert (said.code, f"{workspace.path}/name: not readable" in said.err) == (6, True)


PROVIDERS: dict[str, Callable[[Path], ProviderInterface]] = {
    "local": lambda state: LocalProvider(state / "environments", state),
    "static": StaticProvider,
    "vagrant": lambda state: VagrantProvider(state / "cache", state),
    "g5k": lambda state: G5kProvider(state / "cache", state, state),
    "nested": lambda state: Nested("static", StaticProvider(state), state),
}


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("kind", PROVIDERS)
def test_no_provider_makes_a_path_of_what_is_no_name(tmp_path: Path, kind: str, name: str) -> None:
    victim = victim_of(tmp_path)
    name = name.format(victim=victim)
    (tmp_path / "state").mkdir()
    provider = PROVIDERS[kind](tmp_path / "state")
    with pytest.raises(StateError, match="is not a name of an experiment"):
        provider.release(name, print)
    with pytest.raises(StateError, match="is not a name of an experiment"):
        provider.holder(name)
    assert (victim / "data").exists()
    assert list((tmp_path / "state").iterdir()) == []


def test_a_bare_name_is_the_experiment_before_a_folder_of_that_name(tool: Tool, tmp_path: Path) -> None:
    victim = held(tmp_path, "victim")
    mine = workspace_of(tmp_path / "work" / "results" / "quickstart", "quickstart")
    trap = workspace_of(tmp_path / "work" / "quickstart", "victim")
    assert tool("release", "quickstart").code == 0
    assert (victim / "precious").exists()
    assert not (mine.path / "lease.json").exists()
    assert (trap.path / "lease.json").exists()


def test_hosts_of_a_bare_name_come_before_a_folder_of_that_name(tool: Tool, tmp_path: Path) -> None:
    victim, quickstart = held(tmp_path, "victim"), held(tmp_path, "quickstart")
    workspace_of(tmp_path / "work" / "quickstart", "victim")
    assert tool("release", "quickstart").code == 0
    assert (victim / "precious").exists()
    assert not quickstart.exists()


def test_a_folder_is_meant_when_nothing_else_has_its_name(tool: Tool, tmp_path: Path) -> None:
    own = held(tmp_path, "mine", tmp_path / "work" / "ws")
    workspace_of(tmp_path / "work" / "ws", "mine")
    assert tool("release", "ws").code == 0
    assert not own.exists()


def test_an_experiment_that_is_called_as_a_folder_of_other_providers_removes_none_of_them(
    tool: Tool, tmp_path: Path
) -> None:
    record = tmp_path / "state" / "nested" / "static" / "other" / "record.json"
    record.parent.mkdir(parents=True)
    record.touch()
    for name in ("nested", "static", "vagrant", "g5k"):
        tool("release", name)
        (tmp_path / "state" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "state" / name / machine.MARK).touch()
        PROVIDERS["local"](tmp_path / "state").release(name, print)
    assert record.exists()


# only what carries our mark is removed


def test_a_directory_gets_its_name_when_it_has_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(sorted(path.name for path in self.iterdir()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    machine.make_own(tmp_path / "state" / "mine")
    assert seen == [[machine.MARK]]
    assert machine.is_own(tmp_path / "state" / "mine")
    assert (tmp_path / "state" / "mine").stat().st_mode & 0o777 == 0o700
    machine.remove_own(tmp_path / "state" / "mine")
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("kind", ["local", "static", "vagrant"])
def test_a_directory_that_is_somebody_else_s_is_left_and_it_is_said_what_to_do(
    tool: Tool, tmp_path: Path, kind: str
) -> None:
    parent = tmp_path / "state" if kind == "local" else tmp_path / "state" / kind
    (parent / "mine").mkdir(parents=True)
    (parent / "mine" / "data").write_text("precious")
    with pytest.raises(Exception, match="has no mark of discovery-deploy") as caught:
        PROVIDERS[kind](tmp_path / "state").release("mine", print)
    assert f"touch {parent}/mine/{machine.MARK}" in str(caught.value)
    assert (parent / "mine" / "data").read_text() == "precious"
    machine.make_own(parent / "marked")
    (parent / "mine" / machine.MARK).touch()  # as was advised
    PROVIDERS[kind](tmp_path / "state").release("mine", print)
    assert not (parent / "mine").exists()


def test_hosts_are_not_put_into_somebody_else_s_directory(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").touch()
    with pytest.raises(MachineError, match="has no mark"):
        machine_plans.write_plan(tmp_path / "mine", Plan(1, tmp_path / "mine"))


def test_what_an_older_version_has_made_without_a_mark_is_known_by_its_plan(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    directory.mkdir()
    (directory / "upper").touch()
    (directory / "plan.json").write_text(json.dumps({"slot": 63, "directory": str(directory)}))
    assert machine_plans.read_plan(directory) is not None
    machine.remove_own(directory, known=machine_plans.read_plan(directory) is not None)
    assert not directory.exists()


def test_a_plan_that_speaks_of_another_directory_is_none(tmp_path: Path) -> None:
    victim = victim_of(tmp_path)
    machine.make_own(tmp_path / "mine")
    (tmp_path / "mine" / "plan.json").write_text(json.dumps({"slot": 63, "directory": str(victim)}))
    assert machine_plans.read_plan(tmp_path / "mine") is None
    machine_plans.clear(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert (victim / "data").exists()


def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    victim = victim_of(tmp_path)
    (victim / machine.MARK).touch()
    (tmp_path / "mine").symlink_to(victim)
    with pytest.raises(MachineError, match="is not a directory that discovery-deploy has made"):
        machine.remove_own(tmp_path / "mine")
    machine.make_own(tmp_path / "own")
    (tmp_path / "own" / "link").symlink_to(victim)
    machine.remove_own(tmp_path / "own")
    assert (victim / "data").exists()


@pytest.mark.parametrize("after", range(4))
def test_a_removal_that_is_cut_off_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    directory = tmp_path / "mine"
    machine.make_own(directory)
    for name in ("a", "b"):
        (directory / name).touch()
    unlink, left = Path.unlink, [after]

    def cut_off(self: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(self, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", cut_off)
        if after < 3:
            with pytest.raises(KeyboardInterrupt):
                machine.remove_own(directory)
    machine.remove_own(directory)
    assert not directory.exists()


# names that come from files of the workspace


def test_a_record_whose_folder_is_elsewhere_is_refused(tmp_path: Path) -> None:
    assert not names.is_name("../../etc", names.RUN_ID)
    assert names.is_name("create_and_list_users-galera-25-ms-1-0f3a9c1e~2", names.RUN_ID)
    workspace = Workspace(tmp_path)
    (workspace.path / "runs" / "a").mkdir(parents=True)
    whole = campaign().runs[0]

    def kept(**wrong: object) -> RunRecord | None:
        record = {**whole.model_dump(mode="json", by_alias=True), **wrong}
        (workspace.path / "runs" / "a" / "record.json").write_text(json.dumps(record))
        return workspace.load("runs/a/record.json", RunRecord)

    assert kept() == whole
    with pytest.raises(StateError, match=r"record.json: not readable"):
        kept(id="..")
    for files in ({"lyon": "../../.."}, {"..": "lyon"}):
        with pytest.raises(StateError, match=r"record.json: not readable"):
            kept(files=files)


def test_a_lease_whose_host_is_a_path_is_refused(tool: Tool, tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "work" / "results" / "mine", "mine")
    file = workspace.path / "lease.json"
    file.write_text(file.read_text().replace("lyon-1", "../../x"))
    said = tool("ssh", "../../x")
    assert (said.code, "lease.json: not readable" in said.err) == (6, True)
    assert list((tmp_path / "state").iterdir()) == []
