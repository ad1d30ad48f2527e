"""What roles are told: from an experiment, its hosts, secrets and environments to the roles' variables.

Every name here stands in some role's `meta/argument_specs.yml` too; a test compares the two.
"""

from __future__ import annotations

import base64
import secrets as random
from typing import TYPE_CHECKING, Any, Protocol

from discovery_deploy.model import Experiment, GaleraBackend, Role, Strict

if TYPE_CHECKING:
    from discovery_deploy.providers.base import Lease, LeasedHost

STATE_DIRECTORY = "/var/lib/discovery-deploy"
"""Of hosts: what the roles and the driver keep there besides the services' own directories."""
RALLY_DIRECTORY = f"{STATE_DIRECTORY}/rally"
KEYSTONE_PORT = 5000
MEMCACHED_PORT = 11211
GCACHE_MB = 64
"""Galera's cache of write sets: a member that was away gets what it missed from there instead of the whole state."""
MAX_CONNECTIONS = 1000


class Secrets(Strict):
    """What must not be known outside an experiment; generated once, kept in a file of mode 0600."""

    admin_password: str
    """Of the OpenStack user `admin`."""
    check_password: str
    """Of the users that the health check makes, one per site."""
    database_password: str
    """Of the services' database users."""
    token_keys: tuple[str, ...]
    """Keystone's Fernet keys for tokens, by number: 0 is staged, the last is primary. The same at all sites."""
    receipt_keys: tuple[str, ...]
    """The same for authentication receipts."""
    credential_keys: tuple[str, ...]
    """The same for stored credentials."""

    @classmethod
    def generate(cls) -> Secrets:
        """New secrets from the system's random source."""
        return cls(
            admin_password=random.token_urlsafe(24),
            check_password=random.token_urlsafe(24),
            database_password=random.token_urlsafe(24),
            token_keys=(_fernet_key(), _fernet_key()),
            receipt_keys=(_fernet_key(), _fernet_key()),
            credential_keys=(_fernet_key(), _fernet_key()),
        )

    def values(self) -> tuple[str, ...]:
        """Every secret text, for searches that must find none of them."""
        passwords = (self.admin_password, self.check_password, self.database_password)
        return passwords + self.token_keys + self.receipt_keys + self.credential_keys


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(random.token_bytes(32)).decode()


class Built(Protocol):
    """Something built once that hosts see read-only."""

    @property
    def path(self) -> str:
        """Its directory on hosts."""


class EnvironmentsInterface(Protocol):
    """The environments that roles use."""

    @property
    def openstack(self) -> Built:
        """OpenStack's Python environment."""

    @property
    def rally(self) -> Built:
        """Rally's Python environment."""

    @property
    def database(self) -> Built:
        """The databases' first content."""


class Variables(Strict):
    """Variables for Ansible. They hold secrets: only files of mode 0600 may hold them."""

    shared: dict[str, Any]
    """The same on all hosts."""
    hosts: dict[str, dict[str, Any]]
    """Host -> its own."""


def role_hosts(experiment: Experiment, lease: Lease, role: Role) -> tuple[LeasedHost, ...]:
    """The hosts that services of a role run on, or may run on: the first host with the role at each site."""
    return tuple(lease.at(site.name, role) for site in experiment.sites if site.first(role))


def database_hosts(experiment: Experiment, lease: Lease) -> tuple[LeasedHost, ...]:
    """The hosts that hold the databases in this setting; in another, others of the role may."""
    return tuple(lease.at(site, "database") for site in experiment.database_sites())


def database_site(experiment: Experiment, site: str) -> str:
    """The site whose database server a site's services use: its own, else the first that holds one."""
    sites = experiment.database_sites()
    return site if site in sites else sites[0]


def keystone_url(address: str) -> str:
    """URL of the Keystone at a site address."""
    return f"http://{address}:{KEYSTONE_PORT}/v3"


def rally_command(environments: EnvironmentsInterface) -> str:
    """The command line of Rally on bench hosts, up to its subcommand."""
    return f"{environments.rally.path}/bin/rally --config-file {RALLY_DIRECTORY}/rally.conf"


def variables(experiment: Experiment, lease: Lease, secrets: Secrets, environments: EnvironmentsInterface) -> Variables:
    """All variables of all roles for one experiment.

    Args:
        experiment: with the levels of the setting in place.
        lease: its hosts.
        secrets: of the experiment.
        environments: built for its release.
    """
    urls = {host.site: keystone_url(host.site_address) for host in role_hosts(experiment, lease, "control")}
    hosts: dict[str, dict[str, Any]] = {host.name: {} for host in lease.hosts}
    for segment, host in enumerate(database_hosts(experiment, lease)):
        hosts[host.name] |= {"mariadb_address": host.site_address, "galera_segment": segment}
    addresses = {host.site: host.site_address for host in database_hosts(experiment, lease)}
    for host in role_hosts(experiment, lease, "control"):
        database = addresses[database_site(experiment, host.site)]
        hosts[host.name] |= _control(experiment, host, f"keystone:{secrets.database_password}@{database}")
    for host in role_hosts(experiment, lease, "bench"):
        hosts[host.name] |= {"rally_site": host.site, "rally_auth_url": urls[host.site]}
    shared = {
        "mariadb_seed": f"{environments.database.path}/datadir",
        "mariadb_max_connections": MAX_CONNECTIONS,
        "mariadb_databases": [{"name": "keystone", "user": "keystone", "password": secrets.database_password}],
        "galera_cluster": experiment.name,
        "galera_members": [
            {"host": host.name, "site": host.site, "address": host.site_address, "segment": segment}
            for segment, host in enumerate(database_hosts(experiment, lease))
        ],
        "galera_cache_mb": GCACHE_MB,
        "rally_environment": environments.rally.path,
        "rally_directory": RALLY_DIRECTORY,
        "rally_password": secrets.admin_password,
    }
    keystone = _keystone(secrets) | {
        "keystone_environment": environments.openstack.path,
        "keystone_workers": experiment.deployment.workers,
        "keystone_urls": urls,
    }
    return Variables(shared=shared | keystone, hosts=hosts)


def _control(experiment: Experiment, host: LeasedHost, login: str) -> dict[str, Any]:
    """What a control host is told, with its Keystone's login at the database."""
    memcached = f"{host.site_address}:{MEMCACHED_PORT}"
    return {
        "memcached_address": host.site_address,
        "memcached_port": MEMCACHED_PORT,
        "keystone_site": host.site,
        "keystone_address": host.site_address,
        "keystone_port": KEYSTONE_PORT,
        "keystone_database": f"mysql+pymysql://{login}/keystone?charset=utf8",
        "keystone_memcached": memcached if experiment.deployment.cache == "memcached" else "",
    }


def _keystone(secrets: Secrets) -> dict[str, Any]:
    """Keystone's secrets, the same at all sites."""
    return {
        "keystone_admin_password": secrets.admin_password,
        "keystone_check_password": secrets.check_password,
        "keystone_token_keys": list(secrets.token_keys),
        "keystone_receipt_keys": list(secrets.receipt_keys),
        "keystone_credential_keys": list(secrets.credential_keys),
    }


def backend_role(experiment: Experiment) -> str:
    """The Ansible role that keeps the state: `mariadb` or `galera`."""
    return "galera" if isinstance(experiment.deployment.backend, GaleraBackend) else "mariadb"
