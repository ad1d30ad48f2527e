"""What an experiment asks of Grid'5000, and what is made of the answers. Pure.

The hosts of an experiment are put into *pools*: those that are asked of the same cluster, or of the same servers. A
pool asks for no more machines than it has hosts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.provider_mistakes import full_name
from discovery_deploy.experiment.provider_models import Grid5000, Machines
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.strict import Strict

PREFIX = "discovery-deploy-"
"""Begins the name of every job that is ours; the experiment's name follows."""
NETWORK_TYPES = {"production": "prod", "kavlan": "kavlan", "kavlan-global": "kavlan-global"}
"""Our word for a network -> EnOSlib's."""
GATEWAY = "access.grid5000.fr"
DEBIAN = "12"


class Pool(Strict):
    """Hosts that are asked of one place."""

    g5k_site: str
    cluster: str
    servers: tuple[str, ...] = ()
    """The very machines, by full name; empty: any of the cluster."""
    hosts: tuple[str, ...]
    """In the order in which they get machines; one machine each."""

    @property
    def label(self) -> str:
        """Role of its machines in EnOSlib; different for each pool."""
        return "-".join([self.g5k_site, self.cluster, *(name.partition(".")[0] for name in self.servers)])


class Job(Strict):
    """What the API says of an OAR job."""

    g5k_site: str
    uid: int
    name: str
    state: str
    machines: tuple[str, ...] = ()
    """Full names of the machines that it has; none before it runs."""
    types: tuple[str, ...] = ()
    starts_at: float | None = None
    """When it started or is thought to, in seconds since 1970; None when OAR does not know."""
    walltime_s: float | None = None


class MachineFacts(Strict):
    """What a machine says of itself, as root."""

    name: str
    """Its full name in the reservation."""
    address: str
    """By which ssh reaches it (a name, in the network of the hosts)."""
    site_address: str
    """Its IPv4 address where ssh came in."""
    site_device: str
    identity: str
    """Text that is another one when the machine was installed anew."""
    system: str
    """Such as `debian 12`."""
    python: str
    """Path of its Python 3, or ""."""


def grid5000(experiment: Experiment) -> Grid5000:
    """The provider section of an experiment on Grid'5000."""
    assert isinstance(experiment.provider, Grid5000)
    return experiment.provider


def job_name(experiment_name: str) -> str:
    """The name of an experiment's jobs: one at each site of Grid'5000 that it uses."""
    return PREFIX + experiment_name


def experiment_of(job: str) -> str | None:
    """The experiment that a job of a name belongs to, or None."""
    return job.removeprefix(PREFIX) if job.startswith(PREFIX) else None


def cluster_of(machine: str) -> str:
    """The cluster of a machine, from its name."""
    return machine.partition(".")[0].rpartition("-")[0]


def pools(experiment: Experiment) -> tuple[Pool, ...]:
    """The smallest request that holds an experiment's hosts (`provider_mistakes` has seen that there is one)."""
    asked: dict[Machines, list[str]] = {}
    section = grid5000(experiment)
    for site in experiment.sites:
        place = section.sites.get(site.name, section.default)
        assert place is not None
        asked.setdefault(place, []).extend(host.name for host in site.hosts)
    found: list[Pool] = []
    for place, hosts in asked.items():
        if place.cluster is not None:
            found.append(Pool(g5k_site=place.g5k_site, cluster=place.cluster, hosts=tuple(hosts)))
        else:
            found += _named(place, hosts)
    return tuple(found)


def _named(place: Machines, hosts: Sequence[str]) -> list[Pool]:
    servers = [full_name(server, place.g5k_site) for server in place.servers]
    given: dict[str, list[tuple[str, str]]] = {}
    for host, server in zip(hosts, servers, strict=False):
        given.setdefault(cluster_of(server), []).append((host, server))
    return [
        Pool(
            g5k_site=place.g5k_site, cluster=cluster, hosts=tuple(host for host, _ in pairs),
            servers=tuple(server for _, server in pairs),
        )
        for cluster, pairs in given.items()
    ]  # fmt: skip


def configuration(experiment: Experiment, keys: str) -> dict[str, Any]:
    """EnOSlib's dictionary of a Grid'5000 configuration (its `G5kConf`) for an experiment.

    Args:
        experiment: whose provider is Grid'5000.
        keys: file with the public keys that may log in as root to what is deployed.
    """
    section, asked = grid5000(experiment), pools(experiment)
    sites = list(dict.fromkeys(pool.g5k_site for pool in asked))
    network_sites = sites[:1] if section.network == "kavlan-global" else sites
    given: dict[str, Any] = {
        "job_name": job_name(experiment.name),
        "job_type": [*section.job_types, *_deployment_types(section)],
        "queue": section.queue,
        "walltime": section.walltime,
        "resources": {
            "machines": [_machines(pool, network_sites) for pool in asked],
            "networks": [
                {"id": f"net-{site}", "type": NETWORK_TYPES[section.network], "roles": ["net"], "site": site}
                for site in network_sites
            ],
        },
    }
    optional = {"reservation": section.reservation, "project": section.project, "env_name": section.environment}
    if section.environment is not None:
        optional["key"] = keys
    return given | {name: value for name, value in optional.items() if value is not None}


