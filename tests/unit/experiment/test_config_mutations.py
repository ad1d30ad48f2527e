"""Whatever stands in an experiment file, the answer is an experiment that can be run or a refusal in plain words."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from discovery_deploy.bench import campaign
from discovery_deploy.experiment import config
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.wan.shapes import path_shapes

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 3.5, float("nan"), 10**30, "", "x", "25", "25 ms", "galera", "lyon", "Lyon", "a: b"),
    *([], {}, ["a"], [[]], [None], [True, 1], {"a": 1}, [{"name": "lyon"}], {"hosts": 3}, {"name": {"x": 1}}),
    *({"type": "galera"}, {"type": "mariadb"}, {"type": ["x"]}, {"type": None}, {"type": {"a": 1}}),
    *("network.default.delay", "network.constraints[0].delay", "deployment.backend"),
)
KEYS = ("name", "type", "site", "hosts", "dealy", "levels", "path", "between", "from", "source", "x", "campaign")
BASES = ("quickstart", "asymmetric", "template")


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of everything in plain data."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


def mutate(data: Any, chance: random.Random) -> None:
    container, key = chance.choice(list(places(data)))
    value = copy.deepcopy(chance.choice(VALUES))
    match chance.randrange(4):
        case 0:
            container[key] = value
        case 1:
            del container[key]
        case 2 if isinstance(container, dict):
            container[chance.choice(KEYS)] = container.pop(key)
        case _ if isinstance(container, dict):
            container[chance.choice(KEYS)] = value
        case _:
            container.insert(key, value)


def outcome(text: str) -> Experiment | str:
    try:
        return config.parse(text, "file.yaml")
    except ExperimentError as refusal:
        return refusal.what


@pytest.mark.parametrize("base", BASES)
def test_a_mutated_file_is_an_experiment_or_is_refused_in_plain_words(base: str) -> None:
    yaml = YAML(typ="safe", pure=True)
    sound = yaml.load((data_directory("experiments") / f"{base}.yaml").read_text(encoding="utf-8"))
    kinds = set()
    for seed in range(40):
        chance = random.Random(seed)
        data = copy.deepcopy(sound)
        for _ in range(chance.choice([1, 1, 2, 4])):
            mutate(data, chance)
        text = io.StringIO()
        yaml.dump(data, text)
        got = outcome(text.getvalue())
        kinds.add(type(got))
        if isinstance(got, str):
            assert all(line.startswith("file.yaml:") for line in got.splitlines())
            assert "guess" not in got
            assert "Input" not in got
        else:
            for run in campaign.runs(got):
                asked = run.setting.experiment
                campaign.placements(asked, path_shapes(asked.network, asked.site_names))
    assert kinds == {Experiment, str}
