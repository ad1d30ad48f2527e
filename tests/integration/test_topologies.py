"""The whole OpenStack in every topology on real hosts: a server at every site, asked for at every site's own API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def serve(tool: Tool, site: str, name: str) -> None:
    """A server at a site, asked for there and deleted; fails when it does not become active."""
    made = tool(
        *("openstack", site, "server", "create", "--wait", "--flavor", "m1.tiny", "--image", "cirros"),
        *("--network", "private", "--availability-zone", site, "-f", "json", name),
    )
    server = json.loads(made.stdout)
    assert (server["status"], server["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", f"{site}-1-fake-1")
    tool("openstack", site, "server", "delete", "--wait", server["id"])


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
    """On the last topology, shared-state, whose broker at rennes is a member of the cluster."""
    before = main_pid(tool, unit)
    assert before > 0
    tool("ssh", "-e", "small", "rennes-1", "kill", "-9", str(before))
    deadline = time.monotonic() + 180
    while True:
        try:
            serve(tool, "rennes", "after")
            break
        except AssertionError:  # it was asked before all had reconnected; the limit above says how long that may take
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
