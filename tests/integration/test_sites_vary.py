"""Sites as a factor, on real hosts: one site, then two, then one again; and hosts that another workspace has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.bench.rally import load_tasks
from discovery_deploy.driver.count_acts import listeners, sql_requests
from discovery_deploy.system.agents import HOSTS_HOME, Agents
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.remote import Remote
from tests.integration import known_requests
from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import DEPLOYMENT, Tool

pytestmark = pytest.mark.integration

ONE = [{"name": "nantes"}]
TWO = [*ONE, {"name": "rennes"}]
EXPERIMENT: dict[str, Any] = {
    "name": "factors",
    "question": "Does another site change anything?",
    "sites": ONE,
    "network": {"default": {"delay": "5 ms"}, "verify": {"rtt_tolerance": "3 ms"}},
    "deployment": DEPLOYMENT,
    "campaign": {
        "factors": [
            {"path": "campaign.load", "levels": ["light", "high"]},
            {"path": "sites", "levels": [ONE, TWO]},
        ],
        "scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 3}],
    },
}


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    made = Tool(tmp_path_factory.mktemp("sites"), EXPERIMENT)
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "factors")
    assert left_behind(made.folder / "state", before) == []


def test_every_setting_has_its_own_sites_and_clients(tool: Tool) -> None:
    tool("run", "factors.yaml")
    seen = {
        record["setting"]["label"]: (
            [place["bench_site"] for place in record["placements"]],
            len(record["wan_before"]["pairs"]),
            record["problems"],
        )
        for record in tool.records()
    }
    assert seen == {
        "load light, sites nantes": (["nantes"], 0, []),
        "load high, sites nantes": (["nantes"], 0, []),
        "load light, sites nantes+rennes": (["nantes"], 2, []),
        "load high, sites nantes+rennes": (["nantes", "rennes"], 2, []),
    }
    skews = {record["setting"]["label"]: record["start_skew_s"] for record in tool.records()}
    assert {label for label, skew_s in skews.items() if skew_s is not None} == {"load high, sites nantes+rennes"}
    assert 0 <= skews["load high, sites nantes+rennes"] <= 0.5, "both sites' first requests, by one clock"
    assert "first requests of the sites of a run" in (tool.workspace / "report" / "report.html").read_text()
    reserved = [entry for entry in tool.journal() if entry["event"] == "phase ended" and entry["phase"] == "reserve"]
    assert len(reserved) == 2, "hosts change once"
    facts = {path.stem for path in (tool.workspace / "facts").iterdir()}
    assert facts == {"nantes-1", "rennes-1"}
    assert "rennes" in (tool.workspace / "report" / "report.html").read_text()


def test_requests_to_a_database_are_seen_from_its_own_host_and_from_another_site(tool: Tool) -> None:
    """Every command of the protocol, by loopback and by the site's network; and those of connections made before."""
    remote = Remote(tool.workspace / "ssh_config")
    agents = Agents(remote, HOSTS_HOME)
    unit = remote("nantes-1", ["cat", "/etc/systemd/system/keystone.service"])
    [start] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    python = start.removeprefix("ExecStart=").partition("/bin/")[0] + "/bin/python"
    program = Path(known_requests.__file__).read_text()
    for host in ("nantes-1", "rennes-1"):
        with listeners(agents, {"nantes-1": [3306]}) as [listener]:
            clock = listener.clock()
            assert abs(clock.ahead_s) <= clock.error_s < 0.5, "it is the same clock"
            remote(host, [python, "-", "/etc/keystone/keystone.conf"], program)
            seen = sql_requests(listener.stop(), 0.0)
        assert {request.user for request in seen} == {"keystone"}
        assert [request.kind for request in seen if request.kind != "SET"] == known_requests.ASKED
        assert [request.kind for request in seen if request.commits] == ["COMMIT"]
        assert [request.kind for request in seen if not request.answered] == ["QUIT"]
        assert [request.at_s for request in seen] == sorted(request.at_s for request in seen)
    with listeners(agents, {"nantes-1": [3306]}) as [listener]:
        tool("openstack", "rennes", "token", "issue")
        seen = sql_requests(listener.stop(), 0.0)
    assert "SELECT" in {request.kind for request in seen}
    assert {request.user for request in seen} == {"keystone"}


