"""45 sites on four machines, which are User-Mode Linux: made, shaped, every ordered pair measured, given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.experiment.model import Experiment, Verify
from discovery_deploy.hosts.shaping import RouterShaper
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import path_shapes
from discovery_deploy.wan.verdict import summary
from tests.integration import wan_checks
from tests.integration.test_nested import NestedBed
from tests.integration.uml_machines import uml_machines

pytestmark = [pytest.mark.integration, pytest.mark.extended, pytest.mark.timeout(3600)]

MACHINES = tuple(f"big-{number}" for number in range(1, 5))
SITES = tuple(f"site{number}" for number in range(1, 46))
EXPERIMENT = Experiment.model_validate(
    {
        "name": "nested",
        "provider": {
            "type": "static",
            "machines": [{"host": name, "address": f"192.0.2.{number}"} for number, name in enumerate(MACHINES)],
            "hosts_per_machine": 12,
        },
        "sites": [{"name": site} for site in SITES],
        "deployment": {"backend": {"type": "galera"}},
    }
)
EMULATED = Verify.model_validate({"rtt_tolerance": "1 ms", "probes": 10, "interval": "3 s"})
"""Four kernels share two processors: so 660 echoes a second, each by way of two of them, and some are late."""


@pytest.fixture(scope="module")
def bed(image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NestedBed]:
    folder = tmp_path_factory.mktemp("n")
    with uml_machines(folder, image, key, MACHINES, memory_mb=1536) as machines:
        yield NestedBed(machines, image, key, folder)


def test_45_sites_fit_on_four_machines(bed: NestedBed) -> None:
    lease = bed.reserve(EXPERIMENT)
    remote = bed.remote(lease)
    try:
        placed = [
            len(bed.machines.ssh(name, "ls /var/lib/discovery-deploy-machine/experiments/nested/hosts").split())
            for name in MACHINES
        ]
        assert placed == [12, 12, 12, 9]
        shapes = path_shapes(wan_checks.network(default={"delay": "50 ms"}), SITES)
        shaper = RouterShaper(bed.provider, lease)
        shaper.put(shapes)
        assert shaper.problems(shapes) == ()
        points = [
            measure.Point(site, lease.at(site).name, lease.at(site).site_address, lease.site_gateways[site])
            for site in SITES
        ]
        report = measure.verify_wan(
            remote, points, shapes, EMULATED, readback=lambda: shaper.problems(shapes), attempts=6
        )
        print(summary(report), shaper.facts(), report.base_rtt_s)
        assert len(report.pairs) == len(SITES) * (len(SITES) - 1)
        assert report.problems == ()
    finally:
        remote.close(host.name for host in lease.hosts)
        bed.provider.release("nested", bed.said.append)
    assert bed.machines.given == {}
    for name in MACHINES:
        assert bed.machines.ssh(name, "ls -d /var/lib/discovery-deploy-machine 2> /dev/null | wc -l") == "0"
