"""What this machine lacks for a provider or an experiment, found by trying, and the exact command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from discovery_deploy.agent import wan_router
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.provider_models import Local, Vagrant
from discovery_deploy.hosts.registry import provider_named
from discovery_deploy.software import cache, image, stack
from discovery_deploy.system.errors import DiscoveryError
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds.base import Lack, ProviderInterface
from discovery_deploy.testbeds.local import LocalProvider, state_directory

DISK_BYTES = 6 * 1024**3
"""Image, environments and a small experiment: about 3 GB; the rest is room for data. What is cached is had already."""
ROOM_BYTES = 1024**3
"""Of hosts' files, and of a cache that is full already."""
MEMORY_MB = 3072
"""Of three sites with Keystone, and room."""
DRIVER_MB = 500
"""Of the driver, Ansible and Rally."""
SITE_MB = {"mariadb": 240, "galera": 320}
"""Of a site with Keystone, by its database (docs/benchmarks.md)."""
FULL_SITE_MB = 1400
"""Of a site with all services and two fake computes (docs/benchmarks.md)."""


class Findings(Strict):
    """What was found."""

    lacks: tuple[Lack, ...]
    notes: tuple[str, ...] = ()
    """Lines for a person: what was not tried, and why."""


def memory_mb(experiment: Experiment) -> int | None:
    """Memory that an experiment takes of this machine, in MB, as far as that was measured; None: not this machine's."""
    provider = experiment.provider
    if isinstance(provider, Vagrant):
        hosts = sum(len(site.hosts) for site in experiment.sites)
        return -(-hosts // (provider.hosts_per_machine or 1)) * provider.memory_mb + DRIVER_MB
    if not isinstance(provider, Local):
        return None
    sites, deployment = len(experiment.sites), experiment.deployment
    full = image.variant(deployment.services) == "full"
    return (
        sites * (FULL_SITE_MB if full else SITE_MB[deployment.backend.type]) + wan_router.memory_mb(sites) + DRIVER_MB
    )


def look(provider_name: str, experiment: Experiment | None, progress: Callable[[str], None]) -> Findings:
    """Everything that is missing: the provider's own prerequisites, disk and memory, and what does not work when tried.

    Args:
        provider_name: which provider.
        experiment: whose memory is asked for; None: a small one's.
        progress: takes one short line per step.
    Raises:
        ExperimentError: there is no such provider.
    """
    provider, directory = provider_named(provider_name), stack.cache_directory()
    own = _own_lacks(provider)
    holders = provider.experiments() if not own else []
    places = [directory, *([state_directory()] if provider_name == "local" else [])]
    general = [_memory(experiment, holders), *(_space(place) for place in places)]
    found = [*own, *(lack for lack in general if lack is not None)]
    if found or not isinstance(provider, LocalProvider):
        return Findings(lacks=tuple(dict.fromkeys(found)))
    kind = image.variant(experiment.deployment.services) if experiment else "base"
    tree = directory / "images" / image.image_hash(kind)
    if not tree.is_dir():
        return Findings(lacks=(), notes=("no image is baked yet: whether hosts boot was not tried",))
    progress("starting a host of the image")
    return Findings(lacks=tuple(_host_lacks(provider, tree)))


def _own_lacks(provider: ProviderInterface) -> list[Lack]:
    """What a provider says of itself; that it cannot say so is a lack too."""
    try:
        return provider.lacks()
    except DiscoveryError as error:
        return [Lack(what=error.what, command=command_of(error.advice))]


def command_of(advice: str) -> str:
    """The command in an advice such as "Run: apt-get install -y tcc" or "try `modprobe tun`"; "" when it has none."""
    if advice.startswith("Run: "):
        return advice.removeprefix("Run: ")
    return advice.split("`")[1] if advice.count("`") >= 2 else ""


def _host_lacks(provider: LocalProvider, tree: Path) -> Iterable[Lack]:
    """Start one host of an image as an experiment does, with its networks and router; nothing of it stays."""
    name = f"doctor-{os.getpid()}"
    backend = {"type": "mariadb", "site": "here"}
    tried = Experiment.model_validate({"name": name, "sites": [{"name": "here"}], "deployment": {"backend": backend}})
    try:
        provider.reserve(tried, "", tree, lambda line: None)
    except DiscoveryError as error:
        again = f"rm -r {tree}  # it is baked again by the next run"
        yield Lack(what=f"a host does not start: {error.what}", command=command_of(error.advice) or again)
    finally:
        provider.release(name, lambda line: None)


def _space(path: Path) -> Lack | None:
    place = path
    while not place.exists():
        place = place.parent
    free, of_cache = shutil.disk_usage(place).free, path == stack.cache_directory()
    if free >= (DISK_BYTES if of_cache else ROOM_BYTES):
        return None
    entries = cache.entries(stack.cache_directory())
    needed = max(ROOM_BYTES, DISK_BYTES - sum(entry.octets for entry in entries)) if of_cache else ROOM_BYTES
    if free >= needed:
        return None
    unused = any(not entry.used_by for entry in entries)
    variable = "DISCOVERY_DEPLOY_CACHE" if of_cache else "DISCOVERY_DEPLOY_STATE"
    larger = f"export {variable}=/srv/discovery-deploy  # a directory on a larger disk"
    return Lack(
        what=f"{place}: {free / 1024**3:.1f} GiB free, about {needed / 1024**3:.0f} are needed",
        command="discovery-deploy cache prune" if unused else larger,
    )


def _memory(experiment: Experiment | None, holders: list[str]) -> Lack | None:
    asked = MEMORY_MB if experiment is None else memory_mb(experiment)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next((int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")), None)
    others = [name for name in holders if experiment is None or name != experiment.name]
    if asked is None or available is None or available >= asked or (experiment and experiment.name in holders):
        return None
    size = f"{len(experiment.sites)} sites of {experiment.name}" if experiment else "three sites"
    return Lack(
        what=f"memory: {available} MB available, about {asked} are needed for {size}; take fewer sites, or more memory",
        command=f"discovery-deploy release {others[0]}" if others else "",
    )
