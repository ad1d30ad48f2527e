"""The model: strict, frozen, with the defaults that its documents promise, and checks of what belongs together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from discovery_deploy.experiment.model import Constraint, Experiment, Network, Scenario, Site
from discovery_deploy.experiment.references import reference_mistakes
from discovery_deploy.system.mistake import ReferenceMistakesError
from discovery_deploy.system.strict import Strict

ALL = ["control", "database", "bench", "compute"]


def experiment(**changes: Any) -> Experiment:
    data: dict[str, Any] = {
        "name": "example",
        "sites": [{"name": "nantes"}, {"name": "rennes"}, {"name": "lyon"}],
        "deployment": {"backend": {"type": "mariadb", "site": "lyon"}},
    }
    return Experiment.model_validate({**data, **changes})


def places(error: ValidationError) -> list[tuple[str | int, ...]]:
    found: list[tuple[str | int, ...]] = []
    for details in error.errors():
        cause = details.get("ctx", {}).get("error")
        inner = cause.mistakes if isinstance(cause, ReferenceMistakesError) else ()
        found += [(*details["loc"], *mistake.path) for mistake in inner] or [details["loc"]]
    return found


def subclasses(kind: type[Strict]) -> list[type[Strict]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


def test_a_site_without_hosts_gets_one_that_has_every_role() -> None:
    (host,) = experiment().sites[0].hosts
    assert (host.name, list(host.roles)) == ("nantes-1", ALL)


def test_the_longest_site_name_still_gives_a_host_name() -> None:
    assert Site.model_validate({"name": "a" * 20}).hosts[0].name == "a" * 20 + "-1"


def test_an_experiment_cannot_be_changed_nor_carry_unknown_keys() -> None:
    made = experiment()
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        experiment(colour="red")
    assert all(kind.model_config.get("extra") == "forbid" for kind in subclasses(Strict))
    assert all(kind.model_config.get("frozen") for kind in subclasses(Strict))


def test_what_is_written_is_read_back_equal_with_units() -> None:
    constraints = [{"from": "nantes", "to": "lyon", "delay": "37.5 ms", "loss": "5 %", "rate": "20 Mbit/s"}]
    made = experiment(network={"default": {"delay": "1.5 s"}, "constraints": constraints})
    written = made.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert written["network"]["constraints"] == constraints
    assert written["network"]["default"] == {"delay": "1.5 s"}
    assert Experiment.model_validate(written) == made


def test_a_pair_names_both_directions_and_from_to_names_one() -> None:
    assert Constraint(between=("nantes", "lyon"), delay="1 ms").ordered_pairs() == (
        ("nantes", "lyon"),
        ("lyon", "nantes"),
    )
    assert Constraint(source="nantes", destination="lyon", delay="1 ms").ordered_pairs() == (("nantes", "lyon"),)


@pytest.mark.parametrize(
    "data",
    [
        {"between": ["nantes", "nantes"], "delay": "1 ms"},
        {"between": ["nantes", "lyon"]},
        {"between": ["nantes", "lyon"], "from": "nantes", "to": "lyon", "delay": "1 ms"},
        {"from": "nantes", "delay": "1 ms"},
        {"delay": "1 ms"},
    ],
)
def test_a_constraint_names_one_pair_and_shapes_it(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Constraint.model_validate(data)


def test_both_directions_of_a_pair_may_have_a_shape_of_their_own_but_only_one() -> None:
    there = {"from": "nantes", "to": "lyon", "delay": "1 ms"}
    back = {"from": "lyon", "to": "nantes", "delay": "2 ms"}
    Network.model_validate({"constraints": [there, back]})
    with pytest.raises(ValidationError) as refusal:
        Network.model_validate({"constraints": [there, back, {"between": ["nantes", "lyon"], "delay": "3 ms"}]})
    assert set(places(refusal.value)) == {("constraints", 2)}


@pytest.mark.parametrize("count", ["2", 2.0, True, 0, None])
def test_a_count_is_a_whole_number_and_nothing_that_could_be_taken_for_one(count: Any) -> None:
    with pytest.raises(ValidationError):
        Scenario.model_validate({"task": "keystone/create_and_list_users", "times": count})


@pytest.mark.parametrize("name", ["Nantes", "1nantes", "nantes-", "", "a" * 21, "nan tes", "nantes\n2", "é"])
def test_a_name_can_be_part_of_a_host_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Site.model_validate({"name": name})


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"sites": [{"name": "lyon"}, {"name": "lyon"}]}, ("sites", 1, "name")),
        (
            {"sites": [{"name": "lyon"}, {"name": "nantes", "hosts": [{"name": "lyon-1"}]}]},
            ("sites", 1, "hosts", 0, "name"),
        ),
        ({"sites": [{"name": "lyon"}, {"name": "all"}]}, ("sites", 1, "name")),
        (
            {"sites": [{"name": "lyon", "hosts": [{"name": "router"}]}]},
            ("sites", 0, "hosts", 0, "name"),
        ),
        ({"sites": [{"name": "lyon", "hosts": [{"name": "a", "roles": ["database"]}]}]}, ("sites", 0, "hosts")),
        ({"deployment": {"backend": {"type": "mariadb", "site": "paris"}}}, ("deployment", "backend", "site")),
        (
            {"network": {"constraints": [{"from": "lyon", "to": "paris", "delay": "1 ms"}]}},
            ("network", "constraints", 0, "to"),
        ),
        (
            {"network": {"constraints": [{"between": ["lyon", "paris"], "delay": "1 ms"}]}},
            ("network", "constraints", 0, "between", 1),
        ),
        ({"campaign": {"bench_site": "paris"}}, ("campaign", "bench_site")),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_at_its_place(changes: Any, place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refusal:
        experiment(**changes)
    assert places(refusal.value) == [place]


def test_roles_that_the_backend_and_the_load_need_are_required_where_they_are_needed() -> None:
    sites = [{"name": "lyon"}, {"name": "nantes", "hosts": [{"name": "a", "roles": ["control"]}]}]
    scenarios = [{"task": "keystone/create_and_list_users"}]
    experiment(sites=sites, campaign={"scenarios": scenarios})
    with pytest.raises(ValidationError) as refusal:
        experiment(
            sites=sites,
            deployment={"backend": {"type": "galera"}},
            campaign={"scenarios": scenarios, "bench_site": "nantes"},
        )
    assert places(refusal.value) == [("sites", 1, "hosts"), ("campaign", "bench_site")]


def test_a_sound_experiment_has_no_reference_mistakes() -> None:
    assert list(reference_mistakes(experiment())) == []


def test_bench_and_database_sites_follow_load_and_backend() -> None:
    assert experiment().bench_sites() == ("nantes",)
    assert experiment(campaign={"bench_site": "rennes"}).bench_sites() == ("rennes",)
    assert experiment(campaign={"load": "high"}).bench_sites() == ("nantes", "rennes", "lyon")
    assert experiment().database_sites() == ("lyon",)
    galera = experiment(deployment={"backend": {"type": "galera"}})
    assert galera.database_sites() == ("nantes", "rennes", "lyon")


def test_the_name_of_a_site_finds_it() -> None:
    assert experiment().site("lyon").name == "lyon"
    with pytest.raises(KeyError):
        experiment().site("paris")
