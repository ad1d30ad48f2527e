"""What the contract of providers is tried on: a small class for each provider, with hooks for what goes wrong there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import containers
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import enoslib_environment, stack
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.testbeds.g5k import G5kProvider
from discovery_deploy.testbeds.local import LocalProvider, plan_of
from discovery_deploy.testbeds.static import StaticProvider
from discovery_deploy.testbeds.vagrant import VagrantProvider
from tests.integration.g5k_bed import fake_grid5000
from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.local_bed import LocalBed, experiment, kill_now

SITES = ("paris", "lyon")


class Bed(ABC):
    """A testbed of one provider, in a folder that is thrown away.

    To add a provider: a subclass with the hooks below, and its name in `BEDS`. What cannot go wrong with a provider it
    says by leaving out the hook: the test is skipped then, with this reason.
    """

    type: str
    tool: tuple[str, str]
    """A command without which nothing works, and the Debian package that brings it."""
    complete = True
    """Whether a machine where these tests run has all that the provider needs."""
    dies_in: tuple[str, ...] = ()
    """Files that appear while hosts are reserved, as patterns below the folder: there a driver is killed."""

    marks: tuple[pytest.MarkDecorator, ...] = ()
    """Of tests on it, beside `integration`: `slow`, say."""
    needs_hosts_to_release: bool = False
    """Whether a dead host cannot be given back before it answers again."""
    gives_up_s: float = 90.0
    """Time after which a host that never comes up is given up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        (self.workspace / "name").write_text("pair\n")
        self.key = self.workspace / "id"
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.image = stack.base_image(stack.cache_directory(), print)

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text()

    @abstractmethod
    def provider(self) -> ProviderInterface:
        """A new provider object, as a new driver makes it: it remembers nothing."""

    @abstractmethod
    def section(self) -> dict[str, Any]:
        """The section `provider` of the experiment."""

    @abstractmethod
    def kill(self, lease: Lease, host: str) -> None:
        """A host stops at once."""

    def revive(self, lease: Lease, host: str) -> None:
        """What a person does about a dead host before `reserve` is run again; often nothing."""
        return

    @abstractmethod
    def left(self) -> list[str]:
        """What is still there after the last release that should not be."""

    def end(self) -> None:
        """Remove the testbed itself."""
        self.release()

    @staticmethod
    def furnish(home: Path) -> None:
        """What a person has in the home directory before anything works; often nothing."""
        return

    # what can go wrong; None: it cannot

    def wrong_credentials(self) -> tuple[dict[str, Any], str] | None:
        """A section with which nobody is let in, and what the error says."""
        return None

    def refused(self) -> tuple[dict[str, Any], str] | None:
        """A section that asks for what is not given, and what the error says."""
        return None

    def never_up(self) -> tuple[dict[str, Any], Path, str] | None:
        """A section and an image with which a host never comes up, and what the error says."""
        return None

    # what all share

    def experiment(self, section: dict[str, Any] | None = None) -> Experiment:
        return Experiment.model_validate(
            {
                "name": "pair", "provider": section or self.section(), "sites": [{"name": site} for site in SITES],
                "deployment": {"backend": {"type": "mariadb", "site": SITES[0]}},
            }
        )  # fmt: skip

    def reserve(self, section: dict[str, Any] | None = None, image: Path | None = None) -> Lease:
        asked = self.experiment(section)
        return self.provider().reserve(asked, self.public_key, image or self.image, self.said.append, self.workspace)

    def release(self) -> None:
        self.provider().release("pair", self.said.append)

    def login(self, lease: Lease, host: str, command: str) -> str:
        """What a command of root prints, who has logged in with the experiment's key as the lease says."""
        from discovery_deploy.system.remote import Remote, ssh_config_text
        from tests.leased import known_hosts

        ways = {one.name: (one.management_address, one.ssh) for one in lease.hosts}
        config = self.folder / "ssh_config"
        known = self.folder / "known"
        text = ssh_config_text(ways, self.key, self.folder, known, all_known=known_hosts(lease, known))
        config.write_text(text.replace("ControlMaster auto", "ControlMaster no"))
        return Remote(config)(host, ["sh", "-c", command]).strip()


class OnLocal(Bed):
    """Containers of this machine."""

    type = "local"
    tool = ("mmdebstrap", "mmdebstrap")
    dies_in = ("state/pair/plan.json", "state/pair/hosts/*/pid")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.state = folder / "state"
        self.before = Snapshot.take(self.state)

    def provider(self) -> LocalProvider:
        return LocalProvider(environments=self.folder / "environments", state=self.state)

    def section(self) -> dict[str, Any]:
        return {"type": "local"}

    def kill(self, lease: Lease, host: str) -> None:
        pids = containers.status(plan_of(lease))[host]["pids"]
        kill_now(pids["init"])
        kill_now(pids["supervisor"])

    def left(self) -> list[str]:
        return [*left_behind(self.state, self.before), *map(str, self.state.glob("*"))]

    def never_up(self) -> tuple[dict[str, Any], Path, str] | None:
        image = self.folder / "no-init"
        (image / "usr").mkdir(parents=True, exist_ok=True)
        return self.section(), image, "-1: "


