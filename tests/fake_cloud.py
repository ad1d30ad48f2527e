"""An OpenStack as `cloud_probe` sees it: five APIs behind one port, with as little behind them as its requests need."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """Of an API."""

    status: int
    body: Any
    token: str = ""


class FakeCloud:
    """What stands in the services; tests change it before or while a client asks."""

    def __init__(self) -> None:
        self.url = ""
        self.password = "good"
        self.regions = ["nantes", "lyon"]
        self.hosts = {"nantes-1-fake-1": "up", "lyon-1-fake-1": "up"}
        self.images = [
            {"id": "kernel", "container_format": "aki"},
            {"id": "noise", "container_format": "bare"},
            {"id": "guest", "container_format": "bare", "kernel_id": "kernel"},
        ]
        self.flavors = [{"id": "1", "name": "m1.tiny"}]
        self.servers: dict[str, dict[str, Any]] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.status = "ACTIVE"
        """That a new server reaches at the second look."""
        self.lands_on = ""
        """Where servers go instead of the host that was asked for."""
        self.silent = ""
        """Paths that begin so get no answer."""
        self.broken: dict[str, Answer] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        """The answer to a request."""
        self.requests.append((method, path))
        if self.silent and path.startswith(self.silent):
            time.sleep(5)
        for beginning, broken in self.broken.items():
            if path.startswith(beginning):
                return broken
        service, _, rest = path.lstrip("/").partition("/")
        answers = {"identity": self._identity, "image": self._image, "network": self._network}
        return answers.get(service, self._compute)(method, f"/{rest}", query, body)

    def _identity(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if body["auth"]["identity"]["password"]["user"]["password"] != self.password:
            return Answer(401, {"error": {"message": "The request you have made requires authentication."}})
        paths = {"compute": "/compute/v2.1", "image": "/image", "network": "/network/"}
        catalog = [
            {
                "type": kind,
                "endpoints": [
                    {"interface": "public", "region": region, "url": self.url + path} for region in self.regions
                ],
            }
            for kind, path in paths.items()
        ]
        return Answer(201, {"token": {"catalog": catalog}}, token="a-token")

    def _image(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        return Answer(200, {"images": self.images})

    def _network(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        kind = path.split("/")[2]
        if method == "POST" and kind == "networks":
            made = {"id": f"network-{len(self.requests)}", "name": body["network"]["name"]}
            self.networks[made["id"]] = made
            return Answer(201, {"network": made})
        if method == "POST":
            return Answer(201, {"subnet": {"id": "subnet"}})
        if method == "DELETE":
            self.networks.pop(path.split("/")[3])
            return Answer(204, None)
        if kind == "ports":
            return Answer(200, {"ports": [{"device_owner": "network:distributed"}]})
        found = [one for one in self.networks.values() if one["name"] == query["name"]]
        return Answer(200, {"networks": found})

    def _compute(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        kind, _, identity = path.removeprefix("/v2.1/").partition("/")
        if kind == "flavors":
            return Answer(200, {"flavors": self.flavors})
        if kind == "os-services":
            services = [{"host": host, "state": state, "status": "enabled"} for host, state in self.hosts.items()]
            return Answer(200, {"services": [*services, {"host": "of-a-lost-cell"}]})
        if method == "POST":
            asked = body["server"]
            host = self.lands_on or asked["host"]
            made = {**asked, "id": f"server-{len(self.requests)}", "status": "BUILD", "OS-EXT-SRV-ATTR:host": host}
            self.servers[made["id"]] = made
            return Answer(202, {"server": {"id": made["id"]}})
        if method == "DELETE":
            self.servers.pop(identity)
            return Answer(204, None)
        if identity:
            server = dict(self.servers[identity])
            self.servers[identity]["status"] = self.status
            return Answer(200, {"server": {**server, "fault": {"message": "No valid host was found."}}})
        return Answer(200, {"servers": [one for one in self.servers.values() if re.search(query["name"], one["name"])]})


@contextmanager
def served(cloud: FakeCloud) -> Iterator[FakeCloud]:
    """The cloud behind a port of this machine, until the end."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            query = dict(urllib.parse.parse_qsl(parts.query))
            answer = cloud.answer(self.command, parts.path, query, body)
            if parts.path != "/identity/v3/auth/tokens" and self.headers["X-Auth-Token"] != "a-token":
                answer = Answer(401, {"error": "no token"})
            data = b"" if answer.body is None else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(data)))
            if answer.token:
                self.send_header("X-Subject-Token", answer.token)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815 names of the base class

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cloud.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
