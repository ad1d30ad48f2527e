"""The provider `g5k` beside the API of the fake Grid'5000 alone: no machine is behind it, so no ssh gets anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from discovery_deploy.software import stack
from discovery_deploy.testbeds.g5k import G5kProvider
from tests.fake_g5k.api import ACCOUNTS, Api, Faults
from tests.fake_g5k.grid import Grid

USER, PASSWORD = next(iter(ACCOUNTS.items()))


class NoMachines:
    """Acts on nothing; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def reserve(self, name: str, user: str) -> bool:
        """See `grid.Machines`."""
        self.told.append(f"reserve {name}")
        return True

    def deploy(self, name: str, environment: str, vlan: str, keys: str) -> bool:
        """See `grid.Machines`."""
        self.told.append(f"deploy {name} {environment} {vlan}")
        return True

    def vlan(self, adapter: str, vlan: str) -> bool:
        """See `grid.Machines`."""
        return True

    def release(self, name: str) -> bool:
        """See `grid.Machines`."""
        self.told.append(f"release {name}")
        return True


class ApiBed:
    """A running API and a provider that asks it.

    Args:
        work: folder for all files of both.
        server: the API.
    """

    def __init__(self, work: Path, server: Api) -> None:
        self.work, self.server = work, server
        self.told: list[str] = []
        self.public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHNvdGhpbmcgdGhhdCBsb29rcyBsaWtlIGEga2V5 test"
        self.write_account(USER, PASSWORD)
        (work / "home" / ".ssh").mkdir()
        (work / "home" / ".ssh" / "id_ed25519.pub").write_text(f"{self.public_key}\n")
        self.provider = G5kProvider(stack.cache_directory(), work / "state", work / "home")

    def write_account(self, user: str, password: str) -> None:
        """The account in the provider's home directory."""
        (self.work / "home").mkdir(exist_ok=True)
        file = self.work / "home" / ".python-grid5000.yaml"
        file.touch(0o600)
        file.write_text(
            f"uri: http://127.0.0.1:{self.server.server_port}/stable\n"
            f"username: {user}\npassword: {password}\nverify_ssl: false\n"
        )

    def faults(self, **faults: Any) -> None:
        """What is to go wrong from now on; nothing, without arguments."""
        self.server.faults.file.write_text(json.dumps(faults))

    def alive(self) -> list[dict[str, Any]]:
        """Jobs that hold machines, or will."""
        return [job for job in self.server.grid.jobs.values() if job["state"] in ("waiting", "launching", "running")]

    def submit(self, experiment: str, site: str = "rennes", walltime: str = "02:00:00") -> dict[str, Any]:
        """A job as an experiment's driver leaves it that dies at once."""
        resources = f"{{cluster='{'paravance' if site == 'rennes' else 'grisou'}'}}/nodes=1,walltime={walltime}"
        body = {"name": f"discovery-deploy-{experiment}", "resources": resources, "command": "sleep 31536000"}
        with self.server.grid.lock:
            return self.server.grid.submit(site, USER, body)

    def calls(self) -> list[dict[str, Any]]:
        """All calls so far."""
        return [json.loads(line) for line in self.server.log.read_text().splitlines()]


@contextmanager
def fake_api(work: Path) -> Iterator[ApiBed]:
    """The API, served by threads of this process."""
    faults = Faults(work / "faults.json")
    server = Api(0, Grid(NoMachines(), faults), faults, work / "calls.jsonl")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ApiBed(work, server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
