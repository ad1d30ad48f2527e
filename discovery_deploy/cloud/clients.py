"""Configuration of OpenStack clients: clouds.yaml with one cloud per site, and an openrc per site. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from discovery_deploy.cloud.topology import layout
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.services import KEYSTONE


class Access(NamedTuple):
    """Where the clients of a site find OpenStack."""

    auth_url: str
    """Of the Keystone that serves the site."""
    region: str
    """The site's own, or that of the site whose services it uses."""


def accesses(experiment: Experiment, lease: Lease) -> dict[str, Access]:
    """Site -> its access, for every site, with control services or without."""
    addresses = {host.name: host.site_address for host in lease.hosts}
    found = layout(experiment)
    return {
        site: Access(KEYSTONE.url(addresses[found.serving["keystone", site].host]), region)
        for site, region in found.region_of.items()
    }


def clouds_yaml(sites: Mapping[str, Access], admin_password: str) -> str:
    """Text of a clouds.yaml (JSON, which is YAML): `openstack --os-cloud SITE` speaks to that site's services.

    Args:
        sites: site -> its access.
    """
    clouds = {
        site: {
            "auth": {
                "auth_url": access.auth_url,
                "username": "admin",
                "password": admin_password,
                "project_name": "admin",
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": access.region,
            "identity_api_version": 3,
        }
        for site, access in sorted(sites.items())
    }
    return json.dumps({"clouds": clouds}, indent=2) + "\n"


def openrc(access: Access, admin_password: str) -> str:
    """Text of a shell file that sets the OS_* variables for one site."""
    variables = {
        "OS_AUTH_URL": access.auth_url,
        "OS_USERNAME": "admin",
        "OS_PASSWORD": admin_password,
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": access.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
