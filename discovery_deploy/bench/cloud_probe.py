"""Operates servers at chosen sites through the OpenStack APIs, as an administrator would, and says what came of it.

Shipped to a host of a site and run there by its Python, with the standard library only: `call` makes the text of the
program, which holds its specification (with a password) and therefore goes through standard input. It prints one JSON
object. Every wait ends: with what was waited for, or with a message that names what did not come.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUEST_LIMIT_S = 60.0
"""A single request never waits longer for its answer."""
POLL_S = 0.5
PREFIX = "smoke-"
"""What this program makes in a cloud has names that begin so."""
CLEAN_LIMIT_S = 120.0
SUBNET = "10.250.0.0/24"
"""Of each network; they are not connected."""
MICROVERSION = "compute 2.74"
"""Of Nova's API: the first in which a server's host can be asked for by name."""
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GaveUpError(Exception):
    """Something did not come, or came wrong."""


def call(specification: dict[str, Any]) -> str:
    """The text of a program that carries out a specification (see `main`)."""
    return f"{Path(__file__).read_text(encoding='utf-8')}\nmain({json.dumps(json.dumps(specification))})\n"


class Cloud:
    """A session of the administrator with the services that one Keystone knows.

    Args:
        auth_url: of a Keystone, with /v3.
        limit_s: all that is done with it must end within this time.
    """

    def __init__(self, auth_url: str, password: str, limit_s: float) -> None:
        self.limit_s = limit_s
        self.ends_s = time.monotonic() + limit_s
        self.token = ""
        identity = {
            "methods": ["password"],
            "password": {"user": {"name": "admin", "domain": {"id": "default"}, "password": password}},
        }
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        self.auth_url, self.auth = auth_url, {"auth": {"identity": identity, "scope": scope}}
        self.catalog: list[dict[str, Any]] = []

    def sign_in(self) -> None:
        """Get a token and the catalogue."""
        answer = self.request("POST", f"{self.auth_url}/auth/tokens", self.auth)
        self.catalog = answer["token"]["catalog"]

    def left_s(self, what: str) -> float:
        """Time that is left. Raises GaveUpError when none is."""
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            raise GaveUpError(f"{what}: not within {self.limit_s:.3g} s")
        return left_s

    def request(self, method: str, url: str, body: Any = None, missing: Any = None) -> Any:
        """An API request; its answer as data ({} when empty), or `missing` on 404 when that is given."""
        what = f"{method} {url.split('?')[0]}"
        limit_s = min(REQUEST_LIMIT_S, self.left_s(what))
        headers = {"Accept": "application/json", "OpenStack-API-Version": MICROVERSION}
        if self.token:
            headers["X-Auth-Token"] = self.token
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with OPENER.open(asked, timeout=limit_s) as answer:
                self.token = answer.headers.get("X-Subject-Token") or self.token
                text = answer.read()
            return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing is not None:
                return missing
            told = error.read(2000).decode("utf-8", "replace")
            raise GaveUpError(f"{what}: {error.code} {' '.join(told.split())[:300]}") from error
        except (TimeoutError, OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
            raise GaveUpError(f"{what}: no answer within {limit_s:.3g} s ({reason})") from error

    def url(self, kind: str, region: str) -> str:
        """Public URL of a service in a region, without a slash at the end."""
        for service in self.catalog:
            if service["type"] == kind:
                for endpoint in service["endpoints"]:
                    if endpoint["interface"] == "public" and endpoint["region"] == region:
                        return str(endpoint["url"]).rstrip("/")
        raise GaveUpError(f'the catalogue has no {kind} in region "{region}"')

    def wait(self, what: str, look: Callable[[], Any]) -> Any:
        """Look again and again until there is something; returns it."""
        while True:
            try:
                found = look()
            except GaveUpError as error:
                if time.monotonic() < self.ends_s:
                    raise
                raise GaveUpError(f"{what}: not within {self.limit_s:.3g} s ({error})") from error
            if found:
                return found
            time.sleep(POLL_S)
            self.left_s(what)


class Place:
    """A region, and the computes of one site in it.

    Args:
        asked: `name`, `site`, `region`, `computes` (names that Nova knows), `kind` (fake, libvirt), `flavor`.
    """

    def __init__(self, cloud: Cloud, asked: dict[str, Any]) -> None:
        self.cloud, self.asked = cloud, asked
        self.name, self.region = f"{PREFIX}{asked['name']}", asked["region"]
        self.server = ""

    def compute_url(self, path: str) -> str:
        """A URL of Nova's API there."""
        return f"{self.cloud.url('compute', self.region)}{path}"

    def network_url(self, path: str) -> str:
        """A URL of Neutron's API there."""
        return f"{self.cloud.url('network', self.region)}/v2.0{path}"

    def image(self) -> str:
        """Id of an image to boot: one with a kernel of its own for real virtual machines, else any that is bare."""
        url = f"{self.cloud.url('image', self.region)}/v2/images?status=active"
        found = self.cloud.request("GET", url)["images"]
        images = [image for image in found if image["container_format"] not in ("aki", "ari")]
        with_kernel = [image for image in images if image.get("kernel_id")]
        others = [image for image in images if not image.get("kernel_id")]
        for image in with_kernel + others if self.asked["kind"] == "libvirt" else others + with_kernel:
            return str(image["id"])
        raise GaveUpError(f'Glance in region "{self.region}" has no active image to boot')

    def flavor(self) -> str:
        """Id of the flavor."""
        flavors = self.cloud.request("GET", self.compute_url("/flavors"))["flavors"]
        for flavor in flavors:
            if flavor["name"] == self.asked["flavor"]:
                return str(flavor["id"])
        raise GaveUpError(f'Nova in region "{self.region}" has no flavor {self.asked["flavor"]}')

    def compute(self) -> str:
        """A compute of the site that Nova counts as up; it may take a while until one is."""
        url = self.compute_url("/os-services?binary=nova-compute")

        def look() -> str:
            services = self.cloud.request("GET", url)["services"]
            # (of a cell that does not answer Nova tells names only)
            up = {one["host"] for one in services if (one.get("state"), one.get("status")) == ("up", "enabled")}
            return next((name for name in self.asked["computes"] if name in up), "")

        return str(self.cloud.wait(f"a compute of {', '.join(self.asked['computes'])} that Nova counts as up", look))

    def make_network(self) -> str:
        """A network with a subnet. Returns its id."""
        made = self.cloud.request("POST", self.network_url("/networks"), {"network": {"name": self.name}})
        network = str(made["network"]["id"])
        subnet = {"network_id": network, "ip_version": 4, "cidr": SUBNET, "name": self.name}
        self.cloud.request("POST", self.network_url("/subnets"), {"subnet": subnet})
        return network

    def boot(self, network: str) -> None:
        """Ask for a server on a compute of the site."""
        server = {
            "name": self.name,
            "imageRef": self.image(),
            "flavorRef": self.flavor(),
            "networks": [{"uuid": network}],
            "host": self.compute(),
        }
        made = self.cloud.request("POST", self.compute_url("/servers"), {"server": server})
        self.server = str(made["server"]["id"])

    def wait_active(self) -> None:
        """Wait until the server runs, and look where."""

        def look() -> dict[str, Any] | None:
            server: dict[str, Any] = self.cloud.request("GET", self.compute_url(f"/servers/{self.server}"))["server"]
            if server["status"] == "ERROR":
                fault = server.get("fault", {}).get("message", "no fault is told")
                raise GaveUpError(f"server {self.name}: ERROR: {fault}")
            return server if server["status"] == "ACTIVE" else None

        server = self.cloud.wait(f"server {self.name} at {self.asked['site']}: ACTIVE", look)
        host = server["OS-EXT-SRV-ATTR:host"]
        if host not in self.asked["computes"]:
            raise GaveUpError(f"server {self.name} runs on {host}, which is not at {self.asked['site']}")

    def is_listed(self) -> None:
        """The server stands in the list of servers."""
        listed = self.cloud.request("GET", self.compute_url(f"/servers?name={self.name}"))["servers"]
        if self.server not in {server["id"] for server in listed}:
            raise GaveUpError(f"server {self.name} is ACTIVE, but not in the list of servers")

    def remove(self) -> None:
        """Delete every server and network of this name, and wait until they are gone."""
        # Nova reads the name as a regular expression.
        url = self.compute_url(f"/servers?name={urllib.parse.quote(f'^{self.name}$')}")

        def servers() -> list[str]:
            return [str(server["id"]) for server in self.cloud.request("GET", url)["servers"]]

        for server in servers():
            self.cloud.request("DELETE", self.compute_url(f"/servers/{server}"), missing={})
        self.cloud.wait(f"server {self.name}: deleted", lambda: not servers())
        networks = self.cloud.request("GET", self.network_url(f"/networks?name={self.name}"))["networks"]
        for network in networks:
            self._remove_network(str(network["id"]))

    def _remove_network(self, network: str) -> None:
        def is_empty() -> bool:
            ports = self.cloud.request("GET", self.network_url(f"/ports?network_id={network}"))["ports"]
            return all(port["device_owner"].startswith("network:") for port in ports)

        self.cloud.wait(f"network {self.name}: without ports", is_empty)
        self.cloud.request("DELETE", self.network_url(f"/networks/{network}"), missing={})


