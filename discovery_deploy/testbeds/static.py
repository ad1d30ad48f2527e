"""Provider `static`: hosts are machines given by hand, reached by ssh, and left as they were found.

Decides who may have a machine and what is asked of it; `given_host` and `host_cleaner` act there, sent by ssh.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from discovery_deploy.agent import given_host, host_cleaner, host_packages, machine, tc_device
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.names import is_name
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment, Machine, Static
from discovery_deploy.software.traces import traces
from discovery_deploy.system import interruption
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import TestbedError, together
from discovery_deploy.system.files import write_file
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import SSH_FAILED, on_all, side_by_side
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds import static_ssh
from discovery_deploy.testbeds.base import HOLDER, Lack, folder_of, noted_holder
from discovery_deploy.testbeds.local import state_directory

RECORD = "record.json"
ANSWER_S = 60.0
"""A machine that has not answered by then is given up."""
CLEAN_S = 900.0
"""As long may a release take on a machine: packages may have to go."""
_NEEDED = {"ssh": "openssh-client", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux"}
"""Commands -> Debian packages: to reach hosts, and to build what they get in a Debian tree."""
Answer = dict[str, Any]


class Record(Strict):
    """What an experiment holds, kept on this machine until its release: enough to give all back."""

    machines: tuple[Machine, ...]
    workspaces: tuple[str, ...]
    """Workspaces from which they were reserved."""
    remove_packages: bool


def program() -> str:
    """The text of what is sent to machines: modules that import nothing but each other."""
    sources = {
        part.__name__: Path(str(part.__file__)).read_text(encoding="utf-8")
        for part in (given_host, tc_device, host_packages, host_cleaner)
    }
    return (
        "import sys, types\n"
        "root = sys.modules['discovery_deploy'] = types.ModuleType('discovery_deploy')\n"
        "package = sys.modules['discovery_deploy.agent'] = types.ModuleType('discovery_deploy.agent')\n"
        "root.agent = package\n"
        f"for name, source in {sources!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    setattr(package, name.rpartition('.')[2], module)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        "module.main()\n"
    )


def mark(experiment_name: str) -> str:
    """The comment of an experiment's key in root's authorized_keys."""
    return f"discovery-deploy:{experiment_name}"


def driver() -> str:
    """What tells this machine from other drivers."""
    with suppress(OSError):
        if text := Path("/etc/machine-id").read_text(encoding="ascii").strip():
            return text
    return socket.gethostname()


def way(given: Machine) -> tuple[str, str, int]:
    """What makes it the same machine, whatever host it is and whoever logs in."""
    return given.jump or "", given.address, given.port


class StaticProvider:
    """Machines given by hand.

    Args:
        state: where it is kept what experiments hold; default: `state_directory()`.
    """

    def __init__(self, state: Path | None = None) -> None:
        self.state = (state or state_directory()) / "static"

    def lacks(self) -> list[Lack]:
        """What this machine lacks to reach hosts, and to build what they are sent."""
        if os.geteuid() != 0:
            return [Lack(what="what hosts are sent is built in a Debian tree, which needs root", command="sudo -i")]
        return [
            Lack(what=f"the command {command}", command=f"apt-get install -y {package}")
            for command, package in sorted(machine.missing_commands(_NEEDED).items())
        ]

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Hold every machine for the experiment. See `ProviderInterface`.

        All are looked at before any is touched; every one that cannot be had is named.
        """
        asked = experiment.provider
        if not isinstance(asked, Static):
            raise TestbedError(f"{experiment.name}: its provider is {asked.type}, not static", "Mend `provider`.")
        name = experiment.name
        with self._held(name):
            old = self._record(name) if (self._directory(name) / RECORD).exists() else None
            order = {host.name: index for index, host in enumerate(h for site in experiment.sites for h in site.hosts)}
            machines = tuple(sorted(map(_complete, asked.machines), key=lambda given: order[given.host]))
            known = old.workspaces if old else ()
            reach = _Reach(self._directory(name), name, (str(workspace or ""), *known))
            progress(f"looking at {len(machines)} machines")
            self._examine(reach, machines)
            new = {way(given) for given in machines}
            left = tuple(given for given in old.machines if way(given) not in new) if old else ()
            record = Record(
                machines=(*machines, *left),
                workspaces=tuple(dict.fromkeys(reach.workspaces)),
                remove_packages=asked.remove_packages,
            )
            self._keep(name, record, workspace)
            held = on_all(lambda given: _hold(reach, given, public_key, workspace), machines)
            self._let_go(reach, record, left, workspace, progress)
            return _lease(experiment, machines, held, reach.known_hosts)

    def _examine(self, reach: _Reach, machines: Sequence[Machine]) -> None:
        """Raises TestbedError with everything that stands in the way; nothing is changed anywhere."""

        def examine(given: Machine) -> None:
            answer = reach.ask_holding(given, "examine", ANSWER_S, site_address=given.listens_at)
            problems = [*answer["problems"]]
            login = static_ssh.root_login_problem(answer["sshd"])
            if problems:
                raise TestbedError(f"{given.host}: {'; '.join(problems)}", "Mend that, or give another machine.")
            if login is not None:
                raise TestbedError(f"{given.host}: {login[0]}", login[1])

        on_all(examine, machines)

    def _let_go(
        self, reach: _Reach, record: Record, left: Sequence[Machine], workspace: Path | None, progress: Progress
    ) -> None:
        """Give back machines that the experiment no longer has; one that does not answer stays in the record."""
        for given in left:
            try:
                _clean(reach, given, record.remove_packages)
            except TestbedError as error:
                progress(f"{error.what}; `release` will try again to give it back")
                continue
            progress(f"{given.address}, which was {given.host}, is given back")
            kept = tuple(one for one in record.machines if one != given)
            record = record.model_copy(update={"machines": kept})
            self._keep(reach.experiment, record, workspace)

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Hosts that do not answer, or are no longer the machines that were reserved."""
        with suppress(FileNotFoundError):
            record = self._record(lease.experiment)
            reach = _Reach(self._directory(lease.experiment), lease.experiment, record.workspaces)
            machines = {given.host: given for given in record.machines}

            def is_dead(host: LeasedHost) -> bool:
                if host.name not in machines:
                    return True
                try:
                    answer = reach.ask(machines[host.name], "look", ANSWER_S)
                except TestbedError:
                    return True
                return bool(answer["identity"] != lease.identities.get(host.name))

            dead = side_by_side(is_dead, lease.hosts)
            return [host.name for host, gone in zip(lease.hosts, dead, strict=True) if gone]
        return [host.name for host in lease.hosts]

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider static has no WAN router")

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider static has no WAN router")

    def router_facts(self, lease: Lease) -> str:
        """Never asked: hosts shape what they send."""
        raise TestbedError(f"{lease.experiment}: provider static has no WAN router")

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Leave every machine as it was found, from any state.

        Raises:
            TestbedError: naming those that could not be; they stay in the record, so that it can be done again.
        """
        directory = self._directory(experiment_name)
        if not directory.exists():
            return
        with self._held(experiment_name):
            if not (directory / RECORD).exists():  # a driver was killed before it touched any
                return
            record = self._record(experiment_name)
            reach = _Reach(directory, experiment_name, record.workspaces)
            progress(f"leaving {len(record.machines)} machines as they were found")
            answers = side_by_side(lambda given: _tried(given, reach, record.remove_packages), record.machines)
            failed = []
            for given, answer in zip(record.machines, answers, strict=True):
                progress(f"{given.host}: {answer if isinstance(answer, str) else answer.what}")
                failed += [] if isinstance(answer, str) else [(given, answer)]
            if failed:
                kept = tuple(given for given, _ in failed)
                self._keep(experiment_name, record.model_copy(update={"machines": kept}), None)
                raise together([error for _, error in failed], f"{directory / RECORD} keeps how they are reached.")
            _remove(directory)

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which an experiment's hosts were last reserved; None when there are none, or unknown."""
        return noted_holder(self._directory(experiment_name))

    def experiments(self) -> list[str]:
        """Names of the experiments that hold machines, as far as this machine knows."""
        return sorted(filter(is_name, (path.parent.name for path in self.state.glob(f"*/{RECORD}"))))

    def _directory(self, experiment_name: str) -> Path:
        return folder_of(self.state, experiment_name)

    @contextmanager
    def _held(self, experiment_name: str) -> Iterator[None]:
        """The experiment's folder for this process alone; it goes when nothing came to be in it."""
        directory = self._directory(experiment_name)
        try:
            with machine.hold(directory, own=True):
                try:
                    yield
                finally:
                    if directory.is_dir() and not (directory / RECORD).exists():
                        _remove(directory)
        except MachineError as error:
            raise TestbedError(f"{experiment_name}: {error.what}", error.advice) from error
        finally:
            for folder in (self.state, self.state.parent):
                with suppress(OSError):  # others are still there
                    folder.rmdir()

    def _record(self, experiment_name: str) -> Record:
        """What an experiment holds. Raises FileNotFoundError; TestbedError when it cannot be read."""
        path = self._directory(experiment_name) / RECORD
        try:
            return Record.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, ValueError) as error:
            raise TestbedError(
                f"{path}: not readable ({type(error).__name__}): damaged, or of another version",
                "Remove this file; `reserve` from the same workspace writes it anew, then `release` gives all back.",
            ) from error

    def _keep(self, experiment_name: str, record: Record, workspace: Path | None) -> None:
        directory = self._directory(experiment_name)
        if workspace is not None:
            write_file(directory / HOLDER, f"{workspace}\n", 0o600)
        write_file(directory / RECORD, record.model_dump_json(indent=1) + "\n", 0o600)


