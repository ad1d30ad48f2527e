"""What roles are told: from an experiment, its hosts, secrets and environments to the roles' variables.

Every name here stands in some role's `meta/argument_specs.yml` too; a test compares the two.
"""

from __future__ import annotations

import base64
import secrets as random
from typing import TYPE_CHECKING, Any, Protocol

from discovery_deploy.cloud.service_variables import MEMCACHED_PORT, ServiceVariables
from discovery_deploy.cloud.topology import layout
from discovery_deploy.experiment.model import Experiment, GaleraBackend, Role
from discovery_deploy.system.strict import Strict

if TYPE_CHECKING:
    from discovery_deploy.experiment.lease import Lease, LeasedHost

STATE_DIRECTORY = "/var/lib/discovery-deploy"
"""Of hosts: what the roles and the driver keep there besides the services' own directories."""
RALLY_DIRECTORY = f"{STATE_DIRECTORY}/rally"
GCACHE_MB = 64
"""Galera's cache of write sets: a member that was away gets what it missed from there instead of the whole state."""


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
    service_password: str = ""
    """Of the services' own users in Keystone."""
    broker_password: str = ""
    """Of the services' users at the brokers."""
    broker_cookie: str = ""
    """By which the members of a broker cluster know each other."""
    bench_password: str = ""
    """Of the users that Rally acts as."""

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
        ).completed()

    def completed(self) -> Secrets:
        """These, and new ones for what a file of an older version does not hold: what is deployed stays reachable."""
        later = ("service_password", "broker_password", "broker_cookie", "bench_password")
        return self.model_copy(update={name: random.token_hex(20) for name in later if not getattr(self, name)})

    def values(self) -> tuple[str, ...]:
        """Every secret text, for searches that must find none of them."""
        passwords = (self.admin_password, self.check_password, self.database_password)
        later = (self.service_password, self.broker_password, self.broker_cookie, self.bench_password)
        return passwords + later + self.token_keys + self.receipt_keys + self.credential_keys


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(random.token_bytes(32)).decode()


class Built(Protocol):
    """Something built once that hosts see read-only."""

    @property
    def path(self) -> str:
        """Its directory on hosts."""


class EnvironmentsInterface(Protocol):
    """The environments that roles use."""

    def service(self, name: str) -> Built:
        """The Python environment of an OpenStack service."""

    @property
    def rally(self) -> Built:
        """Rally's Python environment."""

    @property
    def database(self) -> Built:
        """The databases' first content."""

    @property
    def guest(self) -> Built | None:
        """The guest of virtual machines; None where there are none."""


class Variables(Strict):
    """Variables for Ansible. They hold secrets: only files of mode 0600 may hold them."""

    shared: dict[str, Any]
    """The same on all hosts."""
    hosts: dict[str, dict[str, Any]]
    """Host -> its own."""


def role_hosts(experiment: Experiment, lease: Lease, role: Role) -> tuple[LeasedHost, ...]:
    """The hosts that services of a role run on, or may run on in another setting.

    The first host with the role at each site; of `control` also those that services are placed on; all of `compute`.
    """
    placed = {name for places in experiment.deployment.placement.values() for name in places}
    first = {host.name for site in experiment.sites if (host := site.first(role))}
    wanted = first | placed if role == "control" else first
    return tuple(host for host in lease.hosts if role in host.roles and (role == "compute" or host.name in wanted))


def database_hosts(experiment: Experiment, lease: Lease) -> tuple[LeasedHost, ...]:
    """The hosts that hold the databases in this setting; in another, others of the role may."""
    return tuple(lease.at(site, "database") for site in experiment.database_sites())


def bench_user(site: str) -> str:
    """The user of Rally's at a site, and its project: each has its own, as roles of one would add up."""
    return f"rally-{site}"


def rally_command(environments: EnvironmentsInterface) -> tuple[str, str]:
    """Rally's Python on bench hosts, and its configuration."""
    return f"{environments.rally.path}/bin/python", f"{RALLY_DIRECTORY}/rally.conf"


def variables(experiment: Experiment, lease: Lease, secrets: Secrets, environments: EnvironmentsInterface) -> Variables:
    """All variables of all roles for one experiment.

    Args:
        experiment: with the levels of the setting in place.
        lease: its hosts.
        secrets: of the experiment.
        environments: built for its release.
    """
    found = layout(experiment)
    services = ServiceVariables(experiment, found, {host.name: host.site_address for host in lease.hosts}, secrets)
    hosts: dict[str, dict[str, Any]] = {host.name: {} for host in lease.hosts}
    for segment, host in enumerate(database_hosts(experiment, lease)):
        own = {"mariadb_site": host.site, "mariadb_address": host.site_address, "galera_segment": segment}
        hosts[host.name] |= own
    for host in role_hosts(experiment, lease, "control"):
        hosts[host.name] |= {"memcached_address": host.site_address, "memcached_port": MEMCACHED_PORT}
    for host in role_hosts(experiment, lease, "bench"):
        url = services.url("keystone", host.site)
        own = {"rally_region": found.region_of[host.site], "rally_auth_url": url, "rally_user": bench_user(host.site)}
        hosts[host.name] |= own
    for name, told in services.hosts().items():
        hosts[name] |= told
    shared = {
        "mariadb_seed": f"{environments.database.path}/datadir",
        "galera_cluster": experiment.name,
        "galera_members": [
            {"host": host.name, "site": host.site, "address": host.site_address, "segment": segment}
            for segment, host in enumerate(database_hosts(experiment, lease))
        ],
        "galera_cache_mb": GCACHE_MB,
        "rally_environment": environments.rally.path,
        "rally_directory": RALLY_DIRECTORY,
        "rally_password": secrets.admin_password,
        "rally_user_password": secrets.bench_password,
        "keystone_bench_users": [bench_user(host.site) for host in role_hosts(experiment, lease, "bench")],
        "keystone_bench_password": secrets.bench_password,
        "keystone_hash_rounds": hash_rounds(experiment),
    }
    return Variables(shared=shared | _keystone(secrets) | services.shared(environments), hosts=hosts)


def _keystone(secrets: Secrets) -> dict[str, Any]:
    """Keystone's secrets, the same at all sites."""
    return {
        "keystone_admin_password": secrets.admin_password,
        "keystone_check_password": secrets.check_password,
        "keystone_token_keys": list(secrets.token_keys),
        "keystone_receipt_keys": list(secrets.receipt_keys),
        "keystone_credential_keys": list(secrets.credential_keys),
    }


def hash_rounds(experiment: Experiment) -> int:
    """Binary logarithm of the rounds of bcrypt in a password's hash, for users that deploy makes as for Keystone's own.

    Keystone's default (keystone/conf/identity.py) where the experiment overrides it by nothing that Keystone takes.
    """
    asked = experiment.deployment.overrides.get("keystone", {}).get("identity", {}).get("password_hash_rounds")
    text = "" if isinstance(asked, bool) else str(asked).strip()  # a number may stand in quotes
    return int(text) if text.isdecimal() and 4 <= int(text) <= 31 else 12


def backend_role(experiment: Experiment) -> str:
    """The Ansible role that keeps the state: `mariadb` or `galera`."""
    return "galera" if isinstance(experiment.deployment.backend, GaleraBackend) else "mariadb"
