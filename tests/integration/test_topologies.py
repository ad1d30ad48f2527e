"""The whole OpenStack in every topology on real hosts: a server at every site, asked for at every site's own API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy import builds
from discovery_deploy.bench import SiteResult, load
from discovery_deploy.model import Scenario
from discovery_deploy.providers.base import Lease
from discovery_deploy.rally import load_tasks, rally_task
from discovery_deploy.remote import Remote, side_by_side
from discovery_deploy.variables import rally_command
from discovery_deploy.workspace import Workspace
from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import Tool, pytestmark

__all__ = ["pytestmark"]

TOPOLOGIES: dict[str, dict[str, Any]] = {
    "centralized": {"topology": {"type": "centralized", "site": "nantes"}},
    "regions": {"topology": {"type": "regions"}},
    "cells": {"topology": {"type": "cells", "site": "nantes"}},
    "shared-state": {"topology": {"type": "shared-state"}, "backend": {"type": "galera"}},
}
SITES = ("nantes", "rennes")


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    made = Tool(tmp_path_factory.mktemp("topologies"))
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "small")
    assert left_behind(made.folder / "state", before) == []


def experiment(topology: str) -> dict[str, Any]:
    """Two sites, each with one fake compute, 5 ms apart."""
    deployment = {
        "services": ["keystone", "placement", "glance", "neutron", "nova"],
        "backend": {"type": "mariadb", "site": "nantes"},
        "workers": 1,
        "computes": {"fake": 1},
        **TOPOLOGIES[topology],
    }
    return {
        "name": "small",
        "sites": [{"name": name} for name in SITES],
        "network": {"default": {"delay": "5 ms"}, "verify": {"rtt_tolerance": "3 ms"}},
        "deployment": deployment,
    }


def serve(tool: Tool, site: str, name: str, limit_s: float = 120) -> None:
    """A server at a site, asked for there and deleted; fails when it does not become active in time."""
    made = tool(
        *("openstack", site, "server", "create", "--flavor", "m1.tiny", "--image", "cirros"),
        *("--network", "private", "--availability-zone", site, "-f", "json", name),
    )
    server = json.loads(made.stdout)
    deadline = time.monotonic() + limit_s
    while server["status"] == "BUILD" and time.monotonic() < deadline:
        time.sleep(0.5)
        server = json.loads(tool("openstack", site, "server", "show", server["id"], "-f", "json").stdout)
    assert (server["status"], server["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", f"{site}-1-fake-1")
    tool("openstack", site, "server", "delete", "--wait", server["id"])


def workloads(rally_json: Path) -> list[dict[str, Any]]:
    """Of a Rally report, each with its subtask's title."""
    parts = [part for task in json.loads(rally_json.read_text())["tasks"] for part in task["subtasks"]]
    return [{**workload, "title": part["title"]} for part in parts for workload in part["workloads"]]


def test_a_run_boots_and_deletes_a_server(tool: Tool) -> None:
    """From the site without control services; this test and the two after it use the same deployment."""
    campaign = {"bench_site": "rennes", "scenarios": [{"task": "nova/boot_and_delete_server", "times": 1}]}
    tool.write({**experiment("centralized"), "campaign": campaign})
    tool("run", "small.yaml")
    [record] = tool.records()
    assert (record["status"], record["problems"]) == ("done", [])
    [workload] = workloads(tool.workspace / "runs" / record["id"] / "rennes" / "rally.json")
    [iteration] = workload["data"]
    assert iteration["error"] == []
    assert [action["name"] for action in iteration["atomic_actions"]] == ["nova.boot_server", "nova.delete_server"]


def test_every_task_of_nova_neutron_and_glance_succeeds(tool: Tool) -> None:
    """Once each, half of them at each site, in one Rally there: a Rally of its own takes each 10 s more."""
    templates = [one for one in load_tasks().values() if one.services != ("keystone",)]
    assert {one.services for one in templates} == {("nova",), ("neutron",), ("glance",)}
    workspace = Workspace(tool.workspace)
    lease, environments = workspace.load("lease.json", Lease), workspace.load(builds.NOTED, builds.Environments)
    assert lease
    assert environments

    results = tool.folder / "every-task"

    def at(site: str) -> SiteResult:
        mine = templates[SITES.index(site) :: len(SITES)]
        tasks = [rally_task(one, Scenario(task=one.name, times=1)) for one in mine]
        whole = {**tasks[0], "subtasks": [part for task in tasks for part in task["subtasks"]]}
        remote, hosts = Remote(workspace.ssh_config), [lease.at(site, "bench")]
        [result] = load(remote, hosts, "every-task", whole, rally_command(environments), len(mine), results)
        return result

    assert [result.problem for result in side_by_side(at, SITES)] == ["", ""]
    done = [one for site in SITES for one in workloads(results / site / "rally.json")]
    assert {one["title"]: len(one["data"]) for one in done} == {one.name: 1 for one in templates}
    failed = {one["title"]: [data["error"] for data in one["data"] if data["error"]] for one in done}
    assert {name: errors for name, errors in failed.items() if errors} == {}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_server_at_every_site(tool: Tool, topology: str) -> None:
    """Each replaces the one before, so that taking the whole OpenStack away is seen to work too."""
    tool.write(experiment(topology))
    tool("verify", "small.yaml")
    for site in SITES:
        serve(tool, site, f"{topology}-{site}")


def main_pid(tool: Tool, unit: str) -> int:
    shown = tool("ssh", "-e", "small", "rennes-1", "systemctl", "show", "--property=MainPID", "--value", unit).stdout
    return int(shown)


@pytest.mark.parametrize("unit", ["nova-compute@rennes-1-fake-1", "nova-conductor", "rabbitmq-server"])
def test_what_is_killed_comes_back_and_serves(tool: Tool, unit: str) -> None:
    """On the last topology, shared-state, whose broker at rennes is a member of the cluster.

    A request of the first seconds may fail, or stay for ever where its message was lost; one after them is served.
    """
    before = main_pid(tool, unit)
    assert before > 0
    tool("ssh", "-e", "small", "rennes-1", "kill", "-9", str(before))
    deadline = time.monotonic() + 180
    while True:
        try:
            serve(tool, "rennes", "after", limit_s=45)
            break
        except AssertionError:
            if time.monotonic() > deadline:
                raise
    assert main_pid(tool, unit) not in (0, before)


def test_secrets_of_the_whole_openstack_are_in_no_log(tool: Tool) -> None:
    secrets = json.loads((tool.workspace / "secrets.json").read_text())
    texts = [text for value in secrets.values() for text in ([value] if isinstance(value, str) else value)]
    places = [path for path in Path(tool.workspace).rglob("*") if path.is_file() and path.name != "secrets.json"]
    told = [path for path in places if path.name not in ("clouds.yaml",) and not path.name.startswith("openrc-")]
    for path in told:
        content = path.read_bytes()
        assert not [text for text in texts if text.encode() in content], path
