"""Several machines under one kernel: each has network devices, a /run and a state directory of its own, and no systemd.

Machines and their hosts are namespaces. The first two machines share a network, the others are behind a router: as on
Grid'5000, where g5k_sites are routed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from discovery_deploy.agent.machine import make_own
from discovery_deploy.agent.plan import Plan, WanRouter, as_data
from discovery_deploy.experiment.model import Experiment, Network
from discovery_deploy.hosts import nesting
from discovery_deploy.testbeds import local
from discovery_deploy.wan import tc
from discovery_deploy.wan.measure import HERE, on_this_machine
from discovery_deploy.wan.shapes import Pair, PathShape, path_shapes
from tests.integration.wan_bed import Wan

REPOSITORY = Path(__file__).resolve().parents[2]
SLOT = 21
ANCHOR = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && echo ready && exec sleep 100000"
NETWORKS = ("192.0.2.0/25", "192.0.2.0/25", "198.51.100.0/25", "203.0.113.0/25")
ADDRESSES = ("192.0.2.1", "192.0.2.2", "198.51.100.1", "203.0.113.1")


def experiment(sites: Sequence[str], hosts_per_machine: int) -> Experiment:
    """One host at each site, on Vagrant's machines."""
    return Experiment.model_validate(
        {
            "name": "machines",
            "provider": {"type": "vagrant", "hosts_per_machine": hosts_per_machine},
            "sites": [{"name": site} for site in sites],
            "deployment": {"backend": {"type": "galera"}},
        }
    )


@dataclass(frozen=True)
class Anchors:
    """Namespaces of machines, held by a process each; the last is the network between them."""

    pids: dict[str, int]

    def enter(self, machine: str, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.pids[machine]}", "--net", "--mount", *command]

    def run(self, machine: str, *command: str, text: str = "", limit_s: float = 120) -> str:
        done = subprocess.run(
            self.enter(machine, *command), input=text, capture_output=True, text=True, timeout=limit_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{machine}: {' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def module(self, machine: str, *words: str, text: str = "") -> str:
        # entering a mount namespace leads to its root, where the code is not found by itself
        return self.run(machine, "env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", *words, text=text)


@contextlib.contextmanager
def anchors(names: Sequence[str]) -> Iterator[Anchors]:
    """Empty machines, connected; gone at the end, with all that is in their namespaces."""
    processes = []
    try:
        for _ in (*names, "network"):
            process = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", ANCHOR],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        found = Anchors(dict(zip((*names, "network"), (process.pid for process in processes), strict=True)))
        _connect(found, names)
        yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _connect(found: Anchors, names: Sequence[str]) -> None:
    bridges = {network: f"br{index}" for index, network in enumerate(dict.fromkeys(NETWORKS[: len(names)]))}
    found.run("network", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    for network, bridge in bridges.items():
        gateway = network.replace(".0/25", ".126/25")
        found.run("network", "ip", "link", "add", bridge, "type", "bridge")
        found.run("network", "ip", "address", "add", gateway, "dev", bridge)
        found.run("network", "ip", "link", "set", bridge, "up")
    for index, name in enumerate(names):
        pid, port, network = str(found.pids[name]), f"p{index}", NETWORKS[index]
        found.run("network", "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        found.run("network", "ip", "link", "set", port, "master", bridges[network], "up")
        found.run(name, "ip", "address", "add", f"{ADDRESSES[index]}/25", "dev", "eth0")
        found.run(name, "ip", "link", "set", "eth0", "up")
        found.run(name, "ip", "route", "add", "default", "via", network.replace(".0/25", ".126"))


@dataclass(frozen=True)
class MachinesWan(Wan):
    """Sites on several machines; the inherited plan is that of all of them."""

    anchors: Anchors
    plans: dict[str, Plan]

    def machine(self, host: str) -> str:
        return next(name for name, plan in self.plans.items() if host in (entry.name for entry in plan.hosts))

    def inside(self, host: str, *command: str) -> list[str]:
        """The command line that runs a command in a host's namespaces."""
        namespace = next(entry.namespace for entry in self.plan.hosts if entry.name == host)
        return self.anchors.enter(self.machine(host), "ip", "netns", "exec", namespace, *command)

    def namespace_path(self, name: str) -> str:
        """As seen from here, where one probe reads the one clock of all machines."""
        host = next(entry.name for entry in self.plan.hosts if entry.namespace == name)
        return f"/proc/{self.anchors.pids[self.machine(host)]}/root/run/netns/{name}"

    def run(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        if host == HERE:
            return on_this_machine(host, command, stdin, timeout_s)
        done = subprocess.run(
            self.inside(host, *command), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{host}: {done.stdout}{done.stderr}")
        return done.stdout

    def shape(self, network: Network) -> dict[Pair, PathShape]:
        shapes = path_shapes(network, self.names)
        program = tc.program(self.wan_plan(shapes))
        for machine, part in nesting.of_machines(program, self.plans).items():
            self.router(machine, "apply", text=json.dumps(as_data(part)))
        return shapes

    def readback(self, shapes: dict[Pair, PathShape]) -> tuple[str, ...]:
        shown = nesting.merged([json.loads(self.router(machine, "read")) for machine in self.plans])
        return tc.problems(self.wan_plan(shapes), shown)

    def router(self, machine: str, verb: str, *words: str, text: str = "") -> str:
        plan = str(self.plans[machine].directory / "plan.json")
        return self.anchors.module(machine, "discovery_deploy.agent.wan_router", verb, plan, *words, text=text)

    def up(self) -> None:
        """Make, or mend, what is on every machine."""
        for machine in self.plans:
            self.containers(machine, "up")

    def containers(self, machine: str, verb: str) -> str:
        plan = str(self.plans[machine].directory / "plan.json")
        return self.anchors.module(machine, "discovery_deploy.agent.containers", verb, plan)


def plans_of(asked: Experiment, folder: Path, mode: str) -> dict[str, Plan]:
    """Plans of hosts that are only namespaces, in directories below a folder."""
    addresses = dict(zip(nesting.machines(asked), ADDRESSES, strict=False))
    plans = nesting.machine_plans(asked, addresses, SLOT, Path("/s"), folder, folder, "none")
    return {
        name: replace(
            plan,
            directory=folder / name / "state",
            router=WanRouter(f"dd{SLOT}-router", mode),
            hosts=tuple(replace(host, system=False) for host in plan.hosts),
        )
        for name, plan in plans.items()
    }


def whole_plan(asked: Experiment, plans: dict[str, Plan]) -> Plan:
    """The plan of all hosts and sites, as the tests read it."""
    plan = local.machine_plan(asked, SLOT, Path("/s"), Path("/s"), Path("/s"), "none")
    return replace(plan, directory=next(iter(plans.values())).directory.parents[1])


@contextlib.contextmanager
def machines(folder: Path, sites: Sequence[str], hosts_per_machine: int, mode: str = "auto") -> Iterator[MachinesWan]:
    """Sites on machines that are up, with their routers; nothing is left at the end, which is looked at."""
    asked = experiment(sites, hosts_per_machine)
    plans = plans_of(asked, folder, mode)
    for plan in plans.values():
        directory = plan.directory
        make_own(directory)
        (directory / "plan.json").write_text(json.dumps(as_data(plan)))
    with anchors(list(plans)) as found:
        wan = MachinesWan(whole_plan(asked, plans), found, plans)
        wan.up()
        yield wan
