"""Smoke: whether a deployment can be operated at all, asked level by level, and what is said of it. Pure.

The levels and their names follow Cherrueau et al., "Edge Computing Resource Management System: a Critical Building
Block!", HotEdge '18: what an administrator of many small sites must be able to do, whatever the topology.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from discovery_deploy.cloud.topology import layout
from discovery_deploy.experiment.model import Experiment, MariadbBackend
from discovery_deploy.experiment.services import KEYSTONE
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan.shapes import PathShape

if TYPE_CHECKING:
    from discovery_deploy.experiment.lease import Lease

Kind = Literal["fake", "libvirt"]
"""Of a compute: Nova's fake driver, or real virtual machines."""
Level = Literal["L1", "L2.1", "L3.2"]
LEVELS: dict[Level, str] = {
    "L1": "a server at a chosen site",
    "L2.1": "servers at several sites, each named, in one session",
    "L3.2": "management goes on when a site is cut off from the others",
}
"""Level -> what is asked."""
NEEDED: tuple[Level, ...] = ("L1", "L2.1")
"""Levels that every topology must reach, or the deployment is broken; the others are a finding."""
BASE_LIMIT_S = 180.0
CUT_LIMIT_S = 180.0
"""In place of `BASE_LIMIT_S` while a site is cut off: a "no" takes as long."""
ROUND_TRIPS = 800
"""Of one server: requests and messages, one after another, that may cross the WAN; a bound, several times the real."""
PAUSE_S = 3.0
"""Between two attempts."""
SETTLE_S = 75.0
"""From the cut until sites are asked: a cluster over sites that has not noticed yet answers as if it were whole.

Galera takes 30 s to give a silent master up and as long again to agree on who is left (role galera: `evs.*_timeout`).
"""
FLAVOR = "m1.tiny"
"""Which deploy makes (role cloud_content)."""


class SmokeSite(Strict):
    """A site as its administrator sees it."""

    site: str
    host: str
    """Where the client runs: a host of the site."""
    auth_url: str
    """Of the Keystone that the site uses."""
    region: str
    """In which its computes are."""
    computes: dict[Kind, tuple[str, ...]]
    """Kind -> names that Nova knows; kinds without computes are left out."""


class SmokeStep(Strict):
    """Something that was done, and what it took."""

    name: str
    seconds: float


class SmokeCheck(Strict):
    """One question and its answer."""

    level: Level
    site: str
    """Where the client was."""
    what: str
    """For example "a server on a fake compute at rennes"."""
    passed: bool
    reason: str = ""
    """Why not: what did not come, where; "" when passed."""
    seconds: float
    steps: tuple[SmokeStep, ...] = ()
    """What was done well."""


class SmokeRecord(Strict):
    """What smoke found in one deployment."""

    deployed: str
    """Hash of the deploy phase."""
    setting: str
    """Label of the setting in which it was asked."""
    topology: str
    """For example "centralized@paris"."""
    checks: tuple[SmokeCheck, ...]
    started_at: str
    finished_at: str

    @property
    def problems(self) -> tuple[str, ...]:
        """Failures of levels that every topology must reach."""
        return tuple(
            f"{check.level} ({check.what}): {check.reason}"
            for check in self.checks
            if check.level in NEEDED and not check.passed
        )

    def reached(self, level: Level) -> bool | None:
        """Whether all checks of a level passed; None when there was none."""
        found = [check.passed for check in self.checks if check.level == level]
        return all(found) if found else None


def smoke_sites(experiment: Experiment, lease: Lease) -> list[SmokeSite]:
    """The sites with computes, in the order of the file; the client runs on the first host of each."""
    plan = layout(experiment)
    addresses = {host.name: host.site_address for host in lease.hosts}
    found = []
    for site in experiment.site_names:
        computes = [compute for compute in plan.computes if compute.at.site == site]
        names: dict[Kind, tuple[str, ...]] = {
            "fake": tuple(name for compute in computes for name in compute.fakes),
            "libvirt": tuple(compute.at.host for compute in computes if compute.libvirt),
        }
        known = {kind: of_kind for kind, of_kind in names.items() if of_kind}
        if known:
            keystone = addresses[plan.serving["keystone", site].host]
            found.append(
                SmokeSite(
                    site=site,
                    host=lease.at(site).name,
                    auth_url=KEYSTONE.url(keystone),
                    region=computes[0].region,
                    computes=known,
                )
            )
    return found


