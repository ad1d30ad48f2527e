"""What the roles of the services, and of what they stand on, are told in each topology."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from discovery_deploy.cloud import clients, variables
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.services import SERVICES
from tests.leased import ALL, ENVIRONMENTS, GALERA, MARIADB, SECRETS, TOPOLOGIES, experiment, lease

RENNES, NEW_YORK, OSLO = "10.128.0.10", "10.128.1.10", "10.128.2.10"
ADDRESSES = {RENNES: "rennes-1", NEW_YORK: "ny-control", OSLO: "oslo-1", "10.128.1.11": "ny-data"}
"""Of hosts of tests/leased.py on their sites' networks."""


def told(topology: str, backend: dict[str, str] = MARIADB, **deployment: Any) -> variables.Variables:
    asked = experiment(backend, services=ALL, topology=TOPOLOGIES[topology], **deployment)
    return variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS)


CASES = [*itertools.product(TOPOLOGIES, (MARIADB, GALERA))]


@pytest.mark.parametrize(("topology", "backend"), CASES)
def test_every_url_leads_to_something_that_is_deployed(topology: str, backend: dict[str, str]) -> None:
    known = told(topology, backend)
    listed = {f"{one['name']}:{one['user']}" for one in known.shared["mariadb_databases"]}
    masters = {member["address"] for member in known.shared["galera_members"]}
    seen = 0
    for own in known.hosts.values():
        for name, url in own.items():
            if name.endswith("_database") and url and "{" not in url:
                user, password, address, port, database = re.fullmatch(
                    r"mysql\+pymysql://(\w+):([\w-]+)@([\d.]+)(:3307)?/(\w+)\?charset=utf8", url
                ).groups()  # type: ignore[union-attr]
                assert password == SECRETS.database_password
                there = known.hosts[ADDRESSES[address]]
                if port:
                    assert {"name": database, "user": user, "password": password} in there["site_mariadb_databases"]
                else:
                    assert address in masters
                    assert f"{database}:{user}" in listed
                seen += 1
            if name.endswith("_broker"):
                user, password, address, path = re.fullmatch(
                    r"rabbit://([\w-]+):([\w-]+)@([\d.]+):5672/([\w-]*)", url
                ).groups()  # type: ignore[union-attr]
                account = {"vhost": path or "/", "user": user, "password": password}
                assert account in known.hosts[ADDRESSES[address]]["rabbitmq_accounts"]
                seen += 1
            if name.endswith("_keystone_url"):
                address = url.removeprefix("http://").removesuffix(":5000/v3")
                assert known.hosts[ADDRESSES[address]]["keystone_address"] == address
                seen += 1
            if name.endswith(("_ovn_sb", "_ovn_nb")):
                for address in re.findall(r"tcp:([\d.]+):664[12]", url):
                    assert known.hosts[ADDRESSES[address]]["ovn_address"] == address
                    seen += 1
    assert seen > 10


@pytest.mark.parametrize(("topology", "backend"), CASES)
def test_every_role_on_a_host_gets_all_its_variables(topology: str, backend: dict[str, str]) -> None:
    known = told(topology, backend, computes={"fake": 1, "libvirt": 1})
    common = "environment workers address port keystone_url region memcached password overrides"
    wanted = {
        "placement": f"{common} database",
        "glance": f"{common} database",
        "neutron": f"{common} database broker ovn_nb ovn_sb",
        "nova": f"{common} processes database api_database cell0_database broker cells",
        "nova_compute": "environment address keystone_url region password broker fakes libvirt overrides guest",
        "rabbitmq": "address members cookie accounts",
        "site_mariadb": "seed address port max_connections databases",
        "ovn": "address members chassis",
        "open_vswitch": "address ovn_sb",
    }
    for host, own in known.hosts.items():
        for role, names in wanted.items():
            if f"{role}_address" in own:
                lacking = {f"{role}_{name}" for name in names.split()} - set(own) - set(known.shared)
                assert lacking == set(), host


def test_images_are_fetched_from_the_glance_that_they_are_sent_to_first() -> None:
    hosts = told("shared-state").hosts
    first, second, last = (f"http://{address}:9292" for address in (RENNES, NEW_YORK, OSLO))
    assert hosts["oslo-1"]["glance_sources"] == [first, second]
    assert hosts["ny-control"]["glance_sources"] == [first, last]
    assert "glance_sources" not in hosts["rennes-1"]


