"""The fields of an experiment as places: what may stand where, and paths such as `network.constraints[0].delay`.

Works on the model's types and on plain data (what YAML and JSON hold), so that a file with mistakes can be walked too.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.mistake import Place, near
from discovery_deploy.system.strict import Strict

_STEP = re.compile(r"(?:^|(?<=[\w\]])\.)([a-z][a-z0-9_]*)|\[(0|[1-9][0-9]*)\]")
_VARYING: tuple[Place, ...] = (
    ("sites",),
    ("network", "default"),
    ("network", "constraints"),
    ("deployment",),
    ("campaign", "load"),
    ("campaign", "bench_site"),
)
_FIXED = {
    "name": "the experiment keeps its name: hosts and results are found by it",
    "question": "it changes nothing that is measured",
    "provider": "all settings run on machines of the same kind",
    "campaign": "of the campaign, only `campaign.load` and `campaign.bench_site` vary; the rest says what is done in "
    "every setting",
    "network": "all settings are verified alike; `network.default` and `network.constraints` vary",
}


def parse_path(text: str) -> Place:
    """Place of a path's text. Raises ValueError."""
    place: list[str | int] = []
    end = 0
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None:
            break
        key, index = step.groups()
        place.append(key if key is not None else int(index))
        end = step.end()
    if end < len(text) or not place or not isinstance(place[0], str):
        raise ValueError(f'"{text}" is not a path; write for example "network.default.delay"')
    return tuple(place)


def format_path(place: Place) -> str:
    """Text of a place, which `parse_path` reads back."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def get_in(data: Any, place: Place) -> Any:
    """What stands at a place of plain data. Raises LookupError when nothing does."""
    for step in place:
        fits = isinstance(data, list) if isinstance(step, int) else isinstance(data, dict)
        if not fits:
            raise LookupError(format_path(place))
        data = data[step]
    return data


def set_in(data: Any, place: Place, value: Any) -> Any:
    """Plain data with a value at a place; the data itself is not changed. Missing mappings on the way are made.

    Raises:
        LookupError: the way leads through a missing list item, or through a value that is no mapping or list.
    """
    if not place:
        return value
    step = place[0]
    if isinstance(step, str):
        if data is not None and not isinstance(data, dict):
            raise LookupError(step)
        mapping = data or {}
        return {**mapping, step: set_in(mapping.get(step), place[1:], value)}
    if not isinstance(data, list) or step >= len(data):
        raise LookupError(step)
    return [*data[:step], set_in(data[step], place[1:], value), *data[step + 1 :]]


def key_of(name: str, field: FieldInfo) -> str:
    """The key of a field as it stands in files."""
    return field.alias or name


def keys_of(model: type[Strict]) -> dict[str, FieldInfo]:
    """Key in files -> field of a model."""
    return {key_of(name, field): field for name, field in model.model_fields.items()}


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation admits, without None and without metadata."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) if part is not type(None) for kind in alternatives(part))
    return (annotation,)


def types_at(place: Place, data: Any = None, root: type[Strict] = Experiment) -> tuple[Any, ...]:
    """Types that may stand at a place, () when the model has no such place.

    Args:
        place: where.
        data: the plain data; where a model is chosen by its `type`, the data's choice is followed.
        root: the model at the top.
    """
    admitted: tuple[Any, ...] = (root,)
    for step in place:
        admitted = tuple(kind for part in admitted for kind in _step_into(part, step))
        data = data.get(step) if isinstance(data, dict) else _item(data, step)
        admitted = _chosen(admitted, data)
    return admitted


def _item(data: Any, step: str | int) -> Any:
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _step_into(kind: Any, step: str | int) -> tuple[Any, ...]:
    if isinstance(step, str):
        field = keys_of(kind).get(step) if is_model(kind) else None
        if get_origin(kind) is dict:
            return alternatives(get_args(kind)[1])
        return alternatives(field.annotation) if field else ()
    items = get_args(kind) if get_origin(kind) is tuple else ()
    if len(items) == 2 and items[1] is Ellipsis:
        return alternatives(items[0])
    return alternatives(items[step]) if step < len(items) else ()


def _chosen(admitted: tuple[Any, ...], data: Any) -> tuple[Any, ...]:
    wanted = data.get("type") if isinstance(data, dict) else None
    chosen = tuple(kind for kind in admitted if is_model(kind) and wanted in type_names(kind))
    return chosen or admitted


def is_model(kind: Any) -> bool:
    """Whether a type is one of the model's objects."""
    return isinstance(kind, type) and issubclass(kind, Strict)


def type_names(model: type[Strict]) -> tuple[str, ...]:
    """The values of a model's `type` by which it is chosen among others."""
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def factor_paths(data: Any) -> list[str]:
    """Paths of all fields that a factor may vary in an experiment, given as plain data."""
    places = dict.fromkeys(_places_below((), data))  # alternatives of a union may have the same keys
    return [format_path(place) for place in places if can_vary(place)]


