"""The configurations of Neutron, Nova and its computes, as the roles' templates give them for each topology."""

from __future__ import annotations

import configparser
from typing import Any

import jinja2
import pytest

from discovery_deploy.cloud import variables
from discovery_deploy.system.data import data_directory
from tests.leased import ENVIRONMENTS, MARIADB, SECRETS, experiment, lease

ROLES = data_directory("playbooks") / "roles"
ALL = ["keystone", "placement", "glance", "neutron", "nova"]
TOPOLOGIES: list[dict[str, str]] = [
    {"type": "regions"},
    {"type": "centralized", "site": "rennes"},
    {"type": "cells", "site": "rennes"},
    {"type": "shared-state"},
]


def told(topology: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Host -> every variable that it sees."""
    asked = experiment(backend=MARIADB, services=ALL, topology=topology, computes={"fake": 2, "libvirt": 1})
    given = variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS)
    return {host: {**given.shared, **own} for host, own in given.hosts.items()}


def rendered(role: str, template: str, known: dict[str, Any]) -> configparser.RawConfigParser:
    """A template's text, read; a section or option that stands there twice is an error."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLES / role / "templates"), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    parser = configparser.RawConfigParser(strict=True, default_section="none")
    parser.read_string(engine.get_template(template).render(known))
    return parser


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology["type"])
def test_every_nova_and_neutron_has_a_broker_and_a_database(topology: dict[str, str]) -> None:
    found = 0
    for known in told(topology).values():
        for role in ("nova", "neutron"):
            if f"{role}_address" in known:
                found += 1
                read = rendered(role, f"{role}.conf.j2", known)
                assert read["DEFAULT"]["transport_url"] == known[f"{role}_broker"]
                assert read["database"]["connection"] == known[f"{role}_database"]
                assert read["keystone_authtoken"]["region_name"] == known[f"{role}_region"]
    assert found >= 2


def test_a_conductor_of_a_cell_elsewhere_does_not_know_the_apis_database() -> None:
    hosts = told({"type": "cells", "site": "rennes"})
    cells = [known for known in hosts.values() if known.get("nova_processes") == ["conductor"]]
    assert cells
    for known in cells:
        assert "api_database" not in rendered("nova", "nova.conf.j2", known)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology["type"])
@pytest.mark.parametrize("driver", ["fake", "libvirt"])
def test_computes_know_no_database(topology: dict[str, str], driver: str) -> None:
    computes = [known for known in told(topology).values() if "nova_compute_broker" in known]
    assert computes
    for known in computes:
        values = {**known, "driver": driver, "nova_compute_host": {"virt_type": "qemu"}}
        read = rendered("nova_compute", "nova-compute.conf.j2", values)
        assert {"database", "api_database"} & set(read.sections()) == set()
        assert read["DEFAULT"]["compute_driver"].startswith(f"{driver}.")
        assert ("libvirt" in read) == (driver == "libvirt")


@pytest.mark.parametrize(
    ("topology", "clouds"), list(zip(TOPOLOGIES, [3, 1, 1, 1], strict=True)), ids=[one["type"] for one in TOPOLOGIES]
)
def test_every_compute_is_in_the_zone_of_its_site_in_one_cloud(topology: dict[str, str], clouds: int) -> None:
    hosts = told(topology)
    zones = [known["cloud_content_zones"] for known in hosts.values() if "cloud_content_zones" in known]
    assert len(zones) == clouds
    named = [name for zone in zones for names in zone.values() for name in names]
    computes = [
        name
        for host, known in hosts.items()
        for name in [*known.get("nova_compute_fakes", []), *([host] if known.get("nova_compute_libvirt") else [])]
    ]
    assert sorted(named) == sorted(computes)
