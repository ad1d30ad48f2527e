"""What is wrong in a campaign: factors that name no field, levels that do not fit there, unknown tasks. Pure."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from discovery_deploy.experiment import fields, mistakes
from discovery_deploy.experiment.fields import factor_path_problem, format_path, parse_path, set_in
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.wording import shown
from discovery_deploy.system.mistake import Mistake, Place, near

MOST_SETTINGS = 10_000
"""More settings than anybody waits for; it keeps `check` short."""


class TaskTemplate(Protocol):
    """What is asked of a Rally task here."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments that it declares; each may have a `default`, whose type is then that of every value."""

    @property
    def services(self) -> Sequence[str]:
        """Services without which it cannot run."""


def find(
    data: Any, tasks: Mapping[str, TaskTemplate] | None, wrong_tasks: Mapping[str, Sequence[str]]
) -> list[Mistake]:
    """Mistakes of factors and scenarios in plain data that may be wrong elsewhere too.

    Args:
        data: the whole experiment; a mapping.
        tasks: name -> task; None when tasks are not to be checked.
        wrong_tasks: name -> what is wrong with the file that it is.
    """
    found = [*_factor_mistakes(data)]
    if tasks is not None:
        found += _scenario_mistakes(data, tasks, wrong_tasks)
    asked = data.get("campaign")
    if isinstance(asked, dict) and asked.get("smoke") is True and _lacking(("nova",), data):
        found.append(Mistake(("campaign", "smoke"), "needs nova, which deployment.services lacks"))
    return found


