"""Places of an experiment: paths, what may stand where, and which fields a factor may vary."""

from __future__ import annotations

from typing import Any

import pytest

from discovery_deploy.experiment.fields import (
    factor_path_problem,
    factor_paths,
    format_path,
    get_in,
    homes_of,
    parse_path,
    set_in,
    types_at,
)
from discovery_deploy.experiment.model import Constraint, DefaultShape, GaleraBackend, MariadbBackend

DATA: dict[str, Any] = {
    "sites": [{"name": "nantes"}, {"name": "lyon", "hosts": [{"name": "lyon-1"}]}],
    "network": {"constraints": [{"between": ["nantes", "lyon"], "delay": "1 ms"}]},
    "deployment": {"backend": {"type": "mariadb", "site": "lyon"}},
}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("network.default.delay", ("network", "default", "delay")),
        ("network.constraints[10].between[1]", ("network", "constraints", 10, "between", 1)),
        ("campaign.bench_site", ("campaign", "bench_site")),
    ],
)
def test_a_path_is_read_and_written_back(text: str, place: tuple[str | int, ...]) -> None:
    assert parse_path(text) == place
    assert format_path(place) == text


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[-1]", "a[01]", "a b", "a[0", "A.b"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        parse_path(text)


def test_setting_a_place_leaves_the_data_as_it_was_and_makes_missing_mappings() -> None:
    changed = set_in(DATA, parse_path("network.default.delay"), "5 ms")
    assert get_in(changed, parse_path("network.default.delay")) == "5 ms"
    assert "default" not in DATA["network"]
    deeper = set_in(DATA, parse_path("network.constraints[0].between[1]"), "rennes")
    assert deeper["network"]["constraints"][0] == {"between": ["nantes", "rennes"], "delay": "1 ms"}
    assert DATA["network"]["constraints"][0]["between"] == ["nantes", "lyon"]


@pytest.mark.parametrize("path", ["network.constraints[1].delay", "deployment.backend.type.x", "network[0]"])
def test_a_way_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(LookupError):
        set_in(DATA, parse_path(path), "5 ms")
    with pytest.raises(LookupError):
        get_in(DATA, parse_path(path))


def test_the_types_at_a_place_follow_the_model_and_the_type_that_the_data_chose() -> None:
    assert types_at(parse_path("network.default")) == (DefaultShape,)
    assert types_at(parse_path("network.constraints[0]")) == (Constraint,)
    assert types_at(parse_path("deployment.backend")) == (MariadbBackend, GaleraBackend)
    assert types_at(parse_path("deployment.backend"), DATA) == (MariadbBackend,)
    assert types_at(parse_path("deployment.backend.site"), DATA) == (str,)
    assert types_at(parse_path("network.nothing")) == ()


def test_a_key_that_stands_elsewhere_is_known_by_its_home() -> None:
    assert homes_of("bench_site") == ("campaign",)
    assert homes_of("loss") == ("network.default", "network.constraints[]")
    assert homes_of("nothing") == ()


def test_factors_may_vary_hosts_shapes_deployment_and_who_loads_it() -> None:
    paths = factor_paths(DATA)
    assert {"network.default.delay", "network.constraints[0].rate", "deployment.backend.site"} <= set(paths)
    assert {"sites", "sites[0]", "sites[0].hosts", "sites[1].hosts[0].roles", "deployment"} <= set(paths)
    assert {path for path in paths if path.startswith("campaign")} == {"campaign.load", "campaign.bench_site"}
    assert all(factor_path_problem(path, DATA) is None for path in paths)


@pytest.mark.parametrize(
    ("fixed", "reason"),
    [
        ("name", "hosts and results are found by it"),
        ("question", "it changes nothing that is measured"),
        ("provider", "machines of the same kind"),
        ("provider.type", "machines of the same kind"),
        ("network", "all settings are verified alike"),
        ("network.verify.probes", "all settings are verified alike"),
        ("campaign.repetitions", "only `campaign.load` and `campaign.bench_site` vary"),
        ("campaign.factors", "only `campaign.load` and `campaign.bench_site` vary"),
        ("deployment.backend.type", "vary `deployment.backend` whole"),
        ("sites[0].name", "vary `sites[0]` whole"),
        ("sites[1].hosts[0].name", "vary `sites[1].hosts[0]` whole"),
    ],
)
def test_what_cannot_vary_says_why(fixed: str, reason: str) -> None:
    assert fixed not in factor_paths(DATA)
    problem = str(factor_path_problem(fixed, DATA))
    assert problem.startswith(f'"{fixed}" cannot vary: ')
    assert reason in problem


def test_an_item_that_is_not_there_cannot_vary() -> None:
    assert factor_path_problem("sites[2].hosts", DATA) == 'no "sites[2]": sites has 2, counted from 0'
