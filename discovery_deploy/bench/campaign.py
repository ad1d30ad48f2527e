"""The campaign as a list of things to do: settings, runs, and where client, database and WAN stand in each. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from discovery_deploy.bench.records import Placement, SettingRecord
from discovery_deploy.cloud.topology import layout
from discovery_deploy.experiment.fields import as_data, format_path, parse_path, substitute
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan.shapes import PathShape

_LONGEST_LABEL = 40
_COST = (
    *("sites", "deployment.release", "deployment.services", "deployment.topology", "deployment.backend", "deployment"),
    "network",
)
"""Beginnings of factor paths, the most expensive to change first; what is not here costs nothing but the runs."""


class Setting(Strict):
    """One combination of factor levels, and the experiment with those values in place."""

    record: SettingRecord
    experiment: Experiment


class Run(Strict):
    """A scenario to be run once in a setting."""

    id: str
    """Stable text, safe as a folder name: a digest in it covers all that decides what the run measures."""
    scenario: Scenario
    setting: Setting
    repetition: int
    """From 1."""


def settings(experiment: Experiment) -> tuple[Setting, ...]:
    """Every combination of the factors' levels; without factors the one setting that the file itself is.

    Ordered so that what is expensive to change changes least: hosts vary slowest, then the deployment, then the
    network, and who loads it fastest; factors of equal cost and levels in the order of the file.

    Raises:
        ValueError: (as pydantic.ValidationError) a combination that is not an experiment.
    """
    factors = experiment.campaign.factors
    data = as_data(experiment)
    labels = level_labels(experiment)
    slowest_first = sorted(range(len(factors)), key=lambda index: (_cost(factors[index].path), index))
    found = []
    for choice in itertools.product(*(range(len(factors[index].levels)) for index in slowest_first)):
        chosen = dict(zip(slowest_first, choice, strict=True))
        values = {factor.path: factor.levels[chosen[index]] for index, factor in enumerate(factors)}
        texts = {factor.path: labels[factor.path][chosen[index]] for index, factor in enumerate(factors)}
        record = SettingRecord(label=", ".join(texts.values()), values=values, labels=texts)
        found.append(Setting(record=record, experiment=substitute(data, values)))
    return tuple(found)


def _cost(path: str) -> int:
    return next((rank for rank, start in enumerate(_COST) if path.startswith(start)), len(_COST))


def level_labels(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Factor path -> a short text for each level, different within the factor, understood without the path."""
    factors = experiment.campaign.factors
    last_keys = [_last_key(factor.path) for factor in factors]
    labels = {}
    for factor, last_key in zip(factors, last_keys, strict=True):
        prefix = _pair(experiment, factor.path)
        if not prefix and last_keys.count(last_key) > 1:
            prefix = format_path(parse_path(factor.path)[1:-1])
        texts = [f"{prefix} {_level_label(factor.path, level)}".strip() for level in factor.levels]
        labels[factor.path] = tuple(
            text if texts.count(text) == 1 else f"{text} ({number})" for number, text in enumerate(texts, 1)
        )
    return labels


def _pair(experiment: Experiment, path: str) -> str:
    """What a label needs to be understood: "nantes-lyon" or "nantes->lyon" for a field of a constraint, the name for
    one of a site or host, "" for others."""
    varied = {factor.path for factor in experiment.campaign.factors}
    match parse_path(path):
        case ("network", "constraints", int(index), "delay" | "jitter" | "loss" | "rate"):
            start = f"network.constraints[{index}]."
            if {one.removeprefix(start).split("[")[0] for one in varied} & {"between", "from", "to"}:
                return f"constraints[{index}]"
            pairs = experiment.network.constraints[index].ordered_pairs()
            return ("->" if len(pairs) == 1 else "-").join(pairs[0])
        case ("sites", int(index), "hosts", int(number), *_):
            return experiment.sites[index].hosts[number].name
        case ("sites", int(index), "hosts"):
            return experiment.sites[index].name
    return ""


def _last_key(path: str) -> str:
    return next(step for step in reversed(parse_path(path)) if isinstance(step, str))


def _level_label(path: str, level: Any) -> str:
    """Such as mariadb@paris, galera, 25 ms, cache none, default delay 25 ms loss 1 %, sites paris+lyon."""
    place = parse_path(path)
    key = "site" if place[:-1] == ("sites",) else _last_key(path)
    if path in ("deployment.sources", "deployment.patches"):
        text = "+".join(f"{project} {_origin(of)}" for project, of in (level or {}).items()) or f"no {key}"
    elif isinstance(level, dict) and "type" in level:
        text = _shown(level)
    elif isinstance(level, dict) and "name" not in level:
        text = " ".join([key, *(f"{name} {_shown(value)}" for name, value in level.items())])
    elif isinstance(level, dict | list):
        text = f"{key} {_shown(level)}"
    else:
        text = str(level) if key == "delay" else f"{key} {'unset' if level is None else level}"
    if len(text) > _LONGEST_LABEL and isinstance(level, list):
        text = f"{len(level)} {key} {_digest(level)[:4]}"
    return text if len(text) <= _LONGEST_LABEL else f"{key} {_digest(level)}"


