"""The folder of one experiment: its lock, state, journal, secrets, lease, logs, runs and report.

State is one readable JSON file that is replaced atomically; the journal is only appended to. Losing both loses
time, not machines. Files with secrets have mode 0600 from their first byte.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from discovery_deploy.errors import StateError
from discovery_deploy.model import Strict

Model = TypeVar("Model", bound=Strict)


def now() -> str:
    """The present time, ISO 8601 with milliseconds, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file atomically; it never exists with other permissions or with half of the text.

    Raises:
        StateError: the disk is full or the folder not writable; the old file is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.fchmod(handle, mode)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateError(
            f"{path}: cannot be written: {error.strerror}", "Free space or mend the permissions, then run again."
        ) from error


def results_directory() -> Path:
    """Where workspaces are, unless `--workspace` says otherwise: $DISCOVERY_DEPLOY_RESULTS, or ./results."""
    return Path(os.environ.get("DISCOVERY_DEPLOY_RESULTS", "results"))


def find_workspace(named: str | None) -> Workspace:
    """The workspace of a folder, or of an experiment's name in the results directory, or the only one there.

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
    for path in (Path(named), results_directory() / named):
        if (path / "name").exists():
            return Workspace(path)
    raise StateError(
        f"{named}: neither an experiment file, nor a workspace, nor an experiment in {results_directory()}",
        "Look with `discovery-deploy status`, or give the workspace folder.",
    )


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
            (self.path / "logs").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}", "Choose another folder with --workspace.") from error

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
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"{self.path}: another discovery-deploy works on this experiment ({_holder(path)})",
                    "Wait until it ends, or end it; what it had done is kept.",
                ) from None
            write_file(self.path / "holder", f"pid {os.getpid()}, since {now()}\n")
            yield
            (self.path / "holder").unlink(missing_ok=True)

    def public_key(self) -> str:
        """The experiment's public key, made at the first call. Raises StateError."""
        if not self.key.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "discovery-deploy", "-f", str(self.key)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise StateError(f"{self.key}: ssh-keygen failed: {done.stderr.strip()}", "Install openssh-client.")
        return self.key.with_suffix(".pub").read_text(encoding="utf-8").strip()

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
                "Release the experiment (`discovery-deploy release NAME`) - it removes this file too - and run again.",
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
        for name in (
            "lease.json",
            "state.json",
            "shapes.json",
            "base_rtts.json",
            "environments.json",
            "secrets.json",
            "ssh_config",
            "id",
            "id.pub",
        ):
            (self.path / name).unlink(missing_ok=True)
        for path in [self.path / "clouds.yaml", *self.path.glob("openrc-*")]:
            path.unlink(missing_ok=True)
        for scratch in self.path.glob(".*.playbook"):  # of a driver that was killed; it holds a private inventory
            shutil.rmtree(scratch)