def topology_text(experiment: Experiment) -> str:
    """Such as "centralized@paris"; with it, what holds the shared state: "regions, galera"."""
    deployment = experiment.deployment
    parts = [deployment.topology.model_dump().values(), deployment.backend.model_dump().values()]
    return ", ".join("@".join(map(str, part)) for part in parts)


def centres(experiment: Experiment) -> tuple[str, ...]:
    """Sites that hold alone what others need: the central control plane, the only database."""
    deployment = experiment.deployment
    found = [getattr(deployment.topology, "site", None)]
    found += [deployment.backend.site] if isinstance(deployment.backend, MariadbBackend) else []
    return tuple(site for site in found if site is not None)


def limit_s(shapes: Mapping[tuple[str, str], PathShape], cut: bool = False) -> float:
    """Seconds in which a server must have come and gone: 3 minutes, and 800 of the largest round trip.

    Args:
        cut: whether a site is cut off.
    """
    largest_s = max((shape.delay_s + shapes[b, a].delay_s for (a, b), shape in shapes.items()), default=0.0)
    return (CUT_LIMIT_S if cut else BASE_LIMIT_S) + ROUND_TRIPS * largest_s


def settle_s(experiment: Experiment) -> float:
    """Seconds from the cut until sites are asked: none where no cluster of databases or brokers spans the sites."""
    deployment = experiment.deployment
    clusters = deployment.backend.type == "galera" or deployment.topology.type == "shared-state"
    return SETTLE_S if clusters else 0.0


def place(site: SmokeSite, kind: Kind, name: str) -> dict[str, Any]:
    """A place of `cloud_probe` (see there)."""
    return {
        "name": name,
        "site": site.site,
        "region": site.region,
        "computes": list(site.computes[kind]),
        "kind": kind,
        "flavor": FLAVOR,
    }


def cheapest(site: SmokeSite) -> Kind:
    """The kind of compute that answers soonest."""
    return "fake" if "fake" in site.computes else "libvirt"


def cut_off(shapes: Mapping[tuple[str, str], PathShape], site: str) -> dict[tuple[str, str], PathShape]:
    """The same WAN, but nothing passes between a site and the others."""
    return {pair: shape.model_copy(update={"loss": 1.0}) if site in pair else shape for pair, shape in shapes.items()}


def site_to_cut(experiment: Experiment, sites: Sequence[str]) -> str | None:
    """The last of these sites that is no centre (holds nothing alone that others need); the last when each is one.

    Args:
        sites: those with computes, in the order of the file.
    Returns:
        None where there is nothing to be cut off from, or no compute.
    """
    if len(experiment.sites) < 2 or not sites:
        return None
    known = centres(experiment)
    return next((site for site in reversed(sites) if site not in known), sites[-1])


def check(level: Level, site: str, what: str, answer: Mapping[str, Any], seconds: float) -> SmokeCheck:
    """A check from an answer of `cloud_probe`."""
    return SmokeCheck(
        level=level,
        site=site,
        what=what,
        passed=not answer["error"],
        reason=answer["error"],
        seconds=round(seconds, 3),
        steps=tuple(SmokeStep(**step) for step in answer["steps"]),
    )


def table(record: SmokeRecord) -> str:
    """One check a line, tab separated with a header."""
    lines = ["level\tclient at\twhat\tanswer\tseconds\treason"]
    for one in record.checks:
        answer = "yes" if one.passed else "no"
        lines.append(f"{one.level}\t{one.site}\t{one.what}\t{answer}\t{one.seconds:.1f}\t{one.reason or '-'}")
    return "\n".join(lines) + "\n"