def _places_below(place: Place, data: Any) -> Iterator[Place]:
    for kind in types_at(place, data):
        if is_model(kind):
            steps: list[str | int] = [*keys_of(kind)]
        else:
            steps = [*range(_length(data, place))] if get_origin(kind) is tuple else []
        for step in steps:
            yield (*place, step)
            yield from _places_below((*place, step), data)


def _length(data: Any, place: Place) -> int:
    try:
        items = get_in(data, place)
    except LookupError:
        return 0
    return len(items) if isinstance(items, list) else 0


def can_vary(place: Place) -> bool:
    """Whether a factor may vary a place: sites and hosts, the WAN's shapes, the deployment, and who loads it.

    Not how the WAN is verified (all settings must be judged alike), not the rest of the campaign (it says what is done
    in every setting), not a key alone on which others hang (a `type`, the name of a site or host).
    """
    return any(place[: len(start)] == start for start in _VARYING) and not _is_held(place)


def _is_held(place: Place) -> bool:
    """Whether other keys hang on what stands at a place, so that it varies only together with them."""
    return place[-1] == "type" or (place[0] == "sites" and place[-1] == "name")


def _why_fixed(place: Place) -> str:
    if _is_held(place) and can_vary(place[:-1]):
        hanging = "other keys hang" if place[-1] == "type" else "what refers to it hangs"
        return f"{hanging} on it; vary `{format_path(place[:-1])}` whole"
    return _FIXED[str(place[0])]


def factor_path_problem(text: str, data: Any) -> str | None:
    """Why a text is not the path of a field that can vary, or None when it is one."""
    try:
        place = parse_path(text)
    except ValueError as problem:
        return str(problem)
    for length in range(1, len(place) + 1):
        if not types_at(place[:length], data):
            return _no_such_field(text, place[: length - 1], place[length - 1], data)
    if not can_vary(place):
        return f'"{text}" cannot vary: {_why_fixed(place)}'
    for length, step in enumerate(place):
        if isinstance(step, int) and step >= _length(data, place[:length]):
            parent = format_path(place[:length])
            return f'no "{parent}[{step}]": {parent} has {_length(data, place[:length])}, counted from 0'
    return None


def _no_such_field(text: str, parent: Place, step: str | int, data: Any) -> str:
    where = f'"{format_path(parent)}"' if parent else "an experiment"
    known = factor_paths(data)
    last = text.rsplit(".", 1)[-1]
    likely = near(text, [path for path in known if path.endswith(f".{last}")]) or near(text, known)
    hint = f'; did you mean "{likely}"?' if likely else _known_keys(parent, data)
    return f'no field "{step}" in {where}{hint}'


def _known_keys(place: Place, data: Any) -> str:
    keys = [key for kind in types_at(place, data) if is_model(kind) for key in keys_of(kind)]
    return f"; known there: {', '.join(dict.fromkeys(keys))}" if keys else ""


@functools.cache
def homes_of(key: str) -> tuple[str, ...]:
    """Where a key belongs, for a key that stands elsewhere: paths such as "network.default", "sites[]"."""
    return tuple(dict.fromkeys(place for place, model in objects() if key in keys_of(model) and place))


def objects(path: str = "", model: type[Strict] = Experiment) -> Iterator[tuple[str, type[Strict]]]:
    """Every object of an experiment file, as (path, model), in the order of the file; "[]" is an item or a key."""
    yield path, model
    for key, field in keys_of(model).items():
        below = f"{path}.{key}" if path else key
        for kind in alternatives(field.annotation):
            items = get_args(kind)[:1] if get_origin(kind) is tuple else (kind,)
            items = get_args(kind)[1:] if get_origin(kind) is dict else items
            for item in items:
                if is_model(item):
                    yield from objects(below if item is kind else f"{below}[]", item)


def as_data(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain data with units, as its file could hold it."""
    return experiment.model_dump(mode="json", by_alias=True, exclude_none=True)


def get_at(experiment: Experiment, path: str) -> Any:
    """The value at a factor path, as a file would hold it ("25 ms", {"type": "galera"}); None when it is left out.

    Raises:
        ValueError: not a path, or it leads through a missing list item.
    """
    return _value(as_data(experiment), path)


def _value(data: Any, path: str) -> Any:
    place = parse_path(path)
    try:
        parent = get_in(data, place[:-1])
        return parent.get(place[-1]) if isinstance(parent, dict) else get_in(parent, place[-1:])
    except LookupError:
        raise ValueError(f'no "{path}" in the experiment') from None


def set_at(experiment: Experiment, path: str, level: Any) -> Experiment:
    """The experiment with another value at a factor path.

    Raises:
        ValueError: not a path, or (as pydantic.ValidationError) a level that does not fit there.
    """
    return substitute(as_data(experiment), {path: level})


def substitute(data: Any, levels: Mapping[str, Any]) -> Experiment:
    """The experiment of plain data with other values at factor paths.

    Raises:
        ValueError: not a path, or (as pydantic.ValidationError) levels that do not fit there.
    """
    for path, level in levels.items():
        try:
            data = set_in(data, parse_path(path), level)
        except LookupError:
            raise ValueError(f'no "{path}" in the experiment') from None
    return Experiment.model_validate(data)
