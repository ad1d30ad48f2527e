"""Variables of the roles of OpenStack's services, and of what they stand on, from a layout and the hosts' addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from discovery_deploy.cloud.topology import API_VHOST, At, Compute, DatabaseServer, Instance, Layout, Line
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.services import SERVICES

if TYPE_CHECKING:
    from discovery_deploy.cloud.variables import EnvironmentsInterface, Secrets

MEMCACHED_PORT = 11211
BROKER_PORT = 5672
BACKEND_PORT, SITE_DATABASE_PORT = 3306, 3307
OVN_NORTHBOUND_PORT, OVN_SOUTHBOUND_PORT = 6641, 6642
MAX_CONNECTIONS = 1000
CONNECTIONS_OF_A_SITE = 500
BROKER_USER = "openstack"
_OWN_DATABASE = "{scheme}://{username}:{password}@{hostname}/%s?{query}"
_OWN_BROKER = "{scheme}://{username}:{password}@{hostname}:{port}/"
"""What Nova's cell mappings hold when its APIs are at several sites: each fills in what its own configuration says."""


class ServiceVariables:
    """What the services' roles are told.

    Args:
        experiment: with the levels of the setting in place.
        found: its layout.
        addresses: host -> site address.
        secrets: of the experiment.
    """

    def __init__(self, experiment: Experiment, found: Layout, addresses: Mapping[str, str], secrets: Secrets) -> None:
        self.experiment = experiment
        self.found = found
        self.addresses = addresses
        self.secrets = secrets

    # addresses and URLs

    def address(self, at: At) -> str:
        """Site address of a host."""
        return self.addresses[at.host]

    def url(self, service: str, site: str) -> str:
        """URL of the service that serves a site."""
        return SERVICES[service].url(self.address(self.found.serving[service, site]))

    def keystone_urls(self) -> dict[str, str]:
        """Region -> URL of its Keystone."""
        return {region: self.url("keystone", region) for region in self.found.regions}

    def keystone_sites(self) -> dict[str, str]:
        """Site -> URL of the Keystone that runs there; a region may have several, or none of its own."""
        keystone = SERVICES["keystone"]
        return {one.at.site: keystone.url(self.address(one.at)) for one in self.found.of("keystone")}

    def _keystone_regions(self, instance: Instance) -> list[str]:
        """Regions that a Keystone is asked about: those that it serves by the catalogue, else its site's."""
        own = [name for name in self.found.regions if self.found.serving["keystone", name] == instance.at]
        return own or [instance.region]

    def database(self, server: DatabaseServer, user: str, name: str) -> str:
        """SQLAlchemy's URL of a database."""
        port = "" if server.kind == "backend" else f":{SITE_DATABASE_PORT}"
        login = f"{user}:{self.secrets.database_password}"
        return f"mysql+pymysql://{login}@{self.address(server.at)}{port}/{name}?charset=utf8"

    def broker(self, line: Line) -> str:
        """oslo.messaging's URL of a virtual host of a broker."""
        path = "" if line.vhost == API_VHOST else quote(line.vhost, safe="")
        user = _broker_user(line.vhost)
        return f"rabbit://{user}:{self.secrets.broker_password}@{self.address(line.at)}:{BROKER_PORT}/{path}"

    def ovn(self, members: tuple[At, ...], port: int) -> str:
        """Addresses of one of OVN's databases, as its clients take them."""
        return ",".join(f"tcp:{self.address(member)}:{port}" for member in members)

    def accounts(self, names: tuple[str, ...]) -> list[dict[str, str]]:
        """Databases, each with its user."""
        users = {name: service.database_user for service in SERVICES.values() for name in service.databases}
        return [{"name": name, "user": users[name], "password": self.secrets.database_password} for name in names]

    def _memcached(self, at: At) -> str:
        return f"{self.address(at)}:{MEMCACHED_PORT}"

    # variables

    def shared(self, environments: EnvironmentsInterface) -> dict[str, Any]:
        """The same on all hosts."""
        told: dict[str, Any] = {
            "mariadb_max_connections": MAX_CONNECTIONS,
            "mariadb_databases": self.accounts(self.found.servers[0].databases),
            "keystone_urls": self.keystone_urls(),
            "keystone_sites": self.keystone_sites(),
            "keystone_endpoints": [
                {
                    "region": one.region,
                    "service": one.service,
                    "type": SERVICES[one.service].catalogue_type,
                    "url": SERVICES[one.service].url(self.address(one.at)),
                }
                for one in self.found.endpoints
            ],
            "keystone_service_users": [user for name in self._services() if (user := SERVICES[name].user)],
            "keystone_service_password": self.secrets.service_password,
        }
        for name in self._services():
            told[f"{name}_environment"] = environments.service(name).path
            told[f"{name}_workers"] = self.experiment.deployment.workers
            if SERVICES[name].user:
                told[f"{name}_password"] = self.secrets.service_password
        if len(self._services()) > 1:
            told["site_mariadb_seed"] = f"{environments.database.path}/datadir"
            told["site_mariadb_max_connections"] = CONNECTIONS_OF_A_SITE
        if "nova" in self._services():
            told["nova_compute_guest"] = environments.guest.path if environments.guest else ""
            told["nova_compute_environment"] = environments.service("nova").path
            told["nova_compute_password"] = self.secrets.service_password
        if self.found.clouds():
            told["cloud_content_password"] = self.secrets.admin_password
            told["cloud_content_guest"] = environments.guest.path if environments.guest else ""
        if self.found.brokers:
            told["rabbitmq_cookie"] = self.secrets.broker_cookie
        return told

    def _services(self) -> list[str]:
        return [name for name in SERVICES if name in self.experiment.deployment.services]

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Host -> its own variables."""
        told: dict[str, dict[str, Any]] = {}
        for instance in self.found.instances:
            told.setdefault(instance.at.host, {}).update(self._instance(instance))
        for server in self.found.servers:
            if server.kind == "site":
                told.setdefault(server.at.host, {}).update(
                    site_mariadb_site=server.at.site,
                    site_mariadb_address=self.address(server.at),
                    site_mariadb_port=SITE_DATABASE_PORT,
                    site_mariadb_databases=self.accounts(server.databases),
                )
        for broker in self.found.brokers:
            told.setdefault(broker.at.host, {}).update(
                rabbitmq_address=self.address(broker.at),
                rabbitmq_members=[{"host": one.host, "address": self.address(one)} for one in broker.members],
                rabbitmq_accounts=[
                    {"vhost": vhost, "user": _broker_user(vhost), "password": self.secrets.broker_password}
                    for vhost in broker.vhosts
                ],
            )
        for compute in self.found.computes:
            told.setdefault(compute.at.host, {}).update(self._compute(compute))
        for host, values in (*self._ovn(), *self._contents(), *self._images()):
            told.setdefault(host, {}).update(values)
        return told

    def _contents(self) -> list[tuple[str, dict[str, Any]]]:
        """For the host that fills each cloud: the first API's, or with regions each API's."""
        return [
            (
                instance.at.host,
                {
                    "cloud_content_region": instance.region,
                    "cloud_content_keystone_url": self.url("keystone", instance.at.site),
                    "cloud_content_zones": {
                        site: [name for compute in computes for name in _compute_names(compute)]
                        for site, computes in self.found.zones(instance).items()
                    },
                },
            )
            for instance in self.found.clouds()
        ]

    def _images(self) -> list[tuple[str, dict[str, Any]]]:
        """For each Glance that images are copied to: the one that they are sent to first, then the others."""
        copies = self.found.image_copies()
        glances = sorted(self.found.of("glance"), key=copies.__contains__)
        urls = {one.at.host: SERVICES["glance"].url(self.address(one.at)) for one in glances}
        return [
            (one.at.host, {"glance_sources": [url for host, url in urls.items() if host != one.at.host]})
            for one in copies
        ]

    def _ovn(self) -> list[tuple[str, dict[str, Any]]]:
        hosts = {name: compute.at for compute in self.found.computes for name in compute.fakes}
        return [
            (
                member.host,
                {
                    "ovn_address": self.address(member),
                    "ovn_members": [self.address(one) for one in central.members],
                    "ovn_chassis": [
                        {"name": one.host, "address": self.address(hosts[one.host])} for one in central.chassis
                    ],
                },
            )
            for central in self.found.ovn
            for member in central.members
        ]

    def _instance(self, instance: Instance) -> dict[str, Any]:
        service = SERVICES[instance.service]
        told: dict[str, Any] = {
            "address": self.address(instance.at),
            "port": service.port,
            "memcached": self._memcached(instance.at),
            "overrides": self.experiment.deployment.service_overrides(service.name, instance.at.site),
        }
        if service.name == "keystone":
            told["site"] = instance.at.site
            told["regions"] = self._keystone_regions(instance)
            told["memcached"] = told["memcached"] if self.experiment.deployment.cache == "memcached" else ""
        else:
            told["keystone_url"] = self.url("keystone", instance.at.site)
            told["region"] = instance.region
        if service.name == "nova":
            told |= self._nova(instance)
        else:
            told["database"] = self.database(
                instance.databases[service.databases[0]], service.database_user, service.databases[0]
            )
        if instance.broker:
            told["broker"] = self.broker(instance.broker)
        if service.name == "neutron":
            members = self.found.ovn_of(instance.at.site).members
            told["ovn_nb"] = self.ovn(members, OVN_NORTHBOUND_PORT)
            told["ovn_sb"] = self.ovn(members, OVN_SOUTHBOUND_PORT)
        return {f"{service.name}_{key}": value for key, value in told.items()}

    def _nova(self, instance: Instance) -> dict[str, Any]:
        known = {name: self.database(server, "nova", name) for name, server in instance.databases.items()}
        own_cell0 = _OWN_DATABASE % "nova_cell0" if self._several_apis() else known.get("nova_cell0", "")
        return {
            "processes": list(instance.processes),
            # An API that keeps no cell's servers writes what it must (its own services) into cell0.
            "database": known.get("nova") or known["nova_cell0"],
            "api_database": known.get("nova_api", ""),
            "cell0_database": own_cell0 if instance.has_api else "",
            "cells": [self._cell(name, instance) for name in instance.maps],
        }

    def _several_apis(self) -> bool:
        """Whether one Nova has APIs at several sites, so that its cell mappings must hold at each."""
        apis = [instance for instance in self.found.of("nova") if instance.has_api]
        return 1 < len(apis) > sum(len(instance.maps) for instance in apis)

    def _cell(self, name: str, mapping: Instance) -> dict[str, str]:
        if self._several_apis():
            return {"name": name, "database": _OWN_DATABASE % "nova", "broker": _OWN_BROKER}
        keeper = mapping if mapping.cell == name else next(one for one in self.found.of("nova") if one.cell == name)
        assert keeper.broker is not None
        database = self.database(keeper.databases["nova"], "nova", "nova")
        return {"name": name, "database": database, "broker": self.broker(keeper.broker)}

    def _compute(self, compute: Compute) -> dict[str, Any]:
        southbound = self.ovn(compute.ovn.members, OVN_SOUTHBOUND_PORT)
        told: dict[str, Any] = {
            "nova_compute_address": self.address(compute.at),
            "nova_compute_keystone_url": self.url("keystone", compute.at.site),
            "nova_compute_region": compute.region,
            "nova_compute_broker": self.broker(compute.broker),
            "nova_compute_fakes": list(compute.fakes),
            "nova_compute_libvirt": compute.libvirt,
            "nova_compute_overrides": self.experiment.deployment.service_overrides("nova", compute.at.site),
        }
        if compute.libvirt:
            told["open_vswitch_address"] = self.address(compute.at)
            told["open_vswitch_ovn_sb"] = southbound
        return told


def _compute_names(compute: Compute) -> tuple[str, ...]:
    """Nova's `host` of each compute of a host."""
    return (*compute.fakes, *([compute.at.host] if compute.libvirt else []))


def _broker_user(vhost: str) -> str:
    return BROKER_USER if vhost == API_VHOST else vhost
