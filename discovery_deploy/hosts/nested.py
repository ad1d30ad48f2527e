"""Hosts as containers on the machines of another provider, where an experiment says `hosts_per_machine`.

`Nested` stands around a provider. Experiments with direct hosts it leaves to that provider alone. Of the others it asks
machines of it, brings them what `machine_verbs` needs, the base image and a plan each, and lets them make the hosts.

It has a key of its own for the machines, kept beside its record: so they are reached without a workspace.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from discovery_deploy.agent import machine, machine_verbs, wan_router
from discovery_deploy.agent.names import is_name
from discovery_deploy.agent.plan import Plan, TcProgram, as_data
from discovery_deploy.agent.wan_tunnels import UDP_PORT
from discovery_deploy.cloud.variables import EnvironmentsInterface
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts import nesting
from discovery_deploy.hosts.base_image import packed_tree, tree_name
from discovery_deploy.software import shipping
from discovery_deploy.software.software import hosts_environments
from discovery_deploy.system.agents import Agents
from discovery_deploy.system.errors import StateError, TestbedError
from discovery_deploy.system.files import write_file
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import Remote, on_all, remove_control_sockets, side_by_side, write_ssh_config
from discovery_deploy.system.strict import Strict
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds import local
from discovery_deploy.testbeds.base import HOLDER, BookingProvider, Lack, ProviderInterface, folder_of, noted_holder

UP_LIMIT_S = 900.0
RECORD, MACHINES = "record.json", "machines"
LASTING = ("static",)
"""Providers whose machines go on after `release`: what is on them does not go by itself."""


class Booked(ProviderInterface, BookingProvider, Protocol):
    """A provider whose hosts are booked for some time."""


class Record(Strict):
    """What a nested experiment has, so that it is found without its workspace."""

    machines: Lease
    plans: dict[str, Plan] = {}
    """Machine -> its plan, as long as something may be there."""


def machine_lease(lease: Lease) -> Lease | None:
    """The machines that the hosts of a lease are on; None when hosts are direct."""
    found = lease.details.get("machines")
    return Lease.model_validate(found) if found else None


def machine_remote(lease: Lease) -> Remote:
    """Ssh to the machines of a nested lease, by their names in `machine_lease`."""
    return Remote(Path(lease.details["machines_ssh_config"]))


def bring_environments(
    lease: Lease, experiment: Experiment, environments: EnvironmentsInterface, cache: Path, progress: Progress
) -> None:
    """Have the machines of a nested lease hold what their hosts use; the hosts see it. Raises TestbedError."""
    wanted = nesting.environments_of_machines(
        nesting.plans_of(lease), hosts_environments(experiment, lease, environments)
    )
    shipping.ship_environments(machine_remote(lease), wanted, cache, progress)


class Nested:
    """A provider whose machines may hold several hosts each. See `ProviderInterface`.

    Args:
        name: type of the provider, as in experiment files.
        inner: it.
        state: where records are kept; default: `local.state_directory()`.
    """

    def __init__(self, name: str, inner: ProviderInterface, state: Path | None = None) -> None:
        self.name = name
        self.inner = inner
        self.state = (state or local.state_directory()) / "nested" / name

    def lacks(self) -> list[Lack]:
        """What this machine lacks."""
        return self.inner.lacks()

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Obtain hosts: direct ones, or machines and containers on them. See `ProviderInterface`."""
        folder = folder_of(self.state, experiment.name)
        if nesting.hosts_per_machine(experiment) is None:
            if folder.exists():
                progress("hosts were containers, and become machines: all is given back before")
                self.release(experiment.name, progress)
            return self.inner.reserve(experiment, public_key, image, progress, workspace)
        with _as_testbed_error(experiment.name):
            machine.make_own(folder, known=_is_known(folder))
        if workspace is not None:
            write_file(folder / HOLDER, f"{workspace}\n", 0o600)
        own = Workspace(folder / MACHINES)
        asked = nesting.machines_experiment(experiment)
        names = [host.name for site in asked.sites for host in site.hosts]
        progress(f"{sum(len(site.hosts) for site in experiment.sites)} hosts on {len(names)} machines")
        before = self._record(experiment.name)
        if before is not None:
            before = self._leave(
                experiment.name, before, [name for name in before.plans if name not in names], progress
            )
            if own.ssh_config.exists():  # machines may be made anew behind their names
                Remote(own.ssh_config).close(host.name for host in before.machines.hosts)
        machines = self.inner.reserve(asked, own.public_key(), image, progress, own.path)
        others = machines.has_other_hosts(before.machines if before else None)
        write_ssh_config(own, machines.ways, machines.host_keys, others=others)
        record = Record(machines=machines, plans=before.plans if before else {})
        self._keep(experiment.name, record)
        return self._host(experiment, public_key, image, progress, record)

    def _host(self, experiment: Experiment, public_key: str, image: Path, progress: Progress, record: Record) -> Lease:
        """Make or mend the hosts on machines that are there."""
        own = Workspace(folder_of(self.state, experiment.name) / MACHINES)
        agents, addresses = _agents(Remote(own.ssh_config)), _addresses(record.machines)
        directory = machine_verbs.EXPERIMENTS / experiment.name
        seen = _prepared(agents, list(addresses), directory, _packages(experiment), progress)
        base = _bring_image(agents, seen, image, progress)
        slot = _common_slot(seen, record.plans)
        plans = nesting.machine_plans(
            experiment, addresses, slot, directory, base, Path(local.ENVIRONMENTS), public_key
        )
        self._keep(experiment.name, record.model_copy(update={"plans": {**record.plans, **plans}}))
        progress(f"starting hosts on {', '.join(plans)}")

        def up(name: str) -> dict[str, Any]:
            told = lambda line: progress(f"{name}: {line}")  # noqa: E731
            born: dict[str, Any] = agents.ask(name, "up", {"plan": as_data(plans[name])}, told, UP_LIMIT_S)
            return born

        born = {host: facts for made in on_all(up, list(plans)) for host, facts in made.items()}
        self._keep(experiment.name, record.model_copy(update={"plans": plans}))
        _check_tunnels(agents, plans)
        ways = {name: {"ProxyCommand": _proxy_command(own, name), "ConnectTimeout": "30"} for name in plans}
        details = {
            "machines": record.machines.model_dump(mode="json"),
            "machines_ssh_config": str(own.ssh_config),
            "host_keys": {name: facts["host_key"] for name, facts in born.items()},
        }
        return nesting.lease(experiment, plans, born, ways, details)

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Hosts that do not run or whose machine does not, and WAN routers."""
        machines = machine_lease(lease)
        if machines is None:
            return self.inner.dead_hosts(lease)
        plans = nesting.plans_of(lease)
        gone, agents = set(self.inner.dead_hosts(machines)), _agents(machine_remote(lease))

        def dead(name: str) -> list[str]:
            if name not in gone:
                try:
                    state = agents.ask(name, "status", {"plan": as_data(plans[name])})
                except TestbedError:
                    pass
                else:
                    return [*state["dead"], *([] if state["router"] else [f"WAN router of {name}"])]
            return [host.name for host in plans[name].hosts]

        return [host for found in side_by_side(dead, list(plans)) for host in found]

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Run a tc program: every machine's WAN router gets the lines for its own sites."""
        if machine_lease(lease) is None:
            return self.inner.shape(lease, program)
        plans, agents = nesting.plans_of(lease), _agents(machine_remote(lease))
        parts = nesting.of_machines(program, plans)

        def shape(name: str) -> None:
            agents.ask(name, "shape", {"plan": as_data(plans[name]), "program": as_data(parts[name])})

        on_all(shape, list(parts))
        return None

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """What tc shows in the WAN routers, as if they were one."""
        if machine_lease(lease) is None:
            return self.inner.read_shape(lease)
        return nesting.merged(self._ask(lease, "read"))

    def router_facts(self, lease: Lease) -> str:
        """The WAN routers' modes, kernels and scheduling."""
        if machine_lease(lease) is None:
            return self.inner.router_facts(lease)
        found = {wan_router.facts_text(facts) for facts in self._ask(lease, "facts")}
        number = len(lease.details["plans"])
        return f"{number} WAN routers ({'; '.join(sorted(found))}), a path is shaped by that of its destination"

    def _ask(self, lease: Lease, verb: str) -> list[Any]:
        """The answers of all machines."""
        plans, agents = nesting.plans_of(lease), _agents(machine_remote(lease))
        return on_all(lambda name: agents.ask(name, verb, {"plan": as_data(plans[name])}), list(plans))

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Remove the containers from every machine that can be reached, then give the machines back."""
        folder, record = folder_of(self.state, experiment_name), self._record(experiment_name)
        if record is not None:
            progress(f"removing {experiment_name} from its machines")
            record = self._leave(experiment_name, record, list(record.plans), progress)
        self.inner.release(experiment_name, progress)
        if folder.exists():
            own = folder / MACHINES
            if record is not None and (own / "ssh_config").exists():
                Remote(own / "ssh_config").close(host.name for host in record.machines.hosts)
            remove_control_sockets([own])
            with _as_testbed_error(experiment_name):
                machine.remove_own(folder, known=_is_known(folder))
            for parent in (self.state, self.state.parent, self.state.parent.parent):
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def _leave(self, experiment_name: str, record: Record, names: list[str], progress: Progress) -> Record:
        """Remove an experiment from machines; what is gone is written down.

        Raises:
            TestbedError: a machine that goes on cannot be reached; another one goes with what is on it.
        """
        if not names:
            return record
        agents = _agents(Remote(folder_of(self.state, experiment_name) / MACHINES / "ssh_config"))
        request = {"directory": str(machine_verbs.EXPERIMENTS / experiment_name)}

        def leave(name: str) -> str:
            try:
                agents.bring(name)
                agents.ask(name, "down", request)
            except TestbedError as error:
                return error.what
            return ""

        left = {name: why for name, why in zip(names, side_by_side(leave, names), strict=True) if why}
        gone = [name for name in names if name not in left or self.name not in LASTING]
        record = record.model_copy(
            update={"plans": {name: plan for name, plan in record.plans.items() if name not in gone}}
        )
        self._keep(experiment_name, record)
        if left and self.name in LASTING:
            lines = [f"{name}: hosts of {experiment_name} may still run there: {why}" for name, why in left.items()]
            raise TestbedError("\n".join(lines), "Have the machine answer, then release again.")
        for name, why in left.items():
            progress(f"{name} is given back with what is on it: {why}")
        return record

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which the hosts were last reserved."""
        return noted_holder(folder_of(self.state, experiment_name)) or self.inner.holder(experiment_name)

    def experiments(self) -> list[str]:
        """Names of the experiments that hold something here."""
        own = {entry.name for entry in machine.entries(self.state) if is_name(entry.name)}
        return sorted(own | set(self.inner.experiments()))

    def _record(self, experiment_name: str) -> Record | None:
        folder = folder_of(self.state, experiment_name)
        if not (folder / RECORD).exists():
            return None
        try:
            return Record.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
        except ValueError as error:
            raise StateError(
                f"{folder / RECORD}: cannot be read: {error}", "Remove it; then release by hand."
            ) from error

    def _keep(self, experiment_name: str, record: Record) -> None:
        write_file(folder_of(self.state, experiment_name) / RECORD, record.model_dump_json(indent=2), 0o600)


