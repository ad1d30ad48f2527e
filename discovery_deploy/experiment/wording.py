"""What pydantic found, in plain words and at the places of the file. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from discovery_deploy.experiment.fields import get_in, homes_of, is_model, key_of, keys_of, type_names, types_at
from discovery_deploy.system.mistake import Place, ReferenceMistakesError, near

_LONGEST = 60


class Finding(NamedTuple):
    """One mistake at a place of plain data."""

    place: Place
    message: str
    kind: Literal["unknown key", "missing key", "wrong"] = "wrong"
    meant: str | None = None
    """For an unknown key: the key that was probably meant."""
    rests_on: tuple[Place, ...] = ()
    """Other places that were compared with it."""


def findings(error: ValidationError, data: Any) -> list[Finding]:
    """Everything that a validation of plain data as an Experiment found, in pydantic's order."""
    return [finding for details in error.errors(include_url=False) for finding in _of(dict(details), data)]


def _of(details: dict[str, Any], data: Any) -> Iterator[Finding]:
    place = _without_tags(details["loc"])
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, ReferenceMistakesError):
        for mistake in cause.mistakes:
            inner = tuple((*place, *other) for other in mistake.rests_on)
            yield Finding((*place, *mistake.path), mistake.message, rests_on=inner)
    elif kind == "value_error":
        yield Finding(place, str(cause))
    elif kind == "extra_forbidden":
        yield _unknown_key(place, data)
    elif kind == "missing" and isinstance(place[-1], str):
        yield Finding(place, f"required key is missing ({_what_belongs(place)})", "missing key")
    elif kind == "missing":
        yield Finding(place[:-1], f"2 items are needed, not {place[-1]}")
    elif kind == "union_tag_not_found":
        yield Finding((*place, "type"), f"required key is missing; one of: {', '.join(_options(place))}", "missing key")
    elif kind == "union_tag_invalid":
        yield Finding((*place, "type"), _not_one_of(given.get("type"), _options(place)))
    elif _stands_in(data, place) and not _only_items_are_wrong(kind, given, context):
        yield Finding(place, _plain(kind, given, context, place, str(details["msg"])))


def _stands_in(data: Any, place: Place) -> bool:
    """Whether the file says it; not so for a host whose name is made from a wrong name of its site."""
    try:
        get_in(data, place)
    except LookupError:
        return False
    return True


def _only_items_are_wrong(kind: str, given: Any, context: dict[str, Any]) -> bool:
    """pydantic calls a list too short when its items are refused, which is told already."""
    return kind == "too_short" and len(given) >= context["min_length"]


def _without_tags(loc: Place) -> Place:
    """pydantic's `loc` without the tags of chosen union members: deployment.backend.mariadb.site."""
    place: Place = ()
    for step in loc:
        unions = [kind for kind in types_at(place) if is_model(kind)] if place else []
        if len(unions) > 1 and any(step in type_names(kind) for kind in unions):
            continue
        place = (*place, step)
    return place


def _unknown_key(place: Place, data: Any) -> Finding:
    key = str(place[-1])
    models = [kind for kind in types_at(place[:-1], data) if is_model(kind)]
    known = [name for kind in models for name in keys_of(kind)]
    ours = [key_of(key, kind.model_fields[key]) for kind in models if key in kind.model_fields]
    meant = ours[0] if ours else near(key, known)
    homes = homes_of(key)
    if any(key in keys_of(kind) for kind in types_at(place[:-1])):
        hint = f"not with type {get_in(data, place[:-1])['type']}, whose keys are: {', '.join(known)}"
    elif meant:
        hint = f'did you mean "{meant}"?'
    elif 0 < len(homes) <= 2:
        hint = f"it belongs into {' or '.join(homes)}"
    else:
        hint = f"known here: {', '.join(known)}"
    return Finding(place, f"unknown key; {hint}", "unknown key", meant)


def _what_belongs(place: Place) -> str:
    field = next(keys_of(kind)[str(place[-1])] for kind in types_at(place[:-1]) if place[-1] in keys_of(kind))
    text = (field.description or "").rstrip(".")
    return text[:1].lower() + text[1:]