class Steps:
    """What was done, and how long each step took."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A step; a failing one is named in the error."""
        started_s = time.monotonic()
        try:
            yield
        except GaveUpError as error:
            raise GaveUpError(f"{name}: {error}") from error
        self.done.append({"name": name, "seconds": round(time.monotonic() - started_s, 3)})


def operate(specification: dict[str, Any], steps: Steps) -> None:
    """A server at every place at the same time: booted, seen at its site, listed, deleted."""
    cloud = Cloud(specification["auth_url"], specification["password"], specification["limit_s"])
    with steps("sign in"):
        cloud.sign_in()
    places = [Place(cloud, asked) for asked in specification["places"]]
    try:
        for place in places:
            with steps(f"network for {place.name}"):
                network = place.make_network()
            with steps(f"ask for {place.name}"):
                place.boot(network)
        for place in places:
            with steps(f"boot {place.name}"):
                place.wait_active()
        for place in places:
            with steps(f"list {place.name}"):
                place.is_listed()
        for place in places:
            with steps(f"delete {place.name}"):
                place.remove()
    except GaveUpError as error:
        if specification.get("remove_after_failure", True):
            _remove_all(cloud, places, error)
        raise


def _remove_all(cloud: Cloud, places: list[Place], error: GaveUpError) -> None:
    """Remove what a failed attempt made. Raises GaveUpError with both reasons when that fails too."""
    cloud.ends_s, cloud.limit_s = time.monotonic() + CLEAN_LIMIT_S, CLEAN_LIMIT_S
    try:
        for place in places:
            place.remove()
    except GaveUpError as second:
        raise GaveUpError(f"{error}; then, removing what was made: {second}") from error


def clean(specification: dict[str, Any], steps: Steps) -> None:
    """Remove what an earlier call left at these places."""
    cloud = Cloud(specification["auth_url"], specification["password"], specification["limit_s"])
    with steps("sign in"):
        cloud.sign_in()
    for place in [Place(cloud, asked) for asked in specification["places"]]:
        with steps(f"remove {place.name}"):
            place.remove()


TASKS: dict[str, Callable[[dict[str, Any], Steps], None]] = {"operate": operate, "clean": clean}


def main(text: str) -> None:
    """Carry out a specification and print {"error": "" or why not, "steps": [{name, seconds}]}.

    Args:
        text: JSON: `task` (operate or clean), `auth_url`, `password`, `places` (see `Place`), `limit_s`, and whether
            to `remove_after_failure` what was made (default: yes).
    """
    specification = json.loads(text)
    steps, error = Steps(), ""
    try:
        TASKS[specification["task"]](specification, steps)
    except GaveUpError as problem:
        error = str(problem)
    json.dump({"error": error, "steps": steps.done}, sys.stdout)
