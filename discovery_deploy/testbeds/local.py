"""Provider `local`: every host is a system container of this machine.

Decides (slot, addresses, the machine plan); `containers` and `wan_router` act.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from discovery_deploy.agent import cgroups, containers, machine, nspawn, site_networks, uml_kernel, wan_router
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.machine_plans import SLOTS, clear, free_slots, read_plan, write_plan
from discovery_deploy.agent.names import is_name
from discovery_deploy.agent.plan import Bind, Host, Plan, Site, TcProgram, WanRouter, as_data, read
from discovery_deploy.agent.wan_uml import UmlRouter
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.testbeds.base import HOLDER, Lack, folder_of, noted_holder

HOSTS_PER_SITE = 245
"""Addresses 10 to 254 of the site's network."""

ENVIRONMENTS = "/opt/discovery-deploy"
"""Where hosts see the cache's Python environments, read-only."""

ROUTER = "WAN router"

NOT_OURS = frozenset({"vagrant", "g5k", "static", "nested"})
"""Folders of the state directory where other providers keep theirs; no experiment of this one is called so."""

_NEEDED = {"mmdebstrap": "mmdebstrap", "ssh": "openssh-client"}
"""Commands that this provider needs beside those of `containers`, and their Debian packages."""


REGISTERS = "set fp regs failed"
"""The last words of a User-Mode Linux that cannot restore all of a processor's registers."""
_CHOOSE_STATE = "export DISCOVERY_DEPLOY_STATE=/srv/discovery-deploy  # on ext4, xfs, btrfs or tmpfs"


def state_directory() -> Path:
    """Where local experiments keep their hosts: $DISCOVERY_DEPLOY_STATE, else /var/lib/discovery-deploy.

    Without symbolic links: running hosts are known by their paths, which must be the same whatever way they are named.
    """
    return Path(os.environ.get("DISCOVERY_DEPLOY_STATE") or "/var/lib/discovery-deploy").resolve()


def machine_plan(
    experiment: Experiment,
    slot: int,
    directory: Path,
    base: Path,
    environments: Path,
    public_key: str,
) -> Plan:
    """The machine plan of an experiment in a slot. Pure.

    Args:
        experiment: its sites and hosts count, nothing else.
        slot: 0 to 63; decides names and addresses.
        directory: where the experiment keeps everything on this machine.
        base: unpacked base image.
        environments: directory that hosts see at /opt/discovery-deploy.
        public_key: may log in as root.
    Raises:
        TestbedError: a site has more hosts than addresses.
    """
    if not 0 <= slot < SLOTS:
        raise ValueError(f"slot {slot} is not in 0..{SLOTS - 1}")
    sites = tuple(
        Site(
            name=site.name,
            index=index,
            bridge=f"dd{slot}s{index}",
            router_device=f"vec{index}",
            tap=f"dd{slot}t{index}",
            gateway=f"10.{128 + slot}.{index}.1",
            subnet=f"10.{128 + slot}.{index}.0/24",
        )
        for index, site in enumerate(experiment.sites)
    )
    return Plan(
        slot=slot,
        directory=directory,
        experiment=experiment.name,
        base=base,
        binds=(Bind(environments, ENVIRONMENTS),),
        authorized_keys=(public_key.strip(),),
        sites=sites,
        hosts=tuple(_planned_hosts(experiment, slot)),
        router=WanRouter(f"dd{slot}-router", memory_mb=wan_router.memory_mb(len(sites))),
    )


def _planned_hosts(experiment: Experiment, slot: int) -> Iterator[Host]:
    number = 0
    for index, site in enumerate(experiment.sites):
        if len(site.hosts) > HOSTS_PER_SITE:
            raise TestbedError(
                f'site "{site.name}" has {len(site.hosts)} hosts; a site of `local` has {HOSTS_PER_SITE} addresses',
                "Spread them over more sites.",
            )
        for place, host in enumerate(site.hosts):
            yield Host(
                name=host.name,
                site=site.name,
                namespace=f"dd{slot}-{host.name}",
                site_address=f"10.{128 + slot}.{index}.{10 + place}",
                site_device=f"dd{slot}e{number}",
                management_address=f"10.{64 + slot}.{number // 200}.{10 + number % 200}",
                management_device=f"dd{slot}n{number}",
            )
            number += 1


_ADVICE = {
    errno.ENOSPC: "Free space there (see `df -h {place}`)",
    errno.EACCES: "Become root, which containers and networks need (`sudo -i`)",
    errno.EPERM: "Become root, which containers and networks need (`sudo -i`)",
}


@contextmanager
def _as_testbed_error(experiment_name: str) -> Iterator[None]:
    """What goes wrong on the machine, as a failure of the testbed that names the experiment."""
    try:
        yield
    except MachineError as error:
        raise TestbedError(f"{experiment_name}: {error.what}", error.advice) from error
    except OSError as error:
        place = error.filename or state_directory()
        advice = _ADVICE.get(error.errno or 0, "Look at {place}").format(place=place)
        raise TestbedError(f"{experiment_name}: {place}: {error.strerror}", f"{advice}, then try again.") from error


