"""Ansible module: whether each service of a region does what it is for, asked as users ask: through the catalogue."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloud import CloudError, authenticate, request, worker_requests
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: api_check
short_description: Every service of a region answers a question that needs its database and a validated token
description:
  - Gets one token of the administrator, and asks all services of the region at the same time, each until it answers or
    the time is over. One that runs on this host, until each worker has answered; it is asked here too when the
    catalogue names another site's.
options:
  site: {description: The site where it is asked from., type: str, required: true}
  address: {description: Site address of this host., type: str, required: true}
  region: {description: Whose services are asked., type: str, required: true}
  keystone_url: {description: URL of the site's Keystone., type: str, required: true}
  admin_password: {description: Of the user admin., type: str, required: true}
  endpoints:
    description: region, service, type and url of all services; the catalogue must have those of the region.
    type: list
    elements: dict
    required: true
  limit_s: {description: Seconds until it is given up., type: int, default: 180}
"""
QUESTIONS = {
    "compute": ("/os-services", "services"),
    "image": ("/v2/images", "images"),
    "network": ("/v2.0/networks", "networks"),
    "placement": ("/resource_providers", "resource_providers"),
}
"""Type of a service -> what is asked below its URL, and the key that the answer must have."""
PAUSE_S = 0.3


def catalogue_lacks(catalogue: list[dict], endpoints: list[dict]) -> list[str]:
    """Endpoints that a token's catalogue has not."""
    found = {
        (service["type"], endpoint["region_id"], endpoint["url"])
        for service in catalogue
        for endpoint in service["endpoints"]
        if endpoint["interface"] == "public"
    }
    wanted = {(endpoint["type"], endpoint["region"], endpoint["url"]) for endpoint in endpoints}
    return [" ".join(entry) for entry in sorted(wanted - found)]


def statistics(service: str) -> Path:
    """Socket of uwsgi's statistics of a service; there when it runs on this host."""
    return Path(f"/run/{service}/statistics")


def is_here(endpoint: dict, address: str) -> bool:
    """Whether an endpoint leads to this host."""
    return urlsplit(endpoint["url"]).hostname == address


def with_own(endpoints: list[dict], address: str) -> list[dict]:
    """Endpoints, and this host's own of services that run here while the catalogue names another site's."""
    found = list(endpoints)
    for endpoint in endpoints:
        if not is_here(endpoint, address) and statistics(endpoint["service"]).exists():
            parts = urlsplit(endpoint["url"])
            found.append({**endpoint, "url": parts._replace(netloc=f"{address}:{parts.port}").geturl()})
    return found


def silent_workers(endpoint: dict, address: str) -> int:
    """How many workers behind an endpoint have not answered yet; 0 when it is not on this host."""
    socket = statistics(endpoint["service"])
    return worker_requests(str(socket)).count(0) if is_here(endpoint, address) and socket.exists() else 0


def ask(endpoint: dict, address: str, token: str, until: float, look: Callable[[], None] = lambda: None) -> str:
    """Ask a service until it, and each of its workers here, has answered well. Returns what is wrong, or "".

    `look` is called after each failure; what it raises ends the wait.
    """
    path, key = QUESTIONS.get(endpoint["type"], ("", ""))
    url = endpoint["url"] + path
    while True:
        try:
            _, content = request("GET", url, token)
            if key and key not in content:
                raise CloudError(f"GET {url}: the answer has no {key}: {json.dumps(content)[:200]}")
            silent = silent_workers(endpoint, address)
            if not silent:
                return ""
            raise CloudError(f"GET {url}: {silent} workers have not answered yet")
        except (CloudError, OSError, ValueError) as error:
            if time.monotonic() > until:
                return str(error)
            try:
                look()
            except UnitError as failed:
                return f"{failed} ({error})"
        time.sleep(PAUSE_S)


def units(services: list[str]) -> list[str]:
    """Patterns of the units of services."""
    return [f"{service}*.service" for service in services]


def check(values: dict, until: float) -> list[str]:
    """What is wrong with the services of a region, one sentence each. Raises CloudError: nobody can be asked."""
    mine = [endpoint for endpoint in values["endpoints"] if endpoint["region"] == values["region"]]
    token, said = authenticate(values["keystone_url"], "admin", values["admin_password"], "admin")
    lacking = catalogue_lacks(said["catalog"], mine)
    if lacking:
        raise CloudError(f"{values['keystone_url']}: the catalogue has not: {', '.join(lacking)}")
    asked = with_own(mine, values["address"])

    def one(endpoint: dict) -> str:
        here = is_here(endpoint, values["address"])
        watch = Watch(units([endpoint["service"]]) if here else [])
        return ask(endpoint, values["address"], token, until, watch.look)

    with concurrent.futures.ThreadPoolExecutor(max(1, len(asked))) as pool:
        answers = list(pool.map(one, asked))
    pairs = zip(asked, answers, strict=True)
    return [f"{endpoint['service']} of region {endpoint['region']}: {wrong}" for endpoint, wrong in pairs if wrong]


def main() -> None:
    """Ask; the outcome is reported to the driver."""
    parts = {name: {"type": "str", "required": True} for name in ("region", "service", "type", "url")}
    module = AnsibleModule(
        argument_spec={
            **{name: {"type": "str", "required": True} for name in ("site", "address", "region", "keystone_url")},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "endpoints": {"type": "list", "elements": "dict", "required": True, "options": parts},
            "limit_s": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    values = module.params
    services = [endpoint["service"] for endpoint in values["endpoints"] if endpoint["region"] == values["region"]]
    started = time.monotonic()
    try:
        wrong = check(values, started + values["limit_s"])
    except (CloudError, KeyError) as error:
        wrong = [str(error)]
    if wrong:
        told = Watch(units(services)).told()
        after = f"after {time.monotonic() - started:.0f} s"
        said = f"Services asked from {values['site']} {after}: {'; '.join(wrong)}"
        module.fail_json(msg=f"{said}{told.pop('cause')} ({told.pop('state')})", **told)
    module.exit_json(changed=False, report={"services": {"region": values["region"], "answered": sorted(services)}})


if __name__ == "__main__":
    main()