class NestedBooking(Nested):
    """The same around a provider whose hosts are booked for some time. See `BookingProvider`."""

    def __init__(self, name: str, inner: Booked, state: Path | None = None) -> None:
        super().__init__(name, inner, state)
        self.booked = inner

    def request_text(self, experiment: Experiment) -> str:
        """What would be booked: machines, where hosts share them."""
        direct = nesting.hosts_per_machine(experiment) is None
        return self.booked.request_text(experiment if direct else nesting.machines_experiment(experiment))

    def ends_at(self, lease: Lease) -> float | None:
        """When the first machine goes."""
        return self.booked.ends_at(machine_lease(lease) or lease)

    def extend(self, experiment_name: str, seconds: float, progress: Progress) -> str:
        """Ask for so much more time."""
        return self.booked.extend(experiment_name, seconds, progress)


@contextmanager
def _as_testbed_error(experiment_name: str) -> Iterator[None]:
    try:
        yield
    except machine.MachineError as error:
        raise TestbedError(f"{experiment_name}: {error.what}", error.advice) from error


def _agents(machines: Remote) -> Agents:
    return Agents(machines, machine_verbs.HOME)


def _is_known(folder: Path) -> bool:
    """Whether a folder is ours although it may lack our mark."""
    return any((folder / name).exists() for name in (RECORD, MACHINES))