def _options(place: Place) -> tuple[str, ...]:
    """Texts that a place takes, when they are few: a Literal's, or the types of a union."""
    options: list[str] = []
    for kind in types_at(place):
        options += type_names(kind) if is_model(kind) else get_args(kind) if get_origin(kind) is Literal else ()
    return tuple(options)


def _not_one_of(given: Any, options: tuple[str, ...]) -> str:
    if not isinstance(given, str) and str(given) in options:
        return f'{given} is a number here; write it in quotes: "{given}"'
    if given is None:
        return f"nothing stands here; one of: {', '.join(options)}"
    meant = near(given, options) if isinstance(given, str) else None
    hint = f'did you mean "{meant}"?' if meant else f"known: {', '.join(options)}"
    return f"{shown(given)} is not known here; {hint}"


def shown(value: Any) -> str:
    """A value as a person would name it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _LONGEST else f'"{value[:_LONGEST]}..."'
    return "a list" if isinstance(value, (list, tuple)) else "keys with values"


def _plain(kind: str, given: Any, context: dict[str, Any], place: Place, message: str) -> str:
    if kind == "literal_error":
        return _not_one_of(given, _options(place))
    words = _WORDS.get(kind)
    if words is None:
        return message.replace("Input should be", "must be").replace("Input", "it")
    text = words(given, context)
    return text + _example(place, given) if kind in ("model_type", "model_attributes_type") else text


def _expected(what: str) -> Callable[[Any, dict[str, Any]], str]:
    def words(given: Any, context: dict[str, Any]) -> str:
        return f"{what} expected; nothing stands here" if given is None else f"{what} expected, not {shown(given)}"

    return words


def _text(given: Any, context: dict[str, Any]) -> str:
    if isinstance(given, (bool, int, float)):
        plain = shown(given).removeprefix("the number ")
        return f'a text is expected, not {shown(given)}; write it in quotes: "{plain}"'
    return _expected("a text is")(given, context)


def _name(given: Any, context: dict[str, Any]) -> str:
    match = re.search(r"\{0,(\d+)\}", context["pattern"])
    longest = int(match[1]) + 2 if match else 0
    rule = f"lower-case letters, digits and dashes, a letter first, no dash last, at most {longest} characters"
    proposal = re.sub(r"[^a-z0-9]+", "-", str(given).lower()).strip("-")[:longest].rstrip("-")
    hint = f'; write for example "{proposal}"' if re.match(context["pattern"], proposal) else ""
    return f"{shown(given)} is not a name ({rule}){hint}"


def _items(given: Any, context: dict[str, Any]) -> str:
    if "max_length" in context:
        most = context["max_length"]
        return f"{most} items are needed, not {len(given)}" if most == 2 else f"at most {most} items, not {len(given)}"
    least = context["min_length"]
    return f"at least {least} item{'s' if least > 1 else ''} needed, not {len(given)}"


_WORDS: dict[str, Callable[[Any, dict[str, Any]], str]] = {
    "string_type": _text,
    "string_pattern_mismatch": _name,
    "bool_type": _expected("true or false is"),
    "int_type": _expected("a whole number is"),
    "int_from_float": _expected("a whole number is"),
    "int_parsing": _expected("a whole number is"),
    "greater_than_equal": lambda given, context: f"{given} is too small; at least {context['ge']}",
    "less_than_equal": lambda given, context: f"{given} is too large; at most {context['le']}",
    "tuple_type": _expected("a list is"),
    "dict_type": _expected("keys with values are"),
    "model_type": _expected("keys with values are"),
    "model_attributes_type": _expected("keys with values are"),
    "too_long": _items,
    "too_short": _items,
}


def _example(place: Place, given: Any) -> str:
    """How a lone text is written as an object: `{type: galera}` for `galera`."""
    keys = [key for kind in types_at(place) if is_model(kind) for key in keys_of(kind)]
    key = next((key for key in ("type", "name", "task", "path") if key in keys), None)
    if key is None or not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9_./-]+", given):
        return ""
    return f"; write for example {{{key}: {given}}}"
