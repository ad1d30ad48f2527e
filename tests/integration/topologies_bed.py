"""A whole OpenStack at two sites, in any topology, and what its users and its operator do with it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from openstack.compute.v2.server import Server
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from openstack.exceptions import ResourceFailure, SDKException

from discovery_deploy.bench import cloud_probe
from discovery_deploy.cloud.clients import accesses
from discovery_deploy.cloud.inventory import HOST_PYTHON
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.system.remote import side_by_side
from tests.integration.test_experiment import CHEAP_HASHES, Tool

TOPOLOGIES: dict[str, dict[str, Any]] = {
    "centralized": {
        "topology": {"type": "centralized", "site": "nantes"},
        "placement": {"glance": ["rennes"]},
        "overrides": {name: {"cors": {"allowed_origin": f"http://{name}.example.org"}} for name in SERVICES},
    },
    "regions": {"topology": {"type": "regions"}},
    "cells": {"topology": {"type": "cells", "site": "nantes"}},
    "shared-state": {
        "topology": {"type": "shared-state"},
        "backend": {"type": "galera"},
        "computes": {"fake": 0, "libvirt": 1},
    },
}
"""Topology -> what its deployment has besides, or in place of, what all have."""
SITES = ("nantes", "rennes")
AS_WRITTEN = {
    "expression": "{{ lookup('ansible.builtin.pipe', 'id') }} {% raw %} {# comment #}",
    "others": """%(here)s %d $HOME ${x} $$ 'single' "double" \\ `id`""",
}
"""Options that no service has: what they say must stand in its configuration."""
CONFIGURATIONS = {
    "keystone": "/etc/keystone/keystone.conf",
    "placement": "/etc/placement/placement.conf",
    "glance": "/etc/glance/glance-api.conf",
    "neutron": "/etc/neutron/neutron.conf",
    "nova": "/etc/nova/nova.conf",
}
"""Service -> its file on hosts."""
DELAY_S = {"shared-state": 0.01}
"""Of each way between the sites, where it is not 5 ms: guests tell it from what their own switches take."""


def experiment(topology: str) -> dict[str, Any]:
    """Two sites, each with one compute: of the fake driver, or in shared-state with virtual machines."""
    deployment: dict[str, Any] = {
        "services": list(SERVICES),
        "backend": {"type": "mariadb", "site": "nantes"},
        "workers": 1,
        "computes": {"fake": 1},
        "overrides": {name: {"as_written": AS_WRITTEN} for name in CONFIGURATIONS},
        **TOPOLOGIES[topology],
    }
    overrides = deployment["overrides"]
    deployment["overrides"] = {**overrides, "keystone": {**overrides["keystone"], **CHEAP_HASHES}}
    delay_s = DELAY_S.get(topology, 0.005)
    return {
        "name": "small",
        "sites": [{"name": name} for name in SITES],
        "network": {"default": {"delay": f"{delay_s * 1000:g} ms"}, "verify": {"rtt_tolerance": "3 ms"}},
        "deployment": deployment,
    }


class Cloud:
    """A deployment as its administrator sees it from each site, through the site's entry in `clouds.yaml`."""

    def __init__(self, tool: Tool, topology: str) -> None:
        self.tool = tool
        virtual = "libvirt" in TOPOLOGIES[topology].get("computes", {})
        self.computes = {site: f"{site}-1" if virtual else f"{site}-1-fake-1" for site in SITES}
        config = OpenStackConfig(config_files=[str(tool.workspace / "clouds.yaml")], load_envvars=False)
        # a request that a killed service has lost would be waited for without end
        self.at = {site: Connection(config=config.get_one(site, api_timeout=60)) for site in SITES}
        self.scheduling = threading.Lock()

    def boot(self, site: str, name: str, limit_s: float = 120, **asked: Any) -> Server:
        """A server in the zone of a site, once it is active. Raises SDKException when it is not in time.

        Where it is to run is decided for one server after the other: of a user whom two sites' Placement meet for the
        first time at the same moment, Galera refuses one's record as a deadlock, Placement answers 500 and does not
        try again, and Nova finds no valid host.
        """
        api = self.at[site]
        image, flavor = api.image.find_image("cirros"), api.compute.find_flavor("m1.tiny")
        assert image is not None
        assert flavor is not None
        asked.setdefault("networks", [{"uuid": self.network(site).id}])
        deadline = time.monotonic() + limit_s
        with self.scheduling:
            made = api.compute.create_server(
                name=name, image_id=image.id, flavor_id=flavor.id, availability_zone=site, **asked
            )
            while made.status in (None, "BUILD") and not made.compute_host and time.monotonic() < deadline:
                time.sleep(0.5)
                made = api.compute.get_server(made)
        try:
            return api.compute.wait_for_server(made, interval=0.5, wait=deadline - time.monotonic())
        except ResourceFailure as error:
            raise ResourceFailure(f"{error}: {api.compute.get_server(made).fault}") from error

    def network(self, site: str) -> Any:
        """The administrator's own network."""
        found = self.at[site].network.find_network("private")
        assert found is not None
        return found

    def serve(self, site: str, name: str, limit_s: float = 120) -> None:
        """A server at a site, asked for there and deleted. Raises SDKException when it does not come or go in time."""
        server = self.boot(site, name, limit_s)
        assert server.compute_host == self.computes[site]
        self.remove(site, server)

    def remove(self, site: str, server: Server) -> None:
        """Delete a server and wait until it is gone."""
        compute = self.at[site].compute
        compute.delete_server(server)
        compute.wait_for_delete(server, interval=0.5, wait=120)

    def serve_at_every_site(self, name: str) -> None:
        """A server at each site, both at the same time."""
        side_by_side(lambda site: self.serve(site, f"{name}-{site}"), SITES)

    def serve_again(self, site: str, limit_s: float = 180) -> None:
        """A server at a site; tried until it comes, each time for a while."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return self.serve(site, "after", limit_s=45)
            except (AssertionError, SDKException):
                if time.monotonic() > deadline:
                    raise

    def console(self, site: str, server: Server) -> str:
        """What a server's guest has written to its console."""
        return str(self.at[site].compute.get_server_console_output(server.id)["output"])

    def main_pid(self, host: str, unit: str) -> int:
        """The process of a unit of a host; 0 for none."""
        words = ("systemctl", "show", "--property=MainPID", "--value", unit)
        return int(self.tool("ssh", "-e", "small", host, *words).stdout)