def _shown(value: Any) -> str:
    """A part of a level in few words: a site or host by its name, an object with a type as mariadb@paris."""
    if isinstance(value, list):
        return "+".join(map(_shown, value))
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if isinstance(value, dict) and "type" in value:
        return "@".join([str(value["type"]), *(_shown(part) for name, part in value.items() if name != "type")])
    return str(value)


def sites_of_settings(experiment: Experiment) -> tuple[str, ...]:
    """Names of the sites that there are in any setting, in the order in which they come up."""
    if not any(parse_path(factor.path)[0] == "sites" for factor in experiment.campaign.factors):
        return experiment.site_names
    return tuple(dict.fromkeys(name for one in settings(experiment) for name in one.experiment.site_names))


def _origin(level: Any) -> str:
    """Last word of where a project's code or patches come from: rpc-reply for prototypes/rpc-reply."""
    text = (level.get("ref") or next(iter(level.values()), "")) if isinstance(level, dict) else level
    return str(text).rstrip("/").rsplit("/", 1)[-1]


def runs(experiment: Experiment, of: Sequence[Setting] | None = None) -> tuple[Run, ...]:
    """All runs of the campaign in the order in which they are made.

    Setting by setting; in a setting all scenarios once, then all again for the next repetition, so that a slow
    drift of the machine does not fall on one scenario alone.

    Args:
        experiment: whose campaign it is.
        of: its settings, when they are at hand.
    """
    campaign = experiment.campaign
    return tuple(
        Run(id=run_id(scenario, setting, repetition), scenario=scenario, setting=setting, repetition=repetition)
        for setting in (settings(experiment) if of is None else of)
        for repetition in range(1, campaign.repetitions + 1)
        for scenario in campaign.scenarios
    )


def run_id(scenario: Scenario, setting: Setting, repetition: int) -> str:
    """Name of a run's folder, such as "create_and_list_users-galera-25-ms-1-0f3a9c1e".

    Its digest covers the scenario with its arguments, the load, the sites, the network and the deployment: a run
    that was made under other conditions never passes for this one.
    """
    experiment = setting.experiment
    decides = as_data(experiment)
    for key in ("name", "question"):
        decides.pop(key, None)
    decides["campaign"] = {"load": experiment.campaign.load, "bench_sites": experiment.bench_sites()}
    decides["scenario"] = scenario.model_dump(mode="json")
    words = [scenario.label, setting.record.label]
    readable = "-".join(re.sub(r"[^A-Za-z0-9_.@]+", "-", word).strip("-.") for word in words if word)
    if readable[120:]:  # two settings may ask for the same, as every `bench_site` does where the load is `high`
        decides["label"] = readable
    return f"{readable[:120]}-{repetition}-{_digest(decides)}"


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def placement(experiment: Experiment, bench_site: str, shapes: Mapping[tuple[str, str], PathShape]) -> Placement:
    """Where the client at a site, the database and the WAN stand to each other, as asked.

    Args:
        experiment: that of a setting.
        bench_site: the site whose bench host runs Rally.
        shapes: (source, destination) -> shape, for every ordered pair of sites.
    """

    def rtt_s(here: str, there: str) -> float:
        return 0.0 if here == there else shapes[here, there].delay_s + shapes[there, here].delay_s

    found = layout(experiment)
    holders = experiment.database_sites()
    api = found.api_site(bench_site)
    nearest = api if api in holders else holders[0]
    asked = {found.serving[service, bench_site].site for service in experiment.deployment.services}
    ruled = [compute.at.site for compute in found.computes if compute.nova.site == api]
    compute_rtt_s = max((rtt_s(api, site) for site in ruled), default=0.0)
    return Placement(
        bench_site=bench_site,
        api_site=api,
        api_rtt_s=rtt_s(bench_site, api),
        compute_rtt_s=compute_rtt_s,
        database_sites=holders,
        nearest_database_site=nearest,
        database_rtt_s=rtt_s(api, nearest),
        commit_rtt_s=max(rtt_s(nearest, other) for other in holders),
        beside_only_database=holders == (bench_site,) and asked == {bench_site},
    )


def placements(experiment: Experiment, shapes: Mapping[tuple[str, str], PathShape]) -> tuple[Placement, ...]:
    """The placement of every site where Rally runs."""
    return tuple(placement(experiment, site, shapes) for site in experiment.bench_sites())
