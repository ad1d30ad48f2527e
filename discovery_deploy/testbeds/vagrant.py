"""Provider `vagrant`: every host is a virtual machine of this machine, made by EnOSlib's Vagrant provider.

All machines are on one network; each shapes what it sends. What is asked is in `vagrant_plan`; who tells what there is,
in `hypervisor`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import machine, site_networks
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.names import is_name
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.provider_models import Vagrant
from discovery_deploy.software import box
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import side_by_side
from discovery_deploy.testbeds import acceleration, vagrant_plan
from discovery_deploy.testbeds.base import HOLDER, Lack, folder_of, noted_holder
from discovery_deploy.testbeds.enoslib_calls import Enoslib
from discovery_deploy.testbeds.first_login import Entered, enter, host_keys, way_in
from discovery_deploy.testbeds.hypervisor import BACKENDS, PACKAGES, Hypervisor, Libvirt
from discovery_deploy.testbeds.local import state_directory
from discovery_deploy.testbeds.vagrant_plan import Request, Way

FOLDER = "vagrant"
"""Of the state directory."""
ASKED = "request.json"
"""File beside an experiment's machines: what was asked of Vagrant."""
WAYS = "ways.json"
"""File with how ssh reaches the machines with Vagrant's keys."""
KNOWN = "known_hosts"
"""File with the host keys that the machines showed at their first login since Vagrant started them."""
LOG = "vagrant.log"
MARK = "DISCOVERY_DEPLOY_VAGRANT"
"""Environment variable of Vagrant's processes: the directory of their experiment."""


@contextmanager
def _as_testbed_error(experiment_name: str) -> Iterator[None]:
    try:
        yield
    except MachineError as error:
        raise TestbedError(f"{experiment_name}: {error.what}", error.advice) from error


