"""How a topology spreads a deployment over hosts: which host runs what, and with whom it speaks. Pure.

Names only, no addresses: those come from the lease (`variables.py`). What a site lacks it has from the site that
serves it: its own instance of a service, else that of its control site, else the service's first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from discovery_deploy.experiment.model import Cells, Deployment, Experiment, Regions
from discovery_deploy.experiment.services import SERVICES, Service, ServiceName

ONE_CELL = "cell1"
"""Name of Nova's cell where there is only one."""
API_VHOST = "/"
"""The broker's virtual host of all that is not a cell at another site than Nova's API."""


class At(NamedTuple):
    """A host and its site."""

    site: str
    host: str


class DatabaseServer(NamedTuple):
    """A MariaDB: of the state backend, or a site's own beside its control services."""

    at: At
    kind: Literal["backend", "site"]
    databases: tuple[str, ...]
    """What it holds; Galera's masters hold the same."""


class Broker(NamedTuple):
    """A RabbitMQ at a site: alone, or a member of a cluster."""

    at: At
    members: tuple[At, ...]
    """The cluster, this one with it; the same for each member."""
    vhosts: tuple[str, ...]


class Line(NamedTuple):
    """What a service speaks with at a broker."""

    at: At
    vhost: str


class OvnCentral(NamedTuple):
    """OVN's databases: at one host, or a cluster."""

    members: tuple[At, ...]
    chassis: tuple[At, ...]
    """Invented chassis of fake computes: the compute's name (as host) and its site."""


class Instance(NamedTuple):
    """A service at a site."""

    service: ServiceName
    at: At
    processes: tuple[str, ...]
    region: str
    databases: dict[str, DatabaseServer]
    """Database -> the server that it is used at. Nova's conductor of a cell elsewhere has `nova` alone."""
    broker: Line | None
    cell: str = ""
    """The cell whose servers its conductor keeps; "" when none."""
    maps: tuple[str, ...] = ()
    """Names of the cells that are mapped through it."""

    @property
    def has_api(self) -> bool:
        """Whether it is more than a cell's conductor."""
        return "api" in self.processes


class Compute(NamedTuple):
    """A host with Nova's computes."""

    at: At
    fakes: tuple[str, ...]
    """Names (Nova's `host`) of its fake computes."""
    libvirt: bool
    region: str
    cell: str
    broker: Line
    nova: At
    """Nova's API that rules it."""
    ovn: OvnCentral


class Endpoint(NamedTuple):
    """An entry of the catalogue."""

    region: str
    service: ServiceName
    at: At


class Layout(NamedTuple):
    """Everything that is somewhere, for one setting."""

    regions: tuple[str, ...]
    """Names, which are their sites'."""
    region_of: dict[str, str]
    """Site -> the region that its clients use."""
    instances: tuple[Instance, ...]
    computes: tuple[Compute, ...]
    servers: tuple[DatabaseServer, ...]
    brokers: tuple[Broker, ...]
    ovn: tuple[OvnCentral, ...]
    endpoints: tuple[Endpoint, ...]
    serving: dict[tuple[str, str], At]
    """(service, site) -> the instance that serves the site."""
    separate: bool
    """Whether each instance of a service is a cloud of its own (regions), or all are one."""

    def of(self, service: str) -> tuple[Instance, ...]:
        """Instances of a service, in the order of the sites."""
        return tuple(instance for instance in self.instances if instance.service == service)

    def ovn_of(self, site: str) -> OvnCentral:
        """The OVN that the Neutron of a site writes to. Raises StopIteration when there is no Neutron."""
        neutron = self.serving["neutron", site]
        return next(central for central in self.ovn if neutron.site in [member.site for member in central.members])

    def clouds(self) -> tuple[Instance, ...]:
        """The API of each cloud (what shares a Nova, else what shares a Neutron or Glance) that fills it."""
        service = next((name for name in ("nova", "neutron", "glance") if self.of(name)), None)
        apis = [instance for instance in self.of(service or "") if instance.has_api]
        return tuple(apis if self.separate else apis[:1])

    def image_copies(self) -> tuple[Instance, ...]:
        """Glances that list the images of a cloud that is filled through another one: each has a store of its own."""
        if self.separate or not self.of("glance"):
            return ()
        filled = [self.serving["glance", cloud.region] for cloud in self.clouds()]
        return tuple(one for one in self.of("glance") if one.at not in filled)

    def zones(self, cloud: Instance) -> dict[str, tuple[Compute, ...]]:
        """Site -> its computes, of the cloud that an API belongs to."""
        own = [one for one in self.computes if not self.separate or one.nova == cloud.at]
        sites = dict.fromkeys(one.at.site for one in own)
        return {site: tuple(one for one in own if one.at.site == site) for site in sites}

    def api_site(self, site: str) -> str:
        """Where the API is that a client at a site asks: Nova's when it is deployed, else Keystone's."""
        return self.serving.get(("nova", site), self.serving["keystone", site]).site