class LocalProvider:
    """Hosts on this machine.

    Args:
        environments: directory of Python environments that hosts see; default: the cache's.
        state: where experiments keep their hosts; default: `state_directory()`.
    """

    def __init__(self, environments: Path | None = None, state: Path | None = None) -> None:
        cache = Path(os.environ.get("DISCOVERY_DEPLOY_CACHE") or "/var/cache/discovery-deploy")
        self.environments = environments or cache / "environments"
        self.state = state or state_directory()

    def lacks(self) -> list[Lack]:
        """What this machine lacks; found by trying where that is possible."""
        if os.geteuid() != 0:
            return [Lack(what="containers and networks need root", command="sudo -i")]
        missing = containers.missing_commands() | machine.missing_commands(_NEEDED)
        found = [
            Lack(what=f"the command {command}", command=f"apt-get install -y {package}")
            for command, package in sorted(missing.items())
        ]
        found = found or [lack for lack in (*_kernel_lacks(self.state), *_router_lacks()) if lack is not None]
        return found or list(_router_start_lacks(self.state))

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Make or mend the experiment's containers, networks and router. See `ProviderInterface`."""
        if experiment.name in NOT_OURS:
            what = f'"{experiment.name}" is the folder of another provider in {self.state}'
            raise TestbedError(what, "Give the experiment another name.")
        directory = folder_of(self.state, experiment.name)
        problem = wan_router.directory_problem(directory)
        if problem:  # told before anything is made
            raise TestbedError(f"{experiment.name}: {problem}", f"Choose another one: {_CHOOSE_STATE}")
        with _as_testbed_error(experiment.name):
            self.environments.mkdir(parents=True, exist_ok=True)
            with machine.hold(self.state, wait_s=60):
                plan = self._plan(experiment, public_key, image, progress)
                if workspace is not None:
                    machine.replace(directory / HOLDER, f"{workspace}\n")
            containers.up(plan, progress)
            return lease(experiment, plan, directory)

    def _plan(self, experiment: Experiment, public_key: str, image: Path, progress: Progress) -> Plan:
        """The experiment's plan, in the slot that it has already or in a free one; written to plan.json."""
        directory = folder_of(self.state, experiment.name)
        old = read_plan(directory)

        def planned(slot: int) -> Plan:
            return machine_plan(experiment, slot, directory, image, self.environments, public_key)

        if old is not None and old.same_hosts(planned(old.slot)) and machine.claim(old.slot, directory):
            plan = planned(old.slot)
        else:
            if old is not None or machine.slots_of(directory):
                progress("the hosts that are there are of another plan: they are made anew")
                clear(directory)
            plan = planned(self._take_slot(directory))
        write_plan(directory, plan)
        return plan

    def _take_slot(self, directory: Path) -> int:
        observed = site_networks.observe(0)
        for slot in free_slots(machine.slots_in_use(), observed):
            if machine.claim(slot, directory):
                return slot
        raise MachineError(
            f"none of the {SLOTS} slots of this machine is free, with their networks 10.64.0.0 to 10.191.255.255",
            "release experiments (see `status`), or look at `ip route` for what uses these networks",
        )

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Hosts that do not run, and the router as "WAN router" when it does not."""
        plan = plan_of(lease)
        with _as_testbed_error(lease.experiment):
            dead = [name for name, state in containers.status(plan).items() if state["state"] != "running"]
            return dead if wan_router.alive(plan) else [*dead, ROUTER]

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Run a tc program in the WAN router."""
        with _as_testbed_error(lease.experiment):
            wan_router.apply(plan_of(lease), program)

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """What tc shows in the WAN router."""
        with _as_testbed_error(lease.experiment):
            return wan_router.read(plan_of(lease))

    def router_facts(self, lease: Lease) -> str:
        """The WAN router's mode, kernel and scheduling, and hosts' congestion control."""
        with _as_testbed_error(lease.experiment):
            facts = wan_router.facts(plan_of(lease))
        return (
            f"{wan_router.facts_text(facts)}, scheduled by {facts['scheduling']}; "
            f"TCP between sites: {site_networks.CONGESTION_CONTROL}"
        )

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Remove everything of an experiment from this machine, from any state, with or without its plan."""
        if experiment_name in NOT_OURS:
            return
        directory = folder_of(self.state, experiment_name)
        with _as_testbed_error(experiment_name):
            progress(f"removing {experiment_name} from this machine")
            clear(directory)
            with suppress(OSError):  # others are still there
                self.state.rmdir()

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which an experiment's hosts were last reserved; None when there are none, or unknown."""
        return noted_holder(folder_of(self.state, experiment_name))

    def experiments(self) -> list[str]:
        """Names of experiments that have something on this machine."""
        names = {directory.name for directory in machine.claims().values() if directory.parent == self.state}
        # what has no name of an experiment is not ours, or a host's that another driver was given: this machine
        names |= {entry.name for entry in machine.entries(self.state) if entry.is_dir()}
        return sorted(name for name in names - NOT_OURS if is_name(name))


