"""Booking through machines that hold several hosts each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts.nested import NestedBooking
from discovery_deploy.system.progress import Progress
from discovery_deploy.testbeds.base import BookingProvider
from tests.unit.hosts.test_nested import FakeInner
from tests.unit.hosts.test_nesting import experiment


class Booked(FakeInner):
    """The same, of machines that are booked for some time."""

    def request_text(self, experiment: Experiment) -> str:
        return ", ".join(host.name for site in experiment.sites for host in site.hosts)

    def ends_at(self, lease: Lease) -> float | None:
        return float(len(lease.hosts))

    def extend(self, experiment_name: str, seconds: float, progress: Progress) -> str:
        return f"{experiment_name}: {seconds} s more"


class TestBookings:
    G5K: dict[str, Any] = {"type": "g5k", "default": {"g5k_site": "rennes", "cluster": "paravance"}}

    def provider(self, tmp_path: Path) -> NestedBooking:
        return NestedBooking("g5k", Booked([]), tmp_path)

    def test_machines_are_booked_where_hosts_share_them(self, tmp_path: Path) -> None:
        nested_one = experiment({**self.G5K, "hosts_per_machine": 4}, 2, 2, 2)
        assert self.provider(tmp_path).request_text(nested_one) == "machine-1, machine-2"
        assert self.provider(tmp_path).request_text(experiment(self.G5K, 1, 1)) == "s0-1, s1-1"

    def test_the_time_is_that_of_the_machines(self, tmp_path: Path) -> None:
        direct = Booked([]).reserve(experiment(self.G5K, 1, 1), "ssh-ed25519 ME", tmp_path, print)
        machines = direct.model_copy(update={"hosts": direct.hosts[:1]})
        lease = direct.model_copy(update={"details": {"machines": machines.model_dump(mode="json")}})
        provider = self.provider(tmp_path)
        assert (provider.ends_at(direct), provider.ends_at(lease)) == (2.0, 1.0)
        assert provider.extend("nested", 60, print) == "nested: 60 s more"
        assert isinstance(provider, BookingProvider)
