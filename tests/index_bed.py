"""A package index on 127.0.0.1, and archives for it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

BACKEND = """\
import os, pathlib
pathlib.Path({mark!r}).write_text(f"code of the archive ran: uid={{os.getuid()}}")
from setuptools import setup
setup(name="pycadf", version="4.0.1")
"""
"""A setup.py that says where it was run."""


def archive(path: Path, files: Mapping[str, bytes], top: str) -> bytes:
    """Write a source archive; its bytes."""
    with tarfile.open(path, "w:gz") as target:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def hostile_sdist(folder: Path, name: str, version: str, mark: Path) -> bytes:
    """An archive whose build backend writes the file `mark`."""
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files = {"PKG-INFO": info, "setup.py": BACKEND.format(mark=str(mark)).encode(), f"{name}/__init__.py": b""}
    return archive(folder / f"{name}-{version}.tar.gz", files, f"{name}-{version}")


class Served(NamedTuple):
    """An index that answers."""

    url: str
    """Of its simple API."""
    asked: list[tuple[str, str]]
    """(path, Authorization) of every request."""


@contextmanager
def served(files: Mapping[str, bytes], project: str, kind: str = "json", states: bool = True) -> Iterator[Served]:
    """An index that has some files of one project.

    Args:
        files: name -> content.
        project: canonical name.
        kind: `json` (PEP 691) or `html` (PEP 503).
        states: whether it states their hashes.
    """
    asked: list[tuple[str, str]] = []
    handler = functools.partial(Handler, Content(files, f"/simple/{project}/", kind, states, asked))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}/simple", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Content(NamedTuple):
    """What an index has; see `served`."""

    files: Mapping[str, bytes]
    page: str
    kind: str
    states: bool
    asked: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    """Answers for an index."""

    def __init__(self, content: Content, *rest: object) -> None:
        self.files, self.page, self.kind, self.states, self.asked = content
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        name = self.path.removeprefix("/files/")
        if self.path == self.page:
            self._answer(*(self._json() if self.kind == "json" else self._html()))
        elif name in self.files:
            self._answer(self.files[name], "application/octet-stream")
        else:
            self.send_error(404)

    def _json(self) -> tuple[bytes, str]:
        listed = [
            {
                "filename": name,
                "url": f"../../files/{name}",
                "hashes": {"sha256": hashlib.sha256(content).hexdigest()} if self.states else {},
            }
            for name, content in self.files.items()
        ]
        text = json.dumps({"meta": {"api-version": "1.1"}, "name": "x", "files": listed})
        return text.encode(), "application/vnd.pypi.simple.v1+json"

    def _html(self) -> tuple[bytes, str]:
        links = [
            f'<a href="/files/{name}{f"#sha256={hashlib.sha256(content).hexdigest()}" if self.states else ""}">x</a>'
            for name, content in self.files.items()
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode(), "text/html; charset=utf-8"

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
