"""The folder of one experiment: its lock, state, journal, secrets, lease, logs, runs and report.

State is one readable JSON file that is replaced atomically; the journal is only appended to. Losing both loses
time, not machines. Files with secrets have mode 0600 from their first byte.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from discovery_deploy.agent import machine
from discovery_deploy.agent.names import is_name
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.files import now, write_file
from discovery_deploy.system.strict import Strict, experiment_name

Model = TypeVar("Model", bound=Strict)

OF_THE_HOSTS = (
    "state.json",
    "lease.json",
    "shapes.json",
    "base_rtts.json",
    "environments.json",
    "secrets.json",
    "ssh_config",
    "id",
    "id.pub",
)
"""Files that make sense with the hosts alone, in the order in which they go: a state without its hosts is no state."""

KEYGEN_LIMIT_S = 60.0
IN_PATHS = r"[\w /.+@=()-]"
"""What may stand in the path of a workspace that is worked in."""


def results_directory() -> Path:
    """Where workspaces are, unless `--workspace` says otherwise: $DISCOVERY_DEPLOY_RESULTS, or ./results."""
    return Path(os.environ.get("DISCOVERY_DEPLOY_RESULTS", "results"))


def is_workspace(path: Path) -> bool:
    """Whether a folder is an experiment's workspace, as far as we may look."""
    with suppress(OSError, ValueError):
        return (path / "name").exists()
    return False


def refuse_path(path: Path) -> None:
    """Refuse a path of a workspace that the programs which get it do not take as it is.

    Ansible replaces `$NAME` in paths of its configuration and splits lists of them at ":", ssh replaces `%h` and
    `${NAME}`. `release`, `status` and `ssh` do not ask here: what is there can be looked at and given back.

    Raises:
        StateError: a character of the path is none of `IN_PATHS`.
    """
    strange = sorted(set(re.sub(IN_PATHS, "", str(path))))
    if strange:
        raise StateError(
            f"{str(path)!r}: Ansible and ssh take no path of a workspace with {' '.join(map(repr, strange))}",
            "Choose another folder with --workspace or DISCOVERY_DEPLOY_RESULTS (letters, digits, spaces and "
            "/ . _ - + @ = ( ) are taken), or move this one there.",
        )


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are the same folder, whatever links lead there."""
    with suppress(OSError):
        return one == other or one.samefile(other)
    return False


def find_workspace(named: str | None) -> Workspace:
    """The workspace of a folder, or of an experiment's name in the results directory, or the only one there.

    What could be both is the name of an experiment first: `./NAME` is always the folder.

    Raises:
        StateError: there is none, or more than one.
    """
    if named is None:
        present = sorted(path.parent for path in results_directory().glob("*/name"))
        if len(present) == 1:
            return Workspace(present[0])
        which = ", ".join(path.name for path in present) or "none"
        raise StateError(
            f"{results_directory()}: which experiment? there are: {which}",
            "Name it with --experiment NAME, or give its workspace folder or file.",
        )
    places = [results_directory() / named] if is_name(named) else []
    for path in (*places, *([Path(named)] if named else [])):
        if is_workspace(path):
            return Workspace(path)
    raise StateError(
        f"{named}: neither an experiment file, nor a workspace, nor an experiment in {results_directory()}",
        "Look with `discovery-deploy status`, or give the workspace folder.",
    )


def _advice_for(name: str) -> str:
    """What to do about a file of a workspace that cannot be read."""
    if name in OF_THE_HOSTS:
        return "Release the experiment (`discovery-deploy release NAME`): it removes this file too; then run again."
    if name.startswith("runs/"):
        return "Move the folder of this run away: then the run is done again."
    return "Remove this file: the next `run` goes on without it, and asks or tries again what it told."


def _ssh_keygen(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen on the file that is named last. Raises StateError: it is not installed, or timed out."""
    try:
        return interruption.run(["ssh-keygen", *arguments], None, KEYGEN_LIMIT_S)
    except FileNotFoundError:
        raise StateError("ssh-keygen is not installed", "apt-get install -y openssh-client") from None
    except subprocess.TimeoutExpired:
        what = f"{arguments[-1]}: ssh-keygen timed out after {KEYGEN_LIMIT_S:g} s"
        raise StateError(what, "Look at the disk of the workspace, then run again.") from None


def _holder(lock: Path) -> str:
    try:
        return (lock.parent / "holder").read_text(encoding="utf-8").strip()
    except OSError:
        return "which one is not known"


