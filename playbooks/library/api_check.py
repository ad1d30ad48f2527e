"""Ansible module: whether each service of a region does what it is for, asked as users ask: through the catalogue."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: api_check
short_description: Every service of a region answers a question that needs its database and a validated token
description:
  - Gets one token of the administrator, and asks all services of the region at the same time, each until it answers or
    the time is over. Where uwsgi's statistics of a service are on this host, until each worker has answered.
options:
  site: {description: The site where it is asked from., type: str, required: true}
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
REQUEST_LIMIT_S = 60.0
PAUSE_S = 0.3


class CheckError(Exception):
    """What is not as it should be."""


def request(method: str, url: str, token: str = "", body: object = None) -> tuple[str, dict]:
    """One request. Returns the subject token of the answer and its content.

    Raises:
        CheckError: no answer, or an error; says which.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers |= {"X-Auth-Token": token} if token else {}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=REQUEST_LIMIT_S) as answer:
            content = answer.read()
            return answer.headers.get("X-Subject-Token", ""), json.loads(content) if content else {}
    except urllib.error.HTTPError as error:
        raise CheckError(f"{method} {url}: HTTP {error.code}: {error.read(300).decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise CheckError(f"{method} {url}: {reason}") from error


def authenticate(url: str, password: str) -> tuple[str, dict]:
    """A token of the administrator for the project admin, and what Keystone says of it."""
    domain = {"id": "default"}
    user = {"name": "admin", "domain": domain, "password": password}
    auth = {
        "identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"project": {"name": "admin", "domain": domain}},
    }
    return request("POST", f"{url}/auth/tokens", body={"auth": auth})


def catalogue_lacks(content: dict, endpoints: list[dict]) -> list[str]:
    """Endpoints that a token's catalogue has not."""
    found = {
        (service["type"], endpoint["region_id"], endpoint["url"])
        for service in content["token"]["catalog"]
        for endpoint in service["endpoints"]
        if endpoint["interface"] == "public"
    }
    wanted = {(endpoint["type"], endpoint["region"], endpoint["url"]) for endpoint in endpoints}
    return [" ".join(entry) for entry in sorted(wanted - found)]


def worker_requests(statistics: str) -> list[int]:
    """How many requests each worker process of a uwsgi on this host has answered; empty when there is none."""
    if not Path(statistics).exists():
        return []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(statistics)
        text = b""
        while chunk := connection.recv(65536):
            text += chunk
    return [worker["requests"] for worker in json.loads(text)["workers"]]


def ask(endpoint: dict, token: str, until: float) -> str:
    """Ask a service until it, and each of its workers on this host, has answered well. Returns what is wrong, or ""."""
    path, key = QUESTIONS.get(endpoint["type"], ("", ""))
    url = endpoint["url"] + path
    while True:
        try:
            _, content = request("GET", url, token)
            if key and key not in content:
                raise CheckError(f"GET {url}: the answer has no {key}: {json.dumps(content)[:200]}")
            silent = worker_requests(f"/run/{endpoint['service']}/statistics").count(0)
            if not silent:
                return ""
            raise CheckError(f"GET {url}: {silent} workers have not answered yet")
        except (CheckError, OSError, ValueError) as error:
            if time.monotonic() > until:
                return str(error)
        time.sleep(PAUSE_S)


def check(values: dict, until: float) -> list[str]:
    """What is wrong with the services of a region, one sentence each. Raises CheckError: nobody can be asked."""
    mine = [endpoint for endpoint in values["endpoints"] if endpoint["region"] == values["region"]]
    token, content = authenticate(values["keystone_url"], values["admin_password"])
    lacking = catalogue_lacks(content, mine)
    if lacking:
        raise CheckError(f"{values['keystone_url']}: the catalogue has not: {', '.join(lacking)}")
    with concurrent.futures.ThreadPoolExecutor(max(1, len(mine))) as pool:
        answers = list(pool.map(lambda endpoint: ask(endpoint, token, until), mine))
    pairs = zip(mine, answers, strict=True)
    return [f"{endpoint['service']} of region {endpoint['region']}: {wrong}" for endpoint, wrong in pairs if wrong]


def main() -> None:
    """Ask; the outcome is reported to the driver."""
    parts = {name: {"type": "str", "required": True} for name in ("region", "service", "type", "url")}
    module = AnsibleModule(
        argument_spec={
            **{name: {"type": "str", "required": True} for name in ("site", "region", "keystone_url")},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "endpoints": {"type": "list", "elements": "dict", "required": True, "options": parts},
            "limit_s": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    values = module.params
    services = [endpoint["service"] for endpoint in values["endpoints"] if endpoint["region"] == values["region"]]
    try:
        wrong = check(values, time.monotonic() + values["limit_s"])
    except (CheckError, KeyError) as error:
        wrong = [str(error)]
    if wrong:
        units = [word for service in services for word in ("-u", f"{service}*")]
        log = module.run_command(["journalctl", *units, "-n", "15", "-o", "cat", "--no-pager"])[1] if units else ""
        limit = f"after {values['limit_s']} s"
        module.fail_json(msg=f"Services asked from {values['site']} {limit}: {'; '.join(wrong)}", stderr=log)
    module.exit_json(changed=False, report={"services": {"region": values["region"], "answered": sorted(services)}})


if __name__ == "__main__":
    main()
