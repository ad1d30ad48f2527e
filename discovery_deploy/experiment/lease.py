"""Hosts that were obtained, as plain data."""

from __future__ import annotations

from typing import Any, Literal

from discovery_deploy.experiment.model import Role
from discovery_deploy.system.strict import HostName, Name, Strict


class LeasedHost(Strict):
    """A host that is ours until release."""

    name: HostName
    site: Name
    roles: tuple[Role, ...]
    management_address: str
    """Where the driver reaches it by ssh; never shaped."""
    site_address: str
    """Its address on the network of its site: services listen there, the WAN lies between such addresses."""
    site_device: str = ""
    """The host's network device with that address; "" where a router shapes the WAN."""
    ssh: dict[str, str] = {}
    """More options of ssh_config with which it is reached (`Port`, `ProxyJump`); the user is always root."""


class Lease(Strict):
    """Hosts that were obtained; plain data, kept in the workspace."""

    provider: str
    experiment: Name
    hosts: tuple[LeasedHost, ...]
    site_subnets: dict[str, str]
    """Site -> CIDR of its network; empty where hosts shape the WAN."""
    site_devices: dict[str, str]
    """Site -> the device of the WAN router towards it, where its constraints are put; empty where hosts do it."""
    site_gateways: dict[str, str]
    """Site -> the WAN router's address there; empty where hosts shape the WAN."""
    identities: dict[str, str]
    """Host -> text that is another one when the host was made anew, empty."""
    router: str
    """What shapes the WAN: `netns`, `uml`, or `hosts`."""
    shaped: Literal["router", "hosts"] = "router"
    """Where the WAN is shaped: on a router between the sites, or by every host for what it sends."""
    software: Literal["mounted", "shipped"] = "mounted"
    """Whether hosts see the Python environments of the driver's cache, or must be sent copies."""
    details: dict[str, Any] = {}
    """The provider's own: `local` keeps the machine plan here."""

    @property
    def ways(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Host -> its management address, and more options of ssh_config with which it is reached."""
        return {host.name: (host.management_address, host.ssh) for host in self.hosts}

    @property
    def host_keys(self) -> dict[str, str]:
        """Host -> its public key, where the provider knows them; else empty."""
        return dict(self.details.get("host_keys") or {})

    def has_other_hosts(self, before: Lease | None) -> bool:
        """Whether hosts were made anew since the lease that this one takes the place of."""
        return before is None or before.identities != self.identities

    def at(self, site: str, role: Role | None = None) -> LeasedHost:
        """The first host of a site (with a role). Raises KeyError."""
        for host in self.hosts:
            if host.site == site and (role is None or role in host.roles):
                return host
        raise KeyError((site, role))
