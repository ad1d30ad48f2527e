"""Rally on the bench hosts: started once, told what to run, begun together; its results brought home as they are."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from discovery_deploy.agent import rally_process
from discovery_deploy.bench import rally
from discovery_deploy.experiment.lease import LeasedHost
from discovery_deploy.experiment.model import Scenario
from discovery_deploy.system.errors import DiscoveryError
from discovery_deploy.system.remote import Remote, side_by_side
from discovery_deploy.system.strict import Strict

UNIT = "discovery-rally"
REMOTE_RUNS = "/var/lib/discovery-deploy/runs"
PROGRAM = f"{REMOTE_RUNS}/{Path(rally_process.__file__).name}"
RESULTS = ("rally.json", "rally.html", "rally.log")
LOAD_LIMIT_S = 300.0
"""How long Rally may take until it waits for its first task; 2 s of a processor."""
MORE_S = 60.0
"""How much longer than a host's own limit the driver waits for its answer."""


class SiteResult(Strict):
    """What Rally gave at one site."""

    site: str
    problem: str = ""
    """Why there is no complete result; empty when there is one."""
    clock_ahead_s: float = 0.0
    """How far the host's clock was ahead of the driver's when the load began."""
    clock_error_s: float = 0.0
    """That number is right within so much either way."""


def limit_s(times: int) -> float:
    """Seconds after which a Rally run counts as hung: 30 minutes, and 3 minutes per iteration.

    Without a cache and 50 ms from its database, Keystone takes 15 minutes and more around its iterations.
    """
    return 1800.0 + 180.0 * times


def stop_old_run(remote: Remote, host: str) -> None:
    """End a Rally that an earlier driver started and left: it would load the services beside ours."""
    state = remote(host, ["systemctl", "show", "--property=LoadState", "--value", f"{UNIT}.service"])
    if state.strip() == "loaded":
        remote(host, ["systemctl", "stop", f"{UNIT}.service"], timeout_s=60.0)


def stop(remote: Remote, hosts: Sequence[LeasedHost]) -> None:
    """End Rally on hosts, after an interruption: a host that does not answer is left to the next run."""

    def one(host: LeasedHost) -> None:
        with suppress(DiscoveryError):
            stop_old_run(remote, host.name)

    side_by_side(one, hosts)


class Lost(Exception):  # noqa: N818 - it is caught here
    """Rally's process on a host, or the way to it, is gone, or gives no answer."""


