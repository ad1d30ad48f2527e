"""A whole experiment on hosts given by hand, through the command line; the hosts are as they were afterwards.

They are containers of another experiment. No delay is asked, because this machine's kernel need not have netem: what
hosts shape is tried in `test_egress.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_experiment import Tool
from tests.providers_bed import OnStatic, bed_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(590)]

EXPERIMENT: dict[str, Any] = {
    "name": "given",
    "question": "Does all of it work on machines given by hand?",
    "sites": [{"name": "paris"}, {"name": "lyon"}],
    "network": {"verify": {"rtt_tolerance": "3 ms"}},
    "deployment": {"backend": {"type": "mariadb", "site": "paris"}, "workers": 1},
    "campaign": {
        "bench_site": "lyon",
        "scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 6}],
    },
}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnStatic]:
    with bed_of("static", tmp_path_factory.mktemp("given")) as made:
        assert isinstance(made, OnStatic)
        yield made


@pytest.fixture(scope="module")
def tool(bed: OnStatic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    folder = tmp_path_factory.mktemp("driver")
    made = Tool(folder, {**EXPERIMENT, "provider": bed.section()})
    made.environment["DISCOVERY_DEPLOY_STATE"] = str(bed.folder / "state")
    yield made
    made("release", "given")


def test_one_command_gives_a_report_and_release_leaves_hosts_as_they_were(bed: OnStatic, tool: Tool) -> None:
    assert "exit" not in tool("check", "given.yaml").stderr
    done = tool("run", "given.yaml")
    index = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    assert "machines given by hand" in index.read_text()
    record = json.loads(next(tool.workspace.glob("runs/*/record.json")).read_text())
    assert (record["status"], record["problems"]) == ("done", [])
    assert len(record["wan_before"]["pairs"]) == 2
    assert "static" in tool("status").stdout
    seen = len(tool.journal())
    tool("run", "given.yaml")
    assert not [entry for entry in tool.journal()[seen:] if entry["event"] in ("run started", "phase started")]

    unlike = bed.left()
    assert any("/etc/keystone" in line for line in unlike)
    assert any("/opt/discovery-deploy/" in line for line in unlike)
    tool("release", "given")
    assert bed.left() == []


def test_a_host_that_dies_is_named_by_release_and_the_next_one_gives_it_back(bed: OnStatic, tool: Tool) -> None:
    tool("reserve", "given.yaml")
    lease = bed.machines
    bed.kill(lease, "lyon-1")
    assert "lyon-1" in tool("release", "given", code=3).stderr
    bed.revive(lease, "lyon-1")
    tool("release", "given")
    assert bed.left() == []
