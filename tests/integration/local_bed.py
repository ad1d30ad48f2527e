"""Experiments on real containers of this machine, with a state directory of their own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from discovery_deploy.agent import containers, machine
from discovery_deploy.agent.plan import Plan
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.testbeds.local import LocalProvider, plan_of


def experiment(name: str, *sites: str) -> Experiment:
    """An experiment with one host at each site."""
    backend = {"type": "mariadb", "site": sites[0]}
    return Experiment.model_validate(
        {"name": name, "sites": [{"name": site} for site in sites], "deployment": {"backend": backend}}
    )


class LocalBed:
    """The provider `local` and a way into its hosts."""

    def __init__(self, image: Path, key: Path, folder: Path) -> None:
        self.image = image
        self.key = key
        self.state = folder / "state"
        self.environments = folder / "environments"
        self.provider = LocalProvider(environments=self.environments, state=self.state)
        self.said: list[str] = []

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text()

    def reserve(self, asked: Experiment, public_key: str = "", image: Path | None = None) -> Lease:
        return self.provider.reserve(asked, public_key or self.public_key, image or self.image, self.said.append)

    def release_all(self) -> None:
        for name in self.provider.experiments():
            self.provider.release(name, self.said.append)

    def plan(self, lease: Lease) -> Plan:
        return plan_of(lease)

    def pids(self, lease: Lease) -> dict[str, Any]:
        """Host -> process ids; and the router's."""
        plan = self.plan(lease)
        found: dict[str, Any] = {name: state["pids"] for name, state in containers.status(plan).items()}
        record = plan.directory / "router" / "process"
        return {**found, "router": record.read_text().split()[0] if record.exists() else f"dd{plan.slot}-router"}

    def ssh_options(self, lease: Lease, host: str, key: Path | None = None) -> list[str]:
        """Options that accept the very host key of the lease, and no other."""
        known = self.state.parent / f"known-{lease.experiment}"
        keys = lease.details["host_keys"]
        known.write_text("".join(f"{at.management_address} {keys[at.name]}\n" for at in lease.hosts))
        address = next(at.management_address for at in lease.hosts if at.name == host)
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "ConnectTimeout=5")
        return [*(word for option in options for word in ("-o", option)), "-i", str(key or self.key), f"root@{address}"]

    def ssh(self, lease: Lease, host: str, command: str, key: Path | None = None) -> str:
        """What a command on a host prints; raises when it fails."""
        done = subprocess.run(
            ["ssh", *self.ssh_options(lease, host, key), command], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{host}: {command}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def inside(self, lease: Lease, host: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in a host's network namespace, with the machine's files."""
        return in_namespace(f"dd{self.plan(lease).slot}-{host}", command)


def in_namespace(name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", "netns", "exec", name, *command], capture_output=True, text=True, timeout=60)


def reaches(namespace: str, address: str) -> bool:
    """Whether one of three echo requests is answered."""
    return in_namespace(namespace, ["ping", "-q", "-c", "3", "-i", "0.05", "-W", "0.4", address]).returncode == 0


def kill_now(pid: int) -> None:
    """End a process and wait until it has ended."""
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    while machine.identity(pid) is not None:
        time.sleep(0.005)


def until(condition: Callable[[], bool], limit_s: float = 20, pause_s: float = 0.03) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause_s)


def answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(3) == b"SSH"
    except OSError:
        return False