def test_the_catalogue_has_every_service_of_every_region() -> None:
    shared = told("regions").shared
    assert len(shared["keystone_endpoints"]) == 3 * len(ALL)
    nova = [one for one in shared["keystone_endpoints"] if one["service"] == "nova"]
    assert nova == [
        {"region": "rennes", "service": "nova", "type": "compute", "url": f"http://{RENNES}:8774/v2.1"},
        {"region": "new-york", "service": "nova", "type": "compute", "url": f"http://{NEW_YORK}:8774/v2.1"},
        {"region": "oslo", "service": "nova", "type": "compute", "url": f"http://{OSLO}:8774/v2.1"},
    ]
    assert shared["keystone_service_users"] == ["placement", "glance", "neutron", "nova"]
    assert told("centralized").shared["keystone_urls"] == {"rennes": f"http://{RENNES}:5000/v3"}


def test_of_two_keystones_of_a_region_the_catalogue_has_one_and_each_site_asks_its_own() -> None:
    known = told("centralized", placement={"keystone": ["rennes", "oslo"], "nova": ["oslo"]})
    assert known.shared["keystone_urls"] == {"rennes": f"http://{RENNES}:5000/v3"}
    assert known.shared["keystone_sites"] == {"rennes": f"http://{RENNES}:5000/v3", "oslo": f"http://{OSLO}:5000/v3"}
    for host, site in (("rennes-1", "rennes"), ("oslo-1", "oslo")):
        own = known.hosts[host]
        assert (own["keystone_site"], own["keystone_regions"]) == (site, ["rennes"])
        assert own["keystone_database"] == known.hosts["rennes-1"]["keystone_database"]
    assert known.hosts["oslo-1"]["nova_keystone_url"] == f"http://{OSLO}:5000/v3"
    assert known.hosts["rennes-1"]["glance_keystone_url"] == f"http://{RENNES}:5000/v3"


def test_a_keystone_that_serves_several_regions_is_asked_about_each() -> None:
    known = told("regions", placement={"keystone": ["oslo", "rennes"]})
    assert known.shared["keystone_sites"] == {"rennes": f"http://{RENNES}:5000/v3", "oslo": f"http://{OSLO}:5000/v3"}
    assert known.shared["keystone_urls"]["new-york"] == f"http://{OSLO}:5000/v3"
    assert known.hosts["rennes-1"]["keystone_regions"] == ["rennes"]
    assert known.hosts["oslo-1"]["keystone_regions"] == ["new-york", "oslo"]


def test_each_cell_is_mapped_with_its_own_database_and_virtual_host() -> None:
    hosts = told("cells").hosts
    api, cell = hosts["rennes-1"], hosts["ny-control"]
    by_name = {one["name"]: one for one in api["nova_cells"]}
    assert by_name["cell-new-york"] == {
        "name": "cell-new-york",
        "database": f"mysql+pymysql://nova:database-secret@{NEW_YORK}:3307/nova?charset=utf8",
        "broker": f"rabbit://cell-new-york:broker-secret@{NEW_YORK}:5672/cell-new-york",
    }
    assert by_name["cell-rennes"]["broker"] == f"rabbit://openstack:broker-secret@{RENNES}:5672/"
    assert (cell["nova_processes"], cell["nova_cells"]) == (["conductor"], [])
    assert (cell["nova_api_database"], cell["nova_cell0_database"]) == ("", "")
    assert cell["nova_broker"] == by_name["cell-new-york"]["broker"] == hosts["ny-compute"]["nova_compute_broker"]
    assert hosts["ny-compute"]["nova_compute_region"] == "rennes"


def test_an_api_that_keeps_no_cell_writes_into_cell0() -> None:
    own = told("cells", placement={"nova": ["oslo"]}).hosts["oslo-1"]
    assert own["nova_database"] == own["nova_cell0_database"]
    assert [one["name"] for one in own["nova_cells"]] == ["cell-rennes", "cell-new-york"]


def test_one_nova_at_several_sites_maps_its_cell_so_that_each_uses_its_own_servers() -> None:
    hosts = told("shared-state", GALERA).hosts
    assert hosts["rennes-1"]["nova_cells"] == [
        {
            "name": "cell1",
            "database": "{scheme}://{username}:{password}@{hostname}/nova?{query}",
            "broker": "{scheme}://{username}:{password}@{hostname}:{port}/",
        }
    ]
    assert hosts["ny-control"]["nova_cells"] == hosts["oslo-1"]["nova_cells"] == []
    assert "{hostname}/nova_cell0?" in hosts["oslo-1"]["nova_cell0_database"]
    assert "{" not in hosts["oslo-1"]["nova_database"]
    for topology in ("regions", "centralized"):
        assert "{scheme}" not in str(told(topology).hosts["rennes-1"]["nova_cells"])


