"""Provider `g5k`: every host is a machine that is reserved on Grid'5000, at one or several of its sites.

Decides nothing (`g5k_request` does) and speaks no REST (EnOSlib does, in `enoslib_g5k`): it keeps what is known of an
experiment's jobs on this machine, and sees that none is left. A job is found by the experiment's name, so losing what
is kept here loses nothing.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import machine
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.names import is_name
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import enoslib_environment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import write_file
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import option_words
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds import g5k_request
from discovery_deploy.testbeds.base import HOLDER, Lack, folder_of, noted_holder
from discovery_deploy.testbeds.enoslib_calls import Enoslib
from discovery_deploy.testbeds.g5k_request import Job, MachineFacts, Pool
from discovery_deploy.testbeds.local import state_directory

ACCOUNT = ".python-grid5000.yaml"
"""File in the home directory with the login and password of Grid'5000's API."""
RECORD = "request.json"
"""File of an experiment's record with what was asked."""
KEYS = "keys.pub"
"""File of an experiment's record with the keys that what is deployed lets in."""
BOOT_S = 600.0
"""How long a deployed machine may take to answer."""
GRANTED_S = 30.0
"""How long we look whether more walltime is granted."""
TRIED_S = 30.0
"""How long what is only good to know may take."""

_NEEDED = {"ssh": "openssh-client", "setpriv": "util-linux"}


class Asked(Strict):
    """What an experiment asked of Grid'5000, written down before it was asked."""

    pools: tuple[Pool, ...]

    @property
    def sites(self) -> list[str]:
        """Sites of Grid'5000 where it may have a job."""
        return sorted({pool.g5k_site for pool in self.pools})