def _deployment_types(section: Grid5000) -> list[str]:
    return ["deploy"] if section.environment is not None and "deploy" not in section.job_types else []


def _machines(pool: Pool, network_sites: Sequence[str]) -> dict[str, Any]:
    network = pool.g5k_site if pool.g5k_site in network_sites else network_sites[0]
    what: dict[str, Any] = {"roles": [pool.label], "primary_network": f"net-{network}"}
    if pool.servers:
        return {**what, "servers": list(pool.servers)}
    return {**what, "cluster": pool.cluster, "nodes": len(pool.hosts)}


def misfits(asked: Sequence[Pool], jobs: Sequence[Job]) -> list[str]:
    """Why jobs that run cannot hold what is asked, in words; empty when they can.

    Jobs that have no machines yet are taken to fit: OAR says what they get when they start.
    """
    found = []
    wanted = {pool.g5k_site for pool in asked}
    for site in sorted({job.g5k_site for job in jobs} - wanted):
        found.append(f"nothing is asked at {site} any more")
    for site in sorted({job.g5k_site for job in jobs if job.machines} & wanted):
        free = {name for job in jobs if job.g5k_site == site for name in job.machines}
        for pool in sorted((pool for pool in asked if pool.g5k_site == site), key=lambda pool: not pool.servers):
            fitting = (
                free & set(pool.servers)
                if pool.servers
                else {name for name in free if cluster_of(name) == pool.cluster}
            )
            if len(fitting) < len(pool.hosts):
                found.append(f"{site}: {len(fitting)} machines of {pool.cluster}, {len(pool.hosts)} are asked for")
            free -= set(sorted(fitting, key=natural)[: len(pool.hosts)])
    return found


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which paravance-2 comes before paravance-10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def assigned(asked: Sequence[Pool], given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Host -> the full name of its machine; the same for the same machines, in whatever order they come.

    Args:
        asked: the pools.
        given: label of a pool -> its machines.
    Raises:
        TestbedError: a pool has fewer machines than hosts.
    """
    found: dict[str, str] = {}
    for pool in asked:
        machines = sorted(given.get(pool.label, ()), key=natural)
        if len(machines) < len(pool.hosts):
            raise TestbedError(
                f"Grid'5000 gave {len(machines)} machines of {pool.cluster} at {pool.g5k_site}, "
                f"{len(pool.hosts)} were asked for",
                "Release the experiment and reserve again.",
            )
        by_name = dict(zip(pool.hosts, pool.servers, strict=True)) if pool.servers else {}
        found.update(by_name or dict(zip(pool.hosts, machines, strict=False)))
    return found


SETUP = """\
umask 077; mkdir -p /root/.ssh /var/lib/discovery-deploy
grep -qxF '@key@' /root/.ssh/authorized_keys 2>/dev/null || echo '@key@' >> /root/.ssh/authorized_keys
[ -s /var/lib/discovery-deploy/identity ] || cat /proc/sys/kernel/random/uuid > /var/lib/discovery-deploy/identity
echo "identity $(cat /var/lib/discovery-deploy/identity)"; echo "connection $SSH_CONNECTION"
. /etc/os-release; echo "system $ID $VERSION_ID"; echo "python $(command -v python3)"
ip -o -4 address show | sed 's/^/device /'
"""
"""What is run on each machine as root: lets the experiment's key in, and says what `facts` reads."""


def setup(public_key: str) -> str:
    """The shell text that lets a key in and tells a machine's facts. Raises ValueError for a key that is none."""
    key = public_key.strip()
    if not re.fullmatch(r"[A-Za-z0-9@.:+/= _-]+", key):
        raise ValueError(f"not a public key: {key[:20]}")
    return SETUP.replace("@key@", key)


def facts(name: str, address: str, said: str) -> MachineFacts:
    """What a machine said in `setup`.

    Raises:
        TestbedError: something is missing; the machine is named.
    """
    told: dict[str, str] = {}
    devices: dict[str, str] = {}
    for line in said.splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "device":
            words = rest.split()  # 2: eth0 inet 10.1.2.3/16 ...
            devices[words[3].partition("/")[0]] = words[1].partition("@")[0]
        else:
            told[kind] = rest.strip()
    came_in = (told.get("connection", "").split() + [""] * 4)[2]
    if came_in not in devices or not told.get("identity"):
        raise TestbedError(
            f"{name}: did not say at which of its addresses ssh reaches it (it said {came_in or 'nothing'}; "
            f"its IPv4 addresses are {', '.join(sorted(devices)) or 'not known'})",
            "Hosts need an IPv4 address in the network of the reservation; look at the machine, then run again.",
        )
    return MachineFacts(
        name=name, address=address, site_address=came_in, site_device=devices[came_in], identity=told["identity"],
        system=told.get("system", ""), python=told.get("python", ""),
    )  # fmt: skip


def unsuitable(machines: Iterable[MachineFacts]) -> list[str]:
    """What hinders machines from being hosts, in words."""
    found = []
    for machine in machines:
        if machine.system != f"debian {DEBIAN}":
            found.append(f"{machine.name} has {machine.system or 'an unknown system'}, not debian {DEBIAN}")
        elif not machine.python:
            found.append(f"{machine.name} has no python3")
    return found


def seconds_of(walltime: str) -> int:
    """Seconds of a walltime `HH:MM:SS`, or of one with fewer parts. Raises ValueError."""
    parts = [int(part) for part in walltime.split(":")]
    return sum(part * 60**place for place, part in enumerate(reversed([*parts, 0, 0][:3])))


def walltime_of(seconds: float) -> str:
    """`HH:MM:SS`, rounded up to whole minutes."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def is_past(begins: str, now: datetime) -> bool:
    """Whether a reservation ("YYYY-MM-DD HH:MM:SS", Paris) begins before `now` (Paris, without a zone). Pure.

    A text that is no moment is not past; the models refuse it.
    """
    try:
        return datetime.strptime(begins, "%Y-%m-%d %H:%M:%S") < now
    except ValueError:
        return False


def paris_time() -> datetime:
    """The present time in Paris, without a zone, as OAR takes it."""
    return datetime.now(ZoneInfo("Europe/Paris")).replace(tzinfo=None)


def request_text(
    experiment: Experiment, cores: Mapping[str, int], unknown: str = "", now: datetime | None = None
) -> str:
    """What would be booked, for a person, several lines.

    Args:
        experiment: whose provider is Grid'5000.
        cores: `site/cluster` -> cores of each of its machines, as far as they are known.
        unknown: why cores are not known, when they are not.
        now: the present time in Paris, without a zone; a reservation before it is warned of. None: not looked at.
    """
    section, asked = grid5000(experiment), pools(experiment)
    hours = seconds_of(section.walltime) / 3600
    begin = f"at {section.reservation} (Paris)" if section.reservation else "as soon as there is room"
    system = f"deploys {section.environment}" if section.environment else "the standard environment"
    lines = [
        f'Grid\'5000 job "{job_name(experiment.name)}", queue {section.queue}, walltime {section.walltime}, {begin}; '
        f"network {section.network}; {system}"
        + (f"; project {section.project}" if section.project else "")
    ]  # fmt: skip
    if section.reservation and now is not None and is_past(section.reservation, now):
        lines.append("  warning: the reservation begins in the past; leave `reservation` out for: now")
    total, complete = 0.0, True
    for pool in asked:
        machines = len(pool.hosts)
        what = ", ".join(name.partition(".")[0] for name in pool.servers) or f"of {pool.cluster}"
        each = cores.get(f"{pool.g5k_site}/{pool.cluster}")
        cost = (
            ""
            if each is None
            else f": {machines} x {each} cores x {hours:g} h = {machines * each * hours:g} core-hours"
        )
        total, complete = total + machines * (each or 0) * hours, complete and each is not None
        lines.append(f"  {pool.g5k_site}: {_counted(machines, 'machine')} {what}{cost} ({', '.join(pool.hosts)})")
    machines = sum(len(pool.hosts) for pool in asked)
    said = f"{total:g} core-hours" if complete else f"core-hours not known{f' ({unknown})' if unknown else ''}"
    return "\n".join([*lines, f"  in all: {_counted(machines, 'machine')}, {said}"]) + "\n"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def ends_at(jobs: Sequence[Job]) -> float | None:
    """When the first of these jobs ends, in seconds since 1970; None when that is not known."""
    known = [job.starts_at + job.walltime_s for job in jobs if job.starts_at is not None and job.walltime_s is not None]
    return min(known) if len(known) == len(jobs) and known else None


def time_warning(ends: float, now: float, runs_left: int, seconds_per_run: float, name: str) -> str | None:
    """One line when a reservation ends before the campaign will have, else None.

    Args:
        ends: when the hosts go, in seconds since 1970.
        now: the present time, the same way.
        runs_left: runs without a result.
        seconds_per_run: what a run took so far, on the whole.
        name: of the experiment file, for the advice.
    """
    left = ends - now
    needed = runs_left * seconds_per_run
    if needed <= left:
        return None
    short = walltime_of(needed - left)
    return (
        f"the hosts go in {_short(left)}, and {_counted(runs_left, 'run')} of about {_short(seconds_per_run)} "
        f"need {_short(needed)}: ask for more with `discovery-deploy extend {name} {short}`"
    )


def _short(seconds: float) -> str:
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