def _proxy_command(own: Workspace, name: str) -> str:
    """How ssh reaches hosts of a machine: through one connection to it, which the first to come makes.

    Many at once would be refused by the machine's sshd (MaxStartups).
    """
    ssh = f"ssh -F {shlex.quote(str(own.ssh_config))}"
    lock = shlex.quote(str(own.path / f"{name}.lock"))
    # -n: the first ssh must not read what the second one is to pass on
    script = f"flock -o {lock} {ssh} -n {name} true > /dev/null && exec {ssh} -o ControlMaster=no -W '[%h]:%p' {name}"
    return f"sh -c {shlex.quote(script)}".replace("%", "%%").replace("[%%h]:%%p", "[%h]:%p")


def _addresses(machines: Lease) -> dict[str, str]:
    """Machine -> its address for the other machines."""
    return {host.name: host.site_address for host in machines.hosts}


def _packages(experiment: Experiment) -> str:
    return "network" if experiment.provider.type == "local" else experiment.provider.packages


def _prepared(
    agents: Agents, names: list[str], directory: Path, packages: str, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What there is on machines, once they have the commands that they need."""

    def one(name: str) -> dict[str, Any]:
        agents.bring(name)
        for _ in range(2):  # whether the kernel has netem, and what is missing otherwise, is told once tc is there
            seen: dict[str, Any] = agents.ask(name, "look", {"directory": str(directory)})
            if not seen["netem"] and len(names) > 1:
                what = f"{name}: its kernel has no netem, which a WAN router that reaches other machines needs"
                advice = "machines whose kernel has sch_netem, sch_htb and cls_u32 (Debian's has), or a single machine"
                raise TestbedError(what, f"Take {advice}.")
            if not seen["missing"]:
                break
            install(name, seen["missing"])
        return seen

    def install(name: str, missing: Mapping[str, str]) -> None:
        wanted = sorted(set(missing.values()))
        if packages != "network":
            raise TestbedError(
                f"{name}: lacks the commands {', '.join(sorted(missing))}, and packages are carried",
                f"Use machines that have {' '.join(wanted)}, or `packages: network`.",
            )
        progress(f"{name}: installing {', '.join(wanted)}")
        agents.ask(name, "install", {"packages": wanted}, limit_s=2 * machine_verbs.INSTALL_LIMIT_S)

    return dict(zip(names, on_all(one, names), strict=True))


def _bring_image(agents: Agents, seen: Mapping[str, Mapping[str, Any]], image: Path, progress: Progress) -> Path:
    """Have every machine hold the base image; where it is there."""
    name = tree_name(image)
    lacking = [machine for machine, found in seen.items() if name not in found["images"]]
    if lacking:
        progress(f"sending the base image to {', '.join(lacking)}")
        with packed_tree(image) as (archive, sha256):
            request = {"name": name, "sha256": sha256}
            on_all(
                lambda machine: agents.ask(
                    machine, "image", request, limit_s=machine_verbs.IMAGE_LIMIT_S, archive=archive
                ),
                lacking,
            )
    return machine_verbs.IMAGES / name


def _common_slot(seen: Mapping[str, Mapping[str, Any]], plans: Mapping[str, Plan]) -> int:
    """A slot that is free on all machines: the one that the experiment has, when that is still so."""
    common = set.intersection(*(set(found["slots"]) for found in seen.values()))
    for plan in plans.values():
        if plan.slot in common:
            return plan.slot
    if not common:
        raise TestbedError(
            f"no slot is free on all of {', '.join(seen)}: their networks 10.64.0.0 to 10.191.255.255 are in use",
            "Release experiments there, or look at `ip route` on the machines.",
        )
    return int(min(common))


def _check_tunnels(agents: Agents, plans: Mapping[str, Plan]) -> None:
    """Whether every machine's WAN router reaches the others. Raises TestbedError."""
    silent = on_all(lambda name: agents.ask(name, "reach", {"plan": as_data(plans[name])}), list(plans))
    pairs = [f"{name} -> {other}" for name, others in zip(plans, silent, strict=True) for other in others]
    if pairs:
        raise TestbedError(
            f"between machines nothing passes through the tunnels of their WAN routers: {', '.join(pairs)}",
            f"Let UDP port {UDP_PORT}, and fragments, pass between the machines, also in their own packet filters.",
        )
