"""Sites without containers, for tests and benchmarks of the WAN alone: every host is only a network namespace."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from discovery_deploy.agent import site_networks, wan_router
from discovery_deploy.agent.plan import Host, Plan, Site, WanRouter
from discovery_deploy.experiment.model import Network
from discovery_deploy.wan import tc
from discovery_deploy.wan.measure import HERE, Point, on_this_machine
from discovery_deploy.wan.plan import WanPlan, wan_plan
from discovery_deploy.wan.shapes import Pair, PathShape, path_shapes

SITE_NAMES = ("ares", "brest", "cork", "delft", "essen", "faro", "gent", "hull")
SLOT = 90
"""Above the slots of the provider `local`."""


def plan_of(directory: Path, names: Sequence[str], mode: str = "auto", slot: int = SLOT) -> Plan:
    """A machine plan of sites with one host each that has no system."""
    sites = tuple(
        Site(
            name=name,
            index=index,
            bridge=f"dd{slot}s{index}",
            router_device=f"vec{index}",
            tap=f"dd{slot}t{index}",
            gateway=f"10.{128 + slot}.{index}.1",
            subnet=f"10.{128 + slot}.{index}.0/24",
        )
        for index, name in enumerate(names)
    )
    hosts = tuple(
        Host(
            name=f"{name}-1",
            site=name,
            namespace=f"dd{slot}-{name}-1",
            system=False,
            site_address=f"10.{128 + slot}.{index}.10",
            site_device=f"dd{slot}e{index}",
            management_address=f"10.{64 + slot}.0.{10 + index}",
            management_device=f"dd{slot}n{index}",
        )
        for index, name in enumerate(names)
    )
    router = WanRouter(f"dd{slot}-router", mode, wan_router.memory_mb(len(names)))
    return Plan(slot, directory, "wan-alone", sites=sites, hosts=hosts, router=router)


@dataclass(frozen=True)
class Wan:
    """Sites with a router between them."""

    plan: Plan

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.plan.sites]

    @property
    def devices(self) -> dict[str, str]:
        return {site.name: site.router_device for site in self.plan.sites}

    @property
    def subnets(self) -> dict[str, str]:
        return {site.name: site.subnet for site in self.plan.sites}

    @property
    def points(self) -> list[Point]:
        gateways = {site.name: site.gateway for site in self.plan.sites}
        return [
            Point(
                host.site,
                HERE,
                host.site_address,
                gateways[host.site],
                self.namespace_path(host.namespace),
            )
            for host in self.plan.hosts
        ]

    def namespace_path(self, name: str) -> str:
        return f"/run/netns/{name}"

    @property
    def router_directory(self) -> Path:
        return self.plan.directory / "router"

    def namespace(self, site: str) -> str:
        return next(host.namespace for host in self.plan.hosts if host.site == site)

    def address(self, site: str) -> str:
        return next(point.address for point in self.points if point.site == site)

    def run(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        """A `measure.Runner`."""
        if host == HERE:
            return on_this_machine(host, command, stdin, timeout_s)
        namespace = next(h.namespace for h in self.plan.hosts if h.name == host)
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{host}: {done.stderr}")
        return done.stdout

    def wan_plan(self, shapes: Mapping[Pair, PathShape]) -> WanPlan:
        return wan_plan(shapes, self.devices, self.subnets)

    def change(self, old: Mapping[Pair, PathShape], new: Mapping[Pair, PathShape]) -> None:
        """Bring paths with these shapes to those."""
        program = tc.changes(self.wan_plan(old), self.wan_plan(new))
        assert program is not None
        wan_router.apply(self.plan, program)

    def shape(self, network: Network) -> dict[Pair, PathShape]:
        """Run the whole program of a network; its shapes."""
        shapes = path_shapes(network, self.names)
        wan_router.apply(self.plan, tc.program(self.wan_plan(shapes)))
        return shapes

    def readback(self, shapes: dict[Pair, PathShape]) -> tuple[str, ...]:
        return tc.problems(self.wan_plan(shapes), wan_router.read(self.plan))


@contextlib.contextmanager
def wan_sites(directory: Path, names: Sequence[str], mode: str = "auto", slot: int = SLOT) -> Iterator[Wan]:
    """Sites with a running router; nothing of them is left at the end."""
    plan = plan_of(directory, names, mode, slot)
    try:
        site_networks.up(plan)
        wan_router.up(plan)
        yield Wan(plan)
    finally:
        wan_router.down(plan)
        site_networks.down(slot)
