"""Database requests counted: listeners at the databases of a deployment while Rally asks one scenario after another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from discovery_deploy.bench import bench, request_counts
from discovery_deploy.bench.campaign import Setting
from discovery_deploy.bench.rally import TaskTemplate
from discovery_deploy.bench.request_counts import CountRecord, SqlRequest
from discovery_deploy.cloud import variables
from discovery_deploy.cloud.service_variables import BACKEND_PORT, SITE_DATABASE_PORT
from discovery_deploy.cloud.topology import layout
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.system.agents import Agents, Talk
from discovery_deploy.system.errors import ExperimentError, MeasurementError
from discovery_deploy.system.files import now

SOCKETS = {BACKEND_PORT: "/run/mysqld/mysqld.sock", SITE_DATABASE_PORT: "/run/site-mariadb/mysqld.sock"}
"""Port of a MariaDB -> the socket on which it answers its host's root."""
LOOKS_AT_CLOCKS = 15


class Clock(NamedTuple):
    """A host's clock, as the driver sees it."""

    ahead_s: float
    """Of the driver's."""
    error_s: float
    """At most so much off: half of the shortest time between question and answer."""


class Listener:
    """The agent of a host that sees what its databases are asked.

    Args:
        talk: with the agent; it sees requests already.
    """

    def __init__(self, talk: Talk) -> None:
        self.host = talk.name
        self._talk = talk

    def clock(self) -> Clock:
        """How far the host's clock is ahead of the driver's."""
        best = Clock(0.0, float("inf"))
        for _ in range(LOOKS_AT_CLOCKS):
            before_s = time.time()
            self._talk.say("clock")
            there_s = self._talk.hear()["clock_ns"] / 1e9
            after_s = time.time()
            error_s = (after_s - before_s) / 2
            best = min(best, Clock(there_s - before_s - error_s, error_s), key=lambda clock: clock.error_s)
        return best

    def stop(self) -> dict[str, Any]:
        """End it. Returns what it has seen (`sql_capture.Capture.seen`).

        Raises:
            TestbedError: it has ended before.
            MeasurementError: packets came faster than they were read, so that what was seen is not all.
        """
        self._talk.say("stop")
        seen: dict[str, Any] = self._talk.answer()
        if seen["dropped"]:
            raise MeasurementError(
                f"{self.host}: {seen['dropped']} packets came faster than they were read: the counts would be too low",
                "Is the machine busy? Count again.",
            )
        return seen


@contextmanager
def listening(agents: Agents, host: str, ports: Sequence[int]) -> Iterator[Listener]:
    """A listener on a host, until the end of the block. Raises TestbedError.

    Args:
        agents: of hosts.
        host: where it listens.
        ports: of the databases there; none: it only tells the time.
    """
    asked = {"ports": list(ports), "sockets": [SOCKETS[port] for port in ports]}
    with agents.opened(host, "count", asked, limit_s=None) as talk:
        talk.hear()
        yield Listener(talk)


@contextmanager
def listeners(agents: Agents, ports: Mapping[str, Sequence[int]]) -> Iterator[list[Listener]]:
    """A listener on each host of a mapping host -> ports, until the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(listening(agents, host, own)) for host, own in ports.items()]


def sql_requests(seen: Mapping[str, Any], ahead_s: float) -> list[SqlRequest]:
    """What a listener has seen, at times by a clock that its host's is `ahead_s` ahead of. Pure."""
    users, kinds = seen["users"], seen["kinds"]
    return [
        SqlRequest(at_us / 1e6 - ahead_s, users[user], kinds[kind], bool(answered), bool(commits))
        for at_us, user, kind, answered, commits in seen["requests"]
    ]


def clock_apart(host: str, there: Clock, here: Clock) -> Clock:
    """How far the clock of a host with a database is ahead of the bench host's. Pure.

    Raises:
        MeasurementError: that is not known well enough to say to which step a request belongs.
    """
    apart = Clock(there.ahead_s - here.ahead_s, there.error_s + here.error_s)
    if apart.error_s > request_counts.MOST_CLOCK_ERROR_S:
        raise MeasurementError(
            f"{host}: its clock is known to {apart.error_s * 1e3:.1f} ms only: requests could be counted for the wrong "
            "step",
            "Count from a driver that is nearer to the hosts.",
        )
    return apart


