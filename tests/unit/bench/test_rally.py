"""Task templates, the Rally tasks made from them, and real reports of Rally 5.1.1 read back as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from discovery_deploy.bench import rally
from discovery_deploy.bench.records import RunRecord
from discovery_deploy.experiment.model import Scenario
from discovery_deploy.system.errors import DiscoveryError, ExperimentError
from tests.synthetic_campaign import campaign

RECORDED = Path(__file__).parents[2] / "recorded"
JUICE = (
    "authenticate_user_and_validate_token",
    "create_add_and_list_user_roles",
    "create_and_list_tenants",
    "create_and_list_users",
    "create_user_set_enabled_and_delete",
    "create_user_update_password",
    "get_entities",
)


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"rally-{name}.json").read_text())


@pytest.fixture(scope="module")
def run() -> RunRecord:
    return campaign().runs[0]


@pytest.fixture(scope="module")
def tasks() -> dict[str, rally.TaskTemplate]:
    return rally.load_tasks()


# templates


def test_the_seven_scenarios_of_the_juice_study_are_there(tasks: dict[str, rally.TaskTemplate]) -> None:
    assert [name for name in tasks if name.startswith("keystone/")] == [f"keystone/{name}" for name in JUICE]
    for name in JUICE:
        assert tasks[f"keystone/{name}"].scenario == f"KeystoneBasic.{name}"
        assert tasks[f"keystone/{name}"].services == ("keystone",)


PLUGINS = {
    "glance": "GlanceImages",
    "keystone": "KeystoneBasic",
    "neutron": "NeutronNetworks",
    "nova": "NovaServers",
    "quotas": "Quotas",
}


def test_every_task_is_named_after_its_plugin_and_says_what_it_needs(tasks: dict[str, rally.TaskTemplate]) -> None:
    for name, template in tasks.items():
        folder, method = name.split("/")
        assert template.scenario == f"{PLUGINS[folder]}.{method}"
        assert template.question.endswith("?")
        assert template.contexts["users"] == ({} if folder == "keystone" else {"tenants": 1, "users_per_tenant": 1})
        assert template.atomic_actions[-1].name == rally.OTHER
        assert all(action.does for action in template.atomic_actions)
        assert set(template.services) == {{"quotas": method.split("_")[0]}.get(folder, folder)}


def test_tasks_that_boot_servers_name_what_deploy_made_and_have_a_network(
    tasks: dict[str, rally.TaskTemplate],
) -> None:
    for name, template in tasks.items():
        if not name.startswith("nova/"):
            continue
        assert rally.task_arguments(template, {})["flavor"] == {"name": "m1.tiny"}
        assert "availability_zone" not in rally.task_arguments(template, {})
        assert rally.task_arguments(template, {"availability_zone": "a"})["availability_zone"] == "a"
        routed = "floating_network" in template.arguments
        assert template.contexts["network@openstack"] == ({} if routed else {"router": {}})
        assert template.atomic_actions[0].name == "nova.boot_server"


def test_every_task_of_keystone_says_what_lies_outside_its_steps(tasks: dict[str, rally.TaskTemplate]) -> None:
    for template in (task for name, task in tasks.items() if name.startswith("keystone/")):
        assert template.atomic_actions[-1].name == rally.OTHER


@pytest.mark.parametrize(
    ("name", "task"),
    [("authenticate", "authenticate_user_and_validate_token"), ("get-entities", "get_entities")],
)
def test_templates_name_the_actions_that_rally_reports(
    name: str, task: str, tasks: dict[str, rally.TaskTemplate], run: RunRecord
) -> None:
    rows = rally.iterations(recorded(name), run, "lyon")
    reported = list(dict.fromkeys(row["atomic_action"] for row in rows if row["atomic_action"]))
    described = [action.name for action in tasks[f"keystone/{task}"].atomic_actions]
    assert described == [*reported, rally.OTHER]


def write_template(folder: Path, text: str) -> Path:
    (folder / "keystone").mkdir()
    (folder / "keystone" / "list.yaml").write_text(text)
    return folder


TEMPLATE = """\
name: keystone/list
question: How long is a list?
scenario: KeystoneBasic.list
writes: false
atomic_actions:
  - {name: a, does: GET /}
