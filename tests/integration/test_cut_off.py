"""A site of a real deployment that is cut off and connected again: what its clients see, and what counts as done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from discovery_deploy import cloud_probe
from discovery_deploy.campaign import Setting, settings
from discovery_deploy.clients import accesses
from discovery_deploy.errors import PlaybookError
from discovery_deploy.inventory import HOST_PYTHON
from discovery_deploy.model import Experiment
from discovery_deploy.progress import ConsoleAnnouncer
from discovery_deploy.providers import provider_named
from discovery_deploy.testbed import Testbed
from discovery_deploy.workspace import Workspace

pytestmark = pytest.mark.integration
MADE = Experiment.model_validate(
    {
        "name": "test-cut-off",
        "sites": [{"name": "nantes"}, {"name": "lyon"}],
        "network": {"default": {"delay": "10 ms"}},
        "deployment": {"backend": {"type": "mariadb", "site": "nantes"}},
    }
)


@pytest.fixture
def setting() -> Setting:
    [only] = settings(MADE)
    return only


@pytest.fixture
def testbed(tmp_path: Path, setting: Setting) -> Iterator[Testbed]:
    workspace = Workspace(tmp_path / "workspace")
    with workspace.lock():
        testbed = Testbed(MADE, workspace, provider_named("local"), ConsoleAnnouncer(Console(stderr=True), False))
        try:
            testbed.bring_to(setting)
            yield testbed
        finally:
            testbed.release()


def told(testbed: Testbed, site: str, limit_s: float) -> str:
    """Why a client at a site cannot have a server: there is no Nova, which it learns only after it has signed in."""
    place: dict[str, Any] = {"name": "x", "site": site, "region": site, "computes": ["x"], "kind": "fake"}
    specification = {
        "task": "operate",
        "auth_url": accesses(MADE, testbed.lease)[site].auth_url,
        "password": testbed.secrets.admin_password,
        "places": [{**place, "flavor": "m1.tiny"}],
        "limit_s": limit_s,
        "remove_after_failure": False,
    }
    command = [HOST_PYTHON, "-I", "-S", "-"]
    text = testbed.remote(testbed.lease.at(site).name, command, cloud_probe.call(specification), limit_s + 30)
    return str(json.loads(text)["error"])


def ping(testbed: Testbed, source: str, destination: str) -> None:
    address = testbed.lease.at(destination).site_address
    testbed.remote(testbed.lease.at(source).name, ["ping", "-c", "2", "-W", "1", address])


def test_a_site_is_cut_off_and_works_again_afterwards(testbed: Testbed, setting: Setting) -> None:
    signed_in = 'network for smoke-x: the catalogue has no network in region "{}"'
    assert told(testbed, "lyon", 30) == signed_in.format("lyon")
    with testbed.cut_off(MADE, "lyon"):
        assert testbed.stale(setting) == ("constrain", "verify")
        for pair in (("nantes", "lyon"), ("lyon", "nantes")):
            with pytest.raises(PlaybookError, match="100% packet loss"):
                ping(testbed, *pair)
        assert "sign in: POST http://" in (lost := told(testbed, "lyon", 8))
        assert "no answer within 8 s" in lost
        assert told(testbed, "nantes", 30) == signed_in.format("nantes")
    assert told(testbed, "lyon", 30) == signed_in.format("lyon")
    assert testbed.verify(MADE).problems == ()
    assert testbed.stale(setting) == ()
