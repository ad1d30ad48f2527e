"""Giving back what an experiment holds, whoever has reserved it, and whether or not its lease can be read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.progress import Announcer
from discovery_deploy.system.remote import Remote, remove_control_sockets
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds.base import ProviderInterface


def readable_lease(workspace: Workspace) -> Lease | None:
    """The lease, or None when there is none that can be read: what is released needs no lease."""
    try:
        return workspace.load("lease.json", Lease)
    except StateError:
        return None


def release(
    name: str,
    providers: Sequence[ProviderInterface],
    announce: Announcer,
    workspaces: Sequence[Workspace] = (),
    asked: Path | None = None,
) -> None:
    """Give back everything of an experiment, found by its name.

    Args:
        name: of the experiment; held by the caller.
        providers: all that may hold something of it.
        announce: told what is being done.
        workspaces: those whose hosts these are, locked by the caller; they forget them.
        asked: the one that was named, if any: another one that holds the hosts is told.
    """
    announce.phase("release", name)
    started = time.monotonic()
    holders = {holder for provider in providers if (holder := provider.holder(name)) is not None}
    for holder in sorted(holders - {asked}):
        announce.line(f"its hosts were reserved from {holder}")
    for workspace in workspaces:
        lease = readable_lease(workspace)
        if lease is not None and workspace.ssh_config.exists():
            Remote(workspace.ssh_config).close(host.name for host in lease.hosts)
    for provider in providers:
        provider.release(name, announce.line)
    remove_control_sockets(holders | {workspace.path for workspace in workspaces})
    for workspace in workspaces:
        workspace.remove_lease()
        with suppress(StateError):  # all is given back, and the disk is full
            workspace.note("released")
    announce.done("release", round(time.monotonic() - started, 3))