def lease(experiment: Experiment, plan: Plan, directory: Path) -> Lease:
    """The lease of an experiment whose plan is up."""
    roles = {host.name: host.roles for site in experiment.sites for host in site.hosts}
    born = {host.name: nspawn.born(plan, host) for host in plan.hosts}
    return Lease(
        provider="local",
        experiment=experiment.name,
        hosts=tuple(
            LeasedHost(
                name=host.name, site=host.site, roles=roles[host.name],
                management_address=host.management_address, site_address=host.site_address,
            )
            for host in plan.hosts
        ),
        site_subnets={site.name: site.subnet for site in plan.sites},
        site_devices={site.name: site.router_device for site in plan.sites},
        site_gateways={site.name: site.gateway for site in plan.sites},
        router=(directory / "router" / "mode").read_text().strip(),
        identities={name: facts["machine_id"] for name, facts in born.items()},
        details={
            "plan": as_data(plan),
            "host_keys": {name: facts["host_key"] for name, facts in born.items()},
        },
    )  # fmt: skip


def plan_of(lease: Lease) -> Plan:
    """The plan of a lease's hosts. Raises MachineError when it was damaged."""
    return read(lease.details["plan"])


UNKNOWN_SLOT = -1
"""Of a plan that this user may not read."""


def known_plans(state: Path | None = None) -> list[Plan]:
    """Plans of the experiments that hold something on this machine: in a state directory, and behind every claim.

    Of one that this user may not read only the name is known.
    """
    state = state or state_directory()
    directories = {*machine.claims().values(), *(entry for entry in machine.entries(state) if entry.is_dir())}
    found = []
    for directory in sorted(directories):
        try:
            plan = read_plan(directory)
        except PermissionError:
            plan = Plan(UNKNOWN_SLOT, directory, directory.name)
        found += [plan] if plan is not None else []
    return found


@contextmanager
def plans_held(state: Path | None = None) -> Iterator[list[Plan]]:
    """As `known_plans`, while no other reservation is made in the state directory. Raises TestbedError."""
    state = state or state_directory()
    with _as_testbed_error("the cache"):
        with machine.hold(state, wait_s=60):
            yield known_plans(state)
        with suppress(OSError):  # experiments are there
            state.rmdir()


def _kernel_lacks(state: Path) -> Iterator[Lack | None]:
    """What the kernel and its settings lack, found by trying."""
    yield _tried(
        lambda: cgroups.hierarchies(),
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
    )
    for kind in ("bridge", "veth"):
        attempt = partial(machine.run, "unshare", "--net", "ip", "link", "add", "t0", "type", kind)
        yield _tried(attempt, f"modprobe {kind}")
    if not containers.inotify_can_do():
        yield Lack(
            what="fs.inotify.max_user_instances is too low for containers and cannot be raised from here",
            command=f"sysctl -w fs.inotify.max_user_instances={containers.INOTIFY_INSTANCES}",
        )
    place = _existing(state)
    problem = nspawn.overlay_problem(place)
    if problem:
        yield Lack(what=f"{state} cannot hold hosts' files: {problem}", command=_CHOOSE_STATE)
    unnamed = wan_router.directory_problem(state)
    if unnamed:
        yield Lack(what=unnamed, command=_CHOOSE_STATE)


def _existing(path: Path) -> Path:
    """A directory, or the nearest one above that exists."""
    while not path.exists():
        path = path.parent
    return path


def _router_lacks() -> Iterator[Lack]:
    """What a WAN router in User-Mode Linux lacks; nothing where the kernel itself can shape."""
    if wan_router.kernel_has_netem():
        return
    for command, package in uml_kernel.missing_commands().items():
        yield Lack(
            what=f"this kernel has no netem, and the command {command} is absent, which User-Mode Linux needs here",
            command=f"apt-get install -y {package}",
        )
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        made = "mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200"
        yield Lack(what=f"/dev/net/tun: {error.strerror}", command=f"modprobe tun; {made}")


def _router_start_lacks(state: Path) -> Iterator[Lack]:
    """Start the kernel of a WAN router in User-Mode Linux once, as an experiment would, where one is needed."""
    if wan_router.kernel_has_netem():
        return
    place = _existing(state)
    with tempfile.TemporaryDirectory(prefix=".discovery-deploy-", dir=place) as folder:
        router = UmlRouter(Path(folder), wan_router.memory_mb(1), ())
        (router.directory / "calls").mkdir()
        try:
            router.start()
            router.wait_ready()
        except MachineError as error:
            shim = f"export {uml_kernel.SHIM_VARIABLE}=1" if REGISTERS in error.what else ""
            yield Lack(what=error.what, command=shim or error.advice.partition("Run: ")[2])
        finally:
            router.kill()


def _tried(attempt: Callable[[], object], command: str) -> Lack | None:
    try:
        attempt()
    except MachineError as error:
        return Lack(what=error.what, command=command)
    return None
