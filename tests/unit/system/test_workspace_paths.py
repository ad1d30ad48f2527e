"""The path of a workspace reaches Ansible and ssh: it is one that they take as it is, or it is refused at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery_deploy.driver import opening
from discovery_deploy.system.errors import EXIT_STATE, StateError
from discovery_deploy.system.remote import ssh_config_text
from discovery_deploy.system.workspace import Workspace
from tests.unit.driver.test_ansible import Book
from tests.unit.driver.test_testbed import experiment

STRANGE = ["$HOME.", "${HOME}", "%z", '"', "{{ 1 + 1 }}", "{% x %}", "a\nb", "a,b", "a:b", "a\\b", "#", "\udcff"]
TAKEN = "my results é.-+@=() (2026)_1"


def opened(folder: Path) -> opening.Opened:
    return opening.Opened(path=folder / "mine.yaml", source="", experiment=experiment(), tasks={})


@pytest.mark.parametrize("name", STRANGE)
def test_a_path_that_would_be_taken_for_another_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateError, match="Ansible and ssh take no path of a workspace with") as told:
        opening.workspace_of(opened(tmp_path), tmp_path / name / "ws")
    assert told.value.exit_code == EXIT_STATE
    assert "--workspace" in told.value.advice
    assert str(told.value).isprintable() or "\n" not in told.value.what
    assert list(tmp_path.iterdir()) == []


def test_the_default_place_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCOVERY_DEPLOY_RESULTS", str(tmp_path / "a$b"))
    with pytest.raises(StateError, match=r"with '\$'"):
        opening.workspace_of(opened(tmp_path), None)


def test_what_is_there_can_still_be_given_back(tmp_path: Path) -> None:
    at = Workspace(tmp_path / "a$b")
    (at.path / "name").write_text("mine\n")
    assert opening.find_workspace(str(at.path)).path == at.path


@pytest.mark.parametrize("strategy", ["plain", "mitogen"])
def test_a_path_that_is_taken_reaches_ansible_as_it_is(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCOVERY_DEPLOY_ANSIBLE", strategy)
    folder = opening.workspace_of(opened(tmp_path), tmp_path / TAKEN).path / "book"
    folder.mkdir()
    result = Book(folder).run(f"- ansible.builtin.command: {sys.executable} --version")
    assert list(result.task_seconds) == ["ansible.builtin.command"]


def test_a_path_that_is_taken_reaches_ssh_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / TAKEN
    folder.mkdir()
    text = ssh_config_text({"a-1": ("192.0.2.1", {})}, folder / "id", tmp_path, folder / "known_hosts", all_known=True)
    (folder / "ssh_config").write_text(text)
    command = ["ssh", "-G", "-F", str(folder / "ssh_config"), "a-1"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"identityfile {folder}/id\n" in shown
    assert f"userknownhostsfile {folder}/known_hosts\n" in shown.replace('"', "")