class RequestCount:
    """Counts what the scenarios of a campaign ask of the databases of a deployment that stands.

    Args:
        testbed: with the deployment of the setting, and no constraint between its sites.
        setting: whose deployment is asked.
        tasks: templates of the scenarios.
    """

    def __init__(self, testbed: Testbed, setting: Setting, tasks: Mapping[str, TaskTemplate]) -> None:
        self.testbed = testbed
        self.setting = setting
        self.experiment = setting.experiment
        self.tasks = tasks

    def run(self) -> CountRecord:
        """Count, and keep it in the workspace.

        Raises:
            ExperimentError: there is no scenario.
            MeasurementError: it could not be counted, and why.
        """
        scenarios = self.experiment.campaign.scenarios
        if not scenarios:
            raise ExperimentError("the campaign has no scenario: there is nothing to count")
        testbed, workspace = self.testbed, self.testbed.workspace
        testbed.announce.phase("count", self.setting.record.label)
        began_s = time.monotonic()
        bench_host = testbed.lease.at(self.experiment.bench_sites()[0], "bench")
        ports = self._ports()
        with listeners(testbed.agents, ports) as open_listeners:
            clocks = self._clocks(bench_host.name, open_listeners)
            report = self._rally()
            seen = [listener.stop() for listener in open_listeners]
        requests = [one for what, clock in zip(seen, clocks, strict=True) for one in sql_requests(what, clock.ahead_s)]
        record = CountRecord(
            deployed=testbed.wanted(self.experiment)["deploy"],
            setting=self.setting.record.label,
            bench_site=bench_host.site,
            databases=tuple(ports),
            warm_up=request_counts.WARM_UP,
            clock_error_s=round(max(clock.error_s for clock in clocks), 6),
            counted_at=now(),
            scenarios=request_counts.counted(report, scenarios, requests),
        )
        workspace.save(f"counts/{record.deployed}.json", record)
        total = sum(one.answered for one in requests)
        testbed.announce.done("count", round(time.monotonic() - began_s, 3), f"{total} database requests seen")
        return record

    def _ports(self) -> dict[str, list[int]]:
        """Host -> ports of its databases."""
        found: dict[str, list[int]] = {}
        for server in layout(self.experiment).servers:
            port = BACKEND_PORT if server.kind == "backend" else SITE_DATABASE_PORT
            found.setdefault(server.at.host, []).append(port)
        return found

    def _clocks(self, bench_host: str, databases: Sequence[Listener]) -> list[Clock]:
        """How far each database's clock is ahead of the bench host's. Raises MeasurementError when it is not known."""
        if self.testbed.lease.provider == "local":  # one machine, one clock
            return [Clock(0.0, 0.0) for _ in databases]
        with listening(self.testbed.agents, bench_host, ()) as listener:
            here = listener.clock()
        return [clock_apart(database.host, database.clock(), here) for database in databases]

    def _rally(self) -> Any:
        """Rally's report on all scenarios, one after another. Raises MeasurementError when there is none."""
        testbed, folder = self.testbed, self.testbed.workspace.path / "counts" / "rally"
        task = request_counts.counting_task(self.experiment, self.tasks)
        hosts = [testbed.lease.at(self.experiment.bench_sites()[0], "bench")]
        command = variables.rally_command(testbed.environments(self.experiment))
        times = (request_counts.WARM_UP + request_counts.ITERATIONS) * len(task["subtasks"])
        [result] = bench.load(testbed.remote, hosts, "count", task, command, times, folder)
        if result.problem:
            raise MeasurementError(result.problem, f"Look at {folder / result.site / 'rally.log'}, then count again.")
        return json.loads((folder / result.site / "rally.json").read_text(encoding="utf-8"))
