"""The worker's verbs for Grid'5000. Runs inside EnOSlib's environment (see `enoslib_worker`).

Jobs are found by name, at every site, in whatever state they are: EnOSlib's own search knows one job of a name a site.
What EnOSlib raises is told in one line that says what to do.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import enoslib as en
import requests
import yaml
from enoslib.errors import (
    EnosFailedHostsError,
    EnosSSHNotReady,
    EnosUnreachableHostsError,
    InvalidReservationCritical,
    InvalidReservationTime,
    InvalidReservationTooOld,
    NegativeWalltime,
)
from enoslib.infra.enos_g5k import g5k_api_utils as api
from enoslib.infra.enos_g5k import provider as enos_provider
from enoslib.infra.enos_g5k.utils import inside_g5k
from grid5000.exceptions import Grid5000AuthenticationError, Grid5000Error, Grid5000ParsingError
from jsonschema import ValidationError

from discovery_deploy.testbeds.enoslib_worker import Progress, Verb, WorkerError

Result = TypeVar("Result")
Arguments = dict[str, Any]

ALIVE = ("waiting", "launching", "running", "hold", "toLaunch", "resuming", "suspended", "finishing")
"""States of a job that holds machines, or will."""
ASKED_STATES = "waiting,launching,running,hold"
"""What the API's search of jobs is asked for."""
BUSY = (500, 502, 503, 504)
"""Answers of an API that may do better a moment later."""
ATTEMPTS, PAUSE_S = 4, 2.0
ANSWER_S = 60.0
"""How long the API may take to answer."""
GONE_S = 180.0
"""How long a job may take to end."""
BOOT_PAUSE_S = 10


class Reservation(en.G5k):  # type: ignore[misc]
    """EnOSlib's provider, which waits for its jobs but not for those that have ended, and says what it waits for."""

    progress: Progress

    def wait(self) -> None:
        """Wait until all jobs run. Raises WorkerError when one ends instead."""
        pause = 1.0
        while True:
            waiting = [job for job in self.driver.jobs if job.state != "running"]
            if not waiting:
                return
            for job in waiting:
                if job.state not in ALIVE:
                    raise WorkerError(
                        f"job {job.uid} at {job.site} is {job.state} and never ran: {getattr(job, 'message', '')}",
                        f"Ask OAR why: `oarstat -f -j {job.uid}` on the frontend of {job.site}.",
                    )
                begin = getattr(job, "scheduled_at", None)
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begin)) if begin else "a moment not known yet"
                self.progress(f"{job.site}: job {job.uid} is {job.state}, expected to start at {when}")
            time.sleep(pause)
            pause = min(pause * 1.5, 60.0)
            for job in waiting:
                job.refresh()


