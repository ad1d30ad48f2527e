"""Configuration of OpenStack clients: clouds.yaml with one cloud per site, and an openrc per site. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from discovery_deploy.variables import keystone_url


def clouds_yaml(control_addresses: Mapping[str, str], admin_password: str) -> str:
    """Text of a clouds.yaml (JSON, which is YAML): `openstack --os-cloud SITE` speaks to that site's services.

    Args:
        control_addresses: site -> site address of its control host.
    """
    clouds = {
        site: {
            "auth": {
                "auth_url": keystone_url(address),
                "username": "admin",
                "password": admin_password,
                "project_name": "admin",
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": site,
            "identity_api_version": 3,
        }
        for site, address in sorted(control_addresses.items())
    }
    return json.dumps({"clouds": clouds}, indent=2) + "\n"


def openrc(site: str, address: str, admin_password: str) -> str:
    """Text of a shell file that sets the OS_* variables for one site."""
    variables = {
        "OS_AUTH_URL": keystone_url(address),
        "OS_USERNAME": "admin",
        "OS_PASSWORD": admin_password,
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": site,
        "OS_IDENTITY_API_VERSION": "3",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
