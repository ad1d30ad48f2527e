"""The order of things: which phases there are, what each reads, and which are stale. Pure.

Each phase has a slice of the experiment; the hash of a phase is chained: it covers its own slice and the hash of the
phase before it. A phase is fresh when it ended and its recorded hash is the wanted one; executing a phase makes all
later ones stale. That one rule gives idempotence, resume, and cheap campaign points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from discovery_deploy.model import Experiment, Strict

Phase = Literal["reserve", "prepare", "deploy", "constrain", "verify"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Phases that bring the testbed to a setting; bench and report follow them."""


class Inputs(Strict):
    """Hashes of what phases use besides the experiment file."""

    image: str
    openstack: str
    rally: str
    playbooks: str


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
    seconds: dict[str, float] = {}
    """Phase -> seconds of its last complete execution."""

    def started(self, phase: Phase, wanted: str, at: str) -> State:
        """The state when a phase begins: it and all later ones are no longer done."""
        kept = {name: record for name, record in self.phases.items() if PHASES.index(name) < PHASES.index(phase)}
        kept[phase] = PhaseRecord(hash=wanted, status="started", at=at)
        deployed = wanted if phase == "deploy" else self.deployed
        return self.model_copy(update={"phases": kept, "deployed": deployed})

    def done(self, phase: Phase, at: str, seconds: float) -> State:
        """The state when a phase has ended well."""
        record = self.phases[phase].model_copy(update={"status": "done", "at": at, "seconds": seconds})
        return self.model_copy(
            update={"phases": {**self.phases, phase: record}, "seconds": {**self.seconds, phase: seconds}}
        )


def digest(*parts: Any) -> str:
    """Short stable hash (16 hex digits of SHA-256) of JSON-able values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        return {"deployment": asked["deployment"]}
    network = asked["network"]
    if phase == "constrain":
        return {"default": network["default"], "constraints": network["constraints"]}
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


def must_destroy(state: State, wanted: Mapping[Phase, str]) -> bool:
    """Whether another deployment (or part of one) is on the hosts and must go before this one comes."""
    return state.deployed is not None and state.deployed != wanted["deploy"]