class Process:
    """Rally's process on one bench host, over an ssh connection of its own: it ends when that does.

    Args:
        remote: the way to hosts.
        host: the bench host's name.
        rally: its Python and its configuration, as `variables.rally_command` has them.
    Raises:
        DiscoveryError: the host cannot be reached.
    """

    def __init__(self, remote: Remote, host: str, rally: tuple[str, str]) -> None:
        stop_old_run(remote, host)
        text = Path(rally_process.__file__).read_text(encoding="utf-8")
        remote(host, ["sh", "-c", f"umask 077; mkdir -p -m 700 {REMOTE_RUNS} && cat > {PROGRAM}"], stdin=text)
        python, configuration = rally
        command = ["systemd-run", f"--unit={UNIT}", "--collect", "--wait", "--quiet", "--pipe",
                   "--setenv=PYTHONSAFEPATH=1",  # the program lies among the runs
                   python, PROGRAM, configuration, REMOTE_RUNS]  # fmt: skip
        self._loaded = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this
        self._ssh = subprocess.Popen(remote.arguments_alone(host, command), stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=self._errors)  # fmt: skip
        assert self._ssh.stdout is not None
        self._lines = rally_process.Lines(self._ssh.stdout.fileno())
        self._heard: list[dict[str, Any]] = []

    def load(self) -> None:
        """Wait until it takes tasks. Raises Lost."""
        if not self._loaded:
            self.hear("loaded", time.monotonic() + LOAD_LIMIT_S)
            self._loaded = True

    def tell(self, order: Mapping[str, Any]) -> None:
        """Give it an order. Raises Lost."""
        assert self._ssh.stdin is not None
        try:
            self._ssh.stdin.write(json.dumps(order).encode() + b"\n")
            self._ssh.stdin.flush()
        except (OSError, ValueError):
            raise Lost(self._last_words()) from None

    def hear(self, word: str, until: float, other: str = "") -> dict[str, Any]:
        """Its next answer that has a word, or the other one; what is in between is passed over.

        Raises:
            Lost: it will give none, or has not until then (by the monotonic clock).
        """
        while True:
            while self._heard:
                answer = self._heard.pop(0)
                if word in answer or (other and other in answer):
                    return answer
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([self._lines.descriptor], [], [], left_s)[0]:
                raise Lost("gave no answer in time")
            try:
                self._heard = self._lines.read()
            except (OSError, ValueError):
                raise Lost("gave an answer that cannot be read") from None
            if self._lines.ended and not self._heard:
                raise Lost(self._last_words())

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._ssh.wait(5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"ended: {' | '.join(line.strip() for line in lines[-3:])}" if lines else "ended without a word"

    def close(self) -> None:
        """End it, and whatever runs in it: its standard input ends."""
        self._ssh.kill()
        self._ssh.wait()
        for stream in (self._ssh.stdin, self._ssh.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class Clients:
    """Rally's processes on bench hosts, kept from run to run.

    Args:
        remote: the way to hosts.
        rally: its Python and its configuration on them, as `variables.rally_command` has them.
    """

    def __init__(self, remote: Remote, rally: tuple[str, str]) -> None:
        self.remote, self.rally = remote, rally
        self._open: dict[str, Process] = {}

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all of them, and whatever they run."""
        while self._open:
            self._open.popitem()[1].close()

    def load(
        self, hosts: Sequence[LeasedHost], run_id: str, task: dict[str, Any], times: int, to: Path
    ) -> list[SiteResult]:
        """Run one Rally task on every given host at the same time; fetch rally.json, rally.html and rally.log.

        The load begins when all of them have set up what it needs. One that fails before makes the others not begin.

        Args:
            hosts: bench hosts, one per loading site.
            run_id: name of the folder on hosts.
            task: a Rally task (version 2); its values are data, nothing is rendered.
            times: iterations at each site, for the time limit.
            to: local folder; each site's files go to `to/<site>/`.
        Returns:
            One result per host. A Rally that fails is a result with a problem, not an exception.
        """
        together = threading.Barrier(len(hosts))
        order = {"run": run_id, "task": task, "limit_s": limit_s(times)}

        def one(host: LeasedHost) -> SiteResult:
            result = self._run_at(host, order, together)
            return result.model_copy(update={"problem": self._fetch(host, run_id, result.problem, to / host.site)})

        try:
            return side_by_side(one, hosts)
        except BaseException as error:
            together.abort()
            self.close()
            if isinstance(error, KeyboardInterrupt):
                stop(self.remote, hosts)  # seen to have ended, before the driver does
            raise

    def _process(self, host: str) -> Process:
        """The one that is there, or a new one."""
        if host not in self._open:
            self._open[host] = Process(self.remote, host, self.rally)
        return self._open[host]

    def _run_at(self, host: LeasedHost, order: Mapping[str, Any], together: threading.Barrier) -> SiteResult:
        """Rally at one site, to its end."""
        until = time.monotonic() + LOAD_LIMIT_S + float(order["limit_s"]) + MORE_S
        problem, clock = "", (0.0, 0.0)
        try:
            process = self._process(host.name)
            process.load()
            process.tell(order)
            answer = process.hear("ready", until, "ended")
            if "ready" in answer and (begun := self._begin(process, together, until)):
                clock, problem = begun, str(process.hear("ended", until)["ended"])
            elif "ready" in answer:
                process.hear("ended", until)
                problem = "it did not begin, since another site's was not ready"
            else:
                together.abort()
                problem = str(answer["ended"])
        except (Lost, DiscoveryError) as error:
            together.abort()
            with suppress(KeyError):
                self._open.pop(host.name).close()
            problem = " ".join(error.what.split()) if isinstance(error, DiscoveryError) else f"its process {error}"
        return SiteResult(
            site=host.site,
            problem=f"Rally at {host.site} failed: {problem}" if problem else "",
            clock_ahead_s=clock[0],
            clock_error_s=clock[1],
        )

    @staticmethod
    def _begin(process: Process, together: threading.Barrier, until: float) -> tuple[float, float] | None:
        """When all are ready, let it begin; otherwise stop it.

        Returns how far its clock is ahead of this one, and the error of that, in seconds; None when it is stopped.
        """
        try:
            together.wait(max(0.0, until - time.monotonic()))
        except threading.BrokenBarrierError:
            process.tell({"stop": True})
            return None
        sent = time.time()
        process.tell({"begin": True})
        there = float(process.hear("begun", until)["begun"])
        took_s = time.time() - sent
        return there - sent - took_s / 2, took_s / 2

    def _fetch(self, host: LeasedHost, run_id: str, problem: str, local: Path) -> str:
        """Bring the files of a run home. Returns the problem, with the log's last lines, or what is missing."""
        local.mkdir(parents=True, exist_ok=True)
        folder = f"{REMOTE_RUNS}/{run_id}"
        try:
            present = self.remote(host.name, ["sh", "-c", f"ls {folder} 2> {os.devnull} || :"]).split()
            for name in RESULTS:
                if name in present:
                    self.remote.fetch(host.name, f"{folder}/{name}", local / name)
                elif not problem:
                    problem = f"Rally at {host.site} left no {name}"
        except DiscoveryError as error:
            return problem or error.what.splitlines()[0]
        if problem and (local / "rally.log").exists():
            tail = (local / "rally.log").read_text(errors="replace").strip().splitlines()[-3:]
            problem += " (" + " | ".join(line.strip() for line in tail) + ")"
        return problem


def load(
    remote: Remote,
    hosts: Sequence[LeasedHost],
    run_id: str,
    task: dict[str, Any],
    rally: tuple[str, str],
    times: int,
    to: Path,
) -> list[SiteResult]:
    """One task by clients that are not kept. As `Clients.load`."""
    with Clients(remote, rally) as clients:
        return clients.load(hosts, run_id, task, times, to)


# what came home


def rally_report(folder: Path) -> Any:
    """Rally's JSON report in a folder, or None when it is missing or cut off."""
    try:
        return json.loads((folder / "rally.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def rally_problems(folder: Path, results: Sequence[SiteResult], scenario: Scenario) -> tuple[str, ...]:
    """Why what Rally left of a run at each site cannot stand for it; empty when all can."""
    return tuple(
        problem
        for result in results
        for problem in (
            [result.problem]
            if result.problem
            else [
                f"Rally at {result.site}: {told}"
                for told in rally.problems(rally_report(folder / result.site), scenario)
            ]
        )
    )


def all_failed(folder: Path, results: Sequence[SiteResult]) -> tuple[str, ...]:
    """Sites whose clients had no iteration that succeeded: nothing was measured there but an error."""
    firsts = [(result.site, rally.all_failed(rally_report(folder / result.site))) for result in results]
    return tuple(f"every iteration at {site} failed; the first error: {error}" for site, error in firsts if error)


def start_skew(folder: Path, results: Sequence[SiteResult]) -> dict[str, float]:
    """Fields of the record about when the sites' clients began; empty with one client, or when one never began."""
    skew_s = rally.start_skew({one.site: (rally_report(folder / one.site), one.clock_ahead_s) for one in results})
    if skew_s is None:
        return {}
    error_s = sum(sorted(one.clock_error_s for one in results)[-2:])
    return {"start_skew_s": round(skew_s, 6), "start_skew_error_s": round(error_s, 6)}


def skew_problems(skew: Mapping[str, float], limit_s: float) -> tuple[str, ...]:
    """Why clients that began so far apart do not count as begun together; empty when they do."""
    if skew.get("start_skew_s", 0.0) <= limit_s:
        return ()
    between = f"{skew['start_skew_s'] * 1000:.0f} ms"
    return (f"the sites' first requests lie {between} apart, more than {limit_s * 1000:g} ms (campaign.start_skew)",)
