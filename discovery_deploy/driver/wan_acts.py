"""The WAN of a testbed: brought to the shapes that are asked, compensated for the testbed's own RTT, and measured."""

from __future__ import annotations

from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts import shaping
from discovery_deploy.hosts.shaping import RouterShaper, Shaper, Shapes
from discovery_deploy.system.remote import Remote
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds import local
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.wan import clocks, compensation, egress, measure
from discovery_deploy.wan.compensation import BaseRtts
from discovery_deploy.wan.egress_hosts import HostsShaper
from discovery_deploy.wan.shapes import AppliedPath, AppliedShapes, PathShape, path_shapes
from discovery_deploy.wan.verdict import UML_FORWARDS_BPS, WanReport

SHAPES = "shapes.json"
BASE = "base_rtts.json"
"""The testbed's own RTTs, measured while nothing was shaped."""


def asked(experiment: Experiment) -> Shapes:
    """The WAN that an experiment asks for."""
    return path_shapes(experiment.network, experiment.site_names)


class Wan:
    """The paths between the sites of a lease.

    Args:
        lease: whose.
        provider: of the lease; reaches its WAN router, where there is one.
        remote: ssh to the hosts.
        workspace: keeps what was put on the WAN.
    """

    def __init__(self, lease: Lease, provider: ProviderInterface, remote: Remote, workspace: Workspace) -> None:
        self.lease = lease
        self.remote = remote
        self.workspace = workspace
        self.shaper: Shaper = (
            HostsShaper(remote, lease.hosts) if lease.shaped == "hosts" else RouterShaper(provider, lease)
        )

    def bring(self, shapes: Shapes) -> None:
        """Bring the WAN to these shapes: by changes that lose no packet where it is known what is there."""
        old = self._applied()
        # What is there is unknown from before the change until after it.
        (self.workspace.path / SHAPES).unlink(missing_ok=True)
        shaping.bring(self.shaper, old, shapes)
        paths = [
            AppliedPath(source=pair[0], destination=pair[1], shape=shape) for pair, shape in sorted(shapes.items())
        ]
        self.workspace.save(SHAPES, AppliedShapes(paths=tuple(paths)))

    def _applied(self) -> Shapes:
        """What was put on the WAN; nothing when that is not known."""
        known = self.workspace.load(SHAPES, AppliedShapes)
        return {(path.source, path.destination): path.shape for path in known.paths} if known else {}

    def lost(self) -> tuple[str, ...]:
        """What hosts no longer shape as they were told: one that was started again has forgotten it."""
        return self.shaper.problems(self._applied()) if self.lease.shaped == "hosts" else ()

    def check(self, experiment: Experiment) -> None:
        """Whether hosts can shape what will be asked of them, before anything is deployed. Raises TestbedError."""
        if isinstance(self.shaper, HostsShaper):
            self.shaper.check(asked(experiment))

    def flatten(self, experiment: Experiment) -> None:
        """Take away every constraint between sites."""
        self.bring({pair: PathShape() for pair in asked(experiment)})

    def to_apply(self, experiment: Experiment) -> Shapes:
        """The shapes to put, so that what is asked is what there is: less by the testbed's own RTT, where asked for.

        That RTT is measured when it is not known of these hosts; nothing is shaped meanwhile. On this machine nothing
        is taken off: there it is measured beside every path, and subtracted before judging.

        Raises:
            MeasurementError: it exceeds the asked one, naming every such pair; or a probe did not answer.
        """
        shapes = asked(experiment)
        if not self._compensates(experiment):
            return shapes
        verify = experiment.network.verify
        base = self._base(shapes)
        if base is not None:
            return compensation.compensate(shapes, base.by_pair(), verify, base.late())
        self.flatten(experiment)
        base = compensation.base_rtts(self.remote, self.points(experiment), verify, self.lease.identities)
        compensated = compensation.compensate(shapes, base.by_pair(), verify)
        self.workspace.save(BASE, base)  # after it: what is refused is measured anew next time
        return compensated

    def _base(self, shapes: Shapes) -> BaseRtts | None:
        """What is known of these hosts' own RTTs."""
        base = self.workspace.load(BASE, BaseRtts)
        known = base is not None and base.identities == self.lease.identities and set(base.by_pair()) == set(shapes)
        return base if known else None

    def correct(self, experiment: Experiment, report: WanReport) -> bool:
        """Take other times off when shapes are put next, by what was measured now. False when there is no need.

        What the testbed takes itself may have been measured while hosts were busy with their deployment, shaped paths
        take longer on some machines (`compensation.corrected`), or paths may be others by now.
        """
        shapes = asked(experiment)
        base = self._base(shapes) if self._compensates(experiment) and not report.readback_problems else None
        better = base and compensation.corrected(base, shapes, report, experiment.network.verify)
        if better:
            self.workspace.save(BASE, better)
        return better is not None

    def _compensates(self, experiment: Experiment) -> bool:
        return experiment.network.compensate and not self._here and len(experiment.sites) > 1

    def points(self, experiment: Experiment) -> list[measure.Point]:
        """From where each site is measured: its first host.

        Hosts that are containers of this machine are measured from here, by one probe in the network namespaces of all
        of them: it has the paths of whatever runs on them, and reads the one clock of all of them.

        What is taken off already is not measured beside the paths, at their gateways, to be subtracted.
        """
        hosts = [self.lease.at(site) for site in experiment.site_names]
        known = {} if self._compensates(experiment) else self.lease.site_gateways
        gateways = [known.get(host.site) for host in hosts]
        if not self._here:
            return [
                measure.Point(host.site, host.name, host.site_address, gateway)
                for host, gateway in zip(hosts, gateways, strict=True)
            ]
        namespaces = {host.name: f"/run/netns/{host.namespace}" for host in local.plan_of(self.lease).hosts}
        return [
            measure.Point(host.site, measure.HERE, host.site_address, gateway, namespaces[host.name])
            for host, gateway in zip(hosts, gateways, strict=True)
        ]

    @property
    def _here(self) -> bool:
        return self.lease.provider == "local" and self.lease.shaped == "router"

    def measured(self, experiment: Experiment) -> WanReport:
        """Asked against measured, for every ordered pair; what is out of tolerance is measured once more.

        Clocks are compared with this machine's where hosts have others: they are a problem for a common start.
        """
        applied = self._applied() or asked(experiment)
        report = measure.verify_wan(
            measure.on_this_machine if self._here else self.remote,
            self.points(experiment),
            asked(experiment),
            experiment.network.verify,
            readback=lambda: self.shaper.problems(applied),
            forwards_bps=UML_FORWARDS_BPS if self.lease.router == "uml" else None,
        )
        if self._here:
            return report
        sites, tolerance_s = experiment.bench_sites(), experiment.network.verify.clock_tolerance
        names = {point.host for point in self.points(experiment)}
        names |= {host.name for host in self.lease.hosts if host.site in sites and "bench" in host.roles}
        found = clocks.compare(self.remote, names, tolerance_s)
        problems = clocks.beyond(found, tolerance_s) if len(sites) > 1 else ()
        return report.model_copy(update={"clocks": found, "clock_problems": problems})

    def facts(self, experiment: Experiment) -> str:
        """What shapes the WAN, in words, for provenance."""
        base = self.workspace.load(BASE, BaseRtts)
        if base is None or not self._compensates(experiment):
            return self.shaper.facts()
        longest = max((pair.rtt_s for pair in base.pairs), default=0.0)
        late = max((pair.late_s for pair in base.pairs), key=abs, default=0.0)
        beyond = f" and {late * 1e3:.2f} ms that shaped paths are late" if late else ""
        return (
            f"{self.shaper.facts()}; the testbed's own RTT, at most {longest * 1e3:.2f} ms{beyond}, "
            "is part of the asked ones"
        )


def program(experiment: Experiment, lease: Lease | None) -> str:
    """The tc program of an experiment's WAN; before hosts are there, with names in place of devices and addresses."""
    shapes = asked(experiment)
    if (lease is None and experiment.provider.type == "local") or (lease is not None and lease.shaped == "router"):
        return shaping.router_program(shapes, experiment.site_names, lease)
    hosts = lease.hosts if lease is not None else _not_yet(experiment)
    programs = egress.programs(shapes, hosts)
    return "".join(f"# on {host}\n{text}" for host, text in sorted(programs.items()))


def _not_yet(experiment: Experiment) -> tuple[LeasedHost, ...]:
    return tuple(
        LeasedHost(
            name=host.name,
            site=site.name,
            roles=host.roles,
            management_address="",
            site_address=f"<address of {host.name}>",
            site_device=f"<device of {host.name}>",
        )
        for site in experiment.sites
        for host in site.hosts
    )
