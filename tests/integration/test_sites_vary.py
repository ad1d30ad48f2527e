"""Sites as a factor, on real hosts: one site, then two, then one again; and hosts that another workspace has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import Tool

pytestmark = pytest.mark.integration

ONE = [{"name": "nantes"}]
TWO = [*ONE, {"name": "rennes"}]
EXPERIMENT: dict[str, Any] = {
    "name": "factors",
    "question": "Does another site change anything?",
    "sites": ONE,
    "network": {"default": {"delay": "5 ms"}, "verify": {"rtt_tolerance": "3 ms"}},
    "deployment": {"backend": {"type": "mariadb", "site": "nantes"}, "workers": 1},
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
