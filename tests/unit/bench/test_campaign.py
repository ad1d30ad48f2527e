"""Campaigns: settings in an order that changes dear things rarely, runs with stable names, and placements."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from discovery_deploy.bench.campaign import (
    Setting,
    level_labels,
    placement,
    placements,
    run_id,
    runs,
    settings,
    sites_of_settings,
)
from discovery_deploy.bench.records import Placement
from discovery_deploy.experiment.fields import get_at, set_at
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.wan.shapes import path_shapes

MARIADB = {"type": "mariadb", "site": "lyon"}
GALERA = {"type": "galera"}


def experiment(factors: list[dict[str, Any]] | None = None, **changes: Any) -> Experiment:
    data: dict[str, Any] = {
        "name": "example",
        "sites": [{"name": "nantes"}, {"name": "rennes"}, {"name": "lyon"}],
        "network": {
            "default": {"delay": "10 ms"},
            "constraints": [
                {"from": "nantes", "to": "lyon", "delay": "40 ms"},
                {"between": ["rennes", "lyon"], "delay": "3 ms"},
            ],
        },
        "deployment": {"backend": MARIADB},
        "campaign": {
            "factors": factors or [],
            "scenarios": [
                {"task": "keystone/create_and_list_users"},
                {"task": "keystone/authenticate_user_and_validate_token"},
            ],
        },
    }
    return Experiment.model_validate({**data, **changes})


DELAYS: dict[str, Any] = {"path": "network.default.delay", "levels": ["0 ms", "25 ms"]}
BACKENDS: dict[str, Any] = {"path": "deployment.backend", "levels": [MARIADB, GALERA]}


TWO_SITES = [{"name": "nantes"}, {"name": "lyon"}]
SITES: dict[str, Any] = {"path": "sites", "levels": [TWO_SITES, [*TWO_SITES, {"name": "rennes"}]]}
LOADS: dict[str, Any] = {"path": "campaign.load", "levels": ["light", "high"]}


def changes(found: tuple[Setting, ...], path: str) -> int:
    return sum(one.record.values[path] != next_.record.values[path] for one, next_ in pairwise(found))


def test_a_value_is_read_as_the_file_would_hold_it_and_set_as_the_file_would_say_it() -> None:
    asked = experiment()
    assert get_at(asked, "network.default.delay") == "10 ms"
    assert get_at(asked, "network.default.rate") is None
    assert get_at(asked, "network.constraints[0].delay") == "40 ms"
    assert get_at(asked, "deployment.backend") == MARIADB
    changed = set_at(set_at(asked, "network.constraints[1].delay", "0.5 s"), "deployment.backend", GALERA)
    assert changed.network.constraints[1].delay == 0.5
    assert changed.deployment.backend.type == "galera"
    assert asked == experiment(), "the experiment itself stays as it was"


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("network.default.delay", "25"),
        ("network.constraints[2].delay", "25 ms"),
        ("network.nothing", 1),
        ("deployment.backend", {"type": "mariadb", "site": "paris"}),
        ("no path", 1),
    ],
)
def test_a_level_that_does_not_fit_is_refused(path: str, level: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        set_at(experiment(), path, level)


def test_without_factors_the_experiment_is_its_only_setting() -> None:
    (only,) = settings(experiment())
    assert (only.record.label, only.record.values, only.experiment) == ("", {}, experiment())


def test_every_combination_is_a_setting_and_carries_its_values() -> None:
    found = settings(experiment([DELAYS, BACKENDS]))
    assert [setting.record.label for setting in found] == [
        "0 ms, mariadb@lyon",
        "25 ms, mariadb@lyon",
        "0 ms, galera",
        "25 ms, galera",
    ]
    last = found[-1]
    assert last.record.values == {"network.default.delay": "25 ms", "deployment.backend": GALERA}
    assert last.record.labels == {"network.default.delay": "25 ms", "deployment.backend": "galera"}
    assert last.experiment.network.default.delay == 0.025
    assert last.experiment.database_sites() == ("nantes", "rennes", "lyon")


def test_what_is_dear_to_change_changes_least_in_whatever_order_the_factors_stand() -> None:
    caches = {"path": "deployment.cache", "levels": ["memcached", "none"]}
    rates = {"path": "network.default.rate", "levels": ["10 Mbit/s", "1 Gbit/s", "100 Mbit/s"]}
    for factors in ([rates, DELAYS, caches, BACKENDS], [BACKENDS, caches, DELAYS, rates]):
        found = settings(experiment(factors))
        assert len(found) == 24
        assert changes(found, "deployment.backend") == 1
        assert changes(found, "deployment.cache") == 3
        assert changes(found, "network.default.delay") >= 4


def test_hosts_vary_slowest_and_who_loads_fastest() -> None:
    for factors in ([LOADS, DELAYS, BACKENDS, SITES], [SITES, BACKENDS, DELAYS, LOADS]):
        found = settings(experiment(factors, network={}))
        assert [changes(found, path) for path in ("sites", "deployment.backend", "network.default.delay")] == [1, 3, 7]
        assert changes(found, "campaign.load") == 15


def test_a_setting_s_sites_decide_where_databases_and_clients_are() -> None:
    few, many = settings(experiment([SITES], network={}, deployment={"backend": GALERA}))
    assert (few.record.label, many.record.label) == ("sites nantes+lyon", "sites nantes+lyon+rennes")
    assert few.experiment.database_sites() == ("nantes", "lyon")
    assert many.experiment.site("rennes").hosts[0].name == "rennes-1"
    assert sites_of_settings(experiment([SITES], network={})) == ("nantes", "lyon", "rennes")
    assert sites_of_settings(experiment([DELAYS])) == ("nantes", "rennes", "lyon")
    asked = experiment(campaign={"factors": [LOADS, {"path": "campaign.bench_site", "levels": ["lyon", "rennes"]}]})
    assert [one.experiment.bench_sites() for one in settings(asked)] == [
        ("lyon",),
        ("rennes",),
        ("nantes", "rennes", "lyon"),
        ("nantes", "rennes", "lyon"),
    ]


def test_settings_that_ask_for_the_same_in_other_words_keep_runs_apart() -> None:
    factors = [LOADS, {"path": "campaign.bench_site", "levels": ["lyon", "rennes"]}]
    more = [{"path": f"network.constraints[{index}].loss", "levels": ["0.000123 %"]} for index in (0, 1)]
    task = {"task": "keystone/authenticate_user_and_validate_token"}
    asked = experiment(campaign={"factors": [*more, *factors], "scenarios": [task]})
    assert len({run.id for run in runs(asked)}) == 4


def test_settings_that_are_no_experiment_are_refused() -> None:
    factors = [{"path": "network.constraints[0].to", "levels": ["lyon", "nantes"]}]
    with pytest.raises(ValidationError, match="no WAN to itself"):
        settings(experiment(factors))


@pytest.mark.parametrize(
    ("factors", "labels"),
    [
        ([BACKENDS], ["mariadb@lyon", "galera"]),
        ([{"path": "deployment.cache", "levels": ["memcached", "none"]}], ["cache memcached", "cache none"]),
        ([{"path": "deployment.workers", "levels": [1, 8]}], ["workers 1", "workers 8"]),
        ([{"path": "network.default.loss", "levels": [None, "1 %"]}], ["loss unset", "loss 1 %"]),
        ([{"path": "network.default", "levels": [{"delay": "5 ms", "loss": "1 %"}]}], ["default delay 5 ms loss 1 %"]),
        ([{"path": "sites[1]", "levels": [{"name": "rennes"}]}], ["site rennes"]),
        ([{"path": "sites[1].hosts", "levels": [[{"name": "a"}, {"name": "b"}]]}], ["rennes hosts a+b"]),
        ([{"path": "sites[1].hosts[0].roles", "levels": [["control", "bench"]]}], ["rennes-1 roles control+bench"]),
        ([LOADS], ["load light", "load high"]),
        ([{"path": "deployment", "levels": [{"backend": GALERA}]}], ["deployment backend galera"]),
        ([{"path": "network.constraints[0].delay", "levels": ["5 ms"]}], ["nantes->lyon 5 ms"]),
        ([{"path": "network.constraints[1].rate", "levels": ["1 Mbit/s"]}], ["rennes-lyon rate 1 Mbit/s"]),
    ],
)
def test_a_level_has_a_short_label_that_needs_no_path(factors: list[dict[str, Any]], labels: list[str]) -> None:
    assert [label for texts in level_labels(experiment(factors)).values() for label in texts] == labels


def test_labels_of_two_delays_say_which_is_which() -> None:
    factors = [DELAYS, {"path": "network.constraints[1].delay", "levels": ["0 ms", "25 ms"]}]
    labels = [setting.record.label for setting in settings(experiment(factors))]
    assert labels[1] == "default 0 ms, rennes-lyon 25 ms"
    assert len(set(labels)) == 4


def test_long_levels_get_labels_that_differ() -> None:
    pairs = [["nantes", "rennes"], ["rennes", "lyon"], ["nantes", "lyon"]]
    levels = [[{"between": pair, "delay": "5 ms"}] for pair in pairs]
    labels = level_labels(experiment([{"path": "network.constraints", "levels": levels}]))["network.constraints"]
    assert len(set(labels)) == 3
    assert all(len(label) <= 40 for label in labels)


def test_a_run_is_made_for_each_scenario_setting_and_repetition_setting_by_setting() -> None:
    campaign = experiment([DELAYS, BACKENDS]).campaign.model_copy(update={"repetitions": 3})
    asked = experiment().model_copy(update={"campaign": campaign})
    made = runs(asked)
    assert len(made) == 2 * 4 * 3
    assert len({run.id for run in made}) == len(made)
    labels = [run.setting.record.label for run in made]
    assert labels == sorted(labels, key=labels.index), "a setting is left only when it is done"
    assert [(run.repetition, run.scenario.label) for run in made[:3]] == [
        (1, "create_and_list_users"),
        (1, "authenticate_user_and_validate_token"),
        (2, "create_and_list_users"),
    ]
    assert runs(asked, settings(asked)) == made


def test_a_run_s_id_is_a_folder_name_that_tells_what_it_is() -> None:
    factors = [{"path": "network.constraints[0].delay", "levels": ["5 ms", "0.75 s"]}, BACKENDS]
    for run in runs(experiment(factors)):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,200}", run.id)
        assert run.id.startswith(run.scenario.label)
        assert run.setting.record.labels["deployment.backend"] in run.id


def test_a_run_s_id_changes_with_all_that_decides_what_is_measured_and_with_nothing_else() -> None:
    def ids(asked: Experiment) -> tuple[str, ...]:
        return tuple(run.id for run in runs(asked))

    base = ids(experiment([DELAYS]))
    assert base == ids(experiment([DELAYS]))
    assert base == ids(experiment([DELAYS], name="other", question="Why?"))
    more = {**DELAYS, "levels": ["0 ms", "25 ms", "50 ms"]}
    assert set(base) < set(ids(experiment([more]))), "runs that are done stay done when levels are added"
    campaign = {"factors": [DELAYS], "scenarios": [{"task": "keystone/create_and_list_users", "times": 21}]}
    for changed in (
        experiment([DELAYS], deployment={"backend": MARIADB, "cache": "none"}),
        experiment([DELAYS], network={"default": {"loss": "1 %"}}),
        experiment([DELAYS], sites=[{"name": "nantes"}, {"name": "lyon"}], network={}),
        experiment(campaign=campaign),
        experiment(campaign={**campaign, "load": "high"}),
    ):
        assert not set(base) & set(ids(changed))
    one_site: dict[str, Any] = {"sites": [{"name": "lyon"}], "network": {}}
    light, high = (experiment(campaign={**campaign, "load": load}, **one_site) for load in ("light", "high"))
    assert not set(ids(light)) & set(ids(high))


def test_repetitions_have_ids_of_their_own() -> None:
    (setting,) = settings(experiment())
    scenario = setting.experiment.campaign.scenarios[0]
    assert Counter(run_id(scenario, setting, repetition) for repetition in (1, 2, 3)).most_common(1)[0][1] == 1


def at(asked: Experiment, site: str) -> Any:
    return placement(asked, site, path_shapes(asked.network, asked.site_names))


def test_one_mariadb_is_as_far_as_the_delay_there_and_back_and_commits_wait_for_nobody() -> None:
    seen = at(experiment(), "nantes")
    assert (seen.nearest_database_site, seen.database_sites) == ("lyon", ("lyon",))
    assert seen.database_rtt_s == pytest.approx(0.040 + 0.010)
    assert (seen.commit_rtt_s, seen.beside_only_database) == (0.0, False)


def test_a_client_at_the_only_database_says_nothing_about_the_wan_and_is_marked() -> None:
    seen = at(experiment(), "lyon")
    assert (seen.database_rtt_s, seen.commit_rtt_s, seen.beside_only_database) == (0.0, 0.0, True)


def test_with_galera_reads_stay_at_the_site_and_commits_wait_for_the_farthest_master() -> None:
    asked = experiment(deployment={"backend": GALERA})
    for site, farthest_s in (("nantes", 0.050), ("rennes", 0.020), ("lyon", 0.050)):
        seen = at(asked, site)
        assert (seen.nearest_database_site, seen.database_rtt_s, seen.beside_only_database) == (site, 0.0, False)
        assert seen.commit_rtt_s == pytest.approx(farthest_s)


def test_galera_at_one_site_is_one_database() -> None:
    asked = experiment(sites=[{"name": "lyon"}], network={}, deployment={"backend": GALERA})
    assert at(asked, "lyon").beside_only_database


def test_there_is_a_placement_for_each_site_that_loads() -> None:
    asked = experiment(campaign={"load": "high"})
    found = placements(asked, path_shapes(asked.network, asked.site_names))
    assert [seen.bench_site for seen in found] == ["nantes", "rennes", "lyon"]


ALL_SERVICES = ["keystone", "placement", "glance", "neutron", "nova"]


def spread(topology: dict[str, str], **deployment: Any) -> Experiment:
    return experiment(deployment={"backend": MARIADB, "services": ALL_SERVICES, "topology": topology, **deployment})


def test_a_client_of_a_central_cloud_is_as_far_from_its_api_as_the_wan_is_wide() -> None:
    seen = at(spread({"type": "centralized", "site": "lyon"}), "nantes")
    assert (seen.api_site, seen.api_rtt_s) == ("lyon", pytest.approx(0.050))
    assert (seen.nearest_database_site, seen.database_rtt_s) == ("lyon", 0.0)
    assert seen.compute_rtt_s == pytest.approx(0.050)
    assert not seen.beside_only_database
    assert at(spread({"type": "centralized", "site": "lyon"}), "lyon").beside_only_database


def test_the_database_s_distance_is_that_of_the_api_which_may_be_at_a_third_site() -> None:
    seen = at(spread({"type": "centralized", "site": "rennes"}), "nantes")
    there, database = at(experiment(), "rennes"), at(experiment(), "nantes")
    assert (seen.api_site, seen.nearest_database_site) == ("rennes", "lyon")
    assert seen.database_rtt_s == there.database_rtt_s != database.database_rtt_s
    beside = at(spread({"type": "centralized", "site": "rennes"}), "lyon")
    assert not beside.beside_only_database, "the database is here, the API is not"


def test_with_regions_the_api_is_at_the_client_s_site_and_rules_no_computes_elsewhere() -> None:
    seen = at(spread({"type": "regions"}), "nantes")
    assert (seen.api_site, seen.api_rtt_s, seen.compute_rtt_s) == ("nantes", 0.0, 0.0)


def test_a_service_elsewhere_is_something_across_the_wan() -> None:
    assert not at(spread({"type": "regions"}, placement={"glance": ["nantes"]}), "lyon").beside_only_database
    assert at(spread({"type": "regions"}), "lyon").beside_only_database


def test_topologies_are_levels_with_names_and_the_dearest_to_change_but_services() -> None:
    levels = [{"type": "centralized", "site": "lyon"}, {"type": "regions"}, {"type": "cells", "site": "lyon"}]
    factor = {"path": "deployment.topology", "levels": [*levels, {"type": "shared-state"}]}
    asked = spread({"type": "regions"}).model_dump(mode="json", by_alias=True, exclude_none=True)
    asked["campaign"]["factors"] = [DELAYS, BACKENDS, factor]
    varied = Experiment.model_validate(asked)
    assert level_labels(varied)["deployment.topology"] == ("centralized@lyon", "regions", "cells@lyon", "shared-state")
    found = settings(varied)
    topologies = [setting.experiment.deployment.topology.type for setting in found]
    assert topologies == sorted(topologies, key=topologies.index)
    assert len({run.id for run in runs(varied)}) == len(runs(varied))


def test_a_placement_of_an_older_version_had_its_api_at_the_client_s_site() -> None:
    written = at(experiment(), "nantes").model_dump(exclude={"api_site", "api_rtt_s", "compute_rtt_s"})
    assert Placement.model_validate(written) == at(experiment(), "nantes")
