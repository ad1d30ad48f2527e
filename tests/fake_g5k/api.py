"""The REST API of the fake: routes, credentials, faults, and a log of all calls."""

from __future__ import annotations

import base64
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.fake_g5k import views
from tests.fake_g5k.grid import Grid, RefusedError, shown
from tests.fake_g5k.views import View

Answer = tuple[int, Any]
ACCOUNTS = {"g5kuser": "a password of the fake"}


class Faults:
    """What is to go wrong, read from a file that tests write: JSON, re-read when it changes.

    Keys: `refuse`: message with which jobs are refused; `dead`: machines that never come up; `waiting`: sites where
    jobs do not start; `grant_s`: the longest more walltime that is granted; `errors`: [{"method", "path" (pattern),
    "status", "times"}]; `hang`: {"method", "path", "seconds"}: done at once, answered late.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.text = ""
        self.present: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else "{}"
        if text != self.text:
            self.text, self.present = text, json.loads(text)
        return self.present

    def raise_error(self, method: str, path: str) -> None:
        """Raises RefusedError as often as an error is to come."""
        for error in self().get("errors", ()):
            if error["method"] == method and re.search(error["path"], path) and error["times"] > 0:
                error["times"] -= 1
                raise RefusedError(error["status"], "the fake was told to answer so")

    def hang(self, method: str, path: str) -> None:
        late = self().get("hang")
        if late and late["method"] == method and re.search(late["path"], path):
            time.sleep(late["seconds"])


def collection(items: list[View]) -> Answer:
    return 200, {"total": len(items), "offset": 0, "items": items}


class Api(ThreadingHTTPServer):
    """Serves a grid on 127.0.0.1.

    Args:
        port: where.
        grid: what is served.
        faults: what goes wrong.
        log: file that gets one JSON object a line for every call.
    """

    daemon_threads = True

    def __init__(self, port: int, grid: Grid, faults: Faults, log: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.grid = grid
        self.faults = faults
        self.log = log

    def note(self, call: View) -> None:
        with self.grid.lock, self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(call) + "\n")

    def route(self, method: str, path: str, query: dict[str, str], body: Any, user: str) -> Answer:
        """The answer to a call. Raises KeyError for what is not there, RefusedError."""
        self.grid.tick()
        if path == "":
            return 200, {"type": "grid", "uid": "grid5000", "version": "deadbeef"}
        if path == "/sites":
            return collection([views.site(name) for name in views.SITES])
        words = path.split("/")[2:]
        site, rest = words[0], words[1:]
        if site not in views.SITES:
            raise KeyError(path)
        match rest:
            case []:
                return 200, views.site(site)
            case ["clusters", *more]:
                return self._clusters(site, more)
            case ["jobs", *more]:
                return self._jobs(method, site, more, query, body, user)
            case ["deployments"] if method == "POST":
                return 201, self.grid.deploy(site, user, body)
            case ["deployments", uid]:
                return 200, self.grid.deployments[uid]
            case ["vlans", vlan]:
                return 200, {"uid": vlan, "type": "kavlan"}
            case ["servers", "dns"]:
                return 200, views.name_server(site)
        raise KeyError(path)

    def _clusters(self, site: str, rest: list[str]) -> Answer:
        clusters = views.SITES[site][1]
        if not rest:
            return collection([views.cluster(name) for name in clusters])
        count = clusters[rest[0]][0]
        match rest[1:]:
            case []:
                return 200, views.cluster(rest[0])
            case ["nodes"]:
                return collection([views.machine(site, rest[0], number) for number in range(1, count + 1)])
            case ["nodes", name]:
                return 200, views.machine(site, rest[0], int(name.rpartition("-")[2]))
            case ["status"]:
                taken = {
                    name: job for job in self.grid.jobs.values() if job["state"] in ("waiting", "running")
                    for name in job["assigned_nodes"]
                }  # fmt: skip
                names = [views.full_name(site, rest[0], number) for number in range(1, count + 1)]
                return 200, {"uid": 1, "disks": {}, "nodes": {name: _status(taken.get(name)) for name in names}}
        raise KeyError("/".join(rest))

    def _jobs(
        self, method: str, site: str, rest: list[str], query: dict[str, str], body: Any, user: str
    ) -> Answer:  # fmt: skip
        if not rest and method == "POST":
            return 201, self.grid.submit(site, user, body)
        if not rest:
            states = query["state"].split(",") if "state" in query else None
            return collection([
                shown(job, whole=False) for job in self.grid.jobs.values()
                if job["site"] == site and (states is None or job["state"] in states)
                and all(job[key] == query[key] for key in ("name", "user") if key in query)
            ])  # fmt: skip
        job = self.grid.jobs[int(rest[0])]
        if job["site"] != site:
            raise KeyError(rest[0])
        match method, rest[1:]:
            case "GET", []:
                return 200, shown(job)
            case "DELETE", []:
                self.grid.delete(job)
                return 202, None
            case "POST", ["walltime"]:
                self.grid.change_walltime(job, user, body)
                return 202, None
        raise KeyError("/".join(rest))


def _status(job: View | None) -> View:
    if job is None:
        return {"hard": "alive", "soft": "free", "free_slots": 16, "busy_slots": 0, "reservations": []}
    reservation = {
        "queue": job["queue"], "started_at": job["started_at"] or job["scheduled_at"], "walltime": job["walltime"],
        "uid": job["uid"],
    }  # fmt: skip
    return {"hard": "alive", "soft": "busy", "free_slots": 0, "busy_slots": 16, "reservations": [reservation]}


class Handler(BaseHTTPRequestHandler):
    """One call."""

    server: Api
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The calls have a log of their own."""

    def user(self) -> str:
        """The account of the caller. Raises RefusedError."""
        given = self.headers.get("Authorization", "")
        name, _, password = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
        if ACCOUNTS.get(name) != password:
            raise RefusedError(401, "Unauthorized")
        return name

    def answer(self) -> None:
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = re.sub(r"^/(stable|3\.0|sid)", "", url.path).rstrip("/")
        status, view = self._answer(path, query, body)
        self.server.note({"method": self.command, "path": path, "query": query, "body": body, "status": status})
        self.server.faults.hang(self.command, path)
        data = b"" if view is None else json.dumps(view).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, path: str, query: dict[str, str], body: Any) -> Answer:
        try:
            self.server.faults.raise_error(self.command, path)
            with self.server.grid.lock:
                return self.server.route(self.command, path, query, body, self.user())
        except KeyError as missing:
            return 404, {"code": 404, "title": "Not Found", "message": f"no {missing}"}
        except RefusedError as refused:
            return refused.status, {"code": refused.status, "title": "RefusedError", "message": refused.message}

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 (names of the standard library)
