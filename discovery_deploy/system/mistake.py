"""Mistakes in an object, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Place = tuple[str | int, ...]
"""Keys and indexes from the top of a file (or of an object) to a place in it, as in pydantic's `loc`."""


class Mistake(NamedTuple):
    """Something wrong at a place of an object."""

    path: Place
    message: str
    rests_on: tuple[Place, ...] = ()
    """Other places that it was compared with: when one of them is itself wrong, the mistake may be none."""


class ReferenceMistakesError(ValueError):
    """Parts of an object that do not fit each other; paths begin at the object that raises it."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, mistake.path))}: {mistake.message}" for mistake in mistakes))
        self.mistakes = tuple(mistakes)


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raises ReferenceMistakesError when there are any."""
    found = list(mistakes)
    if found:
        raise ReferenceMistakesError(found)


def each_once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """The items, when none stands there twice. Raises ReferenceMistakesError."""
    refuse(
        Mistake((index,), f"{_shown(item)} stands here a second time")
        for index, item in enumerate(items)
        if item in items[:index]
    )
    return items


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most probably meant."""
    return next(iter(difflib.get_close_matches(name, sorted(known), 1, 0.6)), None)


def _shown(item: Any) -> str:
    return f'"{item}"' if isinstance(item, str) else str(item)