def deployed(tool: Tool, topology: str, **campaign: Any) -> Cloud:
    """The topology deployed and its WAN verified, in place of the one before; its campaign run where there is one."""
    tool.write({**experiment(topology), **({"campaign": campaign} if campaign else {})})
    tool("run" if campaign else "verify", "small.yaml")
    return Cloud(tool, topology)


def ping(testbed: Testbed, source: str, destination: str) -> None:
    """Two echoes from a site to another. Raises PlaybookError when none is answered."""
    address = testbed.lease.at(destination).site_address
    testbed.remote(testbed.lease.at(source).name, ["ping", "-c", "2", "-W", "1", address])


def refusal(testbed: Testbed, site: str, limit_s: float) -> str:
    """Why a client at a site cannot have a server of a size that is not there: it learns that from Nova."""
    place: dict[str, Any] = {"name": "x", "site": site, "region": site, "computes": ["x"], "kind": "fake"}
    specification = {
        "task": "operate",
        "auth_url": accesses(testbed.experiment, testbed.lease)[site].auth_url,
        "password": testbed.secrets.admin_password,
        "places": [{**place, "flavor": "none such"}],
        "limit_s": limit_s,
    }
    command = [HOST_PYTHON, "-I", "-S", "-"]
    text = testbed.remote(testbed.lease.at(site).name, command, cloud_probe.call(specification), limit_s + 90)
    return str(json.loads(text)["error"])


def workloads(rally_json: Path) -> list[dict[str, Any]]:
    """Of a Rally report, each with its subtask's title."""
    parts = [part for task in json.loads(rally_json.read_text())["tasks"] for part in task["subtasks"]]
    return [{**workload, "title": part["title"]} for part in parts for workload in part["workloads"]]
