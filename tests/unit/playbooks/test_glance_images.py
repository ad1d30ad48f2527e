"""Images copied among Glances that share a database and have a store each: over real HTTP, to a real directory."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.playbooks.test_role_modules import cloud, load

glance_images = load("library/glance_images.py")
CONTENTS = {"kernel": b"vmlinuz" * 300_000, "disk": b""}


class Glances:
    """Some Glances behind one port: `/<name>/v2/images`; a database for all, a directory for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.images = [
            {"id": f"id-{name}", "name": name, "os_hash_algo": "sha512", "os_hash_value": _hash(content)}
            for name, content in CONTENTS.items()
        ]
        self.served: list[str] = []

    def store(self, name: str, **contents: bytes) -> Path:
        """A Glance's store, with these files in it."""
        directory = self.folder / name
        directory.mkdir(exist_ok=True)
        for image, content in contents.items():
            (directory / f"id-{image}").write_bytes(content)
        return directory

    def answer(self, path: str) -> tuple[int, bytes]:
        name, _, rest = path.lstrip("/").partition("/v2/images")
        if rest.startswith("?"):  # one a page
            page = int(rest.partition("page=")[2] or 0)
            more = {"next": f"/v2/images?page={page + 1}"} if page + 1 < len(self.images) else {}
            return 200, json.dumps({"images": self.images[page : page + 1], **more}).encode()
        file = self.folder / name / rest.split("/")[1]
        self.served.append(f"{name} {file.name}")
        return (200, file.read_bytes()) if file.exists() else (204, b"")


def _hash(content: bytes) -> str:
    return hashlib.sha512(content).hexdigest()


@pytest.fixture
def glances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Glances]:
    found = Glances(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["X-Auth-Token"] == "token of glance"
            status, content = found.answer(self.path)
            self.send_response(status)
            if status == 200:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(
        cloud, "authenticate", lambda url, user, password, project: (f"token of {user}", {"catalog": [], "in": project})
    )
    owner = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(glance_images, "pwd", SimpleNamespace(getpwnam=lambda name: owner))
    monkeypatch.setattr(glance_images, "PAUSE_S", 0.01)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


def bring(glances: Glances, *sources: str, limit_s: float = 0.0) -> Any:
    values = {
        "url": f"{glances.url}/lyon",
        "sources": [f"{glances.url}/{name}" for name in sources],
        "keystone_url": "",
        "password": "",
        "directory": str(glances.folder / "lyon"),
    }
    return glance_images.bring(values, glance_images.time.monotonic() + limit_s)


def test_what_a_glance_lists_and_cannot_serve_is_copied_and_then_served(glances: Glances) -> None:
    glances.store("paris", **CONTENTS)
    lyon = glances.store("lyon")
    copied = bring(glances, "paris", limit_s=5)
    assert copied == ["kernel (id-kernel)"]  # nothing is the content of the other
    assert {path.name: path.read_bytes() for path in lyon.iterdir()} == {"id-kernel": CONTENTS["kernel"]}
    assert (lyon / "id-kernel").stat().st_mode & 0o777 == 0o640
    assert glances.served[-1] == "lyon id-disk"


def test_what_is_served_is_left_alone(glances: Glances) -> None:
    glances.store("lyon", **CONTENTS)
    assert bring(glances, "paris") == []
    assert not [served for served in glances.served if served.startswith("paris")]


def test_a_file_that_was_cut_off_is_replaced(glances: Glances) -> None:
    glances.store("paris", **CONTENTS)
    lyon = glances.store("lyon", kernel=CONTENTS["kernel"][:1000])
    assert len(bring(glances, "paris", limit_s=5)) == 1
    assert (lyon / "id-kernel").read_bytes() == CONTENTS["kernel"]


def test_the_next_glance_is_asked_when_one_has_another_file(glances: Glances) -> None:
    glances.store("paris", kernel=b"something else")
    glances.store("rennes", **CONTENTS)
    lyon = glances.store("lyon")
    bring(glances, "paris", "rennes", limit_s=5)
    assert (lyon / "id-kernel").read_bytes() == CONTENTS["kernel"]


def test_an_image_that_none_has_is_named_and_nothing_stays_in_the_store(glances: Glances) -> None:
    glances.store("paris", kernel=b"something else")
    lyon = glances.store("lyon")
    with pytest.raises(cloud.CloudError, match=r"kernel \(id-kernel\) from .*/paris: the content has another hash"):
        bring(glances, "paris", limit_s=5)
    assert list(lyon.iterdir()) == []


def test_it_ends_when_a_copy_is_not_served(glances: Glances, tmp_path: Path) -> None:
    glances.store("paris", **CONTENTS)
    values = {"url": f"{glances.url}/lyon", "sources": [f"{glances.url}/paris"], "keystone_url": "", "password": ""}
    with pytest.raises(cloud.CloudError, match=r"kernel .*/lyon"):
        glance_images.bring({**values, "directory": str(tmp_path / "elsewhere")}, glance_images.time.monotonic() + 0.3)
