"""EnOSlib on a running experiment, through `discovery_deploy.roles`, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy import enoslib_roles
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.software import stack
from discovery_deploy.system.workspace import Workspace

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """\
name: enoslib-roles
sites:
  - {name: paris}
  - name: lyon
    hosts:
      - {name: lyon-1, roles: [control, database, compute]}
      - {name: lyon-2, roles: [bench]}
deployment: {backend: {type: mariadb, site: paris}}
"""
NOTEBOOK = """\
import json, sys
import enoslib as en
import discovery_deploy

en.set_config(ansible_stdout="noop")
roles, networks = discovery_deploy.roles(sys.argv[1])
names = en.run_command("hostname", roles=roles)
kernel = en.run_command("cat /proc/sys/net/ipv4/ip_forward", roles=roles["lyon"])
with en.actions(roles=roles["bench"]) as play:
    play.ping(task_name="answers")
    play.wait_for(path="/etc/debian_version", timeout=5, task_name="is Debian")
pinged = play.results
synced = en.sync_info(roles, networks)


def devices(found):
    hosts = [*found["site_paris"], *found["lyon"]]
    return {host.alias: sorted(host.filter_interfaces(networks["sites"])) for host in hosts}


def addresses(found, name):
    return {host.alias: [str(one.ip.ip) for one in host.filter_addresses(networks[name])] for host in found["lyon"]}


htb = en.NetemHTB().add_constraints(
    src=roles["paris"], dest=roles["lyon"], delay="10ms", rate="1gbit", networks=networks["sites"], symmetric=True
)
print(json.dumps({
    "roles": {role: sorted(h.alias for h in hosts) for role, hosts in roles.items()},
    "networks": {name: sorted(str(n.network) for n in found) for name, found in networks.items()},
    "hostname": {r.host: r.stdout for r in names}, "forward": sorted(r.host for r in kernel if r.ok()),
    "pinged": sorted([r.host, r.task, r.status] for r in pinged),
    "devices": devices(roles), "devices after sync": devices(synced),
    "addresses": addresses(roles, "lyon"), "addresses after sync": addresses(synced, "lyon"),
    "management": addresses(roles, "management"),
    "shaped": sorted([s.host.alias, c.device, c.target] for s in htb.sources.values() for c in s.constraints),
}))
"""


class Tool:
    """The command, with results and hosts in folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "experiment.yaml"
        self.file.write_text(EXPERIMENT)
        self.workspace = folder / "results" / "enoslib-roles"
        self.environment = {
            **os.environ, "DISCOVERY_DEPLOY_RESULTS": str(folder / "results"),
            "DISCOVERY_DEPLOY_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def __call__(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "discovery_deploy", *words], env=self.environment, cwd=self.file.parent,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment made as docs/enoslib.md tells: EnOSlib, what `roles` needs, and this package alone."""
    folder = tmp_path_factory.mktemp("notebook") / "environment"
    uv, cache = str(stack.uv_program()), stack.cache_directory() / "downloads"
    variables = {**os.environ, **stack.index_variables(os.environ), "UV_CACHE_DIR": str(cache)}
    variables.pop("VIRTUAL_ENV", None)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [*install, enoslib_roles.ENOSLIB, *enoslib_roles.NEEDS],
        [*install, "--no-deps", str(ROOT)],
    ):
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def reserved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """Three hosts at two sites, given back at the end."""
    tool = Tool(tmp_path_factory.mktemp("enoslib"))
    try:
        tool("reserve", str(tool.file))
        yield tool
    finally:
        tool("release", str(tool.file))


@pytest.fixture(scope="module")
def seen(reserved: Tool, notebook: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a notebook saw and did."""
    variables = {key: value for key, value in reserved.environment.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [notebook, "-c", NOTEBOOK, str(reserved.workspace)], env=variables, stdin=subprocess.DEVNULL,
        cwd=tmp_path_factory.mktemp("elsewhere"), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def lease(reserved: Tool) -> Lease:
    found = Workspace(reserved.workspace).load("lease.json", Lease)
    assert found is not None
    return found


HOSTS = ["lyon-1", "lyon-2", "paris-1"]


def test_hosts_are_in_roles_and_sites(seen: dict[str, Any]) -> None:
    assert seen["roles"] == {
        "control": ["lyon-1", "paris-1"], "database": ["lyon-1", "paris-1"], "compute": ["lyon-1", "paris-1"],
        "bench": ["lyon-2", "paris-1"], "paris": ["paris-1"], "site_paris": ["paris-1"],
        "lyon": ["lyon-1", "lyon-2"], "site_lyon": ["lyon-1", "lyon-2"],
    }  # fmt: skip


def test_networks_are_those_of_the_lease(seen: dict[str, Any], lease: Lease) -> None:
    found = dict(seen["networks"])
    assert len(found.pop("management")) == 1
    subnets = lease.site_subnets
    assert found == {**{site: [cidr] for site, cidr in subnets.items()}, "sites": sorted(subnets.values())}


def test_enoslib_runs_commands_and_modules_on_them(seen: dict[str, Any]) -> None:
    assert seen["hostname"] == {host: host for host in HOSTS}
    assert seen["forward"] == ["lyon-1", "lyon-2"]
    assert seen["pinged"] == [[host, task, "OK"] for host in ("lyon-2", "paris-1") for task in ("answers", "is Debian")]


def test_the_devices_are_the_ones_that_sync_info_finds(seen: dict[str, Any], lease: Lease) -> None:
    assert seen["devices"] == seen["devices after sync"] == {host: ["eth0"] for host in HOSTS}
    sites = {host.name: [host.site_address] for host in lease.hosts if host.site == "lyon"}
    assert seen["addresses"] == seen["addresses after sync"] == sites
    assert seen["management"] == {host.name: [host.management_address] for host in lease.hosts if host.site == "lyon"}


def test_its_network_emulation_finds_interface_and_targets(seen: dict[str, Any], lease: Lease) -> None:
    address = {host.name: host.site_address for host in lease.hosts}
    there = [["paris-1", "eth0", address[host]] for host in ("lyon-1", "lyon-2")]
    back = [[host, "eth0", address["paris-1"]] for host in ("lyon-1", "lyon-2")]
    assert seen["shaped"] == sorted(there + back)


def test_the_document_tells_the_commands_that_were_used_here() -> None:
    text = (ROOT / "docs" / "enoslib.md").read_text(encoding="utf-8")
    assert " ".join(f"'{need}'" for need in (enoslib_roles.ENOSLIB, *enoslib_roles.NEEDS)) in text
    assert "pip install --no-deps ." in text
