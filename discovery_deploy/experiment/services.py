"""The OpenStack services that can be deployed, as data: one more is one entry here and one role. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

ServiceName = Literal["keystone", "placement", "glance", "neutron", "nova"]


class Process(NamedTuple):
    """A kind of process that a service consists of."""

    name: str
    module: str = ""
    """WSGI module (its `application` is served by uwsgi); "" when it is a command."""
    command: str = ""
    """Program of the environment's `bin`; "" when it is a WSGI module."""
    on_computes: bool = False
    """Whether it runs on compute hosts instead of control hosts."""


class Service(NamedTuple):
    """What the rest of the code knows of a service."""

    name: ServiceName
    project: str
    """Its name on PyPI."""
    processes: tuple[Process, ...]
    port: int
    """TCP port of its API."""
    databases: tuple[str, ...]
    database_user: str
    """The user of all its databases."""
    catalogue_type: str
    """Its type in Keystone's catalogue."""
    path: str
    """What its URL in the catalogue ends with, after the port."""
    health_path: str
    """Path that its API answers with a success to anybody."""
    needs: tuple[ServiceName, ...] = ()
    """Services without which it does nothing."""
    user: str = ""
    """Its own user in Keystone; "" for none."""
    uses_broker: bool = False

    def url(self, address: str) -> str:
        """Its URL in the catalogue, when it listens at a site address."""
        return f"http://{address}:{self.port}{self.path}"


def _api(module: str) -> Process:
    return Process("api", module=module)


KEYSTONE = Service(
    name="keystone",
    project="keystone",
    processes=(_api("keystone.wsgi.api"),),
    port=5000,
    databases=("keystone",),
    database_user="keystone",
    catalogue_type="identity",
    path="/v3",
    health_path="/v3",
)
PLACEMENT = Service(
    name="placement",
    project="openstack-placement",
    processes=(_api("placement.wsgi.api"),),
    port=8778,
    databases=("placement",),
    database_user="placement",
    catalogue_type="placement",
    path="",
    health_path="/",
    needs=("keystone",),
    user="placement",
)
GLANCE = Service(
    name="glance",
    project="glance",
    processes=(_api("glance.wsgi.api"),),
    port=9292,
    databases=("glance",),
    database_user="glance",
    catalogue_type="image",
    path="",
    health_path="/versions",
    needs=("keystone",),
    user="glance",
)
NEUTRON = Service(
    name="neutron",
    project="neutron",
    processes=(_api("neutron.wsgi.api"),),
    port=9696,
    databases=("neutron",),
    database_user="neutron",
    catalogue_type="network",
    path="",
    health_path="/",
    needs=("keystone",),
    user="neutron",
    uses_broker=True,
)
NOVA = Service(
    name="nova",
    project="nova",
    processes=(
        _api("nova.wsgi.osapi_compute"),
        Process("scheduler", command="nova-scheduler"),
        Process("conductor", command="nova-conductor"),
        Process("compute", command="nova-compute", on_computes=True),
    ),
    port=8774,
    databases=("nova_api", "nova_cell0", "nova"),
    database_user="nova",
    catalogue_type="compute",
    path="/v2.1",
    health_path="/",
    needs=("keystone", "placement", "glance", "neutron"),
    user="nova",
    uses_broker=True,
)
SERVICES: dict[str, Service] = {service.name: service for service in (KEYSTONE, PLACEMENT, GLANCE, NEUTRON, NOVA)}
"""Name -> service, in the order in which they are deployed."""
