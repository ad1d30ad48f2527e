"""A database or a service that never comes up: `deploy` ends in time, says why, and goes on once it is fixed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import DEPLOYMENT, Tool, pytestmark

__all__ = ["pytestmark"]

EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "sites": [{"name": "nantes"}, {"name": "rennes"}],
    "network": {"verify": {"rtt_tolerance": "3 ms"}},
    "deployment": {
        "services": ["keystone", "placement"],  # Placement's database is each site's own
        "topology": {"type": "regions"},
        **DEPLOYMENT,
    },
    "campaign": {"bench_site": "rennes", "scenarios": [{"task": "keystone/get_entities", "times": 1}]},
}
HANGS = "ExecStartPre=\\nExecStart=\\nExecStart=/bin/sleep infinity"
"""systemd waits for a word of it that never comes."""
FAILS = "ExecStartPre=/bin/false"
STATED_S = {"does not answer": 120, "has stopped": 30}
"""How long a database is waited for, as docs/adding-a-role.md says."""


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    made = Tool(tmp_path_factory.mktemp("never-up"), EXPERIMENT)
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "small")
    assert left_behind(made.folder / "state", before) == []


def drop_in(unit: str) -> str:
    """A folder that no role touches."""
    return f"/run/systemd/system/{unit}.service.d"


def break_(tool: Tool, host: str, unit: str, how: str) -> None:
    folder = drop_in(unit)
    tool(
        "ssh", host, f"mkdir -p {folder} && printf '[Service]\\n{how}\\n' > {folder}/zz.conf && systemctl daemon-reload"
    )


def mend(tool: Tool, host: str, unit: str) -> None:
    tool("ssh", host, f"rm -r {drop_in(unit)} && systemctl daemon-reload")


def fail(tool: Tool, verb: str) -> tuple[str, float]:
    """What the tool says, and how long the task took that waited for the database."""
    started = time.time()
    said = tool(verb, "small.yaml", code=4).stderr
    failed = [entry for entry in tool.journal() if entry["event"] == "phase started"][-1]
    assert failed["phase"] == "deploy"
    return said, time.time() - started


def test_a_backend_that_hangs_and_then_a_sites_own_that_fails(tool: Tool) -> None:
    tool("prepare", "small.yaml")
    break_(tool, "nantes-1", "mariadb", HANGS)
    break_(tool, "rennes-1", "site-mariadb", FAILS)

    said, seconds = fail(tool, "deploy")
    told = "the database of site nantes does not come up: mariadb.service does not answer after 120 s"
    assert told in said
    assert "nantes-1: mariadb: " in said
    assert "`journalctl -u mariadb.service` on nantes-1 ends:" in said
    assert seconds < STATED_S["does not answer"] + 60  # Keystone and the sites' own databases began before it

    mend(tool, "nantes-1", "mariadb")
    said, seconds = fail(tool, "run")
    assert "the database of site rennes does not come up: site-mariadb.service has stopped" in said
    assert "rennes-1: site_mariadb: " in said
    assert "`journalctl -u site-mariadb.service` on rennes-1 ends:" in said
    assert "status=1/FAILURE" in said
    assert seconds < STATED_S["has stopped"] + 30

    mend(tool, "rennes-1", "site-mariadb")
    tool("run", "small.yaml")
    assert [record["status"] for record in tool.records()] == ["done"]


def test_a_run_in_which_every_iteration_failed_is_not_valid_and_says_why(tool: Tool) -> None:
    scenario = {"task": "keystone/create_and_list_users", "times": 2, "args": {"domain_name": "nosuch"}}
    tool.write({**EXPERIMENT, "campaign": {"bench_site": "rennes", "scenarios": [scenario]}})
    done = tool("run", "small.yaml", code=5)
    reason = "every iteration at rennes failed; the first error: "
    (record,) = [record for record in tool.records() if record["scenario"] == {**record["scenario"], **scenario}]
    assert record["status"] == "done"
    assert [problem for problem in record["problems"] if problem.startswith(reason) and "nosuch" in problem]
    assert reason in done.stdout
    assert reason in done.stderr
    assert reason in (tool.workspace / "report" / "report.md").read_text().split("## Answer")[0]


def test_a_service_that_cannot_start_ends_the_wait_and_its_traceback_is_told(tool: Tool) -> None:
    overrides = {"keystone": {"token": {"provider": "nosuch"}}}
    tool.write({**EXPERIMENT, "deployment": {**EXPERIMENT["deployment"], "overrides": overrides}})
    said, _ = fail(tool, "deploy")
    assert "keystone.service" in said
    assert "its traceback ends with: ImportError: Unable to find 'nosuch' driver" in said
    assert "keystone.service has failed" in said or "does not stay up" in said  # and not: the limit was over
    log = (tool.workspace / "logs" / "deploy.log").read_text()
    assert "Traceback (most recent call last)" in log