class OnStatic(Bed):
    """Containers of this machine that belong to another experiment, as machines given by hand."""

    type = "static"
    tool = ("ssh", "openssh-client")
    dies_in = ("state/static/pair/known_hosts", "state/static/pair/record.json")
    needs_hosts_to_release = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        owner = folder / "owner"
        owner.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(owner / "id")], check=True)
        self.owner = LocalBed(self.image, owner / "id", owner)
        self.machines = self.owner.reserve(_owned())
        for host in self.machines.hosts:
            self.owner.ssh(self.machines, host.name, "umount /opt/discovery-deploy")
        self.found = {host.name: self.picture(host.name) for host in self.machines.hosts}

    def provider(self) -> StaticProvider:
        return StaticProvider(state=self.folder / "state")

    def section(self) -> dict[str, Any]:
        return {"type": "static", "machines": [self.machine(f"{site}-1") for site in SITES]}

    def machine(self, host: str, **more: Any) -> dict[str, Any]:
        at = next(one for one in self.machines.hosts if one.name == host)
        return {
            "host": host, "address": at.management_address, "site_address": at.site_address,
            "key": str(self.owner.key), **more,
        }  # fmt: skip

    def kill(self, lease: Lease, host: str) -> None:
        pids = self.owner.pids(self.machines)[host]
        kill_now(pids["init"])
        kill_now(pids["supervisor"])

    def revive(self, lease: Lease, host: str) -> None:
        self.owner.reserve(_owned())
        self.owner.ssh(self.machines, host, "umount /opt/discovery-deploy")

    def picture(self, host: str) -> list[str]:
        """Everything of a host that counts, as lines of text."""
        text = (Path(__file__).parent / "host_picture.py").read_text()
        options = self.owner.ssh_options(self.machines, host)
        done = subprocess.run(["ssh", *options, "python3 -"], input=text, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def left(self) -> list[str]:
        found = [str(path) for path in (self.folder / "state").glob("*")]
        for host, before in self.found.items():
            now = self.picture(host)
            found += [f"{host} has {line}" for line in now if line not in before]
            found += [f"{host} lost {line}" for line in before if line not in now]
        return found

    def wrong_credentials(self) -> tuple[dict[str, Any], str] | None:
        machines = [{**machine, "key": str(self.key)} for machine in self.section()["machines"]]
        return {"type": "static", "machines": machines}, "does not let root in"

    def refused(self) -> tuple[dict[str, Any], str] | None:
        machines = self.section()["machines"]
        wrong = [{**machine, "site_address": f"192.0.2.{77 + number}"} for number, machine in enumerate(machines)]
        return {"type": "static", "machines": wrong}, r"(?s)paris-1: no network device has .*77; there are .*lyon-1: no"

    def never_up(self) -> tuple[dict[str, Any], Path, str] | None:
        first, second = self.section()["machines"]
        silent = {**second, "address": "192.0.2.1"}  # reserved for documents: nobody has it
        return {"type": "static", "machines": [first, silent]}, self.image, "lyon-1: 192.0.2.1"

    def end(self) -> None:
        try:
            self.release()
        finally:
            self.owner.release_all()


class OnG5k(Bed):
    """Machines of the fake Grid'5000: Paris at rennes, Lyon at nancy."""

    type = "g5k"
    tool = ("ssh", "openssh-client")
    dies_in = ("state/g5k/pair/request.json",)
    gives_up_s = 180.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.held = ExitStack()
        work = folder / "world"
        work.mkdir()
        patched = self.held.enter_context(pytest.MonkeyPatch.context())
        self.fake = self.held.enter_context(fake_grid5000(work, self.image, patched))
        self.fake.key = self.key

    def provider(self) -> G5kProvider:
        entrance = self.folder / "world" / "bin" / "python"  # EnOSlib's, in the fake's network
        enoslib_environment.enoslib_python = lambda cache, progress: entrance
        return G5kProvider(stack.cache_directory(), self.folder / "state", self.folder / "world" / "home")

    def section(self) -> dict[str, Any]:
        rennes, nancy = {"g5k_site": "rennes", "cluster": "paravance"}, {"g5k_site": "nancy", "cluster": "grisou"}
        return {"type": "g5k", "default": rennes, "sites": {"lyon": nancy}}

    def kill(self, lease: Lease, host: str) -> None:
        """Its job ends, as when the walltime is over."""
        site = lease.details["machines"][host].split(".")[1]
        self.fake.end_job(site, lease.details["jobs"][host])

    def left(self) -> list[str]:
        jobs = [f"job {job['uid']}" for job in self.fake.jobs()]
        return [*jobs, *sorted(self.fake.machines()), *map(str, (self.folder / "state").glob("**/*"))]

    def wrong_credentials(self) -> tuple[dict[str, Any], str] | None:
        self.fake.write_account("not the password")
        return self.section(), r"refuses the credentials \(401\)"

    def refused(self) -> tuple[dict[str, Any], str] | None:
        self.fake.faults(refuse="an admission rule says no")
        return self.section(), "refused the job: 400: an admission rule says no"

    def never_up(self) -> tuple[dict[str, Any], Path, str] | None:
        self.fake.faults(dead=["grisou-1.nancy.grid5000.fr"])
        return self.section(), self.image, r"grisou-1\.nancy\.grid5000\.fr: ssh does not get in"

    def release(self) -> None:
        self.fake.write_account()
        self.fake.faults()
        super().release()

    def login(self, lease: Lease, host: str, command: str) -> str:
        return self.fake.remote(lease)(host, ["sh", "-c", command]).strip()

    @staticmethod
    def furnish(home: Path) -> None:
        """See `Bed`."""
        (home / ".ssh").mkdir()
        (home / ".ssh" / "id_ed25519.pub").touch()
        (home / ".python-grid5000.yaml").touch(0o600)

    def end(self) -> None:
        try:
            self.release()
        finally:
            self.held.close()


def _owned() -> Experiment:
    from tests.integration.local_bed import experiment

    return experiment("machines", *SITES)


class OnVagrant(Bed):
    """The real EnOSlib over a Vagrant and a virsh that only look so; real ones: tests/integration/test_vagrant.py.

    Their machines are containers of another experiment: an emulated machine takes minutes to start, and this suite
    starts some thirty.
    """

    type = "vagrant"
    marks = (pytest.mark.extended,)
    tool = ("vagrant", "vagrant")
    complete = False
    dies_in = ("state/vagrant/pair/request.json", "fake/state.json")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        owner = folder / "owner"
        owner.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(owner / "id")], check=True)
        self.owner = LocalBed(self.image, owner / "id", owner)
        machines = self.owner.reserve(experiment("vmachines", *SITES))
        self.fake, programs = folder / "fake", folder / "programs"
        for made in (self.fake, programs):
            made.mkdir()
        pool = {host.name: {"address": host.management_address, "key": str(self.owner.key)} for host in machines.hosts}
        (self.fake / "pool.json").write_text(json.dumps(pool))
        for name in ("vagrant", "virsh"):
            program = Path(__file__).with_name("fake_vagrant.py")
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I {program} {name} "$@"\n')
            (programs / name).chmod(0o755)
        for name in ("dnsmasq", "qemu-system-x86_64"):
            (programs / name).symlink_to("/bin/false")
        self.before = dict(os.environ)
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        os.environ["FAKE_VAGRANT"] = str(self.fake)

    def provider(self) -> VagrantProvider:
        return VagrantProvider(stack.cache_directory(), self.folder / "state")

    def section(self) -> dict[str, Any]:
        return {"type": "vagrant", "box": "paper"}

    def kill(self, lease: Lease, host: str) -> None:
        subprocess.run(["virsh", "--connect", "x", "destroy", f"dd_pair_{host}"], check=True)

    def left(self) -> list[str]:
        state = self.fake / "state.json"
        made = json.loads(state.read_text()) if state.exists() else {}
        return [*(name for kind in made.values() for name in kind), *map(str, (self.folder / "state").glob("*"))]

    def refused(self) -> tuple[dict[str, Any], str] | None:
        return {**self.section(), "box": "nobody/has-it"}, 'Vagrant has no box "nobody/has-it"'

    def never_up(self) -> tuple[dict[str, Any], Path, str] | None:
        return {**self.section(), "extra": "# lyon-1 never boots"}, self.image, "lyon-1: `.*vagrant up"

    def end(self) -> None:
        try:
            self.release()
        finally:
            self.owner.release_all()
            os.environ.clear()
            os.environ.update(self.before)


BEDS: dict[str, type[Bed]] = {"local": OnLocal, "vagrant": OnVagrant, "static": OnStatic, "g5k": OnG5k}


@contextmanager
def bed_of(name: str, folder: Path) -> Iterator[Bed]:
    """The testbed of a provider; gone at the end, whatever has happened."""
    made = BEDS[name](folder)
    try:
        yield made
    finally:
        made.end()