class G5kProvider:
    """Machines of Grid'5000.

    Args:
        cache: directory of the cache, with EnOSlib's environment.
        state: where records are kept; default: `state_directory()`.
        home: whose account and keys are used; default: $HOME.
    """

    def __init__(self, cache: Path, state: Path | None = None, home: Path | None = None) -> None:
        self.cache = cache
        self.records = (state or state_directory()) / "g5k"
        self.home = home or Path.home()
        self.logs: dict[str, Path] = {}
        """Experiment -> file for what EnOSlib says; default: in its record."""

    def lacks(self) -> list[Lack]:
        """What this machine lacks; the account is looked for, not tried."""
        found = []
        if os.geteuid() != 0:
            what = "the base image and what hosts are sent are built on this machine, which needs root"
            found.append(Lack(what=what, command="sudo -i  # on a machine of Grid'5000: sudo-g5k"))
        found += [
            Lack(what=f"the command {command}", command=f"apt-get install -y {package}")
            for command, package in sorted(machine.missing_commands(_NEEDED).items())
        ]
        account = self.home / ACCOUNT
        if account.exists() and account.stat().st_mode & 0o077:
            found.append(Lack(what=f"{account} can be read by others", command=f"chmod 600 {account}"))
        elif not account.exists() and not _inside():
            command = f"(umask 077; printf 'username: LOGIN\\npassword: PASSWORD\\n' > {account})"
            found.append(Lack(what=f"{account}, with an account of Grid'5000", command=command))
        if not list((self.home / ".ssh").glob("*.pub")):
            command = f"ssh-keygen -t ed25519 -f {self.home}/.ssh/id_ed25519  # and give its .pub to Grid'5000"
            found.append(Lack(what=f"an ssh key in {self.home}/.ssh", command=command))
        return found

    def request_text(self, experiment: Experiment) -> str:
        """What would be booked, with the core-hours where the reference API tells cores."""
        asked = g5k_request.pools(experiment)
        try:
            with _as_testbed_error(experiment.name):
                cores = self._ask("", "cores", {"sites": _sites(asked)}, _quiet, TRIED_S)
        except TestbedError as error:
            return g5k_request.request_text(experiment, {}, error.what.splitlines()[0], g5k_request.paris_time())
        return g5k_request.request_text(experiment, cores, now=g5k_request.paris_time())

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Reserve machines, or find those of the experiment's name. See `ProviderInterface`.

        When it fails, what this call has reserved is given back; jobs that were there before stay.
        """
        name, asked = experiment.name, g5k_request.pools(experiment)
        if workspace is not None:
            self.logs[name] = workspace / "logs" / "enoslib.log"
        directory = folder_of(self.records, name)
        with _as_testbed_error(name), machine.hold(directory, wait_s=60, own=True):
            try:
                before = self._fitting(name, asked, progress)
            except TestbedError:
                if not (directory / RECORD).exists():
                    self._forget(name)
                raise
            keys = self._write_record(experiment, public_key, asked, workspace)
            try:
                given = self._ask(
                    name,
                    "reserve",
                    {
                        "configuration": g5k_request.configuration(experiment, str(keys)),
                        "setup": g5k_request.setup(public_key),
                        "jump": g5k_request.grid5000(experiment).jump,
                        "sites": _sites(asked),
                        "boot_s": BOOT_S,
                    },
                    progress,
                )
                return _lease(experiment, asked, given)
            except TestbedError as error:
                if before:
                    raise
                self._give_back_after(error, name, progress)
                raise

    def _write_record(
        self, experiment: Experiment, public_key: str, asked: tuple[Pool, ...], workspace: Path | None
    ) -> Path:
        """Write down what will be asked, before it is; the file with the keys."""
        directory = folder_of(self.records, experiment.name)
        write_file(directory / RECORD, Asked(pools=asked).model_dump_json(indent=1) + "\n")
        if workspace is not None:
            write_file(directory / HOLDER, f"{workspace}\n")
        own = [path.read_text(encoding="utf-8").strip() for path in sorted((self.home / ".ssh").glob("*.pub"))]
        write_file(directory / KEYS, "\n".join([public_key.strip(), *own]) + "\n")
        return directory / KEYS

    def _fitting(self, name: str, asked: tuple[Pool, ...], progress: Progress) -> list[Job]:
        """Jobs that are there and hold what is asked; those that do not are given back."""
        jobs = self._jobs(name, progress)
        problems = g5k_request.misfits(asked, jobs)
        if not problems:
            for job in jobs:
                progress(f"{job.g5k_site}: job {job.uid} is there already, {job.state}")
            return jobs
        progress(f"the machines that are there are of another request ({'; '.join(problems)}): they are given back")
        self._release_jobs(name, sorted({job.g5k_site for job in jobs}), progress)
        return []

    def _give_back_after(self, error: TestbedError, name: str, progress: Progress) -> None:
        progress("giving back what was reserved")
        try:
            self._release_jobs(name, self._asked_sites(name), progress)
            self._forget(name)
        except TestbedError as second:
            raise TestbedError(
                f"{error.what}\nand what was reserved could not be given back: {second.what}",
                f"Run `discovery-deploy release {name}` until it says that it is gone. {error.advice}",
            ) from second

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Hosts whose job no longer runs: its walltime is over, or it was deleted."""
        running = {job.uid for job in self._jobs(lease.experiment, _quiet) if job.state == "running"}
        jobs: Mapping[str, int] = lease.details["jobs"]
        return [host.name for host in lease.hosts if jobs[host.name] not in running]

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Delete the experiment's jobs at all sites and see them gone; then forget them."""
        directory = folder_of(self.records, experiment_name)
        known = (directory / RECORD).exists()
        progress(f"giving back {experiment_name}'s machines of Grid'5000")
        with _as_testbed_error(experiment_name), machine.hold(directory, wait_s=60, own=True):
            try:
                gone = self._release_jobs(experiment_name, self._asked_sites(experiment_name), progress)
                progress(f"gone: {', '.join(f'job {uid}' for uid in gone) or 'there was no job'}")
                known = False
            finally:  # what could not be given back stays known
                if not known:
                    self._forget(experiment_name)

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which an experiment's machines were last reserved, or None."""
        return noted_holder(folder_of(self.records, experiment_name))

    def experiments(self) -> list[str]:
        """Names of experiments with a record here, or with a job.

        The API is asked when this machine has an account and EnOSlib; that it does not answer is no failure here.
        """
        names = {path.parent.name for path in self.records.glob(f"*/{RECORD}")}
        built = (self.cache / "tools" / enoslib_environment.environment_name()).is_dir()
        if built and (self.home / ACCOUNT).exists():
            try:
                jobs = self._found({"prefix": g5k_request.PREFIX}, "", _quiet, TRIED_S)
                names |= {own for job in jobs if (own := g5k_request.experiment_of(job.name))}
            except TestbedError:
                return sorted(filter(is_name, names))
        return sorted(filter(is_name, names))

    def ends_at(self, lease: Lease) -> float | None:
        """When the first of a lease's jobs ends, in seconds since 1970; None when nobody knows."""
        return g5k_request.ends_at(self._jobs(lease.experiment, _quiet))

    def extend(self, experiment_name: str, seconds: float, progress: Progress) -> str:
        """Ask for more walltime; what was granted, a line per job.

        Raises:
            TestbedError: there is no running job, the request is refused, or not (all) granted.
        """
        name = g5k_request.job_name(experiment_name)
        arguments = {"name": name, "seconds": round(seconds), "wait_s": GRANTED_S}
        granted = self._ask(experiment_name, "extend", arguments, progress)
        if not granted:
            raise TestbedError(f"{experiment_name} has no running job on Grid'5000", "Look with `status`.")
        lines, short = [], []
        for job in granted:
            ends = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["ends_at"]))
            more = job["after_s"] - job["before_s"]
            lines.append(
                f"{job['g5k_site']}: job {job['uid']} got {g5k_request.walltime_of(more)} more, ends at {ends}"
            )
            short += [lines[-1]] if more < round(seconds) else []
        if short:
            asked = g5k_request.walltime_of(seconds)
            raise TestbedError(
                f"of {asked}, Grid'5000 has not granted all:\n  " + "\n  ".join(short),
                "OAR may grant it later (`oarwalltime JOB` on the frontend tells); ask for less, or reserve anew.",
            )
        return "\n".join(lines) + "\n"

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Not asked: every host shapes what it sends."""
        raise TestbedError("machines of Grid'5000 have no WAN router")

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """Not asked: every host shapes what it sends."""
        raise TestbedError("machines of Grid'5000 have no WAN router")

    def router_facts(self, lease: Lease) -> str:
        """Not asked: every host shapes what it sends."""
        raise TestbedError("machines of Grid'5000 have no WAN router")

    # EnOSlib

    def _ask(
        self, name: str, verb: str, arguments: Mapping[str, Any], progress: Progress, limit_s: float | None = None
    ) -> Any:
        """One verb of `enoslib_g5k`, asked in the experiment's record, or, where it has none, in a temporary folder.

        What is asked of no experiment ("") is also asked by who holds no lock: never in a record.
        """
        # Times without a zone are Paris's, for OAR and so for EnOSlib.
        variables = {"HOME": str(self.home), "TZ": "Europe/Paris", "USER": os.environ.get("USER") or getpass.getuser()}
        with ExitStack() as stack:
            directory = folder_of(self.records, name) if name else None
            if directory is None or not directory.is_dir():
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="discovery-deploy-")))
            return Enoslib(self.cache, directory, variables, self.logs.get(name))(
                f"g5k.{verb}", arguments, progress, limit_s
            )

    def _forget(self, name: str) -> None:
        """Remove the record of an experiment that has nothing any more."""
        directory = folder_of(self.records, name)
        machine.remove_own(directory, known=any((directory / part).exists() for part in (RECORD, KEYS, "enoslib.log")))
        with suppress(OSError):  # records of others are there
            self.records.rmdir()
            self.records.parent.rmdir()

    def _found(self, what: Mapping[str, str], name: str, progress: Progress, limit_s: float | None = None) -> list[Job]:
        answer = self._ask(name, "find", what, progress, limit_s)
        for site, why in answer["unasked"].items():
            progress(f"{site} does not say which jobs it has: {why}")
        return [Job.model_validate(job) for job in answer["jobs"]]

    def _jobs(self, name: str, progress: Progress) -> list[Job]:
        return self._found({"name": g5k_request.job_name(name)}, name, progress)

    def _release_jobs(self, name: str, sites: Iterable[str], progress: Progress) -> list[int]:
        arguments = {"name": g5k_request.job_name(name), "sites": list(sites)}
        gone: list[int] = self._ask(name, "release", arguments, progress)["gone"]
        return gone

    def _asked_sites(self, name: str) -> list[str]:
        """Sites where an experiment may have a job, as far as this machine knows."""
        try:
            return Asked.model_validate_json((folder_of(self.records, name) / RECORD).read_text(encoding="utf-8")).sites
        except (OSError, ValueError):
            return []


@contextmanager
def _as_testbed_error(name: str) -> Iterator[None]:
    try:
        yield
    except MachineError as error:
        raise TestbedError(f"{name}: {error.what}", error.advice) from error
    except OSError as error:
        raise TestbedError(f"{name}: {error.filename}: {error.strerror}", "Mend it, then run again.") from error


def _quiet(line: str) -> None:
    """For what is asked beside the way."""


def _inside() -> bool:
    """Whether this machine is one of Grid'5000."""
    return socket.getfqdn().endswith(".grid5000.fr")


