"""The command line, called as a person calls it, with results and state of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from discovery_deploy.cli import cli, commands
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds.base import HOLDER


class Said(NamedTuple):
    """What a command has left for a person."""

    code: int
    out: str
    err: str


Tool = Callable[..., Said]


def command_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Calls the tool in a working directory, with `state` and `cache` beside it."""
    for name in ("work", "state"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder / "work")
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(folder / "state"))
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", str(folder / "cache"))
    monkeypatch.delenv("DISCOVERY_DEPLOY_RESULTS", raising=False)

    def became(arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """What would take the place of the tests runs beside them."""
        sys.exit(subprocess.run(arguments, env=environment, stdin=subprocess.DEVNULL, check=False).returncode)

    monkeypatch.setattr(commands, "_take_over", became)

    def call(*words: str) -> Said:
        monkeypatch.setattr("sys.argv", ["discovery-deploy", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return call


def held(folder: Path, name: str, workspace: Path | None = None) -> Path:
    """An experiment that holds something here: the directory that it has in the state directory."""
    directory = folder / "state" / name
    directory.mkdir()
    (directory / ".discovery-deploy").touch()
    (directory / "precious").touch()
    if workspace is not None:
        (directory / HOLDER).write_text(f"{workspace}\n")
    return directory


def workspace_of(path: Path, name: str) -> Workspace:
    """A workspace whose experiment has a lease of one host."""
    workspace = Workspace(path)
    (path / "name").write_text(f"{name}\n")
    workspace.save("lease.json", lease(name))
    return workspace


def lease(name: str) -> Lease:
    """Of a single host."""
    host = LeasedHost(
        name="lyon-1", site="lyon", roles=("control",), management_address="192.0.2.1", site_address="192.0.2.2"
    )
    return Lease(
        provider="local", experiment=name, hosts=(host,), site_subnets={}, site_devices={}, site_gateways={},
        identities={}, router="netns", details={"plan": {"slot": 63, "directory": "/nowhere"}},
    )  # fmt: skip