def _items(data: Any, key: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    asked = data.get("campaign")
    items = asked.get(key) if isinstance(asked, dict) else None
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield ("campaign", key, index), item


def _scenario_mistakes(
    data: Any, tasks: Mapping[str, TaskTemplate], wrong_tasks: Mapping[str, Sequence[str]]
) -> Iterator[Mistake]:
    for place, scenario in _items(data, "scenarios"):
        name = scenario.get("task")
        if not isinstance(name, str):
            continue
        template = tasks.get(name.strip())
        yield from (Mistake((*place, "task"), problem) for problem in wrong_tasks.get(name, ()))
        if name in wrong_tasks:
            continue
        if template is None:
            yield Mistake((*place, "task"), f'no task "{name}"; {_hint(name, tasks)}')
            continue
        lacking = _lacking(template.services, data)
        if lacking:
            yield Mistake((*place, "task"), f"{name} needs {lacking}, which deployment.services lacks")
        given = scenario.get("args")
        for argument, value in given.items() if isinstance(given, dict) else ():
            problem = _argument_problem(argument, value, template.arguments)
            if problem:
                yield Mistake((*place, "args", argument), f"{name} {problem}")


def _lacking(needed: Sequence[str], data: Any) -> str:
    """Needed services that a setting lacks; "" for none, and where the services are themselves wrong."""
    deployment = data.get("deployment")
    services = deployment.get("services", ["keystone"]) if isinstance(deployment, dict) else None
    choices = [services]
    for _, factor in _items(data, "factors"):
        if factor.get("path") == "deployment.services" and isinstance(factor.get("levels"), list):
            choices = factor["levels"]
    lists = [choice for choice in choices if isinstance(choice, list)]
    return ", ".join(service for service in needed if any(service not in choice for choice in lists))


def _argument_problem(argument: str, value: Any, declared: Mapping[str, Any]) -> str | None:
    if argument not in declared:
        return f'has no argument "{argument}"; {_hint(argument, declared)}'
    default = getattr(declared[argument], "default", None)
    if default is None or type(value) is type(default) or (isinstance(default, float) and type(value) is int):
        return None
    return f"takes {json.dumps(default)}, for example, not {shown(value)}"


def _hint(name: str, known: Mapping[str, Any]) -> str:
    meant = near(name, known) or near(f"/{name}", [text for text in known if text.endswith(f"/{name}")])
    return f'did you mean "{meant}"?' if meant else f"there are: {', '.join(sorted(known)) or 'none'}"


class _Varied(NamedTuple):
    """A factor whose path is right."""

    where: Place
    """Of the factor in the file."""
    place: Place
    """That it varies."""
    levels: dict[int, Any]
    """Its levels that are right at that place, by their index in the file."""


def _factor_mistakes(data: Any) -> Iterator[Mistake]:
    """Every path, then every level at its place, then every combination of the levels that are right."""
    varied: list[_Varied] = []
    for where, factor in _items(data, "factors"):
        path, levels = factor.get("path"), factor.get("levels")
        if not isinstance(path, str):
            continue
        problem = factor_path_problem(path.strip(), data)
        if problem:
            yield Mistake((*where, "path"), problem)
            continue
        place = parse_path(path.strip())
        others = [other.place for other in varied]
        if place in others:  # told by the model
            continue
        yield from _overlaps((*where, "path"), place, others)
        right = {}
        for index, level in enumerate(levels if isinstance(levels, list) else ()):
            found = _level_mistakes(data, place, level, (*where, "levels", index))
            yield from found
            right.update({} if found else {index: level})
        varied.append(_Varied(where, place, right))
    if varied:
        yield from _combination_mistakes(data, varied)


def _overlaps(where: Place, place: Place, others: Iterable[Place]) -> Iterator[Mistake]:
    for other in others:
        if other[: len(place)] == place[: len(other)]:
            yield Mistake(where, f'overlaps with the factor "{format_path(other)}"')


def _known(data: Any) -> set[tuple[Place, str]]:
    return {(mistake.path, mistake.message) for mistake in mistakes.find(data)[1]}


def _level_mistakes(data: Any, place: Place, level: Any, where: Place) -> list[Mistake]:
    """What is wrong at a place when a level stands there: told at the level."""
    try:
        changed = set_in(data, place, level)
    except LookupError:  # the way to the place is itself wrong, which is told there
        return []
    found = sorted(_known(changed), key=str)
    return [Mistake((*where, *path[len(place) :]), message) for path, message in found if path[: len(place)] == place]


def _combination_mistakes(data: Any, varied: list[_Varied]) -> Iterator[Mistake]:
    """What becomes wrong elsewhere by a level, or by levels that meet."""
    count = math.prod(len(one.levels) for one in varied)
    if count > MOST_SETTINGS:
        yield Mistake(("campaign", "factors"), f"{count} settings; at most {MOST_SETTINGS}")
        return
    already = _known(data)
    settings: dict[tuple[Place, str], list[tuple[int, ...]]] = defaultdict(list)
    for chosen in itertools.product(*(one.levels for one in varied)):
        for mistake in _known(_with_levels(data, varied, chosen)) - already:
            settings[mistake].append(chosen)
    for (path, message), wrong in sorted(settings.items(), key=str):
        told = f"{format_path(path)} is wrong: {message}"
        guilty = _guilty_levels(varied, path, wrong, count)
        for where in guilty:
            yield Mistake(where, f"with it, {told}")
        if not guilty:
            yield Mistake(("campaign", "factors"), f"with {_spelled(varied, wrong[0])}, {told}")


def _with_levels(data: Any, varied: list[_Varied], chosen: tuple[int, ...]) -> Any:
    for one, index in zip(varied, chosen, strict=True):
        try:
            data = set_in(data, one.place, one.levels[index])
        except LookupError:  # the way to the place is itself wrong, which is told there
            continue
    return data


def _guilty_levels(varied: list[_Varied], path: Place, wrong: list[tuple[int, ...]], count: int) -> list[Place]:
    """Levels of one factor without which all would be right: every setting with them is wrong, and no other."""
    guilty: list[tuple[float, int, list[Place]]] = []
    for number, one in enumerate(varied):
        indexes = {chosen[number] for chosen in wrong}
        if len(wrong) == len(indexes) * count // len(one.levels):
            places: list[Place] = [(*one.where, "levels", index) for index in sorted(indexes)]
            guilty.append((len(indexes) / len(one.levels), -_in_common(one.place, path), places))
    return min(guilty, default=(0.0, 0, []))[2]


def _in_common(one: Place, other: Place) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _spelled(varied: list[_Varied], chosen: tuple[int, ...]) -> str:
    texts = [json.dumps(one.levels[index], default=str) for one, index in zip(varied, chosen, strict=True)]
    return " and ".join(f"{format_path(one.place)} {text}" for one, text in zip(varied, texts, strict=True))


def find_equal_levels(experiment: Experiment) -> list[Mistake]:
    """Levels of a factor that are the same value in other words ("25 ms" and "0.025 s")."""
    found = []
    for number, factor in enumerate(experiment.campaign.factors):
        changed = (fields.set_at(experiment, factor.path, level) for level in factor.levels)
        values = [fields.get_at(one, factor.path) for one in changed]
        for index, value in enumerate(values):
            if value in values[:index]:
                where: Place = ("campaign", "factors", number, "levels", index)
                found.append(Mistake(where, f"the same value as levels[{values.index(value)}]"))
    return found