def layout(experiment: Experiment) -> Layout:
    """The layout of an experiment's deployment."""
    return _Plan(experiment).layout()


class _Plan:
    """The decisions on the way to a layout, each made once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.deployment: Deployment = experiment.deployment
        self.regions = isinstance(self.deployment.topology, Regions)
        self.cells = isinstance(self.deployment.topology, Cells)
        self.services = [service for name, service in SERVICES.items() if name in self.deployment.services]
        self.places: dict[str, dict[str, At]] = {service.name: self._places(service) for service in self.services}
        self.serving: dict[tuple[str, str], At] = {
            (service.name, site): self._serving(service.name, site)
            for service in self.services
            for site in experiment.site_names
        }
        self.cell_sites = experiment.compute_sites() if self.cells else ()
        self.servers = self._servers()
        self.brokers = self._brokers()

    # where services are

    def control(self, site: str) -> At:
        """The control host of a site that holds what is not placed by the file: broker, database, OVN."""
        host = self.experiment.site(site).first("control")
        assert host is not None
        return At(site, host.name)

    def _places(self, service: Service) -> dict[str, At]:
        """Site -> where the service runs there, in the order of the file's placement, else of the sites."""
        asked = self.deployment.placement.get(service.name)
        if asked is None:
            return {site: self.control(site) for site in self.experiment.control_sites()}
        hosts = {host.name: At(site.name, host.name) for site in self.experiment.sites for host in site.hosts}
        known = self.experiment.site_names
        found = [self.control(name) if name in known else hosts[name] for name in asked]
        return {at.site: at for at in found}

    def _serving(self, service: str, site: str) -> At:
        places = self.places[service]
        return places.get(site) or places.get(self.experiment.control_site(site)) or next(iter(places.values()))

    # databases

    def _servers(self) -> tuple[DatabaseServer, ...]:
        shared = [service for service in self.services if service.name == "keystone" or not self.regions]
        names = [name for service in shared for name in service.databases if not self._is_of_cells(name)]
        holders = [
            At(site, host.name)
            for site in self.experiment.database_sites()
            if (host := self.experiment.site(site).first("database"))
        ]
        found = [DatabaseServer(at, "backend", tuple(names)) for at in holders]
        for site in self.experiment.site_names:
            own = [
                name
                for service in self.services
                if service not in shared and site in self.places[service.name]
                for name in service.databases
            ]
            own += ["nova"] if site in self.cell_sites else []
            if own:
                found.append(DatabaseServer(self.control(site), "site", tuple(own)))
        return tuple(found)

    def _is_of_cells(self, database: str) -> bool:
        return self.cells and database == "nova"

    def _server(self, database: str, site: str) -> DatabaseServer:
        """The server with a database that a site uses: its own, else the first."""
        holders = [server for server in self.servers if database in server.databases]
        return next((server for server in holders if server.at.site == site), holders[0])

    # brokers

    def _brokers(self) -> tuple[Broker, ...]:
        users = [service.name for service in self.services if service.uses_broker]
        if not users:
            return ()
        used = {site for name in users for site in self.places[name]}
        sites = [site for site in self.experiment.site_names if site in used]
        if self.regions:
            return tuple(Broker(self.control(site), (self.control(site),), (API_VHOST,)) for site in sites)
        if self.deployment.topology.type == "shared-state":
            members = tuple(self.control(site) for site in sites)
            return tuple(Broker(member, members, (API_VHOST,)) for member in members)
        centre = next(iter(self.places[users[-1]]))  # Nova's, when there is Nova
        cells = [site for site in self.cell_sites if site != centre]
        vhosts = {centre: API_VHOST, **{site: _cell_name(site) for site in cells}}
        hosts = {site: self.control(site) for site in self.experiment.site_names if site in vhosts}
        return tuple(Broker(at, (at,), (vhosts[site],)) for site, at in hosts.items())

    def _line(self, site: str, vhost: str = API_VHOST) -> Line:
        """A site's own broker that has the virtual host, else the first."""
        holders = [broker for broker in self.brokers if vhost in broker.vhosts]
        return Line(next((broker.at for broker in holders if broker.at.site == site), holders[0].at), vhost)

    # instances

    def _instances(self) -> Iterator[Instance]:
        for service in self.services:
            here = {at.site: self._instance(service, at) for at in self.places[service.name].values()}
            if service.name == "nova":
                here |= {site: self._cell(site) for site in self.cell_sites if site not in here}
            yield from (here[site] for site in self.experiment.site_names if site in here)

    def _instance(self, service: Service, at: At) -> Instance:
        databases = {
            name: self._server(name, at.site)
            for name in service.databases
            if not self._is_of_cells(name) or at.site in self.cell_sites
        }
        found = Instance(
            service=service.name,
            at=at,
            processes=tuple(process.name for process in service.processes if not process.on_computes),
            region=self.experiment.control_site(at.site),
            databases=databases,
            broker=self._line(at.site) if service.uses_broker else None,
        )
        if service.name != "nova":
            return found
        if self.cells:
            own = _cell_name(at.site) if at.site in self.cell_sites else ""
            return found._replace(cell=own, maps=tuple(map(_cell_name, self.cell_sites)))
        maps = self.regions or at == next(iter(self.places["nova"].values()))
        return found._replace(cell=ONE_CELL, maps=(ONE_CELL,) if maps else ())

    def _cell(self, site: str) -> Instance:
        """The conductor of a cell at another site than Nova's API."""
        return Instance(
            service="nova",
            at=self.control(site),
            processes=("conductor",),
            region=self.experiment.control_site(site),
            databases={"nova": self._server("nova", site)},
            broker=self._line(site, _cell_name(site)),
            cell=_cell_name(site),
        )

    # computes and OVN

    def _ovn(self) -> tuple[OvnCentral, ...]:
        if "neutron" not in self.places:
            return ()
        sites = [site for site in self.experiment.site_names if site in self.places["neutron"]]
        clusters = [[site] for site in sites] if self.regions else [sites]
        return tuple(
            OvnCentral(
                members=tuple(self.control(site) for site in members),
                chassis=tuple(
                    At(at.site, name)
                    for at in self._compute_hosts()
                    if self.serving["neutron", self.serving["nova", at.site].site].site in members
                    for name in _fake_names(at.host, self.deployment.computes.fake)
                ),
            )
            for members in clusters
        )

    def _compute_hosts(self) -> tuple[At, ...]:
        asked = set(self.experiment.compute_sites())
        return tuple(
            At(site.name, host.name)
            for site in self.experiment.sites
            if site.name in asked
            for host in site.hosts
            if "compute" in host.roles
        )

    def _compute(self, at: At, ovn: tuple[OvnCentral, ...]) -> Compute:
        nova = self.serving["nova", at.site]
        remote = self.cells and at.site != nova.site
        cell = _cell_name(at.site) if self.cells else ONE_CELL
        neutron = self.serving["neutron", nova.site]
        return Compute(
            at=at,
            fakes=_fake_names(at.host, self.deployment.computes.fake),
            libvirt=bool(self.deployment.computes.libvirt),
            region=self.experiment.control_site(nova.site),
            cell=cell,
            broker=self._line(at.site, cell) if remote else self._line(nova.site),
            nova=nova,
            ovn=next(one for one in ovn if neutron.site in [member.site for member in one.members]),
        )

    def layout(self) -> Layout:
        """All of it."""
        ovn = self._ovn()
        regions = self.experiment.control_sites()
        return Layout(
            regions=regions,
            region_of={site: self.experiment.control_site(site) for site in self.experiment.site_names},
            instances=tuple(self._instances()),
            computes=tuple(self._compute(at, ovn) for at in self._compute_hosts()),
            servers=self.servers,
            brokers=self.brokers,
            ovn=ovn,
            endpoints=tuple(
                Endpoint(region, service.name, self.serving[service.name, region])
                for region in regions
                for service in self.services
            ),
            serving=self.serving,
            separate=self.regions,
        )


def _cell_name(site: str) -> str:
    return f"cell-{site}"


def _fake_names(host: str, count: int) -> tuple[str, ...]:
    return tuple(f"{host}-fake-{number}" for number in range(1, count + 1))
