"""Which phases are stale, and why."""

from __future__ import annotations

from typing import Any

import pytest

from discovery_deploy.driver.phases import (
    PHASES,
    Phase,
    State,
    must_destroy,
    phase_slice,
    stale_phases,
    standing_hash,
    wanted_hashes,
)
from discovery_deploy.experiment.fields import set_at
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software.inputs import Inputs, digest

INPUTS = Inputs(image="i", openstack="o", rally="r", playbooks="p")


def experiment(**network: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "q",
            "sites": [{"name": "a"}, {"name": "b"}],
            "network": network,
            "deployment": {"backend": {"type": "mariadb", "site": "a"}},
        }
    )


def all_done(wanted: dict[Phase, str]) -> State:
    state = State()
    for phase in PHASES:
        state = state.started(phase, wanted[phase], "t").done(phase, "t", 1.0)
    return state


def test_everything_is_stale_at_first_and_nothing_after_all_is_done() -> None:
    wanted = wanted_hashes(experiment(), INPUTS)
    assert stale_phases(State(), wanted) == PHASES
    assert stale_phases(all_done(wanted), wanted) == ()


def test_a_new_delay_redoes_constrain_and_verify_but_never_deploy() -> None:
    state = all_done(wanted_hashes(experiment(), INPUTS))
    wanted = wanted_hashes(experiment(default={"delay": "25 ms"}), INPUTS)
    assert stale_phases(state, wanted) == ("constrain", "verify")
    assert not must_destroy(state, wanted)


def test_other_hosts_redo_everything_and_another_load_nothing() -> None:
    asked = experiment()
    state = all_done(wanted_hashes(asked, INPUTS))
    three = set_at(asked, "sites", [{"name": "a"}, {"name": "b"}, {"name": "c"}])
    assert stale_phases(state, wanted_hashes(three, INPUTS)) == PHASES
    roles = set_at(asked, "sites[1].hosts[0].roles", ["control", "bench"])
    assert stale_phases(state, wanted_hashes(roles, INPUTS)) == PHASES
    assert must_destroy(state, wanted_hashes(roles, INPUTS)), "hosts may be kept, and what is on them must go"
    assert stale_phases(state, wanted_hashes(set_at(asked, "campaign.load", "high"), INPUTS)) == ()


def test_a_new_tolerance_redoes_only_verify() -> None:
    state = all_done(wanted_hashes(experiment(), INPUTS))
    wanted = wanted_hashes(experiment(verify={"rtt_tolerance": "3 ms"}), INPUTS)
    assert stale_phases(state, wanted) == ("verify",)


@pytest.mark.parametrize(
    ("field", "first"), [("image", "reserve"), ("openstack", "prepare"), ("rally", "prepare"), ("playbooks", "prepare")]
)
def test_a_changed_input_redoes_the_phase_that_uses_it_and_all_later_ones(field: str, first: Phase) -> None:
    state = all_done(wanted_hashes(experiment(), INPUTS))
    wanted = wanted_hashes(experiment(), INPUTS.model_copy(update={field: "other"}))
    assert stale_phases(state, wanted) == PHASES[PHASES.index(first) :]


def test_a_phase_that_began_and_did_not_end_is_stale() -> None:
    wanted = wanted_hashes(experiment(), INPUTS)
    state = all_done(wanted).started("deploy", wanted["deploy"], "t")
    assert stale_phases(state, wanted) == ("deploy", "constrain", "verify")
    assert not must_destroy(state, wanted), "the same deployment goes on where it was"


def test_another_deployment_must_go_first_even_when_it_was_only_begun() -> None:
    wanted = wanted_hashes(experiment(), INPUTS)
    state = State().started("deploy", "another hash", "t")
    assert must_destroy(state, wanted)
    again = state.started("reserve", wanted["reserve"], "t")
    assert must_destroy(again, wanted), "a repaired lease does not make another deployment vanish"


def test_until_limits_what_is_asked() -> None:
    wanted = wanted_hashes(experiment(), INPUTS)
    assert stale_phases(State(), wanted, until="prepare") == ("reserve", "prepare")


def test_every_field_that_acts_on_the_testbed_is_in_some_slice() -> None:
    asked = experiment().model_dump(mode="json", by_alias=True)
    read: set[str] = set()
    for phase in PHASES:
        read |= set(phase_slice(phase, experiment(), INPUTS))
    for key in [*asked["network"], "deployment", "sites", "provider", "name"]:
        assert key in read


def test_equal_inputs_give_equal_hashes_whatever_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"topology": {"type": "centralized", "site": "b"}}, "deploy"),
        ({"placement": {"keystone": ["b"]}}, "deploy"),
        ({"overrides": {"keystone": {"token": {"expiration": 60}}}}, "deploy"),
        ({"computes": {"fake": 3}}, "deploy"),
        ({"services": ["keystone", "glance"]}, "prepare"),
    ],
)
def test_what_is_spread_otherwise_is_deployed_again_and_other_services_are_prepared(change: Any, first: str) -> None:
    state = all_done(wanted_hashes(experiment(), INPUTS))
    written = experiment().model_dump(mode="json", by_alias=True, exclude_none=True)
    written["deployment"].update(change)
    wanted = wanted_hashes(Experiment.model_validate(written), INPUTS)
    assert stale_phases(state, wanted)[0] == first
    assert must_destroy(state, wanted)


def test_other_code_is_deployed_over_what_is_there() -> None:
    edited = INPUTS.model_copy(update={"code": "edited"})
    first, standing = wanted_hashes(experiment(), INPUTS), standing_hash(experiment(), INPUTS)
    state = State().started("deploy", first["deploy"], "t", standing)
    wanted = wanted_hashes(experiment(), edited)
    assert wanted["prepare"] == first["prepare"]
    assert wanted["deploy"] != first["deploy"]
    assert standing_hash(experiment(), edited) == standing
    assert not must_destroy(state, wanted, standing_hash(experiment(), edited))
    state = state.started("deploy", wanted["deploy"], "t", standing)
    assert not must_destroy(state, first, standing), "and back"


def test_another_deployment_or_schema_is_not_deployed_over_what_is_there() -> None:
    first = wanted_hashes(experiment(), INPUTS)
    state = State().started("deploy", first["deploy"], "t", standing_hash(experiment(), INPUTS))
    schema = INPUTS.model_copy(update={"openstack": "other", "code": "edited"})
    assert must_destroy(state, wanted_hashes(experiment(), schema), standing_hash(experiment(), schema))
    unknown = state.model_copy(update={"deployed": "unknown"})
    assert must_destroy(unknown, first, standing_hash(experiment(), INPUTS))


def test_what_projects_are_called_changes_nothing() -> None:
    asked = experiment().model_dump(mode="json", by_alias=True)
    asked["deployment"]["patches"] = {"oslo.db": "somewhere"}
    renamed = Experiment.model_validate(asked)
    assert wanted_hashes(renamed, INPUTS) == wanted_hashes(experiment(), INPUTS)
