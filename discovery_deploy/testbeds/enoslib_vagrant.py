"""Vagrant's machines through EnOSlib: the verbs `vagrant.<name>` of the worker.

Vagrant's files are in the working directory, which is the experiment's own. Runs in EnOSlib's environment (see
`enoslib_worker`).
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from discovery_deploy.testbeds.enoslib_worker import Progress, Verb, WorkerError

KEPT_LINES = 8
"""Lines of what Vagrant said that an error quotes."""
POLL_S = 1.0


def reserve(arguments: dict[str, Any], progress: Progress) -> list[dict[str, Any]]:
    """Start the machines of a configuration, and tell how ssh reaches them.

    Args:
        arguments: `configuration`, for EnOSlib's `VagrantConf`; `log`, the file that gets what Vagrant says.
        progress: takes what Vagrant says of each machine.
    Returns:
        For each machine: `name`, `address`, `port`, `user`, and `key`, a file.
    Raises:
        WorkerError: Vagrant failed; the end of what it said is quoted.
    """
    import enoslib

    configuration = enoslib.VagrantConf.from_dictionary(arguments["configuration"]).finalize()
    with _vagrant(Path(arguments["log"]), progress):
        roles, _ = enoslib.Vagrant(configuration).init()
    hosts = {host.alias: host for group in roles.values() for host in group}
    return [
        {"name": name, "address": host.address, "port": int(host.port), "user": host.user, "key": host.keyfile}
        for name, host in sorted(hosts.items())
    ]


def release(arguments: dict[str, Any], progress: Progress) -> None:
    """Destroy the machines that the working directory's Vagrantfile names; without one there is nothing to do.

    Args:
        arguments: `log`, the file that gets what Vagrant says.
        progress: takes what Vagrant says of each machine.
    Raises:
        WorkerError: Vagrant failed; the end of what it said is quoted.
    """
    import enoslib

    if not Path("Vagrantfile").exists():
        return
    nothing: dict[str, Any] = {"resources": {"machines": [], "networks": []}}
    with _vagrant(Path(arguments["log"]), progress):
        enoslib.Vagrant(enoslib.VagrantConf.from_dictionary(nothing).finalize()).destroy()


VERBS: dict[str, Verb] = {"reserve": reserve, "release": release}


@contextmanager
def _vagrant(log: Path, progress: Progress) -> Iterator[None]:
    """Tell what Vagrant says as it says it, and what it said last when it fails."""
    begin = log.stat().st_size
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(log, begin, ended, progress), daemon=True)
    follower.start()
    try:
        yield
    except subprocess.CalledProcessError as error:
        command = error.cmd if isinstance(error.cmd, str) else " ".join(error.cmd)
        with log.open("rb") as said:
            said.seek(begin)
            text = said.read().decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-KEPT_LINES:]
        raise WorkerError(
            f"`{command}` failed with status {error.returncode}:\n    " + "\n    ".join(lines),
            f"Mend the cause, then run again, or release; all that Vagrant said is in {log}.",
            machine_named(lines),
        ) from error
    finally:
        ended.set()
        follower.join()


def _follow(log: Path, begin: int, ended: threading.Event, progress: Progress) -> None:
    with log.open("rb") as said:
        said.seek(begin)
        rest = b""
        while True:
            last = ended.wait(POLL_S)
            rest += said.read()
            *lines, rest = rest.split(b"\n")
            for line in lines:
                text = step(line.decode("utf-8", "replace"))
                if text:
                    progress(text)
            if last:
                return


def step(line: str) -> str:
    """What a line of Vagrant's says about a machine, as progress; "" when it says nothing of one."""
    said = re.match(r"==> (\S+): (\S.*)", line)
    return f"{said[1]}: {said[2].rstrip()}" if said and not said[2].startswith(("--", "*")) else ""


def machine_named(lines: list[str]) -> str:
    """The machine that an error of Vagrant's is about: the last that it spoke of; "" when it spoke of none."""
    spoken = [found[1] for line in lines if (found := re.match(r"(?:==>|   ) (\S+): ", line))]
    return spoken[-1] if spoken else ""
