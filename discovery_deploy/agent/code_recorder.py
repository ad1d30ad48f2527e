"""Installed into OpenStack environments: each Python process there tells which files of Python code it loads.

A `.pth` file imports it when Python starts. It keeps a file in memory (memfd), which belongs to the process: forked
children share it, others get their own, it goes when they go, and only root can read it (`/proc/PID/fd`). One JSON
object a line: first the environment, then, for each file that the import system reads, the module's name, the path, and
the SHA-256 of the bytes that it read; Python's own library is left out. Costs microseconds per import and nothing
afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from importlib.machinery import SourceFileLoader
from typing import Any

NAME = "discovery-deploy-code"
"""Of the file in memory: `/proc/PID/fd/N` leads to `/memfd:<name> (deleted)`."""
LIBRARY = "/usr/lib/python3"
"""How the paths of the hosts' own Python library begin; a link to a file there (libvirt's binding) is one of them."""


def install(library: str = LIBRARY) -> int:
    """Record every file outside Python's own library that is read from now on. Returns the file's descriptor."""
    file = os.memfd_create(NAME, os.MFD_CLOEXEC)
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    write, realpath, home = os.write, os.path.realpath, f"{sys.prefix}/"  # what a program makes of them is not ours
    loader: Any = SourceFileLoader
    get_data = loader.get_data

    def told(content: dict[str, Any]) -> None:
        write(file, json.dumps(content).encode() + b"\n")

    def recorded(self: Any, path: str) -> bytes:
        data: bytes = get_data(self, path)
        if path.startswith(home) or not (path.startswith(library) or realpath(self.path).startswith(library)):
            told({"module": self.name, "path": path, "sha256": hashlib.sha256(data).hexdigest()})
        return data

    told({"environment": sys.prefix, "pid": os.getpid()})
    loader.get_data = recorded
    return file


if __name__ == "discovery_deploy_recorder":
    install()