def find(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Jobs of ours that hold machines, or will.

    Args:
        arguments: `name`: of the jobs, or `prefix`: what their names begin with.
    Returns:
        {"jobs": [...] (see `_told`), "unasked": {site that did not answer: why}}.
    """
    with _in_our_words():
        jobs, unasked = _jobs(arguments.get("name"), arguments.get("prefix", ""))
        return {"jobs": [_told(job) for job in jobs], "unasked": unasked}


def reserve(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Reserve (or find) the jobs, wait for them, deploy where that is asked, and set machines up as root.

    Args:
        arguments: `configuration` (EnOSlib's), `setup` (shell text), `jump` (None: where needed), `sites` (cluster ->
            site where it is thought to be), `boot_s` (how long a deployed machine may take to answer).
    Returns:
        {"machines": [{"name", "address", "pool", "said"}], "jobs": [...], "gateway_user": str or None}
    """
    en.set_config(g5k_auto_jump=arguments["jump"], ansible_stdout="console")
    with _in_our_words():
        _client()
        _check_clusters(arguments["sites"])
        provider = Reservation(en.G5kConf.from_dictionary(arguments["configuration"]))
        provider.progress = progress
        enos_provider.G5kBase.offset_walltime = _offset_walltime
        enos_provider.wait_for = partial(_answered, float(arguments["boot_s"]))  # its own would wait for 50 minutes
        _patiently(provider.init, progress)
        if provider.undeployed:
            names = ", ".join(sorted(machine.fqdn for machine in provider.undeployed))
            raise WorkerError(
                f"kadeploy failed on {names}", "Look at the machines' state, or ask for other ones.", names
            )
        machines = _set_up(provider.sshable_hosts, arguments["setup"])
        jump = arguments["jump"] if arguments["jump"] is not None else not inside_g5k()
        return {
            "machines": machines,
            "jobs": [_told(job) for job in provider.jobs],
            "gateway_user": api.get_api_username() if jump else None,
        }


def release(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Delete all jobs of a name, and see them gone.

    Args:
        arguments: `name`; `sites`: where jobs are thought to be: these must answer.
    Returns:
        {"gone": [uid...], "unasked": {site: why}}
    """
    with _in_our_words():
        jobs, unasked = _jobs(arguments["name"])
        for job in jobs:
            progress(f"{job.site}: giving back job {job.uid}")
            _patiently(lambda job=job: api.job_delete(job), progress)  # type: ignore[misc]
        left = _left(jobs, arguments["name"])
        if left:
            first = left[0]
            raise WorkerError(
                f"job {first.uid} at {first.site} is still {first.state}, {GONE_S:g} s after it was deleted",
                f"Release again, or `oardel {first.uid}` on the frontend of {first.site}.",
            )
        for site in sorted(set(arguments["sites"]) & set(unasked)):
            raise WorkerError(
                f"{site} does not answer: {unasked[site]}",
                "Its job may still run: release again when the site answers.",
            )
        return {"gone": [job.uid for job in jobs], "unasked": unasked}


def extend(arguments: Arguments, progress: Progress) -> list[dict[str, Any]]:
    """Ask for more walltime for all running jobs of a name, and read back what is granted.

    Args:
        arguments: `name`; `seconds`: how much more; `wait_s`: how long we look whether it is granted.
    Returns:
        For each job: {"g5k_site", "uid", "before_s", "after_s", "ends_at"}.
    """
    seconds = int(arguments["seconds"])
    more = f"+{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    with _in_our_words():
        jobs = [job for job in _jobs(arguments["name"])[0] if job.state == "running"]
        before = {job.uid: int(job.walltime) for job in jobs}
        for job in jobs:
            progress(f"{job.site}: asking {more} for job {job.uid}")
            with suppress(Grid5000ParsingError):  # an answer without a body: what was granted is read below
                job.walltime_change.create({"walltime": more})
        end = time.monotonic() + float(arguments["wait_s"])
        while any(job.walltime < before[job.uid] + seconds for job in jobs) and time.monotonic() < end:
            time.sleep(1.0)
            for job in jobs:
                job.refresh()
        return [
            {
                "g5k_site": job.site, "uid": job.uid, "before_s": before[job.uid], "after_s": int(job.walltime),
                "ends_at": job.started_at + job.walltime,
            }
            for job in jobs
        ]  # fmt: skip


def cores(arguments: Arguments, progress: Progress) -> dict[str, int]:
    """Cores of the machines of clusters, from the reference API.

    Args:
        arguments: `sites`: cluster -> site where it is thought to be.
    Returns:
        `site/cluster` -> cores of one machine.
    """
    with _in_our_words():
        _client()
        _check_clusters(arguments["sites"])
        return {
            f"{site}/{cluster}": int(api.get_cores(cluster))
            for cluster, site in sorted(arguments["sites"].items())
        }  # fmt: skip


VERBS: dict[str, Verb] = {"find": find, "reserve": reserve, "release": release, "extend": extend, "cores": cores}


def _client() -> Any:
    """The API's client, as `~/.python-grid5000.yaml` says; EnOSlib takes a file that it cannot read for no file."""
    file = Path(os.environ["HOME"]) / ".python-grid5000.yaml"
    if file.exists():
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise WorkerError(f"{file}: cannot be read ({type(error).__name__})", "Write it anew, as YAML.") from None
        if not isinstance(content, dict):
            raise WorkerError(f"{file}: is no YAML mapping", "Write `username: ...` and `password: ...` into it.")
    client = api.get_api_client()
    if client.timeout is None:
        client.timeout = ANSWER_S
    return client


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except Grid5000AuthenticationError:
        raise WorkerError(
            "Grid'5000's API refuses the credentials (401)",
            "Write `username: LOGIN` and `password: PASSWORD` into ~/.python-grid5000.yaml (mode 0600).",
        ) from None
    except InvalidReservationTime as error:
        raise WorkerError(
            f"Grid'5000 has no room at the moment that was asked for; there is some at {error.datetime}",
            "Change `reservation`, or leave it out.",
        ) from None
    except InvalidReservationTooOld:
        raise WorkerError("the reservation's moment is in the past", "Change `reservation`, or leave it out.") from None
    except InvalidReservationCritical as error:
        advice = "Run again later." if _busy(error.msg) else "Ask for less, or elsewhere."
        raise WorkerError(f"Grid'5000 refused the job: {error.msg}", advice) from None
    except ValidationError as error:
        raise WorkerError(f"EnOSlib refuses the request: {error.message}", "Change the provider section.") from None
    except (EnosUnreachableHostsError, EnosFailedHostsError) as error:
        names = ", ".join(sorted({str(getattr(one, "host", one)) for one in error.hosts}))
        raise WorkerError(
            "ssh does not get in",
            "Look whether ~/.ssh has your Grid'5000 key; if a machine is broken, release the experiment and run again.",
            names,
        ) from None
    except Grid5000Error as error:
        raise WorkerError(f"Grid'5000's API: {error}", "Run again later; `release` finds what was reserved.") from None
    except requests.RequestException as error:
        raise WorkerError(
            f"Grid'5000's API does not answer: {type(error).__name__}",
            "Look at the network and at ~/.python-grid5000.yaml, then run again.",
        ) from None


def _patiently(act: Callable[[], Result], progress: Progress) -> Result:
    """Do it again when the API is busy. It finds by name what an answer that was lost had made."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act()
        except (Grid5000Error, InvalidReservationCritical) as error:
            said = getattr(error, "msg", None) or str(error)
            if attempt == ATTEMPTS or not _busy(said):
                raise
            progress(f"Grid'5000's API is busy ({said[:3]}); attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(PAUSE_S * attempt)
    raise AssertionError("not reached")


def _busy(said: str) -> bool:
    return said.startswith(tuple(f"{code}:" for code in BUSY))


def _jobs(name: str | None, prefix: str = "") -> tuple[list[Any], dict[str, str]]:
    """Jobs of a name (or with a beginning of it) at all sites, and the sites that did not answer, with the reason."""
    client, user = _client(), api.get_api_username()
    found: list[Any] = []
    unasked: dict[str, str] = {}
    named = {} if name is None else {"name": name}
    for site in client.sites.list():
        if site.uid in client.excluded_sites:
            unasked[site.uid] = "excluded in ~/.python-grid5000.yaml"
            continue
        try:
            listed = site.jobs.list(user=user, state=ASKED_STATES, **named)
            found += [client.sites[site.uid].jobs[job.uid] for job in listed if _ours(job, name, prefix)]
        except Grid5000AuthenticationError:
            raise
        except (Grid5000Error, requests.RequestException) as error:
            unasked[site.uid] = " ".join(str(error).split())[:120]
    return found, unasked


def _ours(job: Any, name: str | None, prefix: str) -> bool:
    own = str(getattr(job, "name", "") or "")
    return own == name if name is not None else own.startswith(prefix)


def _left(jobs: list[Any], name: str) -> list[Any]:
    """Jobs that are still there after some time, and any that came meanwhile."""
    end = time.monotonic() + GONE_S
    left = jobs
    while True:
        for job in left:
            job.refresh()
        left = [job for job in left if job.state in ALIVE]
        if not left:
            return _jobs(name)[0]
        if time.monotonic() > end:
            return left
        time.sleep(1.0)


def _told(job: Any) -> dict[str, Any]:
    begins = getattr(job, "started_at", None) or getattr(job, "scheduled_at", None)
    return {
        "g5k_site": job.site, "uid": job.uid, "name": job.name, "state": job.state,
        "machines": list(getattr(job, "assigned_nodes", None) or ()), "types": list(getattr(job, "types", None) or ()),
        "starts_at": begins, "walltime_s": getattr(job, "walltime", None),
    }  # fmt: skip


def _check_clusters(sites: Mapping[str, str]) -> None:
    """Raises WorkerError for a cluster that is not where it is thought to be."""
    known = api.get_all_clusters_sites()
    for cluster, site in sorted(sites.items()):
        if known.get(cluster) != site:
            there = ", ".join(sorted(name for name, place in known.items() if place == site))
            what = f"its clusters are {there}" if there else f"the sites are {', '.join(sorted(set(known.values())))}"
            raise WorkerError(f'{site} has no cluster "{cluster}"; {what}', "Change the provider section.")


def _offset_walltime(reservation: Any, seconds: int) -> None:
    """In place of EnOSlib's, which knows no walltime of 24 hours or more."""
    hours, minutes, rest = (int(part) for part in reservation.provider_conf.walltime.split(":"))
    left = hours * 3600 + minutes * 60 + rest + seconds
    if left <= 0:
        raise NegativeWalltime
    reservation.provider_conf.walltime = f"{left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}"


def _answered(boot_s: float, hosts: list[Any]) -> None:
    """Wait until all machines that were deployed let root in. Raises WorkerError when one does not."""
    try:
        en.wait_for(hosts, retries=max(1, int(boot_s / BOOT_PAUSE_S)), interval=BOOT_PAUSE_S)
    except EnosSSHNotReady:
        names = ", ".join(sorted(host.address for host in hosts))
        raise WorkerError(
            f"{names}: deployed, and not all of them answered within {boot_s:g} s",
            "Ask for other machines or another environment, then run again.",
        ) from None


def _set_up(machines: list[Any], text: str) -> list[dict[str, str]]:
    """Run shell text as root on every machine; what each said."""
    coded = base64.b64encode(text.encode()).decode()
    hosts = [machine.to_enoslib() for machine in machines]
    results = en.run(
        f"echo {coded} | base64 -d | /bin/sh -e", roles=hosts, raw=True, gather_facts=False,
        on_error_continue=True, task_name="setting up",
    )  # fmt: skip
    said = {result.host: result for result in results}
    found = []
    for machine in machines:
        result = said.get(machine.ssh_address)
        if result is None or not result.ok():
            payload = result.payload if result is not None else {}
            why = payload.get("stderr") or payload.get("msg") or payload.get("stdout") or "no answer"
            raise WorkerError(
                f"cannot be set up as root: {' '.join(str(why).split())[-300:]}", "Look at it by ssh, then run again.",
                machine.fqdn,
            )  # fmt: skip
        found.append(
            {
                "name": machine.fqdn, "address": machine.ssh_address, "pool": machine.roles[0],
                "said": result.payload["stdout"],
            }
        )  # fmt: skip
    return found
