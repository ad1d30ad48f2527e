"""Where the WAN of a lease is shaped, and how its shapes are brought there and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.wan import tc
from discovery_deploy.wan.plan import WanPlan, wan_plan
from discovery_deploy.wan.shapes import PathShape

Shapes = Mapping[tuple[str, str], PathShape]
"""(source site, destination site) -> shape."""


class Shaper(Protocol):
    """Shapes the paths between the sites of a lease."""

    def put(self, shapes: Shapes) -> None:
        """Bring the WAN to these shapes, whatever is there; packets that wait are lost. Raises TestbedError."""

    def change(self, old: Shapes, new: Shapes) -> None:
        """Bring a WAN of these shapes to those, with no packet lost. Raises TestbedError."""

    def problems(self, shapes: Shapes) -> tuple[str, ...]:
        """Differences between these shapes and what tc shows."""

    def facts(self) -> str:
        """What shapes the WAN, in words, for provenance."""


class RouterShaper:
    """A WAN router between the sites, which the provider reaches."""

    def __init__(self, provider: ProviderInterface, lease: Lease) -> None:
        self.provider = provider
        self.lease = lease

    def _plan(self, shapes: Shapes) -> WanPlan:
        return wan_plan(shapes, self.lease.site_devices, self.lease.site_subnets)

    def put(self, shapes: Shapes) -> None:
        """See `Shaper`."""
        self.provider.shape(self.lease, tc.program(self._plan(shapes)))

    def change(self, old: Shapes, new: Shapes) -> None:
        """See `Shaper`."""
        program = tc.changes(self._plan(old), self._plan(new))
        if program:
            self.provider.shape(self.lease, program)

    def problems(self, shapes: Shapes) -> tuple[str, ...]:
        """See `Shaper`."""
        return tc.problems(self._plan(shapes), self.provider.read_shape(self.lease))

    def facts(self) -> str:
        """See `Shaper`."""
        return self.provider.router_facts(self.lease)


def router_program(shapes: Shapes, sites: tuple[str, ...], lease: Lease | None) -> str:
    """The tc program of a WAN router; before it is there, with names in place of devices and addresses."""
    reserved = lease if lease and set(lease.site_devices) == set(sites) else None
    devices = reserved.site_devices if reserved else {name: f"<towards {name}>" for name in sites}
    subnets = reserved.site_subnets if reserved else {name: f"<network of {name}>" for name in sites}
    return tc.text(tc.program(wan_plan(shapes, devices, subnets)))


def bring(shaper: Shaper, known: Shapes, shapes: Shapes) -> None:
    """Bring a WAN to these shapes: by changes that lose no packet where it is known, and seen, what is there."""
    if known and set(known) == set(shapes) and not shaper.problems(known):
        shaper.change(known, shapes)
    else:
        shaper.put(shapes)
