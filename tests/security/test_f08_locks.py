"""F8: a lock is that of the workspace that holds the hosts; and what another workspace holds stays."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.hosts.registry import name_held
from discovery_deploy.system.errors import StateError
from tests.security.tool import Tool, held, workspace_of
from tests.unit.driver.test_testbed import Machines, experiment, reserved


def test_release_from_elsewhere_does_not_destroy_hosts_under_a_driver(tool: Tool, tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "elsewhere" / "ws", "mine")
    hosts = held(tmp_path, "mine", workspace.path)
    with workspace.lock():
        said = tool("release", "mine")
    assert (said.code, "another discovery-deploy works on this experiment" in said.err) == (6, True)
    assert (hosts / "precious").exists()
    said = tool("release", "mine")
    assert (said.code, f"its hosts were reserved from {workspace.path}" in said.err) == (0, True)
    assert not hosts.exists()
    assert not (workspace.path / "lease.json").exists(), "the workspace that had them knows it"


def test_release_by_name_locks_the_holder_beside_the_workspace_of_that_name(tool: Tool, tmp_path: Path) -> None:
    workspace_of(tmp_path / "work" / "results" / "mine", "mine")
    holder = workspace_of(tmp_path / "elsewhere" / "ws", "mine")
    hosts = held(tmp_path, "mine", holder.path)
    with holder.lock():
        assert tool("release", "mine").code == 6
    assert (hosts / "precious").exists()


def test_f15_release_of_a_workspace_leaves_hosts_that_another_has_reserved_since(tool: Tool, tmp_path: Path) -> None:
    first = workspace_of(tmp_path / "work" / "ws1", "mine")
    second = workspace_of(tmp_path / "work" / "ws2", "mine")
    hosts = held(tmp_path, "mine", second.path)
    said = tool("release", "./ws1")
    assert said.code == 0
    assert f"mine's hosts (local) were reserved from {second.path} since: they stay" in said.err
    assert (hosts / "precious").exists()
    assert not (first.path / "lease.json").exists()
    assert (second.path / "lease.json").exists()
    assert tool("release", "./ws2").code == 0
    assert not hosts.exists()


def test_hosts_of_a_workspace_that_is_no_more_are_released_from_any_other(tool: Tool, tmp_path: Path) -> None:
    workspace_of(tmp_path / "work" / "ws1", "mine")
    hosts = held(tmp_path, "mine", tmp_path / "gone")
    assert tool("release", "./ws1").code == 0
    assert not hosts.exists()


def test_f15_of_two_drivers_that_reserve_a_name_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery_deploy.software.image.base_image", lambda cache, progress, variant="base": tmp_path)
    monkeypatch.setattr("discovery_deploy.system.remote.CONTROL_SOCKETS", tmp_path / "sockets")
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(tmp_path / "state"))
    outcomes: dict[str, str] = {}

    class Slow(Machines):
        """Takes a moment until hosts are known to be somebody's: both would have found them free."""

        def reserve(self, *arguments: Any, **more: Any) -> Lease:
            time.sleep(0.5)
            return super().reserve(*arguments, **more)

    machines = Slow()

    def drive(name: str) -> None:
        try:
            reserved(experiment(), workspace_of(tmp_path / name, "mine"), machines)
            outcomes[name] = "reserved"
        except StateError as error:
            outcomes[name] = str(error)

    drivers = [threading.Thread(target=drive, args=(name,)) for name in ("one", "two")]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert sorted(outcome == "reserved" for outcome in outcomes.values()) == [False, True]
    assert machines.made == 1
    (refused,) = (text for text in outcomes.values() if text != "reserved")
    assert "mine's hosts were reserved from" in refused


def test_a_name_that_is_being_reserved_is_neither_reserved_nor_released(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = held(tmp_path, "mine")
    monkeypatch.setattr("discovery_deploy.agent.machine.time.monotonic", iter(range(0, 10**6, 30)).__next__)
    with name_held("mine", 0):
        said = tool("release", "mine")
        with pytest.raises(StateError, match="mine: another discovery-deploy reserves"), name_held("mine", 0):
            pass
    assert (said.code, "another discovery-deploy reserves or releases it" in said.err) == (6, True)
    assert (hosts / "precious").exists()