def _remove(directory: Path) -> None:
    machine.remove_own(directory, known=any((directory / name).exists() for name in (RECORD, "known_hosts")))


def _complete(given: Machine) -> Machine:
    """A machine with the whole path of its key. Raises TestbedError when there is no such file."""
    if given.key is None:
        return given
    key = Path(given.key).expanduser().absolute()
    if not key.is_file():
        raise TestbedError(f"{given.host}: its key {key} is not there", "Give the file of a private key.")
    return given.model_copy(update={"key": str(key)})


class _Reach:
    """Asks machines, for one experiment.

    Args:
        directory: where the experiment is kept on this machine.
        experiment: its name.
        workspaces: those from which it may have reserved; the first is the present one.
    """

    def __init__(self, directory: Path, experiment: str, workspaces: Sequence[str]) -> None:
        self.experiment = experiment
        self.workspaces = list(dict.fromkeys(workspaces))
        self.known_hosts = directory / "known_hosts"
        self.program = program()
        self.traces = traces(data_directory("playbooks")).model_dump()

    def ask(self, given: Machine, act: str, limit_s: float, **more: Any) -> Answer:
        """What a machine answers to an act of `host_cleaner`. Raises TestbedError, naming the host."""
        request = {
            "act": act, "experiment": self.experiment, "workspaces": self.workspaces, "workspace": self.workspaces[0],
            "driver": driver(), "driver_name": socket.gethostname(), "mark": mark(self.experiment),
            "traces": self.traces, **more,
        }  # fmt: skip
        command = static_ssh.as_root(given, ["python3", "-I", "-S", "-", json.dumps(request)])
        said = self.run(given, static_ssh.options(given, self.known_hosts), command, self.program, limit_s)
        answer: Answer = json.loads(said.splitlines()[-1])
        if "failed" in answer:
            raise TestbedError(f"{given.host}: {answer['failed']}", "Mend that on the host, then try again.")
        return answer

    def ask_holding(self, given: Machine, act: str, limit_s: float, **more: Any) -> Answer:
        """As `ask`, of a machine that no other experiment may hold. Raises TestbedError that names who does."""
        answer = self.ask(given, act, limit_s, **more)
        by = answer.get("held_by")
        if by and self._is_lost(by):
            self.workspaces.append(by["workspace"])
            answer = self.ask(given, act, limit_s, **more)
            by = answer.get("held_by")
        if by:
            raise TestbedError(
                f"{given.host}: {given.address} is held by experiment {by['experiment']}"
                f" (workspace {by['workspace'] or 'unknown'} on {by['driver_name']})",
                f"Release it there, or, when that machine is no more, remove {given_host.HOME}/held.json on the host.",
            )
        return answer

    def _is_lost(self, by: Answer) -> bool:
        """Whether a machine is held by this experiment of this driver, from a workspace that is no more."""
        ours = by["experiment"] == self.experiment and by["driver"] == driver()
        return ours and not (Path(by["workspace"]) / "name").exists()

    def run(self, given: Machine, options: Sequence[str], command: str, stdin: str, limit_s: float) -> str:
        """What a command prints there. Raises TestbedError, naming the host."""
        words = ["ssh", *options, given.address, command]
        try:
            done = interruption.run(words, stdin, limit_s)
        except subprocess.TimeoutExpired:
            what = f"{given.host}: {given.address} gave no answer within {limit_s:g} s"
            raise TestbedError(what, "Look at the machine.") from None
        except FileNotFoundError:
            raise TestbedError("ssh is not installed", "apt-get install -y openssh-client") from None
        if done.returncode == SSH_FAILED:
            what, advice = static_ssh.ssh_failure(given, done.stderr)
            raise TestbedError(f"{given.host}: {given.address}: {what}", advice)
        if done.returncode:
            what, advice = static_ssh.program_failure(given, done.stderr)
            raise TestbedError(f"{given.host}: {given.address}: {what}", advice)
        return done.stdout


