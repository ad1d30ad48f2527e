"""What our modules need to ask OpenStack's services: a token, the catalogue, JSON over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message

PAUSE_S = 0.5
REQUEST_LIMIT_S = 60.0


class CloudError(Exception):
    """What is not as it should be."""


def request(
    method: str, url: str, token: str = "", body: object = None, version: str = "", subject: str = ""
) -> tuple[Message, dict]:
    """One request. Returns the headers (names in any case) and the content of the answer.

    Args:
        body: JSON-like data, or bytes to be sent as they are.
        version: type and microversion, such as `compute 2.53`.
        subject: the token that is asked about.
    Raises:
        CloudError: no answer, or an error; says which.
    """
    raw = isinstance(body, bytes)
    headers = {"Content-Type": "application/octet-stream" if raw else "application/json", "Accept": "application/json"}
    headers |= {"X-Auth-Token": token} if token else {}
    headers |= {"X-Subject-Token": subject} if subject else {}
    headers |= {"OpenStack-API-Version": version} if version else {}
    data = body if raw or body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=REQUEST_LIMIT_S) as answer:
            content = answer.read()
            return answer.headers, json.loads(content) if content else {}
    except urllib.error.HTTPError as error:
        raise CloudError(f"{method} {url}: HTTP {error.code}: {error.read(300).decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise CloudError(f"{method} {url}: {reason}") from error


def authenticate(keystone_url: str, user: str, password: str, project: str = "") -> tuple[str, dict]:
    """A token of a user of the default domain (scoped to a project), and what Keystone says of it.

    Raises:
        CloudError: no answer, or it was refused.
    """
    domain = {"id": "default"}
    identity = {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}}
    asked: dict = {"identity": identity}
    if project:
        asked["scope"] = {"project": {"name": project, "domain": domain}}
    headers, content = request("POST", f"{keystone_url}/auth/tokens", body={"auth": asked})
    return headers["X-Subject-Token"], content["token"]


def worker_requests(statistics: str) -> list[int]:
    """How many requests each worker process of a uwsgi on this host has answered, from its statistics' socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(statistics)
        text = b""
        while chunk := connection.recv(65536):
            text += chunk
    return [worker["requests"] for worker in json.loads(text)["workers"]]


def endpoint(catalogue: list[dict], kind: str, region: str) -> str:
    """Public URL of a type of service in a region. Raises CloudError when the catalogue has none."""
    for service in catalogue:
        for entry in service["endpoints"] if service["type"] == kind else []:
            if (entry["interface"], entry["region_id"]) == ("public", region):
                return str(entry["url"]).rstrip("/")
    raise CloudError(f"the catalogue has no service of type {kind} in region {region}")


def keep_trying(act: Callable[[], object], limit_s: float, look: Callable[[], None] = lambda: None) -> object:
    """The result of `act`, tried until it succeeds; its last CloudError when the time is over.

    Args:
        look: called after each failure; what it raises ends the wait (`watched_units.Watch.look`).
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            return act()
        except CloudError as error:
            if time.monotonic() > until:
                raise CloudError(f"after {limit_s:.0f} s: {error}") from error
            look()
            time.sleep(PAUSE_S)
