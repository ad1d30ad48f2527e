"""A whole experiment on hosts that are containers on two machines given by hand, through the command line.

The machines have a kernel of their own with netem, and nothing but ssh in common with this one: User-Mode Linux.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_experiment import Tool
from tests.integration.uml_machines import UmlMachines, uml_machines
from tests.integration.whole_experiment import until_valid

pytestmark = [pytest.mark.integration, pytest.mark.extended, pytest.mark.timeout(3000)]

MACHINES = ("big-1", "big-2")
EXPERIMENT: dict[str, Any] = {
    "name": "given-nested",
    "question": "Does all of it work on containers of given machines?",
    "sites": [{"name": "paris"}, {"name": "lyon"}],
    "network": {"default": {"delay": "10 ms"}},
    "deployment": {"backend": {"type": "mariadb", "site": "paris"}, "workers": 1},
    "campaign": {
        "bench_site": "lyon",
        "scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 5}],
    },
}


@pytest.fixture(scope="module")
def machines(image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UmlMachines]:
    with uml_machines(tmp_path_factory.mktemp("m"), image, key, MACHINES, memory_mb=2048) as made:
        yield made


@pytest.fixture(scope="module")
def tool(machines: UmlMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    given = [
        {"host": name, "address": address, "site_address": address, "key": str(machines.key)}
        for name, address in machines.addresses.items()
    ]
    provider = {"type": "static", "machines": given, "hosts_per_machine": 1}
    made = Tool(tmp_path_factory.mktemp("nested"), {**EXPERIMENT, "provider": provider}, limit_s=2400)
    yield made
    made("release", "given-nested")


def test_one_command_gives_a_report_and_release_leaves_no_host(tool: Tool, machines: UmlMachines) -> None:
    page = until_valid(tool.run, "given-nested.yaml", 0.02)
    assert "containers of given machines" in page
    # This machine has no route to the hosts: they are reached by way of theirs.
    assert tool("ssh", "-e", "given-nested", "lyon-1", "hostname").stdout == "lyon-1\n"
    shown = tool("openstack", "-e", "given-nested", "lyon", "endpoint", "list", "-f", "json").stdout
    assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"paris", "lyon"}
    tool("release", "given-nested")
    for name in MACHINES:
        assert machines.ssh(name, "ls -d /var/lib/discovery-deploy-machine 2> /dev/null | wc -l") == "0"
        assert machines.ssh(name, "pgrep -c nspawn; true") == "0"