def _hold(reach: _Reach, given: Machine, public_key: str, workspace: Path | None) -> Answer:
    """Hold a machine, and see root log in there when the experiment's key is at hand."""
    key = " ".join(public_key.split()[:2])
    answer = reach.ask_holding(given, "hold", ANSWER_S, site_address=given.listens_at, key=key)
    private = workspace / "id" if workspace is not None else None
    if private is not None and private.exists():
        as_root = given.model_copy(update={"user": "root", "become": False})
        options = [*static_ssh.options(as_root, reach.known_hosts), "-o", "IdentitiesOnly=yes", "-i", str(private)]
        try:
            reach.run(as_root, options, "true", "", ANSWER_S)
        except TestbedError as error:
            what = f"{given.host}: root cannot log in with the experiment's key: {error.what}"
            advice = "See `PermitRootLogin`, `AllowUsers` and `Match` in its sshd_config, and root's shell."
            raise TestbedError(what, advice) from error
    return answer


def _clean(reach: _Reach, given: Machine, remove_packages: bool) -> str:
    """Leave a machine as it was found; how it went, in words."""
    answer = reach.ask(given, "clean", CLEAN_S, remove_packages=remove_packages)
    by = answer.get("held_by")
    if by and reach._is_lost(by):
        reach.workspaces.append(by["workspace"])
        answer = reach.ask(given, "clean", CLEAN_S, remove_packages=remove_packages)
        by = answer.get("held_by")
    if by:
        return f"is held by experiment {by['experiment']} on {by['driver_name']} by now, and left alone"
    return str(answer["state"])


def _tried(given: Machine, reach: _Reach, remove_packages: bool) -> str | TestbedError:
    try:
        return _clean(reach, given, remove_packages)
    except TestbedError as error:
        return error


def _lease(experiment: Experiment, machines: Sequence[Machine], held: Sequence[Answer], known_hosts: Path) -> Lease:
    given = {one.host: (one, answer) for one, answer in zip(machines, held, strict=True)}
    hosts = []
    for site in experiment.sites:
        for host in site.hosts:
            one, answer = given[host.name]
            hosts.append(
                LeasedHost(
                    name=host.name,
                    site=site.name,
                    roles=host.roles,
                    management_address=one.address,
                    site_address=one.listens_at,
                    site_device=answer["device"],
                    ssh=static_ssh.driver_options(one, known_hosts),
                )
            )
    return Lease(
        provider="static",
        experiment=experiment.name,
        hosts=tuple(hosts),
        site_subnets={},
        site_devices={},
        site_gateways={},
        identities={name: answer["identity"] for name, (_, answer) in given.items()},
        router="hosts",
        shaped="hosts",
        software="shipped",
    )