"""


def test_templates_are_read_from_a_directory(tmp_path: Path) -> None:
    assert rally.load_tasks(write_template(tmp_path, TEMPLATE))["keystone/list"].question == "How long is a list?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            TEMPLATE.replace("keystone/list", "keystone/other"),
            "its name is 'keystone/other', but it lies at 'keystone/list'",
        ),
        (TEMPLATE.replace("writes", "wrights"), "wrights: Extra inputs"),
        ("name: [", "list.yaml"),
        ("", "list.yaml"),
    ],
)
def test_a_bad_template_names_its_file(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DiscoveryError, match=r"list\.yaml") as caught:
        rally.load_tasks(write_template(tmp_path, text))
    assert expected in caught.value.what


# tasks


def test_a_rally_task_is_complete(tasks: dict[str, rally.TaskTemplate]) -> None:
    task = "keystone/create_and_list_users"
    scenario = Scenario(task=task, times=30, concurrency=2, args={"domain_name": "other"})
    made = rally.rally_task(tasks[task], scenario)
    assert made["version"] == 2
    [subtask] = made["subtasks"]
    assert subtask["scenario"] == {"KeystoneBasic.create_and_list_users": {"domain_name": "other"}}
    assert subtask["runner"] == {"constant": {"times": 30, "concurrency": 2}}
    assert subtask["contexts"]["users"] == {}
    assert subtask["contexts"]["admin_cleanup@openstack"] == ["keystone.user"]
    assert subtask["contexts"]["api_versions@openstack"] == {"keystone": {"version": "3"}}
    assert subtask["sla"] == {"failure_rate": {"max": 0}}
    assert json.loads(json.dumps(made)) == made


def test_defaults_are_passed_unless_given(tasks: dict[str, rally.TaskTemplate]) -> None:
    template = tasks["keystone/create_user_set_enabled_and_delete"]
    assert rally.task_arguments(template, {}) == {"enabled": True, "domain_name": "default"}
    assert rally.task_arguments(template, {"enabled": False})["enabled"] is False


def test_an_undeclared_argument_is_refused_with_a_near_miss(tasks: dict[str, rally.TaskTemplate]) -> None:
    with pytest.raises(ExperimentError, match='no argument "enabeld"; did you mean "enabled"'):
        rally.task_arguments(tasks["keystone/create_user_set_enabled_and_delete"], {"enabeld": True})
    with pytest.raises(ExperimentError, match='no argument "x"; it has none'):
        rally.task_arguments(tasks["keystone/create_user_update_password"], {"x": 1})


# reports


def test_an_iteration_is_a_row_for_the_whole_and_one_per_action(run: RunRecord) -> None:
    rows = rally.iterations(recorded("authenticate"), run, "lyon")
    assert [row["atomic_action"] for row in rows[:3]] == ["", "keystone_v3.fetch_token", "keystone_v3.validate_token"]
    assert [row["position"] for row in rows[:3]] == [0, 1, 2]
    assert {row["iteration"] for row in rows} == {1, 2, 3}
    data = recorded("authenticate")["tasks"][0]["subtasks"][0]["workloads"][0]["data"]
    first = data[0]["atomic_actions"][0]
    assert rows[0]["duration_s"] == data[0]["duration"]
    assert rows[1]["duration_s"] == pytest.approx(first["finished_at"] - first["started_at"])
    assert rows[1]["started_at"].timestamp() == pytest.approx(first["started_at"], abs=1e-6)
    assert not any(row["failed"] for row in rows)
    assert rows[0]["database_site"] == "nantes"
    assert rows[0]["deployment.backend"] == "mariadb@nantes"


def test_failed_iterations_keep_their_error_and_the_step_that_failed(run: RunRecord) -> None:
    rows = rally.iterations(recorded("create-user-failing"), run, "lyon")
    whole = [row for row in rows if row["atomic_action"] == rally.TOTAL]
    assert [row["failed"] for row in whole] == [False, True, False, False, True, False, True, False]
    assert [row["error_type"] for row in whole if row["failed"]] == [
        "ConnectFailure", "AuthenticationFailed", "ConnectFailure",
    ]  # fmt: skip
    assert all(row["error"].startswith("Unable to establish connection") for row in whole if row["failed"])
    assert "\n" not in "".join(row["error"] for row in rows)
    steps = [(row["iteration"], row["atomic_action"]) for row in rows if row["failed"] and row["position"]]
    assert steps == [(7, "keystone_v3.list_users")]


def test_the_order_is_that_of_the_beginnings() -> None:
    report = recorded("authenticate")
    data = report["tasks"][0]["subtasks"][0]["workloads"][0]["data"]
    expected = [iteration["duration"] for iteration in data]
    data.reverse()
    rows = rally.iterations(report, campaign().runs[0], "lyon")
    assert [row["duration_s"] for row in rows if row["position"] == 0] == expected


def test_a_repeated_name_is_numbered_and_nested_actions_stay_in_theirs(run: RunRecord) -> None:
    report = recorded("get-entities")
    actions = report["tasks"][0]["subtasks"][0]["workloads"][0]["data"][0]["atomic_actions"]
    assert [child["name"] for child in actions[1]["children"]] == ["keystone_v3.list_roles", "keystone_v3.add_role"]
    actions.append(dict(actions[0]))
    rows = [row for row in rally.iterations(report, run, "lyon") if row["iteration"] == 1]
    names = [row["atomic_action"] for row in rows]
    assert names[-1] == "keystone_v3.create_project (2)"
    assert "keystone_v3.add_role" not in names


def test_every_workload_of_a_report_is_read(run: RunRecord) -> None:
    rows = rally.iterations(recorded("two-subtasks"), run, "lyon")
    assert {row["atomic_action"] for row in rows} >= {"neutron.create_network", "nova.boot_server"}
    assert max(row["iteration"] for row in rows) == 4


def test_a_step_that_never_ended_has_no_duration(run: RunRecord) -> None:
    report = recorded("authenticate")
    iteration = report["tasks"][0]["subtasks"][0]["workloads"][0]["data"][0]
    del iteration["atomic_actions"][1]["finished_at"]
    iteration["error"] = "timed out\nsomewhere"
    rows = rally.iterations(report, run, "lyon")
    assert rows[2]["duration_s"] is None
    assert rows[2]["failed"]
    assert rows[0]["error"] == "timed out"


@pytest.mark.parametrize("report", [None, {}, [], "text", {"tasks": []}, {"tasks": [{}]}])
def test_what_is_no_report_gives_no_rows_but_a_problem(report: Any, run: RunRecord) -> None:
    assert rally.iterations(report, run, "lyon") == []
    assert rally.problems(report, run.scenario)


def test_problems_of_a_run_are_named(run: RunRecord) -> None:
    assert rally.problems(recorded("authenticate"), Scenario(task="keystone/x", times=3)) == ()
    assert rally.problems(recorded("authenticate"), Scenario(task="keystone/x", times=20)) == (
        "Rally made 3 of 20 iterations",
    )
    found = rally.problems(recorded("context-failed"), Scenario(task="keystone/x", times=8))
    assert found == (
        "Rally could not set up users@openstack: Unable to setup context 'users': "
        "'Failed to create the requested number of tenants.'",
        "Rally made 0 of 8 iterations",
    )
    crashed = {"tasks": [{"status": "crashed", "subtasks": []}]}
    assert "Rally's task ended as 'crashed'" in rally.problems(crashed, Scenario(task="keystone/x", times=1))


def test_failed_iterations_are_a_result_and_no_problem() -> None:
    assert rally.problems(recorded("create-user-failing"), Scenario(task="keystone/x", times=8)) == ()


def test_a_report_in_which_nothing_succeeded_gives_its_first_error() -> None:
    report = recorded("create-user-failing")
    assert rally.all_failed(report) is None
    data = report["tasks"][0]["subtasks"][0]["workloads"][0]["data"]
    data[:] = [iteration for iteration in data if iteration["error"]][::-1]
    error = rally.all_failed(report)
    assert error is not None
    assert error.startswith("ConnectFailure: Unable to establish connection")
    data[:] = []
    assert rally.all_failed(report) is None
    assert rally.all_failed(None) is None


def test_the_table_is_typed_and_keeps_runs_that_do_not_count(run: RunRecord) -> None:
    bad = run.model_copy(update={"problems": ("WAN out of tolerance",)})
    factors = ["deployment.backend", "network.default.delay"]
    reports = [(run, "lyon", recorded("authenticate")), (bad, "lyon", recorded("authenticate")), (run, "lyon", None)]
    table = rally.table(reports, factors)
    assert table.schema == rally.schema(factors)
    assert table.num_rows == 18
    assert table.column("valid").to_pylist() == [True] * 9 + [False] * 9
    assert table.schema.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert rally.table([], factors).num_rows == 0
