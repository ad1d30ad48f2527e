"""Hosts that are booked for some time: what would be booked, when they go, and how to get more time."""

from __future__ import annotations

import time
from collections.abc import Iterable

from discovery_deploy.bench.campaign import Setting
from discovery_deploy.driver import opening
from discovery_deploy.driver.releasing import readable_lease
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.units import parse_duration
from discovery_deploy.hosts.registry import holding, provider_named
from discovery_deploy.system.errors import ExperimentError, StateError, TestbedError
from discovery_deploy.system.progress import Announcer
from discovery_deploy.system.strict import experiment_name
from discovery_deploy.testbeds import g5k_request
from discovery_deploy.testbeds.base import BookingProvider, ProviderInterface


def request_text(settings: Iterable[Setting]) -> str:
    """What the hosts of these settings would be booked as, each request once; empty where nothing is booked."""
    texts: dict[str, str] = {}
    for setting in settings:
        provider = provider_named(setting.experiment.provider.type)
        if isinstance(provider, BookingProvider):
            sites = setting.experiment.model_dump_json(include={"sites", "provider"})
            texts.setdefault(sites, "")
            texts[sites] = texts[sites] or provider.request_text(setting.experiment)
    return "".join(dict.fromkeys(texts.values()))


def seconds_of(text: str) -> int:
    """Seconds of a duration with a unit ("90 min"), or of a walltime ("01:30:00"). Raises ExperimentError."""
    try:
        seconds = g5k_request.seconds_of(text) if ":" in text else parse_duration(text)
    except ValueError:
        raise ExperimentError(f'"{text}" is no duration; write for example "90 min" or "01:30:00"') from None
    if seconds < 1:
        raise ExperimentError(f'"{text}" is less than a second')
    return round(seconds)


def extend(named: str, more: str, announce: Announcer) -> str:
    """Ask for more time for an experiment's hosts; what was granted, a line per booking.

    Args:
        named: experiment file, workspace or name.
        more: how much, as `seconds_of` takes it.
        announce: told what is being done.
    Raises:
        ExperimentError: `more` is no duration.
        StateError: its hosts are not booked for a time.
        TestbedError: it was refused, or not all was granted.
    """
    seconds = seconds_of(more)
    try:
        workspace = opening.find_workspace(named)
        name = workspace.name
        lease = readable_lease(workspace)
    except StateError:
        name, lease = experiment_name(named), None
    providers = [provider_named(lease.provider)] if lease else list(holding(name).values())
    booked = [provider for provider in providers if isinstance(provider, BookingProvider)]
    if not booked:
        raise StateError(f"{name} has no hosts that are booked for a time", "Look with `discovery-deploy status`.")
    return "".join(provider.extend(name, seconds, announce.line) for provider in booked)


def time_warning(
    provider: ProviderInterface, lease: Lease, runs_left: int, seconds_per_run: float | None
) -> str | None:
    """One line when the hosts go before the campaign ends, with what to do; None when they do not, or nobody knows.

    Args:
        provider: of the hosts.
        lease: the hosts.
        runs_left: runs without a result.
        seconds_per_run: what a run took so far, on the whole; None: none was made yet.
    """
    if not isinstance(provider, BookingProvider) or seconds_per_run is None:
        return None
    try:
        ends = provider.ends_at(lease)
    except TestbedError as error:
        return f"when the hosts go is not known: {error.what.splitlines()[0]}"
    if ends is None:
        return None
    return g5k_request.time_warning(ends, time.time(), runs_left, seconds_per_run, lease.experiment)
