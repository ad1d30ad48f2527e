"""Rally tasks beside the experiment file: found, checked with their places, kept, and part of what a run depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery_deploy.bench import own_tasks, rally
from discovery_deploy.driver import opening
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.system.workspace import Workspace

EXPERIMENT = """\
name: mine
sites: [{name: a}, {name: b}]
deployment: {backend: {type: mariadb, site: a}}
campaign:
  scenarios:
    - {task: %s, times: 2, args: {name_length: 10}}
"""
TASK = """\
name: tasks/create_user
question: What does a new user cost?
scenario: KeystoneBasic.create_user
writes: true
arguments:
  name_length: {description: Length of the name., default: 5}
atomic_actions:
  - {name: keystone_v3.create_user, does: POST /users}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "create_user.yaml").write_text(TASK)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT % "./tasks/create_user.yaml")
    return tmp_path / "mine.yaml"


def test_a_task_beside_the_experiment_is_one_like_others(file: Path, tmp_path: Path) -> None:
    opened = opening.open_experiment(file)
    (scenario,) = opened.experiment.campaign.scenarios
    task = rally.rally_task(opened.tasks[scenario.task], scenario)
    assert task["subtasks"][0]["scenario"] == {"KeystoneBasic.create_user": {"name_length": 10}}
    assert task["subtasks"][0]["title"] == "./tasks/create_user.yaml"
    assert scenario.label == "create_user"
    assert "keystone/create_and_list_users" in opened.tasks
    workspace = Workspace(tmp_path / "ws")
    opening.keep_source(workspace, opened)
    assert (workspace.path / "own-tasks" / "tasks" / "create_user.yaml").read_text() == TASK


def test_its_name_may_be_left_out(file: Path) -> None:
    task = file.parent / "tasks" / "create_user.yaml"
    task.write_text(TASK.replace("name: tasks/create_user\n", ""))
    assert opening.open_experiment(file).experiment.name == "mine"


def test_arguments_are_those_that_it_declares(file: Path) -> None:
    file.write_text(file.read_text().replace("name_length: 10", "length: 10"))
    with pytest.raises(ExperimentError, match=r'mine\.yaml:6:\d+: .*has no argument "length"'):
        opening.open_experiment(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "create_user.yaml:1:1: Input should be"),
        ("question: [", "create_user.yaml:1:12: "),
        (TASK.replace("writes: true", "write: true"), "create_user.yaml:4:1: write: "),
        (TASK.replace("does: POST /users", "doez: x"), "create_user.yaml:8:37: atomic_actions[0].doez: "),
        (TASK + "question: again\n", "create_user.yaml:9:1: question: duplicate key"),
        (TASK.replace("tasks/create_user", "other"), "create_user.yaml:1:1: name: is the file's place here, \"tasks/"),
        ("a: " + "x" * own_tasks.MOST_BYTES, "is larger than 200 kB"),
    ],
)
def test_what_is_wrong_in_it_is_told_with_its_place(file: Path, text: str, told: str) -> None:
    (file.parent / "tasks" / "create_user.yaml").write_text(text)
    with pytest.raises(ExperimentError) as error:
        opening.open_experiment(file)
    lines = error.value.what.splitlines()
    assert any(line.startswith(f"{file}:6:8: campaign.scenarios[0].task: ") and told in line for line in lines), lines


@pytest.mark.parametrize("name", ["./../x.yaml", "./tasks/../../x.yaml", "./tasks/create_user", "./x.py"])
def test_no_task_leads_elsewhere(file: Path, name: str) -> None:
    (file.parent.parent / "x.yaml").write_text(TASK)
    file.write_text(EXPERIMENT % name)
    with pytest.raises(ExperimentError, match="names no file beside this one"):
        opening.open_experiment(file)


def test_a_missing_file_is_told(file: Path) -> None:
    file.write_text(EXPERIMENT % "./nosuch.yaml")
    with pytest.raises(ExperimentError, match=r"task: .*nosuch\.yaml: no such file"):
        opening.open_experiment(file)
