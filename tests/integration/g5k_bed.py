"""The provider `g5k` beside the fake Grid'5000, for tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import enoslib_environment, stack
from discovery_deploy.system.programs import contained
from discovery_deploy.system.remote import Remote, ssh_config_text
from discovery_deploy.testbeds.g5k import G5kProvider
from tests.fake_g5k.api import ACCOUNTS
from tests.leased import known_hosts

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = next(iter(ACCOUNTS.items()))
CALL = """
import base64, sys, urllib.request
method, url, user, password = sys.argv[1:]
words = base64.b64encode(f"{user}:{password}".encode()).decode()
asked = urllib.request.Request(url, method=method, headers={"Authorization": f"Basic {words}"})
sys.stdout.write(urllib.request.urlopen(asked).read().decode())
"""
NANTES = {"g5k_site": "nancy", "cluster": "grisou"}


def experiment(name: str, hosts: dict[str, int] | None = None, **provider: Any) -> Experiment:
    """An experiment: site -> number of hosts; `rennes` is asked of paravance at rennes, others of grisou at nancy."""
    hosts = hosts or {"rennes": 1, "nantes": 2}
    asked = [
        {"name": site, "hosts": [{"name": f"{site}-{number}"} for number in range(1, count + 1)]}
        for site, count in hosts.items()
    ]
    default = {"g5k_site": "rennes", "cluster": "paravance"}
    section = {"type": "g5k", "default": default, "sites": {site: NANTES for site in hosts if site != "rennes"}}
    return Experiment.model_validate(
        {
            "name": name,
            "sites": asked,
            "deployment": {"backend": {"type": "galera"}},
            "provider": {**section, **provider},
        }
    )


class G5kBed:
    """A running fake, and a provider that sees nothing but it.

    Args:
        work: folder for all files of both.
        world: process id of the fake's first process.
        cache: with EnOSlib's environment.
    """

    def __init__(self, work: Path, world: int, cache: Path) -> None:
        self.work = work
        self.inside = ["nsenter", "--net", "--mount", f"--target={world}", "--wd=/", "--"]
        self.told: list[str] = []
        self.provider = G5kProvider(cache, work / "state", work / "home")
        self.calls_file = work / "calls.jsonl"
        self.key = work / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.public_key = self.key.with_suffix(".pub").read_text().strip()

    def reserve(self, asked: Experiment) -> Lease:
        return self.provider.reserve(asked, self.public_key, Path("/"), self.told.append, self.work)

    def release(self, name: str) -> None:
        self.provider.release(name, self.told.append)

    def faults(self, **faults: Any) -> None:
        """What is to go wrong from now on; nothing, without arguments."""
        (self.work / "faults.new").write_text(json.dumps(faults))
        (self.work / "faults.new").rename(self.work / "faults.json")  # the fake reads it at any moment

    def calls(self) -> list[dict[str, Any]]:
        """All calls of the API so far."""
        return (
            [json.loads(line) for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []
        )

    def jobs(self) -> list[dict[str, Any]]:
        """Jobs that hold machines, or will, as the API tells them."""
        states = "state=waiting,launching,running"
        return [
            job for site in ("rennes", "nancy") for job in self.call("GET", f"/sites/{site}/jobs?{states}")["items"]
        ]

    def end_job(self, site: str, uid: int) -> None:
        """A job ends, as when its walltime is over."""
        self.call("DELETE", f"/sites/{site}/jobs/{uid}")

    def call(self, method: str, path: str) -> Any:
        """Call the API, which listens in the fake's network alone."""
        said = self.run(sys.executable, "-c", CALL, method, f"http://127.0.0.1:5050/stable{path}", USER, PASSWORD)
        return json.loads(said or "null")

    def write_account(self, password: str = PASSWORD) -> None:
        """The account that the provider uses, with a password."""
        file = self.work / "home" / ".python-grid5000.yaml"
        file.write_text(re.sub(r"^password:.*$", f"password: {password}", file.read_text(), flags=re.MULTILINE))

    def run(self, *command: str) -> str:
        """A command in the fake's network."""
        return subprocess.run([*self.inside, *command], check=True, capture_output=True, text=True, timeout=60).stdout

    def machines(self) -> set[str]:
        """Network namespaces of machines that are up, without the gateway."""
        return {line.split()[0] for line in self.run("ip", "netns", "list").splitlines()} - {"access"}

    def remote(self, lease: Lease) -> Remote:
        """Ssh to the hosts of a lease, as the driver does it."""
        config = self.work / "ssh_config"
        ways = {host.name: (host.management_address, host.ssh) for host in lease.hosts}
        # pytest's folders are too long for ssh's sockets
        known = self.work / "known"
        text = ssh_config_text(ways, self.key, self.work, known, all_known=known_hosts(lease, known))
        config.write_text(text.replace("ControlMaster auto", "ControlMaster no"))
        inside = self.inside

        class Entered(Remote):
            def arguments(self, host: str, command: Any) -> list[str]:
                return [*inside, *super().arguments(host, command)]

        return Entered(config)


@contextmanager
def fake_grid5000(work: Path, base: Path, monkeypatch: Any, *box: str) -> Iterator[G5kBed]:
    """The fake, running; everything of it is gone at the end, whatever happens.

    Args:
        work: folder for its files.
        base: unpacked Debian of its machines.
        monkeypatch: pytest's; EnOSlib's environment is entered in the fake's network.
        box: directory of Vagrant's box and QEMU's acceleration, where what is deployed is a virtual machine.
    """
    cache = stack.cache_directory()
    real = enoslib_environment.enoslib_python(cache, print)
    command = ["unshare", "--net", sys.executable, "-m", "tests.fake_g5k.world", str(work), str(base), *box]
    with (work / "world.log").open("w") as log:
        process = subprocess.Popen(
            contained(command), stdout=subprocess.PIPE, stderr=log, cwd=ROOT, stdin=subprocess.DEVNULL, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (work / "world.log").read_text()
        bed = G5kBed(work, _first_inside(process.pid), cache)
        entrance = work / "bin" / "python"
        entrance.parent.mkdir()
        entrance.write_text(f'#!/bin/sh\nexec {" ".join(bed.inside[:-2])} --wd="$PWD" -- {real} "$@"\n')
        entrance.chmod(0o755)
        monkeypatch.setattr(enoslib_environment, "enoslib_python", lambda cache, progress: entrance)
        yield bed
    finally:
        process.kill()
        process.wait()


def _first_inside(pid: int) -> int:
    """The first process of the namespaces, as this process sees it."""
    for _ in range(100):
        with suppress(FileNotFoundError, IndexError):
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        time.sleep(0.1)
    raise AssertionError(f"process {pid} has no child")
