"""The order of things: which phases there are, what each reads, and which are stale. Pure.

Each phase has a slice of the experiment; the hash of a phase is chained: it covers its own slice and the hash of the
phase before it. A phase is fresh when it ended and its recorded hash is the wanted one; executing a phase makes all
later ones stale. That one rule gives idempotence, resume, and cheap campaign points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software.inputs import Inputs, digest
from discovery_deploy.system.strict import Strict

Phase = Literal["reserve", "prepare", "deploy", "constrain", "verify"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Phases that bring the testbed to a setting; bench and report follow them."""


class PhaseRecord(Strict):
    """What is known of the last execution of a phase."""

    hash: str
    status: Literal["started", "done"]
    at: str
    seconds: float = 0.0


class State(Strict):
    """The testbed as this tool left it."""

    phases: dict[Phase, PhaseRecord] = {}
    deployed: str | None = None
    """Hash of the deploy phase whose work (all or part of it) is on the hosts now."""
    standing: dict[str, str] = {}
    """That hash -> the same without the projects' code (`standing_hash`)."""
    image: str = ""
    """Content of the image that the hosts were made of, or were prepared beside; "" when it is not known."""
    seconds: dict[str, float] = {}
    """Phase -> seconds of its last complete execution."""

    def started(self, phase: Phase, wanted: str, at: str, standing: str = "") -> State:
        """The state when a phase begins: it and all later ones are no longer done.

        Args:
            phase: that begins.
            wanted: its hash.
            at: time.
            standing: of the deployment that `deploy` brings.
        """
        kept = {name: record for name, record in self.phases.items() if PHASES.index(name) < PHASES.index(phase)}
        kept[phase] = PhaseRecord(hash=wanted, status="started", at=at)
        update: dict[str, Any] = {"phases": kept}
        if phase == "deploy":
            update |= {"deployed": wanted, "standing": {wanted: standing} if standing else {}}
        return self.model_copy(update=update)

    def done(self, phase: Phase, at: str, seconds: float) -> State:
        """The state when a phase has ended well."""
        record = self.phases[phase].model_copy(update={"status": "done", "at": at, "seconds": seconds})
        return self.model_copy(
            update={"phases": {**self.phases, phase: record}, "seconds": {**self.seconds, phase: seconds}}
        )


def phase_slice(phase: Phase, experiment: Experiment, inputs: Inputs) -> dict[str, Any]:
    """What a phase reads, as plain data; nothing else may influence it."""
    asked = experiment.model_dump(mode="json", by_alias=True)
    if phase == "reserve":
        return {"name": asked["name"], "provider": asked["provider"], "sites": asked["sites"], "image": inputs.image}
    if phase == "prepare":
        deployment = asked["deployment"]
        return {
            "release": deployment["release"],
            "services": deployment["services"],
            "openstack": inputs.openstack,
            "rally": inputs.rally,
            "playbooks": inputs.playbooks,
        }
    if phase == "deploy":
        # which projects are another's is in the hash of their code: what was edited counts, not what it is called
        kept = {key: value for key, value in asked["deployment"].items() if key not in ("sources", "patches")}
        return {"deployment": kept, "code": inputs.code}
    network = asked["network"]
    if phase == "constrain":
        return {key: network[key] for key in ("default", "constraints", "compensate")}
    return {"verify": network["verify"]}


def wanted_hashes(experiment: Experiment, inputs: Inputs) -> dict[Phase, str]:
    """Phase -> chained hash for one setting."""
    hashes: dict[Phase, str] = {}
    previous = ""
    for phase in PHASES:
        previous = digest(phase, previous, phase_slice(phase, experiment, inputs))
        hashes[phase] = previous
    return hashes


def stale_phases(state: State, wanted: Mapping[Phase, str], until: Phase = "verify") -> tuple[Phase, ...]:
    """Phases up to `until` that must be executed, in order: from the first that is not done as wanted."""
    asked = PHASES[: PHASES.index(until) + 1]
    for index, phase in enumerate(asked):
        record = state.phases.get(phase)
        if record is None or record.status != "done" or record.hash != wanted[phase]:
            return asked[index:]
    return ()


def standing_hash(experiment: Experiment, inputs: Inputs) -> str:
    """Hash of a deployment without the code of its projects.

    While it stays, a deployment can be brought from one code to another where it is: the roles write the path of each
    service's environment into its unit, and restart those units that change. What databases hold at first is not code:
    it is in `inputs.openstack`.
    """
    return wanted_hashes(experiment, inputs.model_copy(update={"code": ""}))["deploy"]


def must_destroy(state: State, wanted: Mapping[Phase, str], standing: str = "") -> bool:
    """Whether another deployment (or part of one) is on the hosts and must go before this one comes.

    Args:
        state: as recorded.
        wanted: hashes of this one.
        standing: its `standing_hash`; "" when only the very same may stay.
    """
    if state.deployed is None or state.deployed == wanted["deploy"]:
        return False
    return not standing or state.standing.get(state.deployed) != standing
