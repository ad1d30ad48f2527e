"""Every task template against the schemas of the Rally that is deployed: arguments, contexts, runner, SLA."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import rally_process
from discovery_deploy.bench import rally
from discovery_deploy.experiment.model import Scenario
from discovery_deploy.software import stack

pytestmark = pytest.mark.integration
Problems = Callable[[list[dict[str, Any]]], list[list[str]]]
PROGRAM = """\
import json, sys
exec(sys.argv[1])
load()
from rally.task import context, runner, scenario, sla

def checked(subtask):
    [(name, arguments)] = subtask["scenario"].items()
    [(kind, given)] = subtask["runner"].items()
    workload = {"name": name, "args": arguments, "contexts": subtask["contexts"], "runner_type": kind, "runner": given,
                "hooks": [], "sla": subtask["sla"], "position": 0}
    found = scenario.Scenario.validate(name=name, context=None, config=workload, plugin_cfg=None, vtype="syntax")
    found += runner.ScenarioRunner.validate(name=kind, context=None, config=None, plugin_cfg=given, vtype="syntax")
    for plugins, chosen in ((context.Context, subtask["contexts"]), (sla.SLA, subtask["sla"])):
        for key, value in chosen.items():
            found += plugins.validate(name=key, context=None, config=None, plugin_cfg=value, vtype="syntax")
    return found

print(json.dumps([checked(subtask) for subtask in json.load(sys.stdin)]))
"""
"""What `rally task validate` does first; the rest of it needs a running OpenStack."""
LOADER = Path(rally_process.__file__).read_text().replace('if __name__ == "__main__":', "if False:")
"""The program that runs tasks, for its way to load Rally."""


INSIDE = 'mount --bind "$1" "$0/mnt" && exec chroot "$0" /mnt/bin/python -c "$2" "$3"'
"""With the hosts' own Python: image, environment and programs are the words after it."""


@pytest.fixture(scope="module")
def problems(image: Path) -> Problems:
    """Subtasks -> what Rally has against each."""
    cache = stack.cache_directory()
    environment = cache / "environments" / stack.rally_environment(cache, image, print).name

    def found(subtasks: list[dict[str, Any]]) -> list[list[str]]:
        command = ["unshare", "--mount", "sh", "-c", INSIDE, str(image), str(environment), PROGRAM, LOADER]
        done = subprocess.run(
            command, input=json.dumps(subtasks), capture_output=True, text=True, timeout=120, check=True
        )
        answer: list[list[str]] = json.loads(done.stdout)
        return answer

    return found


def subtask(template: rally.TaskTemplate, **arguments: Any) -> dict[str, Any]:
    made = rally.rally_task(template, Scenario(task=template.name, times=2, args=arguments))
    [only] = made["subtasks"]
    return dict(only)


def test_rally_takes_every_task(problems: Problems) -> None:
    tasks = rally.load_tasks()
    found = problems([subtask(template) for template in tasks.values()])
    assert {name: told for name, told in zip(tasks, found, strict=True) if told} == {}


def test_rally_takes_every_argument_that_a_task_declares(problems: Problems) -> None:
    tasks = [template for template in rally.load_tasks().values() if template.arguments]
    values: dict[str, Any] = {"availability_zone": "nova"}
    full = [
        subtask(template, **{name: values.get(name, one.default) for name, one in template.arguments.items()})
        for template in tasks
    ]
    assert {template.name: told for template, told in zip(tasks, problems(full), strict=True) if told} == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"contexts": {"network@openstack": {"nonsense": 1}}}, "nonsense"),
        ({"contexts": {"cleanup@openstack": ["nova.servers"]}}, "no Context plugin"),
        ({"scenario": {"NovaServers.boot_and_delete_server": {}}}, "should be specified"),
    ],
)
def test_what_rally_does_not_take_is_seen_here(change: dict[str, Any], told: str, problems: Problems) -> None:
    template = rally.load_tasks()["nova/boot_and_delete_server"]
    [found] = problems([{**subtask(template), **change}])
    assert any(told in text for text in found)
