"""A way to the addresses of sites for clients on a machine that has no route to them: ssh's SOCKS proxy on a host.

Hosts behind a jump host, and hosts that are containers on a machine of a testbed, are reached by ssh alone.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import Remote

ROUTE_LIMIT_S = 3.0
START_LIMIT_S = 40.0


def routed(url: str) -> bool:
    """Whether packets for a URL's host arrive: a refused connection is an answer too."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=ROUTE_LIMIT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def socks_proxy(remote: Remote, host: str) -> Iterator[str]:
    """URL of a SOCKS proxy (RFC 1928) on this machine whose connections begin at a host, while the context lasts.

    The ssh behind it reads our end of a pipe on the host: it ends with this process, however that ends.

    Raises:
        TestbedError: the host cannot be reached.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = remote.arguments(host, ["cat"])
    own = ["-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes", "-D", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [words[0], *own, *words[1:]], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + START_LIMIT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                said = process.communicate()[1].strip() or "no answer"
                raise TestbedError(f"{host}: not reachable by ssh: {said}", "Run again: `run` starts dead hosts anew.")
            time.sleep(0.05)
        yield f"socks5h://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