class VagrantProvider:
    """Virtual machines, made by Vagrant.

    Args:
        cache: directory of the cache: EnOSlib's environment and our box.
        state: where experiments keep what is known of their machines; default: `state_directory()`.
    """

    def __init__(self, cache: Path, state: Path | None = None) -> None:
        self.cache = cache.absolute()
        self.state = (state or state_directory()) / FOLDER

    def lacks(self) -> list[Lack]:
        """What this machine lacks for the backend libvirt and our box."""
        return self._lacks("libvirt", box.NAME)

    def _lacks(self, backend: str, box_name: str) -> list[Lack]:
        needed = {"vagrant": "vagrant", "ssh": "openssh-client"}
        if backend == "libvirt":
            needed |= {"virsh": PACKAGES["virsh"], acceleration.EMULATOR: "qemu-system-x86", "dnsmasq": "dnsmasq-base"}
        else:
            needed["VBoxManage"] = PACKAGES["VBoxManage"]
        missing = machine.missing_commands(needed)
        if missing:
            return [
                Lack(what=f"the command {command}", command=f"apt-get install -y {package}")
                for command, package in sorted(missing.items())
            ]
        return [*_backend_lacks(backend), *self._box_lacks(backend, box_name)]

    def _box_lacks(self, backend: str, box_name: str) -> list[Lack]:
        if box_name != box.NAME:
            known = [(name, provider) for name, provider, _ in box.boxes()]
            if (box_name, backend) in known:
                return []
            command = f"vagrant box add --provider {backend} {box_name}"
            return [Lack(what=f'Vagrant has no box "{box_name}" for {backend}', command=command)]
        if backend != "libvirt":
            other = "debian/bookworm64"
            what = f'the box "{box.NAME}" is for libvirt; for {backend}, write `box: {other}` and `user: vagrant`'
            return [Lack(what=what, command=f"vagrant box add --provider {backend} {other}")]
        directory = box.built(self.cache)
        if directory.is_dir() and box.box_version(directory.name) in box.versions():
            return []
        return [Lack(what=f'Vagrant has no box "{box.NAME}" of this version', command="discovery-deploy box build")]

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Make or mend the experiment's machines. See `ProviderInterface`."""
        provider = experiment.provider
        if not isinstance(provider, Vagrant):
            raise TypeError(f"{experiment.name}: its provider is {provider.type}")
        lacks = self._lacks(provider.backend, provider.box)
        if lacks:
            raise TestbedError("\n".join(f"missing: {lack.what}" for lack in lacks), _commands(lacks))
        hypervisor = BACKENDS[provider.backend]()
        asked = self._request(experiment, provider, hypervisor, workspace, progress)
        directory = folder_of(self.state, experiment.name)
        addresses = vagrant_plan.addresses(asked.network, asked.machines)
        ways = read_ways(directory)
        if not self._all_well(hypervisor, asked, ways):
            ways = self._start(asked, progress)
        known = directory / KNOWN
        entered = side_by_side(
            lambda way: enter(way.name, way_in(way, known), public_key, addresses),
            [ways[name] for name in asked.machines],
        )
        found = dict(zip(asked.machines, entered, strict=True))
        return lease(experiment, asked, ways, found, hypervisor, host_keys(known))

    def _request(
        self,
        experiment: Experiment,
        provider: Vagrant,
        hypervisor: Hypervisor,
        workspace: Path | None,
        progress: Progress,
    ) -> Request:
        """The experiment's request, written down; machines of another one are given back before."""
        directory = folder_of(self.state, experiment.name)
        count = sum(len(site.hosts) for site in experiment.sites)
        with _as_testbed_error(experiment.name), machine.hold(self.state, wait_s=60):
            old = read_request(directory)
            network = old.network if old and old.backend == provider.backend else self._network(provider, hypervisor)
            most = vagrant_plan.most_machines(network)
            if count > most:
                raise TestbedError(
                    f"{experiment.name}: {count} hosts; Vagrant's network holds {most}", "Ask for fewer."
                )
            asked = vagrant_plan.request(experiment, provider, network)
            if old != asked and (old is not None or hypervisor.left(vagrant_plan.prefix(experiment.name))):
                progress("the machines that are there are of another request: they are made anew")
                self._destroy(experiment.name, progress)
            machine.make_own(directory, known=_is_known(directory))
            machine.replace(directory / ASKED, asked.model_dump_json(indent=2) + "\n")
            if workspace is not None:
                machine.replace(directory / HOLDER, f"{workspace}\n")
            return asked

    def _network(self, provider: Vagrant, hypervisor: Hypervisor) -> str:
        observed = site_networks.observe(0)
        taken = [text for _, text in (*observed.addresses, *observed.routes)]
        taken += hypervisor.networks().values()
        taken += [asked.network for name in self._recorded() if (asked := read_request(self.state / name))]
        free = vagrant_plan.free_networks(provider.backend, taken)
        if not free:
            first, *_, last = vagrant_plan.NETWORKS[provider.backend]
            raise MachineError(
                f"this machine uses all networks from {first} to {last}",
                "release experiments (see `status`), or look at `ip route` for what uses these networks",
            )
        return free[0]

    def _all_well(self, hypervisor: Hypervisor, asked: Request, ways: dict[str, Way]) -> bool:
        """Whether all machines run, and it is known how they are reached."""
        names = {f"{vagrant_plan.prefix(asked.experiment)}{name}" for name in asked.machines}
        return names <= set(hypervisor.running()) and set(ways) == set(asked.machines)

    def _start(self, asked: Request, progress: Progress) -> dict[str, Way]:
        """Let EnOSlib start what does not run; machine -> how it is reached with Vagrant's key."""
        directory = folder_of(self.state, asked.experiment)
        end_marked(f"{MARK}={directory}")
        for file in (WAYS, KNOWN):
            (directory / file).unlink(missing_ok=True)
        settings, version = self._libvirt(asked, progress), None
        if asked.box == box.NAME:
            version = box.box_version(box.built(self.cache).name)
        text = vagrant_plan.vagrantfile(asked, settings, version)
        progress(f"Vagrant starts {len(asked.machines)} machines")
        arguments = {"configuration": vagrant_plan.configuration(asked, text), "log": str(directory / LOG)}
        limit_s = vagrant_plan.START_LIMIT_S + vagrant_plan.START_LIMIT_PER_MACHINE_S * len(asked.machines)
        answer = self._enoslib(asked.experiment, asked.backend)("vagrant.reserve", arguments, progress, limit_s)
        ways = {way.name: way for way in map(Way.model_validate, answer)}
        machine.replace(directory / WAYS, json.dumps([way.model_dump() for way in ways.values()], indent=2) + "\n")
        return ways

    def _libvirt(self, asked: Request, progress: Progress) -> dict[str, str]:
        """Settings of Vagrant's libvirt provider; empty with another backend."""
        if asked.backend != "libvirt":
            return {}
        boot: dict[str, str] = {}
        kernel = None
        if asked.box == box.NAME:
            # libvirt's own account reads them: Vagrant's copy is in a home directory
            built = box.built(self.cache)
            boot, kernel = {name: str(built / file) for name, file in box.BOOT.items()}, built / box.BOOT["kernel"]
        found = acceleration.acceleration(self.cache, kernel, progress)
        emulator = self.cache / box.FOLDER / "emulator"
        if not found.kvm:
            progress(f"machines are emulated, and slow: {found.why}")
            qemu = shutil.which(acceleration.EMULATOR) or acceleration.EMULATOR
            emulator.parent.mkdir(parents=True, exist_ok=True)
            machine.replace(emulator, vagrant_plan.emulator_text(qemu), 0o755)
            if boot:
                boot["cmd_line"] = f"{box.COMMAND_LINE} {box.EMULATED}"
        return vagrant_plan.libvirt_settings(found.kvm, str(emulator), boot)

    def _enoslib(self, experiment_name: str, backend: str) -> Enoslib:
        directory = folder_of(self.state, experiment_name)
        # Vagrant names networks after the directory that it works in
        working = directory / vagrant_plan.prefix(experiment_name)
        variables = {"VAGRANT_DEFAULT_PROVIDER": backend, MARK: str(directory)}
        return Enoslib(self.cache, working, variables, directory / LOG)

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Hosts whose machines do not run."""
        running = BACKENDS[lease.details["backend"]]().running()
        before = vagrant_plan.prefix(lease.experiment)
        return [host.name for host in lease.hosts if f"{before}{host.name}" not in running]

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider vagrant has no WAN router")

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider vagrant has no WAN router")

    def router_facts(self, lease: Lease) -> str:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider vagrant has no WAN router")

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Destroy all machines of an experiment, from any state, and see that none is left."""
        with _as_testbed_error(experiment_name):
            directory = folder_of(self.state, experiment_name)
            known = _is_known(directory)
            self._destroy(experiment_name, progress)
            machine.remove_own(directory, known)
            for place in (self.state, self.state.parent):
                with suppress(OSError):  # others are still there
                    place.rmdir()

    def _destroy(self, experiment_name: str, progress: Progress) -> None:
        """Destroy machines, disks and networks: as Vagrant knows them, then whatever bears the experiment's name.

        Raises:
            TestbedError: something is left.
        """
        directory = folder_of(self.state, experiment_name)
        end_marked(f"{MARK}={directory}")
        asked, before = read_request(directory), vagrant_plan.prefix(experiment_name)
        backends = [asked.backend] if asked else [name for name in BACKENDS if _there(name)]
        if asked and (directory / before / "Vagrantfile").exists():
            progress("destroying the machines")
            limit_s = vagrant_plan.DESTROY_LIMIT_S + vagrant_plan.DESTROY_LIMIT_PER_MACHINE_S * len(asked.machines)
            try:
                self._enoslib(experiment_name, asked.backend)(
                    "vagrant.release", {"log": str(directory / LOG)}, progress, limit_s
                )
            except TestbedError as error:  # its records may be damaged; names are not
                progress(f"Vagrant could not: {error.what.splitlines()[0]}; machines are removed by name")
        for backend in backends:
            hypervisor = BACKENDS[backend]()
            removed = hypervisor.remove(before)
            if removed:
                progress(f"removed by name: {', '.join(removed)}")
            left = hypervisor.left(before)
            if left:
                raise TestbedError(f"{experiment_name}: {backend} still has {', '.join(left)}", "Release again.")
        machine.remove_own(directory / before, known=True)  # Vagrant's own, in ours
        for file in (ASKED, WAYS, KNOWN):
            (directory / file).unlink(missing_ok=True)

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which an experiment's machines were last reserved."""
        return noted_holder(folder_of(self.state, experiment_name))

    def experiments(self) -> list[str]:
        """Names of experiments with machines, or with something written down about them."""
        names = set(self._recorded())
        for backend in BACKENDS:
            if _there(backend):
                names |= {name.split("_")[1] for name in BACKENDS[backend]().machines() if name.startswith("dd_")}
        return sorted(filter(is_name, names))

    def _recorded(self) -> list[str]:
        return [entry.name for entry in machine.entries(self.state) if entry.is_dir() and is_name(entry.name)]


