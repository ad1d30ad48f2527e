"""The report of more than Keystone: smoke, and scenarios whose database requests nobody counted."""

from __future__ import annotations

import json

import pytest

from discovery_deploy.bench import smoke
from discovery_deploy.bench.smoke import SmokeRecord
from tests.synthetic_campaign import Campaign, campaign
from tests.unit.results.test_report import TASKS, files_of, prose


@pytest.fixture(scope="module")
def small() -> Campaign:
    return campaign(tasks=("keystone/create_and_list_users",))


def smoke_record() -> SmokeRecord:
    checks = [
        smoke.check("L1", "lyon", "a server on a fake compute at lyon", {"error": "", "steps": []}, 12.0),
        smoke.check(
            "L3.2", "paris", "a server at paris | cut off", {"error": "POST <url>: no answer", "steps": []}, 300.0
        ),
    ]
    return SmokeRecord(
        deployed="d", setting="", topology="regions, mariadb@nantes", checks=tuple(checks), started_at="s",
        finished_at="f",
    )  # fmt: skip


def test_smoke_is_told_level_by_level_with_reasons(small: Campaign) -> None:
    files = files_of(small, smoke=[smoke_record()])
    words = prose(files["report.html"])
    assert "deployment L1 L2.1 L3.2 regions, mariadb@nantes yes – no" in words
    assert "L3.2: management goes on when a site is cut off from the others" in words
    assert "POST <url>: no answer" in words
    assert "| regions, mariadb@nantes | yes | – | no |" in files["report.md"].decode()
    assert "| a server at paris \\| cut off | no | 300 s | POST &lt;url>: no answer |" in files["report.md"].decode()
    assert json.loads(files["records.json"])["smoke"][0]["checks"][1]["passed"] is False


def test_without_smoke_nothing_is_said_of_it(small: Campaign) -> None:
    files = files_of(small)
    assert "Smoke" not in prose(files["report.html"])
    assert "Smoke" not in files["report.md"].decode()


SOME = ("glance/list_images", "keystone/create_and_list_users", "nova/boot_and_delete_server")


@pytest.mark.parametrize("task", SOME)
def test_every_task_can_be_reported_with_what_its_steps_consist_of(task: str, small: Campaign) -> None:
    scenario = small.experiment.campaign.scenarios[0].model_copy(update={"task": task})
    asked = small.experiment.campaign.model_copy(update={"scenarios": (scenario,)})
    made = small._replace(experiment=small.experiment.model_copy(update={"campaign": asked}))
    words = prose(files_of(made)["report.html"])
    assert TASKS[task].atomic_actions[0].name in words