def _sites(asked: Iterable[Pool]) -> dict[str, str]:
    """Cluster -> site of Grid'5000; no cluster's name is used at two sites."""
    return {pool.cluster: pool.g5k_site for pool in asked}


def _lease(experiment: Experiment, asked: Sequence[Pool], given: Mapping[str, Any]) -> Lease:
    """The lease of what EnOSlib's reservation gave. Raises TestbedError when a machine cannot be a host."""
    told = {one["name"]: g5k_request.facts(one["name"], one["address"], one["said"]) for one in given["machines"]}
    problems = g5k_request.unsuitable(told.values())
    if problems:
        raise TestbedError(
            "; ".join(problems), "Let one be deployed: `environment: debian12-min` in the provider section."
        )
    by_pool = {pool.label: [one["name"] for one in given["machines"] if one["pool"] == pool.label] for pool in asked}
    names = g5k_request.assigned(asked, by_pool)
    jobs = {name: job["uid"] for job in given["jobs"] for name in job["machines"]}
    ssh = {} if given["gateway_user"] is None else {"ProxyCommand": proxy_command(given["gateway_user"])}

    def leased(site: str, host: Any, facts: MachineFacts) -> LeasedHost:
        return LeasedHost(
            name=host.name, site=site, roles=host.roles, management_address=facts.address,
            site_address=facts.site_address, site_device=facts.site_device, ssh=ssh,
        )  # fmt: skip

    return Lease(
        provider="g5k", experiment=experiment.name,
        hosts=tuple(
            leased(site.name, host, told[names[host.name]]) for site in experiment.sites for host in site.hosts
        ),
        site_subnets={}, site_devices={}, site_gateways={}, router="hosts", shaped="hosts", software="shipped",
        identities={host: f"{jobs[name]} {told[name].identity}" for host, name in names.items()},
        details={"machines": names, "jobs": {host: jobs[name] for host, name in names.items()}},
    )  # fmt: skip


def proxy_command(user: str) -> str:
    """How ssh passes the gateway: as its user, with the keys and the configuration of the person who runs us."""
    options = {"ConnectTimeout": "20", "StrictHostKeyChecking": "accept-new", "ControlMaster": "no"}
    return f"ssh {shlex.join(option_words(options))} -W [%h]:%p {user}@{g5k_request.GATEWAY}"