class Workspace:
    """One experiment's folder. Create it with `Workspace(path)`, hold `lock()` while changing anything.

    Args:
        path: the folder; made when missing (mode 0700: it holds a key and secrets).
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._refuse_others()
            (self.path / "logs").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}", "Choose another folder with --workspace.") from error

    def _refuse_others(self) -> None:
        """Raises StateError when others may write here: what is in a workspace decides which commands are run."""
        found, own = self.path.stat(), os.geteuid()
        if found.st_uid != own or found.st_mode & 0o022:
            place = shlex.quote(str(self.path))
            raise StateError(
                f"{self.path}: others may write there (its owner is user {found.st_uid}, its mode "
                f"{found.st_mode & 0o777:o}), and what is in a workspace is run by whoever uses it (user {own})",
                f"When you trust all that is in it: `chown -R {own} {place} && chmod -R go-w {place}`.",
            )

    @property
    def name(self) -> str:
        """Name of its experiment. Raises StateError: it cannot be read, or is none."""
        file = self.path / "name"
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise StateError(
                f"{file}: not readable ({type(error).__name__})", "Write the experiment's name into it."
            ) from error
        return experiment_name(text, str(file))

    @property
    def logs(self) -> Path:
        """Folder of log files."""
        return self.path / "logs"

    @property
    def runs(self) -> Path:
        """Folder with one folder per run."""
        return self.path / "runs"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def key(self) -> Path:
        """The experiment's private ssh key."""
        return self.path / "id"

    @property
    def ssh_config(self) -> Path:
        """Configuration for `ssh -F`."""
        return self.path / "ssh_config"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for this process.

        Raises:
            StateError: another process holds it; its pid is named.
        """
        path = self.path / "lock"
        try:
            stream = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StateError(
                f"{path}: {error.strerror}", "Mend the permissions, or choose another --workspace."
            ) from error
        with stream:
            if not machine.lock(stream.fileno()):
                raise StateError(
                    f"{self.path}: another discovery-deploy works on this experiment ({_holder(path)})",
                    "Wait until it ends, or end it; what it had done is kept.",
                )
            with suppress(StateError):  # on a full disk it must be possible to release
                write_file(self.path / "holder", f"pid {os.getpid()}, since {now()}\n")
            yield
            (self.path / "holder").unlink(missing_ok=True)

    def public_key(self) -> str:
        """The experiment's public key, made at the first call, and again when it is not whole. Raises StateError."""
        public = self.key.with_suffix(".pub")
        if not self._is_key_whole():
            new = self.path / ".id.new"
            for path in (new, new.with_suffix(".new.pub"), self.key, public):
                path.unlink(missing_ok=True)
            made = _ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", "discovery-deploy", "-f", str(new))
            if made.returncode:
                what = f"{new}: ssh-keygen failed: {made.stderr.strip()}"
                raise StateError(what, "Look at the disk (`df`), then run again.")
            new.with_suffix(".new.pub").replace(public)
            new.replace(self.key)
        return public.read_text(encoding="utf-8").strip()

    def _is_key_whole(self) -> bool:
        """Whether both halves of the key are there and belong together."""
        try:
            told = self.key.with_suffix(".pub").read_text(encoding="utf-8").split()[:2]
            if not self.key.exists():
                return False
        except (OSError, ValueError):
            return False
        derived = _ssh_keygen("-y", "-P", "", "-f", str(self.key))
        return derived.returncode == 0 and derived.stdout.split()[:2] == told != []

    def save(self, name: str, value: Strict, mode: int = 0o644) -> None:
        """Write a model as `name` (JSON)."""
        write_file(self.path / name, value.model_dump_json(indent=1, by_alias=True) + "\n", mode)

    def load(self, name: str, kind: type[Model]) -> Model | None:
        """Read a model back, or None when there is no such file. Raises StateError when it cannot be read."""
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, ValueError, OSError) as error:
            raise StateError(
                f"{path}: not readable ({type(error).__name__}): damaged, or from another version",
                _advice_for(name),
            ) from error

    def note(self, event: str, **details: Any) -> None:
        """Append one event to the journal."""
        line = json.dumps({"at": now(), "event": event, **details}, sort_keys=True)
        try:
            with (self.path / "journal.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise StateError(
                f"{self.path}/journal.jsonl: cannot be written: {error.strerror}",
                "Free space or mend the permissions, then run again.",
            ) from error

    def remove_lease(self) -> None:
        """Forget hosts, deployment and what only made sense with them; results, report and journal stay."""
        for name in OF_THE_HOSTS:
            (self.path / name).unlink(missing_ok=True)
        for path in [self.path / "clouds.yaml", *self.path.glob("openrc-*")]:
            path.unlink(missing_ok=True)
        for scratch in self.path.glob(".*.playbook"):  # of a driver that was killed; it holds a private inventory
            shutil.rmtree(scratch)


class Reading:
    """What can be read of a workspace; of what cannot, it is kept why."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.problems: dict[str, StateError] = {}
        """Name of a file that could not be read -> why."""

    def load(self, name: str, kind: type[Model]) -> Model | None:
        """A file of the workspace; None when it is not there or cannot be read."""
        try:
            return self.workspace.load(name, kind)
        except StateError as error:
            self.problems[name] = error
            return None