def test_clusters_know_their_members_and_single_ones_only_themselves() -> None:
    everyone = [{"host": "rennes-1", "address": RENNES}, {"host": "ny-control", "address": NEW_YORK}]
    everyone.append({"host": "oslo-1", "address": OSLO})
    shared = told("shared-state").hosts
    assert all(shared[one["host"]]["rabbitmq_members"] == everyone for one in everyone)
    assert shared["oslo-1"]["ovn_members"] == [RENNES, NEW_YORK, OSLO]
    assert shared["oslo-1"]["neutron_ovn_nb"] == f"tcp:{RENNES}:6641,tcp:{NEW_YORK}:6641,tcp:{OSLO}:6641"
    alone = told("regions").hosts["oslo-1"]
    assert (alone["rabbitmq_members"], alone["ovn_members"]) == ([everyone[2]], [OSLO])


def test_fake_computes_have_a_chassis_each_at_the_ovn_of_their_neutron() -> None:
    hosts = told("centralized", computes={"fake": 2}).hosts
    assert hosts["rennes-1"]["ovn_chassis"] == [
        {"name": "rennes-1-fake-1", "address": RENNES},
        {"name": "rennes-1-fake-2", "address": RENNES},
        {"name": "ny-compute-fake-1", "address": "10.128.1.13"},
        {"name": "ny-compute-fake-2", "address": "10.128.1.13"},
    ]
    assert hosts["ny-compute"]["nova_compute_fakes"] == ["ny-compute-fake-1", "ny-compute-fake-2"]
    assert "open_vswitch_address" not in hosts["ny-compute"]
    regions = told("regions", computes={"fake": 1}).hosts
    assert regions["oslo-1"]["ovn_chassis"] == []
    assert [one["name"] for one in regions["ny-control"]["ovn_chassis"]] == ["ny-compute-fake-1"]


def test_a_site_s_overrides_stand_on_top_of_those_for_all_sites() -> None:
    hosts = told(
        "regions",
        overrides={
            "nova": {"DEFAULT": {"debug": True, "osapi_max_limit": 10}},
            "keystone": {"token": {"expiration": 9}},
        },
        site_overrides={"new-york": {"nova": {"DEFAULT": {"debug": False}, "api": {"use_forwarded_for": True}}}},
    ).hosts
    assert hosts["rennes-1"]["nova_overrides"] == {"DEFAULT": {"debug": True, "osapi_max_limit": 10}}
    there = {"DEFAULT": {"debug": False, "osapi_max_limit": 10}, "api": {"use_forwarded_for": True}}
    assert hosts["ny-control"]["nova_overrides"] == hosts["ny-compute"]["nova_compute_overrides"] == there
    assert hosts["oslo-1"]["keystone_overrides"] == {"token": {"expiration": 9}}
    assert hosts["oslo-1"]["glance_overrides"] == {}


def test_keystone_alone_tells_of_nothing_else() -> None:
    asked = experiment(MARIADB)
    known = variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS)
    names = {name for own in (known.shared, *known.hosts.values()) for name in own}
    roles = ("keystone_", "mariadb_", "galera_", "memcached_", "rally_")
    assert {name for name in names if not name.startswith(roles)} == set()
    assert known.shared["mariadb_databases"] == [
        {"name": "keystone", "user": "keystone", "password": "database-secret"}
    ]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_clients_of_every_site_find_the_keystone_and_the_region_that_serve_it(topology: str) -> None:
    asked = experiment(MARIADB, services=ALL, topology=TOPOLOGIES[topology])
    access = clients.accesses(asked, lease(asked))
    assert list(access) == list(asked.site_names)
    endpoints = told(topology).shared["keystone_endpoints"]
    for site, found in access.items():
        own = site if topology in ("regions", "shared-state") else "rennes"
        assert found.region == own
        urls = [one["url"] for one in endpoints if (one["region"], one["type"]) == (found.region, "identity")]
        assert urls == [found.auth_url]
    bench = told(topology).hosts["ny-bench"]
    assert (bench["rally_auth_url"], bench["rally_region"]) == access["new-york"]


def test_a_site_without_control_services_is_served_by_another() -> None:
    sites = [{"name": "paris"}, {"name": "far", "hosts": [{"name": "f", "roles": ["compute", "bench"]}]}]
    deployment = {"backend": {"type": "mariadb", "site": "paris"}, "topology": {"type": "shared-state"}}
    asked = Experiment.model_validate({"name": "paper", "sites": sites, "deployment": deployment})
    here = clients.accesses(asked, lease(asked))
    assert here["far"] == here["paris"] == ("http://10.128.0.10:5000/v3", "paris")
    assert '"region_name": "paris"' in clients.clouds_yaml(here, "p w")
    assert "export OS_REGION_NAME=paris\n" in clients.openrc(here["far"], "p w")
    assert "export OS_PASSWORD='p w'\n" in clients.openrc(here["far"], "p w")


def test_ports_are_those_of_the_services() -> None:
    own = told("centralized").hosts["rennes-1"]
    for name in ALL:
        assert own[f"{name}_port"] == SERVICES[name].port
