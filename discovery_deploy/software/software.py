"""Which software a host must be sent, and whether it can run it. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from discovery_deploy.cloud.variables import EnvironmentsInterface, role_hosts
from discovery_deploy.experiment.model import Experiment

if TYPE_CHECKING:
    from discovery_deploy.experiment.lease import Lease

RELEASE = ("debian", "12")
"""What hosts run, as their /etc/os-release has it."""
PYTHON = "/usr/bin/python3.11"
"""What environments are made for, and lead to."""
LOOK = (
    "sh", "-c",
    "if test -r /etc/os-release; then . /etc/os-release; fi; "
    'echo "${ID:-unknown}|${VERSION_ID:-}|$(uname -m)|$(if test -x ' + PYTHON + '; then echo yes; fi)"',
)  # fmt: skip
"""What a host is asked first: any host has a shell."""


def hosts_environments(
    experiment: Experiment, lease: Lease, environments: EnvironmentsInterface
) -> dict[str, tuple[str, ...]]:
    """Host -> names of the environments that it needs, sorted.

    As roles are prepared: whatever a host may run in this setting. Control hosts have the environments of all services,
    the guest (it goes into the image service) and, for a site's own databases, the databases' first content.

    Args:
        experiment: with the levels of the setting in place.
        lease: its hosts.
        environments: built for it.
    """
    services = experiment.deployment.services
    python = {environments.service(name).path for name in services}
    guest = {environments.guest.path} if environments.guest else set()
    seed = {environments.database.path}
    wanted: dict[str, set[str]] = {host.name: set() for host in lease.hosts}
    for host in role_hosts(experiment, lease, "control"):
        wanted[host.name] |= python | guest | (seed if len(services) > 1 else set())
    for host in role_hosts(experiment, lease, "database"):
        wanted[host.name] |= seed
    for host in role_hosts(experiment, lease, "bench"):
        wanted[host.name].add(environments.rally.path)
    for host in role_hosts(experiment, lease, "compute") if "nova" in services else ():
        wanted[host.name] |= {environments.service("nova").path} | guest
    return {name: tuple(sorted(PurePosixPath(path).name for path in paths)) for name, paths in wanted.items()}


def host_problem(answer: str, machine: str) -> str:
    """Why a host cannot run the environments; "" when it can.

    Args:
        answer: what it said to `LOOK`.
        machine: the driver's kind of processor, such as `x86_64`: environments hold compiled code.
    """
    words = answer.strip().split("|")
    if len(words) != 4:
        return f"does not tell what it is: {answer.strip() or 'no answer'}"
    system, release, processor, python = words
    if (system, release) != RELEASE:
        return f"runs {system} {release}".rstrip() + ", not Debian 12"
    if processor != machine:
        return f"has a processor of the kind {processor}; the environments are made on {machine}"
    return "" if python == "yes" else f"has no {PYTHON}"
