"""Brings software to hosts that do not see the driver's cache, and takes it away again.

Environments go to `/opt/discovery-deploy/<name>`, where they were built for, and Debian packages are installed, without
anything that starts. What is there and right is not sent again; of an environment only those files are sent that the
host does not have in another one. All hosts side by side, but only some are sent to at the same time.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from discovery_deploy.agent import host_environments
from discovery_deploy.cloud.variables import EnvironmentsInterface
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.provider_models import Local
from discovery_deploy.software.contents import FOLDER, Contents, contents, write_archive
from discovery_deploy.software.image import variant
from discovery_deploy.software.packages import Packages, install_packages, remove_packages
from discovery_deploy.software.records import HostSoftware
from discovery_deploy.software.software import LOOK, host_problem, hosts_environments
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import digest
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import Remote, on_all

AT_ONCE = 4
"""Hosts that are sent to at the same time: more would only share the driver's way out."""
LIMIT_S = 900.0
MOST_TOLD = 5
"""Files that are named of those that are not as they should be."""
PROGRAM = Path(host_environments.__file__)

Result = TypeVar("Result")


def ship(
    remote: Remote,
    lease: Lease,
    experiment: Experiment,
    environments: EnvironmentsInterface,
    cache: Path,
    progress: Progress,
) -> tuple[HostSoftware, ...]:
    """Bring every host what it needs: its environments, and the Debian packages of the hosts' image.

    What is there and right is not sent again. Environments that this setting does not use go, unless a process does.

    Args:
        remote: ssh to the hosts, as root.
        lease: the hosts.
        experiment: with the levels of the setting in place; its provider says where packages come from.
        environments: built for it, in the cache.
        cache: directory of the cache.
        progress: takes one short line per step; from several threads.
    Returns:
        What is on each host, in the order of the lease.
    Raises:
        TestbedError: a host cannot run them, cannot be reached, or an installation failed; every host is named.
    """
    wanted = hosts_environments(experiment, lease, environments)
    kind = variant(experiment.deployment.services)
    packages: Packages = "carried" if isinstance(experiment.provider, Local) else experiment.provider.packages

    def one(host: str) -> HostSoftware:
        sender.check(host)
        sent = sender.environments(host, wanted[host])
        installed = install_packages(remote, host, kind, packages, cache, sender.send, progress)
        facts = {key: installed[key] for key in ("installed", "upgraded")}
        return HostSoftware(host=host, environments=sent, packages_from=installed["source"], **facts)

    with closing(Sender(remote, cache, progress)) as sender:
        return tuple(on_all(one, [host.name for host in lease.hosts]))


def ship_environments(
    remote: Remote, wanted: Mapping[str, Sequence[str]], cache: Path, progress: Progress
) -> dict[str, dict[str, str]]:
    """Bring environments alone to machines: machine -> names, and back: machine -> name -> hash of its contents.

    Raises:
        TestbedError: as `ship`.
    """

    def one(host: str) -> dict[str, str]:
        sender.check(host)
        return sender.environments(host, wanted[host])

    with closing(Sender(remote, cache, progress)) as sender:
        return dict(zip(wanted, on_all(one, list(wanted)), strict=True))


def unship(remote: Remote, hosts: Sequence[str], remove_installed: bool) -> dict[str, list[str]]:
    """Take away what `ship` brought, once nothing of it runs: host -> the Debian packages that went.

    Args:
        remote: ssh to the hosts, as root.
        hosts: their names.
        remove_installed: whether the Debian packages go too, and the accounts of services: exactly what was not there.
    Raises:
        TestbedError: a host cannot be reached, or packages that came later need ours; every host is named.
    """

    def one(host: str) -> list[str]:
        _ask(remote, host, "clear")
        return remove_packages(remote, host, remove_installed)

    return dict(zip(hosts, on_all(one, list(hosts)), strict=True))


class Sender:
    """Brings environments of the cache to hosts.

    Args:
        remote: ssh to the hosts, as root.
        cache: directory of the cache.
        progress: takes one short line per step; from several threads.
    """

    def __init__(self, remote: Remote, cache: Path, progress: Progress) -> None:
        self.remote, self.cache, self.progress = remote, cache, progress
        self._turns = threading.Semaphore(AT_ONCE)
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._made: dict[str, Any] = {}

    def check(self, host: str) -> None:
        """Whether a host can run the environments. Raises TestbedError."""
        problem = host_problem(self.remote(host, LOOK), os.uname().machine)
        if problem:
            raise TestbedError(
                f"{host}: {problem}",
                "Hosts need Debian 12 with its python3, on the driver's kind of processor.",
            )

    def send(self, host: str, command: Sequence[str], stream: IO[bytes]) -> str:
        """Run a command on a host that reads a file from its beginning, when it is the host's turn."""
        with self._turns:
            return self.remote.send(host, command, Path(f"/proc/self/fd/{stream.fileno()}"))

    def environments(self, host: str, names: Sequence[str]) -> dict[str, str]:
        """Let a host have these environments and no other: name -> SHA-256 of its contents. Raises TestbedError."""
        wanted = {name: self._once(name, partial(contents, self.cache, name)) for name in names}
        right = _ask(self.remote, host, "look", given={name: found.sha256 for name, found in wanted.items()})
        for name in names:
            if name not in right:
                self._bring(host, wanted[name])
        _ask(self.remote, host, "tidy", given=list(names))
        return {name: found.sha256 for name, found in wanted.items()}

    def close(self) -> None:
        """Drop the archives that were made."""
        for made in self._made.values():
            if not isinstance(made, Contents):
                made.close()

    def _bring(self, host: str, found: Contents) -> None:
        """Put an environment on a host. Raises TestbedError."""
        places: list[int] = _ask(self.remote, host, "begin", found.name, text=found.text)
        if places:
            stream = self._once(f"{found.name} {digest(places)}", lambda: self._packed(found, places))
            size = os.fstat(stream.fileno()).st_size / 1e6
            self.progress(f"{host}: sending {found.name}: {len(places)} files, {size:.0f} MB packed")
            self.send(host, _command("receive", found.name), stream)
        wrong: list[str] = _ask(self.remote, host, "finish", found.name)
        if wrong:
            more = f" and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
            raise TestbedError(
                f"{host}: {found.name}: not as it was made: {', '.join(wrong[:MOST_TOLD])}{more}",
                f"Run again. When it stays so, remove {self.cache / 'environments' / found.name}: it is built anew.",
            )

    def _packed(self, found: Contents, places: Sequence[int]) -> IO[bytes]:
        """An archive without a name, so that nothing stays of it whatever happens."""
        self.progress(f"packing {found.name}")
        stream = tempfile.TemporaryFile(dir=self.cache / FOLDER)  # noqa: SIM115 - closed by `close`
        write_archive(self.cache, found, places, stream)
        return stream

    def _once(self, key: str, make: Callable[[], Result]) -> Result:
        """What `make` gives, made once for all hosts."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            made: Result = self._made[key]
            return made


def _ask(remote: Remote, host: str, verb: str, *words: str, given: Any = None, text: str = "") -> Any:
    """What `host_environments` answers on a host to a verb with these words, given a JSON value or its text."""
    return json.loads(remote(host, _command(verb, *words), text or json.dumps(given), LIMIT_S))


def _command(verb: str, *words: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", PROGRAM.read_text(encoding="utf-8"), verb, *words]