def test_every_task_of_keystone_succeeds_and_is_counted_step_by_step(tool: Tool) -> None:
    """The seven tasks of the Juice study and one beside the experiment file, seven iterations each.

    Then the campaign's report says what was counted.
    """
    keystone = {name: one for name, one in load_tasks().items() if name.startswith("keystone/")}
    assert len(keystone) == 7
    own = "./tasks/read.yaml"
    text = (data_directory("rally_tasks") / "keystone" / "get_entities.yaml").read_text()
    (tool.folder / "tasks").mkdir()
    (tool.folder / own).write_text(text.replace("name: keystone/get_entities", "name: tasks/read"))
    keystone[own] = keystone["keystone/get_entities"]
    scenarios = [{"task": name, "times": 1} for name in keystone]
    tool.write({**EXPERIMENT, "campaign": {**EXPERIMENT["campaign"], "scenarios": scenarios}})
    seen = len(tool.journal())
    told = tool("count", "factors.yaml", "--setting", "load high, sites nantes+rennes").stdout
    assert not [entry for entry in tool.journal()[seen:] if entry.get("phase") == "deploy"], "it was there"
    [path] = tool.workspace.glob("counts/*.json")
    record = json.loads(path.read_text())
    assert record["schema"] == 1
    assert record["deployed"] == path.stem
    counted = {one["task"]: {step["name"]: step for step in one["actions"]} for one in record["scenarios"]}
    assert list(counted) == list(keystone)
    for name, template in keystone.items():
        assert list(counted[name]) == ["", *(step.name for step in template.atomic_actions)]
        for step in counted[name].values():
            assert len(step["per_iteration"]) == 5
            assert set(step["users"]) <= {"keystone"}
            assert f"{name}\t{step['name'] or 'whole iteration'}\t{step['requests']}" in told
        assert template.writes == any(step["write_commits"] for step in counted[name].values())
    tokens = counted["keystone/authenticate_user_and_validate_token"]
    assert tokens["keystone_v3.fetch_token"]["requests"] > tokens["keystone_v3.validate_token"]["requests"] > 0
    users = counted["keystone/create_and_list_users"]
    assert users["keystone_v3.create_user"]["write_commits"] == 1
    assert users["keystone_v3.create_user"]["kinds"]["COMMIT"] >= 1
    assert {name: step["requests"] for name, step in counted[own].items()} == pytest.approx(
        {name: step["requests"] for name, step in counted["keystone/get_entities"].items()}, abs=2
    )
    tool.write(EXPERIMENT)
    tool("report", "factors.yaml")
    text = (tool.workspace / "report" / "report.md").read_text()
    assert f"| keystone {tokens['keystone_v3.fetch_token']['requests']} |" in text


def test_a_site_that_goes_takes_its_host_with_it(tool: Tool) -> None:
    tool("deploy", "factors.yaml", "--setting", "load light, sites nantes")
    plan = json.loads((tool.folder / "state" / "factors" / "plan.json").read_text())
    assert [host["name"] for host in plan["hosts"]] == ["nantes-1"]
    assert [path.name for path in (tool.folder / "state" / "factors" / "hosts").iterdir()] == ["nantes-1"]
    assert not (tool.workspace / "openrc-rennes").exists()
    shown = tool("openstack", "nantes", "endpoint", "list", "-f", "json").stdout
    assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"nantes"}


def test_another_workspace_is_refused_until_it_is_told_to_take_over(tool: Tool) -> None:
    other = str(tool.folder / "other")
    message = tool("reserve", "factors.yaml", "--workspace", other, code=6).stderr
    assert f"experiment factors's hosts were reserved from {tool.workspace}" in message
    assert "--take-over" in message
    tool("reserve", "factors.yaml", "--workspace", other, "--take-over")
    assert "reserved from" in tool("deploy", "factors.yaml", code=6).stderr
    assert other in tool("status").stdout
    assert f"its hosts were reserved from {other}" in tool("release", "factors").stderr
    tool("deploy", "factors.yaml", "--setting", "load light, sites nantes")
