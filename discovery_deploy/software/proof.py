"""Proves on every host which code its services run; see `code_proof`, which runs there, for what is compared."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from discovery_deploy.cloud.topology import layout
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import derived
from discovery_deploy.software.records import HostCode
from discovery_deploy.software.stack import Environment
from discovery_deploy.system import interruption
from discovery_deploy.system.agents import Agents
from discovery_deploy.system.errors import TestbedError

LIMIT_S = 60.0
AGAIN_S = 2.0


def services_of_hosts(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Host -> the services of which processes must run there. Pure."""
    found = layout(experiment)
    services: dict[str, dict[str, None]] = {}
    for instance in found.instances:
        services.setdefault(instance.at.host, {})[instance.service] = None
    for compute in found.computes:
        if compute.fakes or compute.libvirt:
            services.setdefault(compute.at.host, {})["nova"] = None
    return {host: tuple(names) for host, names in services.items()}


def prove(
    agents: Agents, hosts: Mapping[str, Sequence[str]], environments: Mapping[str, Environment], cache: Path
) -> dict[str, HostCode]:
    """Host -> what it proved.

    Args:
        agents: of the hosts.
        hosts: host -> services.
        environments: service -> its environment.
        cache: directory of the cache, whose manifests count.
    Raises:
        TestbedError: a service runs other code than it should, or a file is not as it was made; every host, service
            and file is named.
    """
    manifests = {one.path: _manifest_hash(cache, one) for one in environments.values()}

    def one(host: str) -> tuple[HostCode, list[str]]:
        code, problems = look(host)
        if problems:  # a process that has only just started has not told all yet
            time.sleep(AGAIN_S)
            code, problems = look(host)
        return code, problems

    def look(host: str) -> tuple[HostCode, list[str]]:
        services = {service: environments[service].path for service in hosts[host]}
        asked = {"environments": {path: manifests[path] for path in services.values()}, "services": services}
        answer = agents.ask(host, "code", asked, limit_s=LIMIT_S)
        problems = [f"{host}: {problem}" for problem in answer.pop("problems")]
        return HostCode.model_validate(answer), problems

    with interruption.pool(len(hosts)) as pool:
        answers = dict(zip(hosts, pool.map(one, hosts), strict=True))
    problems = [problem for _, found in answers.values() for problem in found]
    if problems:
        raise TestbedError(
            "the code that runs is not the code that was asked for:\n  " + "\n  ".join(problems),
            "Run again: it is deployed anew. A file that is changed in the cache stays: remove its environment there.",
        )
    return {host: code for host, (code, _) in answers.items()}


def _manifest_hash(cache: Path, environment: Environment) -> str:
    return hashlib.sha256(derived.manifest_path(cache, environment.name).read_bytes()).hexdigest()
