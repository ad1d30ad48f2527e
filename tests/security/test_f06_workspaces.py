"""F6, F6b: what lies in a workspace is not run: no pickle is read, and where others may write is refused."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from discovery_deploy.bench.campaign import runs, settings
from discovery_deploy.driver.driver import Driver, PlannedRun
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.workspace import Workspace
from tests.security.tool import Tool, workspace_of
from tests.unit.driver.test_testbed import Machines, Silence, experiment


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.sign}",)


def driver_in(workspace: Workspace) -> tuple[Driver, list[PlannedRun]]:
    driver = Driver(Testbed(experiment(), workspace, Machines(), Silence()), "")
    planned = [PlannedRun(**run.model_dump(), fingerprint="f") for run in runs(experiment())]
    assert settings(experiment())
    return driver, planned


@pytest.mark.parametrize("name", ["done", "inprogress", "sweeps"])
def test_f06_nothing_is_unpickled_from_the_workspace(tmp_path: Path, name: str) -> None:
    workspace = workspace_of(tmp_path / "ws", "mine")
    (workspace.runs / ".sweeper").mkdir(parents=True)
    (workspace.runs / ".sweeper" / name).write_bytes(pickle.dumps(Bomb(tmp_path / "PICKLE-RAN")))
    driver, planned = driver_in(workspace)
    sweeper = driver._sweeper(planned)
    assert not (tmp_path / "PICKLE-RAN").exists()
    assert sweeper.get_remaining() == {(run.id, "f") for run in planned}


def test_f06_a_damaged_list_is_no_bug_and_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "ws", "mine")
    driver, planned = driver_in(workspace)
    (workspace.runs / ".sweeper").mkdir(parents=True)
    (workspace.runs / ".sweeper" / "done").write_text("cut o")
    assert driver._sweeper(planned).get_next() == (planned[0].id, "f")
    assert driver._sweeper(planned).get_next() == (planned[0].id, "f"), "what was in progress is to do again"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    shutil.rmtree(workspace.runs / ".sweeper")
    (workspace.runs / ".sweeper").symlink_to(tmp_path / "elsewhere")
    driver._sweeper(planned)
    assert (tmp_path / "elsewhere" / "kept").exists()


@pytest.mark.parametrize("words", [("ssh", "lyon-1", "true"), ("status",), ("release", "mine"), ("openstack", "lyon")])
def test_f06b_a_workspace_of_another_user_is_refused_with_what_makes_it_ones_own(
    tool: Tool, tmp_path: Path, words: tuple[str, ...]
) -> None:
    workspace = workspace_of(tmp_path / "work" / "results" / "mine", "mine")
    workspace.ssh_config.write_text(f"Host *\n  ProxyCommand sh -c 'touch {tmp_path}/PROXY-RAN'\n")
    os.chown(workspace.path, 1000, 1000)
    said = tool(*words)
    assert (said.code, "others may write there (its owner is user 1000" in said.err) == (6, True)
    assert f"chown -R 0 {workspace.path} && chmod -R go-w {workspace.path}" in said.err
    assert not (tmp_path / "PROXY-RAN").exists()
    os.chown(workspace.path, 0, 0)
    assert tool("status").code == 0


@pytest.mark.parametrize(("mode", "refused"), [(0o770, True), (0o707, True), (0o755, False), (0o700, False)])
def test_f06b_nor_is_one_used_where_others_may_write(tmp_path: Path, mode: int, refused: bool) -> None:
    workspace_of(tmp_path / "ws", "mine")
    (tmp_path / "ws").chmod(mode)
    if refused:
        with pytest.raises(StateError, match=f"its mode {mode:o}"):
            Workspace(tmp_path / "ws")
    else:
        assert Workspace(tmp_path / "ws").name == "mine"
