"""An experiment with hosts, secrets and environments that exist only on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discovery_deploy.cloud.variables import Secrets
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software.builds import Environments
from discovery_deploy.software.stack import Environment
from discovery_deploy.system.remote import known_hosts_text

MARIADB = {"type": "mariadb", "site": "rennes"}
GALERA = {"type": "galera"}
ALL = ["keystone", "placement", "glance", "neutron", "nova"]
TOPOLOGIES = {
    "regions": {"type": "regions"},
    "centralized": {"type": "centralized", "site": "rennes"},
    "cells": {"type": "cells", "site": "rennes"},
    "shared-state": {"type": "shared-state"},
}
SECRETS = Secrets(
    admin_password="admin-secret",
    check_password="check-secret",
    database_password="database-secret",
    token_keys=("token-0", "token-1"),
    receipt_keys=("receipt-0", "receipt-1"),
    credential_keys=("credential-0", "credential-1"),
    service_password="service-secret",
    broker_password="broker-secret",
    broker_cookie="cookie-secret",
)
ENVIRONMENTS = Environments(
    openstack=Environment(name="openstack-aa", hash="aa", versions={"keystone": "27.0.0"}),
    rally=Environment(name="rally-bb", hash="bb", versions={"rally": "5.1.1"}),
    database=Environment(name="database-cc", hash="cc", versions={"mariadb": "10.11"}),
    guest=Environment(name="guest-dd", hash="dd", versions={"linux": "6.1"}),
)


def experiment(backend: dict[str, str], **deployment: Any) -> Experiment:
    """Three sites: one host, four hosts with one role each, and one host without clients and computes."""
    sites = [
        {"name": "rennes"},
        {
            "name": "new-york",
            "hosts": [
                {"name": "ny-control", "roles": ["control"]},
                {"name": "ny-data", "roles": ["database"]},
                {"name": "ny-bench", "roles": ["bench"]},
                {"name": "ny-compute", "roles": ["compute"]},
            ],
        },
        {"name": "oslo", "hosts": [{"name": "oslo-1", "roles": ["control", "database"]}]},
    ]
    return Experiment.model_validate(
        {"name": "paper", "sites": sites, "deployment": {"backend": backend, **deployment}}
    )


def lease(experiment: Experiment) -> Lease:
    """Hosts of an experiment, numbered in the order of the file."""
    hosts = [
        LeasedHost(
            name=host.name,
            site=site.name,
            roles=host.roles,
            management_address=f"10.64.{index}.{place}",
            site_address=f"10.128.{index}.{place}",
        )
        for index, site in enumerate(experiment.sites)
        for place, host in enumerate(site.hosts, 10)
    ]
    return Lease(
        provider="local",
        experiment=experiment.name,
        hosts=tuple(hosts),
        site_subnets={site.name: f"10.128.{index}.0/24" for index, site in enumerate(experiment.sites)},
        site_devices={site.name: f"vec{index}" for index, site in enumerate(experiment.sites)},
        site_gateways={site.name: f"10.128.{index}.1" for index, site in enumerate(experiment.sites)},
        router="netns",
        identities={host.name: f"machine-{host.name}" for host in hosts},
    )


def known_hosts(lease: Lease, file: Path) -> bool:
    """Put the keys of hosts that a lease gives into a known_hosts file, gone without any; whether it gives any."""
    keys = lease.details.get("host_keys")
    file.unlink(missing_ok=True)
    if keys:
        file.write_text(known_hosts_text(keys))
    return bool(keys)
