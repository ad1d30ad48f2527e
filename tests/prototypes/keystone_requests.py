"""What Keystone asks its database for a token, its validation and a new user, counted on the wire.

Runs inside the base image under the OpenStack environment's Python, in namespaces of its own (see sandbox.py).
Keystone's own WSGI application is called in this process; between it and a real MariaDB stands the counting, delaying
proxy.

    python keystone_requests.py none|memcached [one-way delay in ms ...]

Prints one JSON object: for each API request the database requests in order, and at each delay the least of three
durations in seconds (what else the machine does only adds).
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sandbox
import wire

PROXY_PORT = 3307
ETC = Path("/run/keystone")
WARM, COUNTED, TIMED = 3, 3, 3
CONFIGURATION = """\
[database]
connection = {database}
[identity]
max_password_length = 72
password_hash_rounds = 4
[fernet_tokens]
key_repository = {etc}/keys
[fernet_receipts]
key_repository = {etc}/keys
[credential]
key_repository = {etc}/keys
"""
MEMCACHED = """\
[cache]
enabled = true
backend = dogpile.cache.pymemcache
memcache_servers = 127.0.0.1:11211
"""


def configured(database: sandbox.MariaDB, cache: str) -> None:
    """Keystone's configuration and keys, and an admin whose password is known."""
    ETC.mkdir()
    (ETC / "keys").mkdir(mode=0o700)
    for number in ("0", "1"):
        (ETC / "keys" / number).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
    text = CONFIGURATION.format(database=sandbox.url(PROXY_PORT), etc=ETC)
    if cache == "memcached":
        subprocess.Popen(["memcached", "-u", "nobody", "-l", "127.0.0.1"])
        text += MEMCACHED
    (ETC / "keystone.conf").write_text(text)
    database.sql("CREATE DATABASE keystone")
    bootstrap = ["bootstrap", "--bootstrap-password", sandbox.PASSWORD, "--bootstrap-region-id", "here"]
    bootstrap += ["--bootstrap-public-url", "http://127.0.0.1:5000/v3"]
    manage = [Path(sys.prefix) / "bin/keystone-manage", "--config-file", ETC / "keystone.conf"]
    for command in (["db_sync"], bootstrap):
        subprocess.run([*manage, *command], check=True, stdout=sys.stderr)


class Keystone:
    """The application, in this process."""

    def __init__(self) -> None:
        os.environ.update(OS_KEYSTONE_CONFIG_DIR=str(ETC), OS_KEYSTONE_CONFIG_FILES="keystone.conf")
        sys.argv = ["keystone"]
        from keystone.server import wsgi

        self._application = wsgi.initialize_public_application()
        self.token = ""
        self._users = 0

    def asked(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """An answer of the API. Raises RuntimeError unless it is a success."""
        import webob

        request = webob.Request.blank(f"/v3{path}", method=method)
        request.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        if body is not None:
            request.content_type, request.body = "application/json", json.dumps(body).encode()
        answer = request.get_response(self._application)
        if answer.status_int >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.text}")
        return answer

    def issue(self) -> None:
        """POST /auth/tokens with a password, scoped to a project."""
        domain = {"id": "default"}
        user = {"name": "admin", "domain": domain, "password": sandbox.PASSWORD}
        identity = {"methods": ["password"], "password": {"user": user}}
        scope = {"project": {"name": "admin", "domain": domain}}
        answer = self.asked("POST", "/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
        self.token = answer.headers["X-Subject-Token"]

    def validate(self) -> None:
        """GET /auth/tokens: the token of the issue before, for the first time."""
        self.asked("GET", "/auth/tokens", X_Auth_Token=self.token, X_Subject_Token=self.token)

    def create_user(self) -> None:
        """POST /users with a password."""
        self._users += 1
        user = {"name": f"user-{os.getpid()}-{self._users}", "password": "a", "domain_id": "default"}
        self.asked("POST", "/users", {"user": user}, X_Auth_Token=self.token)


def measured(keystone: Keystone, proxy: wire.Wire, delays_ms: list[float]) -> dict[str, Any]:
    """Each API request: what it asked of the database, and how long it took at each delay."""
    steps = {"token": keystone.issue, "validation": keystone.validate, "user": keystone.create_user}
    counted: dict[str, list[list[wire.Request]]] = {name: [] for name in steps}
    for _ in range(WARM + COUNTED):
        for name, step in steps.items():
            proxy.taken()
            step()
            time.sleep(0.05)  # what was sent without waiting arrives, too
            counted[name].append(proxy.taken())
    result: dict[str, Any] = {}
    for name in steps:
        runs = counted[name][WARM:]
        requests = min(runs, key=len)
        result[name] = {
            "counts": [len(run) for run in runs],
            "kinds": dict(Counter(request.kind for request in requests).most_common()),
            "requests": [" ".join(request.text.split())[:200] for request in requests],
            "seconds": {},
        }
    for delay in delays_ms:
        proxy.delay_s = delay / 1000
        took: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(TIMED):
            for name, step in steps.items():
                start = time.monotonic()
                step()
                took[name].append(time.monotonic() - start)
        for name in steps:
            result[name]["seconds"][f"{delay:g}"] = round(min(took[name]), 4)
    return result


def main() -> None:
    """See the module."""
    cache, delays = sys.argv[1], [float(text) for text in sys.argv[2:]]
    result_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the services log is no result
    sandbox.bare_environment()
    database = sandbox.MariaDB()
    proxy = wire.Wire(sandbox.PORT, PROXY_PORT)
    configured(database, cache)
    result = measured(Keystone(), proxy, delays)
    print(json.dumps({"cache": cache, "steps": result}), file=result_file, flush=True)


if __name__ == "__main__":
    main()
