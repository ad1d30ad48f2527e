"""Where the services of each topology are, whom they speak with, and what of it crosses the WAN."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from discovery_deploy.cloud.crossings import Flow, described, flows, groups
from discovery_deploy.cloud.topology import API_VHOST, At, Layout, layout
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.services import SERVICES

ALL = list(SERVICES)
PARIS = {"type": "mariadb", "site": "paris"}
GALERA = {"type": "galera"}
SITES: list[dict[str, Any]] = [
    {"name": "paris"},
    {
        "name": "rennes",
        "hosts": [
            {"name": "r-1", "roles": ["control", "database"]},
            {"name": "r-2", "roles": ["control"]},
            {"name": "r-3", "roles": ["compute", "bench"]},
        ],
    },
    {"name": "lyon", "hosts": [{"name": "l-1", "roles": ["control", "database", "bench"]}]},
    {"name": "oslo", "hosts": [{"name": "o-1", "roles": ["compute", "bench"]}]},
]
TOPOLOGIES: dict[str, dict[str, str]] = {
    "regions": {"type": "regions"},
    "centralized": {"type": "centralized", "site": "rennes"},
    "cells": {"type": "cells", "site": "rennes"},
    "shared-state": {"type": "shared-state"},
}
PLACEMENTS: list[dict[str, list[str]]] = [
    {},
    {"glance": ["lyon"]},
    {"keystone": ["paris", "lyon"], "neutron": ["r-2"]},
    {"nova": ["r-2"], "placement": ["paris"]},
]


def experiment(topology: str, backend: dict[str, str] = PARIS, **deployment: Any) -> Experiment:
    """Four sites; the last has computes only, which the topologies regions and cells do not take."""
    sites = SITES[:3] if topology in ("regions", "cells") else SITES
    told = {"services": ALL, "topology": TOPOLOGIES[topology], "backend": backend, **deployment}
    return Experiment.model_validate({"name": "example", "sites": sites, "deployment": told})


def found(topology: str, backend: dict[str, str] = PARIS, **deployment: Any) -> Layout:
    return layout(experiment(topology, backend, **deployment))


CASES = [
    pytest.param(topology, backend, placement, id=f"{topology}-{backend['type']}-{number}")
    for topology, backend, (number, placement) in itertools.product(TOPOLOGIES, (PARIS, GALERA), enumerate(PLACEMENTS))
]


@pytest.mark.parametrize(("topology", "backend", "placement"), CASES)
def test_whatever_is_asked_everybody_finds_whom_it_needs(
    topology: str, backend: dict[str, str], placement: dict[str, list[str]]
) -> None:
    asked = experiment(topology, backend, placement=placement)
    here = layout(asked)
    hosts = {host.name: (site.name, host.roles) for site in asked.sites for host in site.hosts}
    brokers = {broker.at: broker.vhosts for broker in here.brokers}
    for instance in here.instances:
        assert hosts[instance.at.host][0] == instance.at.site
        assert "control" in hosts[instance.at.host][1]
        assert instance.region in here.regions
        assert instance.databases
        for name, server in instance.databases.items():
            assert server in here.servers
            assert name in server.databases
        if SERVICES[instance.service].uses_broker:
            assert instance.broker
            assert instance.broker.vhost in brokers[instance.broker.at]
    for server in here.servers:
        assert ("database" if server.kind == "backend" else "control") in hosts[server.at.host][1]
    assert len({(server.at, server.kind) for server in here.servers}) == len(here.servers)
    for compute in here.computes:
        assert "compute" in hosts[compute.at.host][1]
        assert compute.broker.vhost in brokers[compute.broker.at]
        assert compute.region in here.regions
        assert compute.ovn in here.ovn
        conductors = [one for one in here.of("nova") if (one.broker, one.cell) == (compute.broker, compute.cell)]
        assert conductors, "somebody at its broker keeps its cell's servers"


@pytest.mark.parametrize(("topology", "backend", "placement"), CASES)
def test_a_region_has_one_endpoint_per_service_at_a_host_with_its_api(
    topology: str, backend: dict[str, str], placement: dict[str, list[str]]
) -> None:
    here = found(topology, backend, placement=placement)
    pairs = [(endpoint.region, endpoint.service) for endpoint in here.endpoints]
    assert sorted(pairs) == sorted(itertools.product(here.regions, ALL))
    apis = {(instance.service, instance.at) for instance in here.instances if instance.has_api}
    assert {(endpoint.service, endpoint.at) for endpoint in here.endpoints} <= apis
    assert set(here.serving.values()) <= {at for _, at in apis}


@pytest.mark.parametrize(("topology", "backend", "placement"), CASES)
def test_every_cell_is_mapped_where_its_api_is_and_has_computes_and_chassis_once(
    topology: str, backend: dict[str, str], placement: dict[str, list[str]]
) -> None:
    here = found(topology, backend, placement=placement)
    mapped = [(instance.at, cell) for instance in here.of("nova") for cell in instance.maps]
    assert len(mapped) == len(set(mapped))
    if topology != "regions":
        assert len({cell for _, cell in mapped}) == len(mapped)
    assert {compute.cell for compute in here.computes} <= {cell for _, cell in mapped}
    chassis = [one for central in here.ovn for one in central.chassis]
    fakes = [At(compute.at.site, name) for compute in here.computes for name in compute.fakes]
    assert sorted(chassis) == sorted(fakes)
    assert len(set(fakes)) == len(fakes)


def at(here: Layout, service: str) -> list[str]:
    return [instance.at.host for instance in here.of(service)]


def test_centralized_has_everything_at_one_site_and_computes_at_all() -> None:
    here = found("centralized")
    assert {tuple(at(here, service)) for service in ALL} == {("r-1",)}
    assert here.regions == ("rennes",)
    assert set(here.region_of.values()) == {"rennes"}
    assert [compute.at.host for compute in here.computes] == ["paris-1", "r-3", "o-1"]
    assert {compute.broker.at.host for compute in here.computes} == {"r-1"}
    assert [(server.kind, server.at.host) for server in here.servers] == [("backend", "paris-1")]


def test_regions_share_keystone_s_database_and_nothing_else() -> None:
    here = found("regions")
    assert here.regions == ("paris", "rennes", "lyon")
    for instance in here.instances:
        used = {(server.kind, server.at.site) for server in instance.databases.values()}
        own = ("site", instance.at.site)
        assert used == ({("backend", "paris")} if instance.service == "keystone" else {own})
        assert instance.broker is None or instance.broker.at.site == instance.at.site
    assert [len(central.members) for central in here.ovn] == [1, 1, 1]
    everything = flows(here, ("rennes",))
    assert {(flow.who, flow.whom, flow.destination) for flow in everything} == {("keystone", "the database", "paris")}
    assert groups(here) == ()


def test_cells_have_conductor_database_and_broker_where_their_computes_are() -> None:
    here = found("cells")
    api, cell = (next(one for one in here.of("nova") if one.at.site == site) for site in ("rennes", "paris"))
    assert at(here, "nova") == ["paris-1", "r-1"], "no computes at lyon, no cell"
    assert api.processes == ("api", "scheduler", "conductor")
    assert (api.cell, api.maps) == ("cell-rennes", ("cell-paris", "cell-rennes"))
    assert (cell.processes, cell.cell, cell.maps) == (("conductor",), "cell-paris", ())
    assert (cell.broker and cell.broker.vhost, api.broker and api.broker.vhost) == ("cell-paris", API_VHOST)
    assert set(cell.databases) == {"nova"}
    assert cell.databases["nova"].kind == api.databases["nova"].kind == "site"
    assert api.databases["nova_api"].kind == "backend"
    assert here.regions == ("rennes",)
    assert Flow("nova", "a cell's broker", "rennes", "paris") in flows(here)


def test_a_site_of_nova_s_api_without_computes_keeps_no_cell() -> None:
    here = layout(
        experiment("cells").model_copy(
            update={"deployment": experiment("cells", placement={"nova": ["lyon"]}).deployment}
        )
    )
    api = next(instance for instance in here.of("nova") if instance.has_api)
    assert (api.at.host, api.cell, set(api.databases)) == ("l-1", "", {"nova_api", "nova_cell0"})
    assert api.maps == ("cell-paris", "cell-rennes")


def test_shared_state_has_control_services_everywhere_over_clusters() -> None:
    here = found("shared-state", GALERA)
    control = ["paris-1", "r-1", "l-1"]
    assert {tuple(at(here, service)) for service in ALL} == {tuple(control)}
    assert [member.host for member in here.ovn[0].members] == control
    assert {tuple(member.host for member in broker.members) for broker in here.brokers} == {tuple(control)}
    for instance in here.instances:
        assert {server.at.site for server in instance.databases.values()} == {instance.at.site}
        assert instance.broker is None or instance.broker.at.site == instance.at.site
    assert [instance.maps for instance in here.of("nova")] == [("cell1",), (), ()]
    assert here.region_of["oslo"] == "paris", "a site without control services uses the first that has some"
    assert {group.what for group in groups(here)} == {"Galera", "RabbitMQ", "OVN's databases"}
    assert {flow.source for flow in flows(here)} == {"oslo"}


def test_the_file_places_a_service_on_sites_and_hosts() -> None:
    here = found("regions", placement={"glance": ["lyon", "r-2"]})
    assert at(here, "glance") == ["r-2", "l-1"]
    endpoints = {one.region: one.at.host for one in here.endpoints if one.service == "glance"}
    assert endpoints == {"paris": "l-1", "rennes": "r-2", "lyon": "l-1"}
    databases = {instance.at.site: instance.databases["glance"].at for instance in here.of("glance")}
    assert databases == {"rennes": At("rennes", "r-1"), "lyon": At("lyon", "l-1")}
    assert Flow("nova", "glance", "paris", "lyon") in flows(here)


def test_keystone_alone_needs_no_broker_no_ovn_and_no_site_database() -> None:
    here = found("regions", services=["keystone"])
    assert (here.brokers, here.ovn, here.computes) == ((), (), ())
    assert [(server.kind, server.databases) for server in here.servers] == [("backend", ("keystone",))]


def test_computes_with_real_servers_are_one_network_and_none_are_none() -> None:
    real = found("centralized", computes={"fake": 0, "libvirt": 1})
    assert all((compute.fakes, compute.libvirt) == ((), True) for compute in real.computes)
    assert [group.sites for group in groups(real)] == [("paris", "rennes", "oslo")]
    assert found("centralized", computes={"fake": 0}).computes == ()


def test_a_layout_is_told_in_words() -> None:
    text = described(experiment("cells"))
    assert text.splitlines()[0] == "topology cells@rennes, regions: rennes"
    assert "  r-3      computes: 2 fake" in text.splitlines()
    assert "  computes ask keystone, placement, glance, neutron: paris -> rennes" in text.splitlines()
    alone = Experiment.model_validate(
        {"name": "example", "sites": [{"name": "paris"}], "deployment": {"backend": PARIS}}
    )
    assert described(alone).splitlines()[-1] == "  nothing"


@pytest.mark.parametrize("service", SERVICES.values(), ids=lambda service: service.name)
def test_a_service_is_well_formed(service: Any) -> None:
    assert SERVICES[service.name] is service
    assert all(bool(process.module) != bool(process.command) for process in service.processes)
    assert service.processes[0].name == "api"
    assert set(service.needs) < set(SERVICES)
    order = ALL.index(service.name)
    assert all(ALL.index(need) < order for need in service.needs)
    others = [other for other in SERVICES.values() if other is not service]
    assert not {other.port for other in others} & {service.port}
    assert not {name for other in others for name in other.databases} & set(service.databases)


@pytest.mark.parametrize(
    ("topology", "placement", "copies"),
    [
        ("shared-state", {}, ["r-1", "l-1"]),  # the cloud is filled through paris
        ("shared-state", {"glance": ["lyon"]}, []),
        ("shared-state", {"nova": ["lyon"], "glance": ["paris", "lyon"]}, ["paris-1"]),
        ("centralized", {}, []),
        ("centralized", {"glance": ["paris", "r-2"]}, ["paris-1"]),
        ("cells", {}, []),
        ("regions", {}, []),  # each Glance has a database of its own, and its cloud is filled through it
        ("regions", {"nova": ["paris"]}, []),
    ],
)
def test_images_are_copied_where_glances_share_a_database_and_not_a_store(
    topology: str, placement: dict[str, list[str]], copies: list[str]
) -> None:
    here = found(topology, GALERA, placement=placement)
    assert [one.at.host for one in here.image_copies()] == copies


def test_where_there_is_no_glance_no_image_is_copied() -> None:
    assert found("shared-state", services=["keystone"]).image_copies() == ()
