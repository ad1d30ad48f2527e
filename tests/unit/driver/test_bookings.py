"""Hosts that are booked for some time: what is said of them, and what is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from discovery_deploy.bench import campaign
from discovery_deploy.driver import bookings
from discovery_deploy.driver.driver import Driver
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import ExperimentError, StateError, TestbedError
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds.base import BookingProvider
from discovery_deploy.testbeds.g5k import G5kProvider
from discovery_deploy.testbeds.local import LocalProvider


class Booked(LocalProvider):
    """A provider that books: `ends` is when its hosts go; what it is asked for is in `asked`."""

    def __init__(self, ends: float | None = None) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.ends = ends
        self.asked: list[tuple[str, float]] = []

    def request_text(self, experiment: Experiment) -> str:
        return f"{len(experiment.sites[0].hosts)} machines\n"

    def ends_at(self, lease: Lease) -> float | None:
        if self.ends == 0:
            raise TestbedError("the API does not answer\nat all")
        return self.ends

    def extend(self, experiment_name: str, seconds: float, progress: Callable[[str], None]) -> str:
        self.asked.append((experiment_name, seconds))
        return "granted\n"

    def experiments(self) -> list[str]:
        return ["mine"]


@pytest.fixture
def booked(monkeypatch: pytest.MonkeyPatch) -> Booked:
    provider = Booked()
    monkeypatch.setattr(bookings, "provider_named", lambda name: provider)
    monkeypatch.setattr(bookings, "holding", lambda name: {"g5k": provider} if name == "mine" else {})
    return provider


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *words: None


LEASE = Lease(
    provider="g5k", experiment="mine", hosts=(), site_subnets={}, site_devices={}, site_gateways={}, identities={},
    router="hosts",
)  # fmt: skip


def experiment(*factors: dict[str, Any]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "mine",
            "sites": [{"name": "a"}, {"name": "b"}],
            "deployment": {"backend": {"type": "galera"}},
            "provider": {"type": "g5k", "default": {"g5k_site": "rennes", "cluster": "paravance"}},
            "campaign": {"factors": list(factors)},
        }
    )


def test_only_grid5000_books() -> None:
    assert isinstance(G5kProvider(Path("/nowhere"), Path("/nowhere")), BookingProvider)
    assert not isinstance(LocalProvider(Path("/nowhere"), Path("/nowhere")), BookingProvider)


def test_settings_with_the_same_hosts_are_one_request(booked: Booked) -> None:
    delays = {"path": "network.default.delay", "levels": ["1 ms", "2 ms"]}
    assert bookings.request_text(campaign.settings(experiment(delays))) == "1 machines\n"


@pytest.mark.parametrize(("text", "seconds"), [("90 min", 5400), ("1.5 h", 5400), ("01:30:00", 5400), ("0:30", 1800)])
def test_durations(text: str, seconds: int) -> None:
    assert bookings.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "soon", "1:xx", "-5 min", "0 s", ""])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ExperimentError, match=f'"{text}" is '):
        bookings.seconds_of(text)


def test_extend_finds_the_hosts_by_name(
    booked: Booked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    monkeypatch.setenv("DISCOVERY_DEPLOY_RESULTS", str(tmp_path))
    assert bookings.extend("mine", "30 min", Silent()) == "granted\n"
    assert booked.asked == [("mine", 1800)]
    with pytest.raises(StateError, match="other has no hosts that are booked"):
        bookings.extend("other", "30 min", Silent())


def test_a_campaign_that_does_not_fit_is_told(booked: Booked) -> None:
    booked.ends = time.time() + 3600
    assert bookings.time_warning(booked, LEASE, 5, 600.0) is None
    warning = bookings.time_warning(booked, LEASE, 8, 600.0)
    assert warning is not None
    assert "8 runs of about 10 min need 1 h 20 min" in warning
    assert "discovery-deploy extend mine 00:2" in warning


def test_nothing_is_said_when_nobody_knows(booked: Booked) -> None:
    assert bookings.time_warning(booked, LEASE, 5, 600.0) is None
    assert bookings.time_warning(booked, LEASE, 5, None) is None
    assert bookings.time_warning(LocalProvider(Path("/x"), Path("/x")), LEASE, 5, 600.0) is None
    booked.ends = 0
    assert bookings.time_warning(booked, LEASE, 5, 600.0) == "when the hosts go is not known: the API does not answer"


def test_the_driver_says_it_and_writes_it_down(booked: Booked, tmp_path: Path) -> None:
    booked.ends = time.time() + 600
    told: list[tuple[str, str]] = []
    driver = Driver.__new__(Driver)
    driver.testbed = SimpleNamespace(provider=booked, lease=LEASE)  # type: ignore[assignment]
    driver.announce = SimpleNamespace(phase=lambda *words: told.append(words))
    driver.workspace = Workspace(tmp_path / "mine")
    driver._tell_time(1, 60.0)
    assert told == []
    driver._tell_time(20, 60.0)
    assert [name for name, _ in told] == ["time"]
    assert "time is short" in (tmp_path / "mine" / "journal.jsonl").read_text()
