"""The testbed of one experiment: brought to a setting phase by phase, measured, and given back.

Whatever is done is written down before and after, so that a driver that dies is followed by one that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from discovery_deploy.bench import smoke
from discovery_deploy.bench.campaign import Setting
from discovery_deploy.cloud import clients, inventory, variables
from discovery_deploy.driver import ansible, image_content, wan_acts
from discovery_deploy.driver.phases import (
    PHASES,
    Phase,
    State,
    must_destroy,
    stale_phases,
    standing_hash,
    wanted_hashes,
)
from discovery_deploy.driver.releasing import readable_lease, release
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts import nested, nesting
from discovery_deploy.hosts.registry import name_held, provider_named
from discovery_deploy.software import builds, image, proof, shipping, stack
from discovery_deploy.software.inputs import Inputs
from discovery_deploy.software.patches import sources
from discovery_deploy.software.records import HostCode, Software
from discovery_deploy.system.agents import HOSTS_HOME, Agents
from discovery_deploy.system.errors import StateError, TestbedError
from discovery_deploy.system.files import now, write_file
from discovery_deploy.system.progress import Announcer
from discovery_deploy.system.remote import Remote, side_by_side, write_ssh_config
from discovery_deploy.system.workspace import Workspace, is_workspace, same_folder
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.wan.verdict import WanReport, summary

SOFTWARE = "software.json"
"""What hosts were sent."""
UNKNOWN = "unknown"
"""In the place of a hash: something is deployed, and nobody knows what."""


class Testbed:
    """Hosts, deployment and WAN of one experiment.

    Args:
        experiment: as in the file (settings substitute factor levels in it).
        workspace: locked by the caller.
        provider: of its hosts.
        announce: told what is being done.
        take_over: whether to take hosts that another workspace has reserved.
        code: finds the code of a deployment's projects; default: relative paths begin at the working directory.
    """

    __test__ = False

    def __init__(
        self,
        experiment: Experiment,
        workspace: Workspace,
        provider: ProviderInterface,
        announce: Announcer,
        take_over: bool = False,
        code: sources.Resolver | None = None,
    ) -> None:
        self.experiment = experiment
        self.take_over = take_over
        self.workspace = workspace
        self.provider = provider
        self.announce = announce
        self.cache = stack.cache_directory()
        self.code = code or sources.remembered(Path(), self.cache, announce.line)
        self._inputs: dict[str, Inputs] = {}
        self.proved: dict[str, HostCode] = {}
        """Host -> what was proved at the last verification about the code of its services."""
        self._state: State | None = None
        self._checked_alive = False

    # state and lease

    @property
    def state(self) -> State:
        """What was done, as written down. An unreadable state file costs time, not machines."""
        if self._state is None:
            try:
                self._state = self.workspace.load("state.json", State) or State()
            except StateError:
                path = self.workspace.path / "state.json"
                path.replace(path.with_suffix(".damaged"))
                self.workspace.note("state.json was not readable: every phase is done again")
                # Unknown is treated as another deployment: it is destroyed before ours comes.
                self._state = State(deployed=UNKNOWN)
        return self._state

    def _keep(self, state: State) -> None:
        self.workspace.save("state.json", state)
        self._state = state

    @property
    def lease(self) -> Lease:
        """The hosts. Raises StateError when there are none."""
        lease = self.workspace.load("lease.json", Lease)
        if lease is None:
            raise StateError(f"{self.experiment.name}: no hosts are reserved", "Run the phase `reserve` first.")
        return lease

    @property
    def remote(self) -> Remote:
        """Ssh to the hosts."""
        return Remote(self.workspace.ssh_config)

    @property
    def agents(self) -> Agents:
        """What answers on the hosts."""
        return Agents(self.remote, HOSTS_HOME)

    @property
    def wan(self) -> wan_acts.Wan:
        """The paths between the sites."""
        return wan_acts.Wan(self.lease, self.provider, self.remote, self.workspace)

    @property
    def secrets(self) -> variables.Secrets:
        """The experiment's secrets, generated at the first call; what an older version's file lacks is added."""
        known = self.workspace.load("secrets.json", variables.Secrets)
        complete = variables.Secrets.generate() if known is None else known.completed()
        if complete != known:
            self.workspace.save("secrets.json", complete, mode=0o600)
        return complete

    # phases

    def inputs(self, experiment: Experiment) -> Inputs:
        """Hashes of what the phases of a setting use besides the file; a factor may vary what they depend on."""
        deployment = experiment.deployment
        key = deployment.model_dump_json()
        if key not in self._inputs:
            guests = bool(deployment.computes.libvirt)
            code = self.code(deployment)
            self._inputs[key] = builds.inputs(deployment.release, deployment.services, guests, code)
        return self._inputs[key]

    def wanted(self, experiment: Experiment) -> dict[Phase, str]:
        """Phase -> the hash with which a setting's experiment wants it."""
        return wanted_hashes(experiment, self.inputs(experiment))

    def stale(self, setting: Setting, until: Phase = "verify") -> tuple[Phase, ...]:
        """Phases that must be executed to be at a setting. Looks once whether the hosts live, and are ours.

        Raises:
            StateError: another workspace has the hosts.
        """
        wanted = self.wanted(setting.experiment)
        stale = stale_phases(self.state, wanted, until)
        if "reserve" not in stale and self._image_is_other(setting.experiment):
            self.announce.line("the image was baked anew, with other packages than the hosts have")
            first: Phase = "reserve" if nesting.hosts_are_containers(setting.experiment) else "deploy"
            stale = max(stale, PHASES[PHASES.index(first) : PHASES.index(until) + 1], key=len)
        if (not stale or stale[0] != "reserve") and not self._checked_alive:
            if self._stranger() is not None:
                self.announce.line("the hosts were reserved from another workspace; all is done again")
                return PHASES[: PHASES.index(until) + 1]
            if readable_lease(self.workspace) is None:
                self.announce.line("lease.json is lost or damaged: the hosts are reserved again")
                return PHASES[: PHASES.index(until) + 1]
            dead = self._dead_hosts()
            if dead:
                self.workspace.note("dead hosts", hosts=dead)
                self.announce.line(f"no longer running: {', '.join(dead)}; they are started again")
                return PHASES[: PHASES.index(until) + 1]
            self._checked_alive = True
            if "constrain" not in stale and until == "verify" and (lost := self.wan.lost()):
                self.announce.line(f"the WAN is shaped again: {lost[0]}")
                return PHASES[PHASES.index("constrain") :]
        return stale

    def _dead_hosts(self) -> list[str]:
        """Leased hosts that do not run or, where they are machines, that do not answer."""
        lease = self.lease
        if lease.provider != self.experiment.provider.type:  # of what the file said before
            return [host.name for host in lease.hosts]
        dead = self.provider.dead_hosts(lease)
        if lease.shaped == "router" or dead:
            return dead
        names = [host.name for host in lease.hosts]
        return [name for name, well in zip(names, side_by_side(self.remote.answers, names), strict=True) if not well]

    def _stranger(self) -> Path | None:
        """Another workspace that has the experiment's hosts: it is lost, or we may take them. None when none has.

        Raises:
            StateError: it is there, and it was not said to take them over.
        """
        name = self.experiment.name
        holder = self.provider.holder(name)
        if holder is None or same_folder(holder, self.workspace.path):
            return None
        if is_workspace(holder) and not self.take_over:
            raise StateError(
                f"experiment {name}'s hosts were reserved from {holder}",
                f"Release them (`discovery-deploy release {holder}`), or `run` or `reserve` with --take-over.",
            )
        return holder

    @contextmanager
    def _name_taken(self) -> Iterator[bool]:
        """Reserve under the experiment's name, alone; whether the hosts are another workspace's, which is locked.

        Raises:
            StateError: as `_stranger`; another driver reserves them at this moment, or works in that workspace.
        """
        with name_held(self.experiment.name, wait_s=5), ExitStack() as held:
            stranger = self._stranger()
            if stranger is not None and is_workspace(stranger):
                held.enter_context(Workspace(stranger).lock())
                self.workspace.note("hosts taken over", workspace=str(stranger))
            yield stranger is not None

    def bring_to(self, setting: Setting, until: Phase = "verify") -> WanReport | None:
        """Execute the stale phases up to `until`, in order.

        Returns:
            The verification when it was made now; None when it was made before.
        """
        wanted = self.wanted(setting.experiment)
        acts: dict[Phase, Callable[[Experiment], str]] = {
            "reserve": self._reserve,
            "prepare": self._prepare,
            "deploy": self._deploy,
            "constrain": self._constrain,
        }
        standing = standing_hash(setting.experiment, self.inputs(setting.experiment))
        report: WanReport | None = None
        stale = self.stale(setting, until)
        for phase in stale:
            self.announce.phase(phase, setting.record.label if phase in ("deploy", "constrain", "verify") else "")
            if phase == stale[0] and "deploy" in stale and self.state.deployed is not None:
                self.environments(setting.experiment)  # what cannot be built is told while what stands still stands
            started = time.monotonic()
            if phase == "deploy" and must_destroy(self.state, wanted, standing):
                self._destroy(setting.experiment)
            self._keep(self.state.started(phase, wanted[phase], now(), standing))
            self.workspace.note("phase started", phase=phase, hash=wanted[phase], setting=setting.record.label)
            if phase == "verify":
                report = self.verify_corrected(setting.experiment)
                detail = summary(report)
            else:
                detail = acts[phase](setting.experiment)
            seconds = round(time.monotonic() - started, 3)
            if report is None or not report.problems:
                self._keep(self.state.done(phase, now(), seconds))
            self.workspace.note("phase ended", phase=phase, seconds=seconds, detail=detail)
            self.announce.done(phase, seconds, detail)
        return report

    def _reserve(self, experiment: Experiment) -> str:
        base = self._image(experiment)
        key = self.workspace.public_key()
        with self._name_taken() as strangers:
            lease = self._lease_from_provider(experiment, key, base, strangers)
        self._checked_alive = True
        return f"{len(lease.hosts)} hosts at {len(experiment.sites)} sites, WAN router: {lease.router}"

    def _lease_from_provider(self, experiment: Experiment, key: str, base: Path, strangers: bool) -> Lease:
        """Hosts, written down with what is known to be on them."""
        before = readable_lease(self.workspace)
        other = experiment.provider.type == "local" and self._image_is_other(experiment)
        if before is not None and (other or before.provider != experiment.provider.type):
            why = "of the image as it was" if other else f"of provider {before.provider}"
            self.announce.line(f"the hosts that are there are {why}: they are given back")
            provider_named(before.provider).release(experiment.name, self.announce.line)
            before = None
        found = strangers or (before is None and experiment.name in self.provider.experiments())
        if before is not None and self.workspace.ssh_config.exists():  # hosts may go, or be made anew behind a name
            self.remote.close(host.name for host in before.hosts)
        lease = self.provider.reserve(experiment, key, base, self.announce.line, self.workspace.path)
        self.workspace.save("lease.json", lease)
        if found:  # hosts of another workspace: nobody knows what is on them
            self._keep(self.state.model_copy(update={"deployed": UNKNOWN}))
        elif before is None or not set(before.identities.items()) & set(lease.identities.items()):
            self._keep(self.state.model_copy(update={"deployed": None}))
        self._keep_image(base)
        write_ssh_config(self.workspace, lease.ways, lease.host_keys, others=lease.has_other_hosts(before))
        return lease

    def _image(self, experiment: Experiment) -> Path:
        """The tree that hosts are made of; where they are no containers, the one in which environments are built."""
        return image.base_image(self.cache, self.announce.line, image_content.variant_of(experiment))

    def _image_is_other(self, experiment: Experiment) -> bool:
        return image_content.is_other(self.workspace, self.cache, experiment, self.state.image)

    def _keep_image(self, tree: Path) -> None:
        content = image_content.keep_image(self.workspace, tree, self.announce.line)
        self._keep(self.state.model_copy(update={"image": content}))

    def environments(self, experiment: Experiment) -> builds.Environments:
        """The Python environments of the hosts, built when they are not cached."""
        asked, guests = experiment.deployment, bool(experiment.deployment.computes.libvirt)
        code = self.code(asked)
        return builds.environments(self.cache, asked.release, asked.services, self.announce.line, guests, code)

    def _playbook(self, name: str, experiment: Experiment, limit_s: float = 900.0) -> ansible.PlaybookResult:
        lease = self.lease
        return ansible.run_playbook(
            name,
            inventory=inventory.inventory(experiment, lease, self.workspace.ssh_config, self.workspace.key),
            variables=variables.variables(experiment, lease, self.secrets, self.environments(experiment)),
            logs=self.workspace.logs,
            progress=self.announce.line,
            limit_s=limit_s,
        )

    def _bring_software(self, experiment: Experiment) -> None:
        """Let hosts have the environments: as they see the cache, or as copies."""
        environments = self.environments(experiment)
        self.workspace.save(builds.NOTED, environments)
        if self.lease.software == "shipped":
            sent = shipping.ship(self.remote, self.lease, experiment, environments, self.cache, self.announce.line)
            self.workspace.save(SOFTWARE, Software(hosts=sent))
        elif nested.machine_lease(self.lease) is not None:
            nested.bring_environments(self.lease, experiment, environments, self.cache, self.announce.line)

    def _prepare(self, experiment: Experiment) -> str:
        self._bring_software(experiment)
        self.wan.check(experiment)
        self._playbook("prepare", experiment)
        return ""

    @contextmanager
    def cut_off(self, experiment: Experiment, site: str) -> Iterator[None]:
        """A deployed, constrained testbed on which nothing passes between a site and the others, until the end.

        A driver that dies meanwhile leaves a WAN that counts as not constrained: the next one shapes it anew.
        """
        before, shapes = self.state, self.wan.to_apply(experiment)
        self._keep(before.started("constrain", self.wanted(experiment)["constrain"], now()))
        self.workspace.note("cut off", site=site)
        try:
            self.wan.bring(smoke.cut_off(shapes, site))
            yield
        finally:
            self.wan.bring(shapes)
            self._keep(before)
            self.workspace.note("connected again", site=site)

    def flatten(self, experiment: Experiment) -> None:
        """Take every constraint between sites away, for what is done without a WAN; `constrain` brings them again."""
        if "constrain" in self.state.phases:
            self._keep(self.state.started("constrain", self.wanted(experiment)["constrain"], now()))
            self.wan.flatten(experiment)

    def _destroy(self, experiment: Experiment) -> None:
        """Remove whatever is deployed: the playbook asks every host for everything, whichever setting made it."""
        self.announce.line("removing the deployment of another setting")
        self.wan.flatten(experiment)
        self._playbook("destroy", experiment)
        self._keep(self.state.model_copy(update={"deployed": None}))

    def _deploy(self, experiment: Experiment) -> str:
        self._bring_software(experiment)
        if not nesting.hosts_are_containers(experiment):  # hosts stay as they are; what is built for them is built anew
            self._keep_image(self._image(experiment))
        self.wan.flatten(experiment)
        self._playbook("deploy", experiment)
        lease, password = self.lease, self.secrets.admin_password
        sites = clients.accesses(experiment, lease)
        write_file(self.workspace.path / "clouds.yaml", clients.clouds_yaml(sites, password), 0o600)
        for path in self.workspace.path.glob("openrc-*"):  # also of sites that are no more
            path.unlink()
        for site, access in sites.items():
            write_file(self.workspace.path / f"openrc-{site}", clients.openrc(access, password), 0o600)
        at = ", ".join(experiment.control_sites())
        return f"{', '.join(experiment.deployment.services)}, {experiment.deployment.topology.type}, at {at}"

    def program(self, experiment: Experiment) -> str:
        """The tc program of an experiment's WAN; before its sites are there, with names in place of addresses."""
        lease = self.workspace.load("lease.json", Lease)
        names = {host.name for site in experiment.sites for host in site.hosts}
        there = lease is not None and {host.name for host in lease.hosts} == names
        return wan_acts.program(experiment, lease if there else None)

    def _constrain(self, experiment: Experiment) -> str:
        shapes = self.wan.to_apply(experiment)
        self.wan.bring(shapes)
        return f"{len(shapes)} ordered pairs of sites shaped"

    def verify_corrected(self, experiment: Experiment) -> WanReport:
        """As `verify`; where the testbed's own RTT is taken off, by what was measured, once, when it must be."""
        report = self.verify(experiment)
        if self.wan.correct(experiment, report):
            self.announce.line(f"{summary(report)}; what is taken off for the testbed is corrected")
            self._constrain(experiment)
            report = self.verify(experiment)
        return report

    def verify(self, experiment: Experiment) -> WanReport:
        """Prove which code runs, then measure the WAN: asked against measured; what is out of tolerance once more."""
        self.prove(experiment)
        return self.wan.measured(experiment)

    def prove(self, experiment: Experiment) -> None:
        """Let every host prove which code its services run. Raises TestbedError; then it must be deployed anew."""
        environments = self.environments(experiment)
        hosts = proof.services_of_hosts(experiment)
        services = {service: environments.service(service) for own in hosts.values() for service in own}
        try:
            self.proved = proof.prove(self.agents, hosts, services, self.cache)
        except TestbedError as error:
            self.workspace.note("the code is not as asked", what=str(error).splitlines())
            kept = {name: done for name, done in self.state.phases.items() if name in ("reserve", "prepare")}
            self._keep(self.state.model_copy(update={"phases": kept, "deployed": UNKNOWN}))
            raise

    def collect(self, experiment: Experiment) -> dict[str, dict[str, Any]]:
        """Host -> its facts (OS, kernel, CPU, versions), asked from the host itself."""
        facts: dict[str, dict[str, Any]] = {}
        for host, reports in self._playbook("collect", experiment, limit_s=300.0).reports.items():
            packages = {name: version for report in reports for name, version in report.get("packages", {}).items()}
            facts[host] = {**{key: report[key] for report in reports for key in report}, "packages": packages}
        return facts

    def release(self) -> None:
        """Give all back, from any state; results, report, logs and journal stay."""
        with name_held(self.experiment.name, wait_s=20):
            release(self.experiment.name, [self.provider], self.announce, [self.workspace], self.workspace.path)
