"""Hosts as containers on two machines that were given by hand, reached by ssh: `nested.Nested` from end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment, Network, Verify
from discovery_deploy.hosts import nested
from discovery_deploy.hosts.nested import Nested
from discovery_deploy.hosts.shaping import RouterShaper
from discovery_deploy.system.remote import Remote, ssh_config_text
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import PathShape, path_shapes
from discovery_deploy.wan.verdict import summary
from tests.integration.priority import before_all_else
from tests.integration.uml_machines import UmlMachines, uml_machines
from tests.leased import known_hosts

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MACHINES = ("big-1", "big-2")
PATHS = {"default": {"delay": "5 ms"}, "constraints": [{"between": ["paris", "lyon"], "delay": "12 ms"}]}


def experiment(*sites: str) -> Experiment:
    """Sites with one host each, the first with two; two hosts on a machine."""
    hosts = [{"name": f"{sites[0]}-1"}, {"name": f"{sites[0]}-2"}]
    machines = [{"host": name, "address": f"192.0.2.{number}"} for number, name in enumerate(MACHINES)]
    return Experiment.model_validate(
        {
            "name": "nested",
            "provider": {"type": "static", "machines": machines, "hosts_per_machine": 2},
            "sites": [{"name": sites[0], "hosts": hosts}, *({"name": site} for site in sites[1:])],
            "deployment": {"backend": {"type": "galera"}},
        }
    )


@dataclass
class NestedBed:
    """Machines, a provider around them, and the way into its hosts."""

    machines: UmlMachines
    image: Path
    key: Path
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def provider(self) -> Nested:
        return Nested("static", self.machines, self.folder / "state")

    def reserve(self, asked: Experiment) -> Lease:
        public_key = self.key.with_suffix(".pub").read_text()
        return self.provider.reserve(asked, public_key, self.image, self.said.append, self.folder / "workspace")

    def remote(self, lease: Lease) -> Remote:
        config, control = self.folder / "ssh_config", self.folder / "c"
        control.mkdir(exist_ok=True, mode=0o700)
        ways = {host.name: (host.management_address, host.ssh) for host in lease.hosts}
        known = self.folder / "known"
        config.write_text(ssh_config_text(ways, self.key, control, known, all_known=known_hosts(lease, known)))
        return Remote(config)

    def left(self, machine: str) -> str:
        """What an experiment could have left on a machine."""
        places = "/run/discovery-deploy-slots /run/netns /run/systemd/nspawn /var/lib/discovery-deploy-machine"
        return self.machines.ssh(
            machine,
            f"ip -br link | cut -d' ' -f1; ip rule; ip route; ls {places} 2>&1; ls -d /sys/fs/cgroup/dd* 2>&1; "
            "ps -eo args | grep -c '[n]spawn'; cat /root/.ssh/authorized_keys | wc -l",
        )


@pytest.fixture(scope="module")
def bed(image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NestedBed]:
    folder = tmp_path_factory.mktemp("n")
    with uml_machines(folder, image, key, MACHINES) as machines:
        yield NestedBed(machines, image, key, folder)


def test_it_works_from_end_to_end(bed: NestedBed) -> None:
    """One test: what each step finds is what the step before has left."""
    for name in MACHINES:
        bed.machines.ssh(name, "ip netns add x && ip netns del x")  # /run/netns stays when it has once been used
    before = {name: bed.left(name) for name in MACHINES}
    asked = experiment("paris", "lyon", "nantes")
    started = time.monotonic()
    lease = bed.reserve(asked)
    print("reserve", time.monotonic() - started, bed.said)
    remote = bed.remote(lease)
    try:
        hosts_are_where_they_belong(bed, lease, remote)
        the_wan_is_as_asked(bed, asked, lease, remote)
        reserved_again_nothing_changes(bed, asked, lease)
        a_dead_host_is_seen_and_mended(bed, asked, lease)
    finally:
        remote.close(host.name for host in lease.hosts)
        bed.provider.release("nested", bed.said.append)
    assert {name: bed.left(name) for name in MACHINES} == before
    assert bed.machines.given == {}
    assert not (bed.folder / "state").exists()
    assert bed.provider.experiments() == []
    bed.provider.release("nested", bed.said.append)


def hosts_are_where_they_belong(bed: NestedBed, lease: Lease, remote: Remote) -> None:
    assert bed.provider.experiments() == ["nested"]
    assert bed.provider.holder("nested") == bed.folder / "workspace"
    assert [host.name for host in lease.hosts] == ["paris-1", "paris-2", "lyon-1", "nantes-1"]
    for host in lease.hosts:
        assert remote(host.name, ["hostname"]) == f"{host.name}\n"
        assert "running" in remote(host.name, ["systemctl", "is-system-running"])
    hosts = remote("lyon-1", ["cat", "/etc/hosts"])
    assert all(f"{host.site_address} {host.name}" in hosts for host in lease.hosts)
    running = {
        name: bed.machines.ssh(name, "ls /var/lib/discovery-deploy-machine/experiments/nested/hosts")
        for name in MACHINES
    }
    assert running == {"big-1": "paris-1\nparis-2", "big-2": "lyon-1\nnantes-1"}
    machines = nested.machine_lease(lease)
    assert machines is not None
    assert [host.name for host in machines.hosts] == list(MACHINES)
    # what is put there on a machine, its hosts see
    nested.machine_remote(lease)(
        "big-2", ["sh", "-c", "mkdir -p /opt/discovery-deploy/x; echo here > /opt/discovery-deploy/x/y"]
    )
    assert remote("lyon-1", ["cat", "/opt/discovery-deploy/x/y"]) == "here\n"
    bed.machines.ssh("big-2", "rm -r /opt/discovery-deploy/x")
    remote("paris-1", ["ping", "-c", "2", "-M", "do", "-s", "1472", "nantes-1"])


def the_wan_is_as_asked(bed: NestedBed, asked: Experiment, lease: Lease, remote: Remote) -> None:
    shapes = path_shapes(Network.model_validate(PATHS), asked.site_names)
    shaper = RouterShaper(bed.provider, lease)
    shaper.put(shapes)
    points = [
        measure.Point(site, lease.at(site).name, lease.at(site).site_address, lease.site_gateways[site])
        for site in asked.site_names
    ]
    with before_all_else(bed.machines.runs_in):
        report = measure.verify_wan(
            remote, points, shapes, Verify(), readback=lambda: shaper.problems(shapes), attempts=6
        )
    for pair in report.pairs:
        print(pair.measured.source, pair.measured.destination, pair.asked_rtt_s, pair.measured.rtt_median_s)
    print(summary(report), shaper.facts(), report.base_rtt_s)
    assert report.problems == ()
    flat = {pair: PathShape() for pair in shapes}
    shaper.change(shapes, flat)
    assert shaper.problems(flat) == ()
    assert shaper.problems(shapes)


def reserved_again_nothing_changes(bed: NestedBed, asked: Experiment, lease: Lease) -> None:
    started = time.monotonic()
    again = bed.reserve(asked)
    print("again", time.monotonic() - started)
    assert again == lease
    assert bed.provider.dead_hosts(again) == []


def a_dead_host_is_seen_and_mended(bed: NestedBed, asked: Experiment, lease: Lease) -> None:
    group = f"/sys/fs/cgroup/dd{lease.details['plans']['big-2']['slot']}/lyon-1"
    bed.machines.ssh("big-2", f"echo 1 > {group}/cgroup.kill")
    assert bed.provider.dead_hosts(lease) == ["lyon-1"]
    assert bed.reserve(asked).identities == lease.identities
    assert bed.provider.dead_hosts(lease) == []
