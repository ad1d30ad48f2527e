"""The whole OpenStack in every topology on real hosts: servers at every site, asked for at every site's own API.

Topologies follow each other on the same hosts, so that taking a whole OpenStack away is seen to work too: tests of one
stand together, and each asks for its fixture, which deploys it in place of the one before.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from discovery_deploy.bench import smoke
from discovery_deploy.bench.bench import SiteResult, load
from discovery_deploy.bench.campaign import settings
from discovery_deploy.bench.rally import load_tasks, rally_task
from discovery_deploy.bench.smoke import SmokeRecord
from discovery_deploy.cli import cli
from discovery_deploy.cli.progress import ConsoleAnnouncer
from discovery_deploy.cloud.variables import rally_command
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.hosts.registry import provider_named
from discovery_deploy.software import builds
from discovery_deploy.system.errors import PlaybookError
from discovery_deploy.system.remote import Remote, side_by_side
from discovery_deploy.system.workspace import Workspace
from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import Tool, pytestmark
from tests.integration.topologies_bed import (
    AS_WRITTEN,
    CONFIGURATIONS,
    DELAY_S,
    SITES,
    Cloud,
    deployed,
    experiment,
    ping,
    refusal,
    workloads,
)

__all__ = ["pytestmark"]

GUESTS_OWN_S = 0.015
"""What emulated processors and switches outside the kernel may add to the least of twenty round trips."""


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    made = Tool(tmp_path_factory.mktemp("topologies"))
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "small")
    assert left_behind(made.folder / "state", before) == []


@pytest.fixture(scope="module")
def centralized(tool: Tool) -> Cloud:
    """With one run of a campaign, from the site without control services but Glance."""
    scenarios = [{"task": "nova/boot_and_delete_server", "times": 1}]
    return deployed(tool, "centralized", bench_site="rennes", scenarios=scenarios)


@pytest.fixture(scope="module")
def regions(tool: Tool) -> Cloud:
    return deployed(tool, "regions")


@pytest.fixture(scope="module")
def cells(tool: Tool) -> Cloud:
    return deployed(tool, "cells")


@pytest.fixture(scope="module")
def shared_state(tool: Tool) -> Cloud:
    return deployed(tool, "shared-state")


def smoked(tool: Tool, monkeypatch: pytest.MonkeyPatch, cut_limit_s: float) -> dict[tuple[str, str], list[bool]]:
    """`discovery-deploy smoke`, with less patience while a site is cut off. (level, client's site) -> its verdicts."""
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", tool.environment["DISCOVERY_DEPLOY_STATE"])
    monkeypatch.chdir(tool.folder)
    monkeypatch.setattr(smoke, "CUT_LIMIT_S", cut_limit_s)
    monkeypatch.setattr(smoke, "SETTLE_S", 0.0)
    done = CliRunner().invoke(cli.app, ["smoke", "small.yaml"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    [path] = (tool.workspace / "smoke").iterdir()
    record = SmokeRecord.model_validate_json(path.read_text())
    path.unlink()  # the next topology's is another
    assert smoke.table(record) in done.stdout
    assert record.problems == ()
    found: dict[tuple[str, str], list[bool]] = {}
    for one in record.checks:
        assert bool(one.reason) is not one.passed
        found.setdefault((one.level, one.site), []).append(one.passed)
    return found


# centralized


def test_a_run_boots_and_deletes_a_server(tool: Tool, centralized: Cloud) -> None:
    [record] = tool.records()
    assert (record["status"], record["problems"]) == ("done", [])
    [workload] = workloads(tool.workspace / "runs" / record["id"] / "rennes" / "rally.json")
    [iteration] = workload["data"]
    assert iteration["error"] == []
    assert [action["name"] for action in iteration["atomic_actions"]] == ["nova.boot_server", "nova.delete_server"]


def test_every_task_of_nova_neutron_and_glance_succeeds(tool: Tool, centralized: Cloud) -> None:
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


def test_centralized_serves_every_site(centralized: Cloud) -> None:
    centralized.serve_at_every_site("centralized")


@pytest.mark.parametrize("service", SERVICES)
def test_an_override_is_what_the_running_service_goes_by(tool: Tool, centralized: Cloud, service: str) -> None:
    """Its API says to pages of which site a browser may show its answers: those of the override, no others."""
    url = centralized.at["nantes"].endpoint_for(SERVICES[service].catalogue_type)
    assert url
    root = "/".join(url.split("/")[:3])

    def answer(origin: str) -> str:
        ask = ["curl", "-s", "-D", "-", "-o", "/dev/null", "-H", f"'Origin: {origin}'", f"{root}/"]
        return tool("ssh", "-e", "small", "nantes-1", *ask).stdout.lower()

    assert f"access-control-allow-origin: http://{service}.example.org" in answer(f"http://{service}.example.org")
    assert "access-control-allow-origin" not in answer("http://other.example.org")


def test_a_service_is_at_the_site_where_it_is_placed(tool: Tool, centralized: Cloud) -> None:
    """Glance at rennes in place of the topology's nantes: its catalogue entry, its process, and what serves images."""
    lease = Workspace(tool.workspace).load("lease.json", Lease)
    assert lease
    api = centralized.at["nantes"]
    assert api.endpoint_for("image") == f"http://{lease.at('rennes').site_address}:9292"
    assert [site for site in SITES if centralized.main_pid(f"{site}-1", "glance")] == ["rennes"]
    assert [image.name for image in api.image.images()] == ["cirros"]


def test_requests_of_other_services_are_counted_too(tool: Tool, centralized: Cloud) -> None:
    campaign = {"bench_site": "rennes", "scenarios": [{"task": "glance/list_images", "times": 1}]}
    tool.write({**experiment("centralized"), "campaign": campaign})
    told = tool("count", "small.yaml").stdout.splitlines()
    [images] = [line for line in told if "\tglance_v2.list_images\t" in line]
    assert "glance " in images.rpartition("\t")[2]


# regions


def test_every_service_has_its_overrides_as_they_are_written(tool: Tool, regions: Cloud) -> None:
    for path in (*CONFIGURATIONS.values(), "/etc/nova-compute/fake.conf"):
        lines = tool("ssh", "rennes-1", "cat", path).stdout.splitlines()
        section = lines[lines.index("[as_written]") + 1 :]
        assert {f"{name} = {value}" for name, value in AS_WRITTEN.items()} <= set(section), path
    # users that deploy makes itself have passwords as Keystone would make them
    select = "'SELECT DISTINCT LEFT(password_hash, 7) FROM password'"
    assert tool("ssh", "nantes-1", "mariadb", "-N", "keystone", "-e", select).stdout.split() == ["$2b$04$"]


def test_regions_serve_every_site(regions: Cloud) -> None:
    regions.serve_at_every_site("regions")


def test_a_site_is_cut_off_and_works_again_afterwards(
    tool: Tool, regions: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing passes meanwhile, in no direction; the WAN counts as not shaped until it is as it was."""
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", tool.environment["DISCOVERY_DEPLOY_STATE"])
    made = Experiment.model_validate(experiment("regions"))
    [setting] = settings(made)
    workspace = Workspace(tool.workspace)
    with workspace.lock():
        testbed = Testbed(made, workspace, provider_named("local"), ConsoleAnnouncer(Console(stderr=True), False))
        assert testbed.stale(setting) == ()
        with testbed.cut_off(made, "rennes"):
            assert testbed.stale(setting) == ("constrain", "verify")
            for pair in (("nantes", "rennes"), ("rennes", "nantes")):
                with pytest.raises(PlaybookError, match="100% packet loss"):
                    ping(testbed, *pair)
            assert "sign in: POST http://" in (lost := refusal(testbed, "rennes", 8))
            assert "no answer within 8 s" in lost
            assert refusal(testbed, "nantes", 30).startswith("ask for smoke-x: Nova in region")
        for pair in (("nantes", "rennes"), ("rennes", "nantes")):
            ping(testbed, *pair)
        assert testbed.verify(made).problems == ()
        assert testbed.stale(setting) == ()


def test_smoke_of_regions(tool: Tool, regions: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only database is at nantes: rennes, cut off from it, cannot even sign in, and nantes goes on."""
    assert smoked(tool, monkeypatch, cut_limit_s=50) == {
        ("L1", "nantes"): [True],
        ("L1", "rennes"): [True, True],  # the second after the WAN has healed
        ("L2.1", "nantes"): [True],
        ("L3.2", "rennes"): [False],
        ("L3.2", "nantes"): [True],
    }


# cells


def test_cells_serve_every_site(cells: Cloud) -> None:
    cells.serve_at_every_site("cells")


# shared-state, with virtual machines


def test_guests_at_two_sites_ping_each_other_across_the_wan(shared_state: Cloud) -> None:
    """Each tells on its own console, which Nova's API gives, that the other answers, and how long it takes.

    Both boot from the image that deploy sent to the Glance of nantes: it came to rennes too.
    """
    ports = {}
    for site in SITES:
        made = shared_state.at[site].network.create_port(network_id=shared_state.network(site).id, name=site)
        ports[site] = (made.id, made.fixed_ips[0]["ip_address"])
    other = dict(zip(SITES, reversed(SITES), strict=True))

    def boot(site: str) -> str:
        networks, metadata = [{"port": ports[site][0]}], {"ping": ports[other[site]][1]}
        server = shared_state.boot(site, f"guest-{site}", config_drive=True, networks=networks, metadata=metadata)
        assert server.compute_host == shared_state.computes[site]
        deadline = time.monotonic() + 120
        while "\nRTT " not in (told := shared_state.console(site, server)) and time.monotonic() < deadline:
            time.sleep(0.5)
        shared_state.remove(site, server)
        return told

    for site, told in zip(SITES, side_by_side(boot, SITES), strict=True):
        assert re.search(rf"^LEASE {ports[site][1]}/", told, re.MULTILINE), told
        assert re.search(rf"^PING {ports[other[site]][1]} OK ", told, re.MULTILINE), told
        found = re.search(rf"^RTT {ports[other[site]][1]} ([\d.]+)/[\d.]+/[\d.]+ ms ", told, re.MULTILINE)
        assert found, told
        assert 2 * DELAY_S["shared-state"] <= float(found[1]) / 1000 <= 2 * DELAY_S["shared-state"] + GUESTS_OWN_S


def test_smoke_of_shared_state(tool: Tool, shared_state: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sites neither is a majority of the database, the brokers and OVN: while one is cut off, none goes on."""
    assert smoked(tool, monkeypatch, cut_limit_s=60) == {
        ("L1", "nantes"): [True],
        ("L1", "rennes"): [True, True],
        ("L2.1", "nantes"): [True],
        ("L3.2", "rennes"): [False],
        ("L3.2", "nantes"): [False],
    }


@pytest.mark.parametrize("unit", ["nova-compute@rennes-1", "nova-conductor", "rabbitmq-server"])
def test_what_is_killed_comes_back_and_serves(shared_state: Cloud, unit: str) -> None:
    """The broker at rennes is a member of the cluster.

    A request of the first seconds may fail, or stay for ever where its message was lost; one after them is served.
    """
    before = shared_state.main_pid("rennes-1", unit)
    assert before > 0
    shared_state.tool("ssh", "-e", "small", "rennes-1", "kill", "-9", str(before))
    shared_state.serve_again("rennes")
    assert shared_state.main_pid("rennes-1", unit) not in (0, before)


def test_secrets_of_the_whole_openstack_are_in_no_log(tool: Tool) -> None:
    secrets = json.loads((tool.workspace / "secrets.json").read_text())
    texts = [text for value in secrets.values() for text in ([value] if isinstance(value, str) else value)]
    places = [path for path in Path(tool.workspace).rglob("*") if path.is_file() and path.name != "secrets.json"]
    told = [path for path in places if path.name not in ("clouds.yaml",) and not path.name.startswith("openrc-")]
    for path in told:
        content = path.read_bytes()
        assert not [text for text in texts if text.encode() in content], path
