"""A campaign as it could come from a testbed: records, Rally reports and provenance, made from known numbers.

Durations are T0 + n x RTT (n database requests, or w commits that write) plus a little noise from a fixed seed,
so that a test knows what must be found.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from discovery_deploy.bench import rally
from discovery_deploy.bench.records import HostFacts, Placement, Provenance, RunRecord, SettingRecord
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.experiment.units import format_duration
from discovery_deploy.wan.shapes import PathShape
from discovery_deploy.wan.verdict import PairMeasurement, PairVerdict, WanReport

SITES = ("paris", "nantes", "lyon")
BASE_RTT_S = 0.0003
SIGN_IN = {
    "keystone/authenticate_user_and_validate_token": (0.62, 48, 0),
    "keystone/create_and_list_users": (0.64, 57, 0),
}
"""Task -> the same for what lies outside its actions."""
ACTIONS: dict[str, dict[str, tuple[float, int, int]]] = {
    "keystone/authenticate_user_and_validate_token": {
        "keystone_v3.fetch_token": (0.262, 10, 0),
        "keystone_v3.validate_token": (0.02, 4, 0),
    },
    "keystone/create_and_list_users": {
        "keystone_v3.create_user": (0.037, 9, 1),
        "keystone_v3.list_users": (0.021, 5, 0),
    },
}
"""Task -> atomic action -> (T0 in s, database requests, commits that write), near those of a real Keystone."""


class Campaign(NamedTuple):
    """All that a report is made of."""

    experiment: Experiment
    runs: list[RunRecord]
    reports: list[tuple[RunRecord, str, Any]]
    table: pa.Table
    provenance: Provenance


def experiment(
    backends: Sequence[Mapping[str, str]],
    delays_s: Sequence[float],
    tasks: Sequence[str] = tuple(ACTIONS),
    times: int = 20,
    sites: Sequence[str] = SITES,
    bench_site: str | None = "lyon",
    repetitions: int = 1,
    load: str = "light",
    question: str = "What does a token, and a new user, cost when Keystone's database is far?",
) -> Experiment:
    """The experiment file of such a campaign."""
    factors: list[dict[str, Any]] = [
        {"path": "deployment.backend", "levels": [dict(backend) for backend in backends]},
        {"path": "network.default.delay", "levels": [format_duration(delay_s) for delay_s in delays_s]},
    ]
    return Experiment.model_validate(
        {
            "name": "quickstart",
            "question": question,
            "sites": [{"name": name} for name in sites],
            "network": {"constraints": [{"between": ["paris", "nantes"], "delay": "5 ms"}]} if "paris" in sites else {},
            "deployment": {"backend": dict(backends[0])},
            "campaign": {
                "load": load,
                "bench_site": bench_site,
                "repetitions": repetitions,
                "factors": [factor for factor in factors if len(factor["levels"]) > 1],
                "scenarios": [{"task": task, "times": times} for task in tasks],
            },
        }
    )


def wan_report(delay_s: float, sites: Sequence[str] = SITES, off_s: float = 0.0) -> WanReport:
    """A verification that finds every RTT `off_s` from what was asked, and says so when that is too far."""
    pairs: list[PairVerdict] = []
    for source in sites:
        for destination in sites:
            if source == destination:
                continue
            one_way = one_way_s(source, destination, delay_s)
            rtt_s = 2 * one_way + BASE_RTT_S + off_s + 0.00004 * (len(pairs) % 4)
            problem = f"{source} -> {destination}: RTT {rtt_s * 1e3:.2f} ms instead of {2e3 * one_way:.2f} ms"
            measured = PairMeasurement(
                source=source,
                destination=destination,
                sent=40,
                received=40,
                rtt_median_s=rtt_s,
                rtt_p99_s=rtt_s + 0.0004,
                rtt_max_s=rtt_s + 0.0009,
            )
            pairs.append(
                PairVerdict(
                    asked=PathShape(delay_s=one_way),
                    asked_rtt_s=2 * one_way,
                    measured=measured,
                    problems=(problem,) if abs(off_s) > 0.001 else (),
                )
            )
    return WanReport(measured_at="2026-03-01T12:00:00Z", pairs=tuple(pairs), base_rtt_s=BASE_RTT_S)


def report_of(task: str, times: int, rtt_s: float, commit_s: float, seed: str, failing: int = 0) -> dict[str, Any]:
    """A Rally report (the parts that are read) whose first `failing` iterations fail in their last action."""
    generator = random.Random(seed)
    clock, data = 1_772_366_400.0, []
    for number in range(times):
        start = clock
        clock += _duration(SIGN_IN[task], rtt_s, commit_s, generator)
        actions = []
        for name, cost in ACTIONS[task].items():
            began, clock = clock, clock + _duration(cost, rtt_s, commit_s, generator)
            actions.append({"name": name, "children": [], "started_at": began, "finished_at": clock})
        error = []
        if number < failing:
            actions[-1]["failed"] = True
            error = [
                "ConnectFailure",
                "Unable to establish connection to http://10.131.2.10:5000/v3/users?",
                "Traceback",
            ]
        data.append({"timestamp": start, "duration": clock - start, "idle_duration": 0.0, "error": error,
                     "output": {"additive": [], "complete": []}, "atomic_actions": actions})  # fmt: skip
    workload = {"scenario": {"KeystoneBasic." + task.split("/")[1]: {}}, "data": data, "contexts_results": []}
    task_report = {"status": "finished", "subtasks": [{"title": task, "workloads": [workload]}]}
    return {"info": {"rally_version": "5.1.1"}, "tasks": [task_report]}


def _duration(cost: tuple[float, int, int], rtt_s: float, commit_s: float, generator: random.Random) -> float:
    base_s, requests, commits = cost
    noise_s = 0.004 * generator.lognormvariate(0, 0.6)
    return base_s + requests * rtt_s + commits * commit_s + noise_s


def campaign(
    backends: Sequence[Mapping[str, str]] = ({"type": "mariadb", "site": "nantes"}, {"type": "galera"}),
    delays_s: Sequence[float] = (0.0, 0.025),
    repetitions: int = 1,
    **options: Any,
) -> Campaign:
    """A whole campaign in which everything went well."""
    asked = experiment(backends, delays_s, repetitions=repetitions, **options)
    runs, reports = [], []
    for backend in backends:
        for delay_s in delays_s:
            setting = _setting(backend, delay_s, len(backends) > 1, len(delays_s) > 1)
            for repetition in range(1, repetitions + 1):
                for scenario in asked.campaign.scenarios:
                    run = _run(asked, scenario, setting, repetition, backend, delay_s)
                    runs.append(run)
                    for place in run.placements:
                        rtt_s = place.database_rtt_s and place.database_rtt_s + BASE_RTT_S
                        seed = run.id + place.bench_site
                        told = report_of(scenario.task, scenario.times, rtt_s, place.commit_rtt_s, seed)
                        reports.append((run, place.bench_site, told))
    factors = [factor.path for factor in asked.campaign.factors]
    return Campaign(asked, runs, reports, rally.table(reports, factors), provenance(asked))


def _setting(backend: Mapping[str, str], delay_s: float, backends: bool, delays: bool) -> SettingRecord:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    if backends:
        values["deployment.backend"] = dict(backend)
        labels["deployment.backend"] = "@".join(backend.values())
    if delays:
        values["network.default.delay"] = labels["network.default.delay"] = format_duration(delay_s)
    return SettingRecord(label=", ".join(labels.values()), values=values, labels=labels)


def _run(asked: Experiment, scenario: Scenario, setting: SettingRecord, repetition: int, backend: Mapping[str, str],
         delay_s: float) -> RunRecord:  # fmt: skip
    places = tuple(_placement(asked, site, backend, delay_s) for site in asked.bench_sites())
    return RunRecord(
        id=f"{scenario.label}-{setting.label.replace(', ', '-').replace(' ', '-')}-{repetition}",
        scenario=scenario,
        setting=setting,
        repetition=repetition,
        load=asked.campaign.load,
        placements=places,
        status="done",
        started_at="2026-03-01T12:00:00Z",
        finished_at="2026-03-01T12:01:00Z",
        wan_before=wan_report(delay_s, asked.site_names),
        wan_after=wan_report(delay_s, asked.site_names),
        files={place.bench_site: place.bench_site for place in places},
    )


def _placement(asked: Experiment, site: str, backend: Mapping[str, str], delay_s: float) -> Placement:
    galera = backend["type"] == "galera"
    holders = asked.site_names if galera else (backend["site"],)
    nearest = site if galera else backend["site"]
    return Placement(
        bench_site=site,
        api_site=site,
        database_sites=holders,
        nearest_database_site=nearest,
        database_rtt_s=2 * one_way_s(site, nearest, delay_s),
        commit_rtt_s=max(2 * one_way_s(nearest, other, delay_s) for other in holders),
        beside_only_database=holders == (site,),
    )


def one_way_s(source: str, destination: str, delay_s: float) -> float:
    """The asked delay of a path: between paris and nantes it is always 5 ms."""
    if source == destination:
        return 0.0
    return 0.005 if {source, destination} == {"paris", "nantes"} else delay_s


def provenance(asked: Experiment) -> Provenance:
    """Provenance as a local testbed would give it."""
    hosts = tuple(
        HostFacts(
            name=f"{name}-1",
            site=name,
            os="Debian GNU/Linux 12 (bookworm)",
            kernel="6.1.0-18-amd64",
            cpu="QEMU Virtual CPU",
            packages={
                "mariadb-server": "1:10.11.6-0+deb12u1",
                "memcached": "1.6.18-1",
                "keystone": "27.1.0",
                "galera-4": "26.4.14-0+deb12u1",
            },
        )
        for name in asked.site_names
    )
    return Provenance(
        tool_version="0.1.0",
        tool_commit="0123456789abcdef",
        provider="local",
        wan_router="uml 6.1.55",
        machine={"cpu": "QEMU Virtual CPU", "cores": "2", "memory": "24 GB", "kernel": "6.1.0-18-amd64",
                 "os": "Debian GNU/Linux 12"},
        hashes={"base image": "a1b2c3d4", "openstack lock": "e5f60718", "rally lock": "293a4b5c",
                "experiment file": "d6e7f809"},
        hosts=hosts,
        phase_seconds={"reserve": 4.1, "prepare": 1.2, "deploy": 12.9, "constrain": 0.2, "verify": 0.9, "bench": 300.0},
        finished_at="2026-03-01T13:00:00Z",
    )  # fmt: skip