def lease(
    experiment: Experiment,
    asked: Request,
    ways: dict[str, Way],
    entered: dict[str, Entered],
    hypervisor: Hypervisor,
    keys: dict[str, str],
) -> Lease:
    """The lease of an experiment whose machines run and were entered."""
    before = vagrant_plan.prefix(asked.experiment)
    hosts = [
        LeasedHost(
            name=host.name, site=site.name, roles=host.roles, management_address=ways[host.name].address,
            site_address=entered[host.name].address, site_device=entered[host.name].device,
            ssh={} if ways[host.name].port == 22 else {"Port": str(ways[host.name].port)},
        )
        for site in experiment.sites
        for host in site.hosts
    ]  # fmt: skip
    return Lease(
        provider="vagrant", experiment=experiment.name, hosts=tuple(hosts), router="hosts", shaped="hosts",
        software="shipped", site_subnets={}, site_devices={}, site_gateways={},
        identities={host.name: hypervisor.identity(f"{before}{host.name}") for host in hosts},
        details={"backend": asked.backend, "box": asked.box, "network": asked.network, "host_keys": keys},
    )  # fmt: skip


def end_marked(variable: str, limit_s: float = 30.0) -> None:
    """End processes that a killed driver has left: Vagrant asked to end goes on making machines for a while.

    Args:
        variable: `NAME=value` in their environment.
        limit_s: how long they may take to be gone, in seconds.
    Raises:
        TestbedError: one does not end.
    """
    end = time.monotonic() + limit_s
    while left := marked(variable):
        if time.monotonic() > end:
            raise TestbedError(f"process {left[0]} of Vagrant does not end", f"Look at it: `ps {left[0]}`.")
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def marked(variable: str) -> list[int]:
    """Ids of the processes, but this one, that have a variable in their environment; dead ones have none."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (place / "environ").read_bytes().split(b"\0") and int(place.name) != os.getpid():
                found.append(int(place.name))
    return sorted(found)


def _is_known(directory: Path) -> bool:
    """Whether a directory is ours although it may lack our mark."""
    return any((directory / name).exists() for name in (ASKED, WAYS, LOG, vagrant_plan.prefix(directory.name)))


def read_request(directory: Path) -> Request | None:
    """What was asked for the machines of a directory; None when it is not there or cannot be read."""
    with suppress(OSError, ValueError):
        return Request.model_validate_json((directory / ASKED).read_text(encoding="utf-8"))
    return None


def boxes_in_use(state: Path) -> dict[str, list[str]]:
    """Name of a box in the cache -> experiments whose machines start from its kernel.

    Args:
        state: where experiments keep what is known of their machines.
    """
    found: dict[str, list[str]] = {}
    for directory in machine.entries(state):
        with suppress(OSError):
            text = (directory / vagrant_plan.prefix(directory.name) / "Vagrantfile").read_text(encoding="utf-8")
            for name in sorted(set(re.findall(rf"/{box.FOLDER}/([0-9a-f]+)/", text))):
                found.setdefault(name, []).append(directory.name)
    return found


def read_ways(directory: Path) -> dict[str, Way]:
    """Machine -> how it is reached; empty when that is not known."""
    with suppress(OSError, ValueError):
        listed = json.loads((directory / WAYS).read_text(encoding="utf-8"))
        return {way.name: way for way in map(Way.model_validate, listed)}
    return {}


def _there(backend: str) -> bool:
    """Whether a backend can be asked: where it is not installed, or does not run, it has no machines."""
    try:
        BACKENDS[backend]().machines()
    except TestbedError:
        return False
    return True


def _backend_lacks(backend: str) -> list[Lack]:
    if backend != "libvirt":
        return []
    lacks = []
    try:
        Libvirt().machines()
    except TestbedError as error:
        what = f"libvirt does not answer: {error.what.splitlines()[-1].strip()}"
        lacks.append(Lack(what=what, command="systemctl start libvirtd.service"))
    if "vagrant-libvirt" not in box.vagrant("plugin", "list"):
        lacks.append(Lack(what="Vagrant's plugin vagrant-libvirt", command="apt-get install -y vagrant-libvirt"))
    return lacks


def _commands(lacks: list[Lack]) -> str:
    return "\n  ".join(["Run:", *dict.fromkeys(lack.command for lack in lacks)])
