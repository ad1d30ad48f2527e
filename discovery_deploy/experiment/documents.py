"""YAML 1.2 text as plain data in which every place knows its line and column.

The YAML is composed, not constructed: so that all duplicate keys are found at once, and a position is known for each
key and item. Anchors, aliases and merge keys (`<<`) work; tags other than YAML's own scalars mean nothing here.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.reader import ReaderError

from discovery_deploy.system.mistake import Mistake, Place

_STANDARD = "tag:yaml.org,2002:"
_TYPED = frozenset(_STANDARD + kind for kind in ("bool", "float", "int", "null"))
_TEXTS = frozenset(_STANDARD + kind for kind in ("str", "timestamp", "value", "merge"))
_MERGE = _STANDARD + "merge"
_MOST_VALUES = 100_000
"""Aliases and merge keys can make a small file unfold into a huge one; no experiment is larger."""


class Position(NamedTuple):
    """Where something stands in a text; both count from 1."""

    line: int
    column: int


class SyntaxMistake(NamedTuple):
    """Something that is not YAML."""

    position: Position
    message: str


class NotYamlError(ValueError):
    """A text that is not YAML."""

    def __init__(self, mistakes: list[SyntaxMistake]) -> None:
        super().__init__("; ".join(mistake.message for mistake in mistakes))
        self.mistakes = mistakes


class Document:
    """Plain data, the position of each place in it, and what was wrong already (duplicate keys, tags)."""

    def __init__(self, text: str) -> None:
        """Raises NotYamlError."""
        self.mistakes: list[Mistake] = []
        self._positions: dict[Place, Position] = {}
        self._values = 0
        """Read so far, each time that an alias or a merge key repeats one: places count repeated ones once."""
        self._duplicates: list[tuple[Position, Mistake]] = []
        self._yaml = YAML(typ="safe", pure=True)
        root = _compose(self._yaml, text)
        self.data: Any = None
        if root is not None:
            self._positions[()] = _position(root.start_mark)
            self.data = self._value(root, (), ())

    def position(self, place: Place) -> Position:
        """Of a key or list item; of the nearest place around it when the file does not have it."""
        while place and place not in self._positions:
            place = place[:-1]
        return self._positions.get(place, Position(1, 1))

    @property
    def placed_mistakes(self) -> list[tuple[Position, Mistake]]:
        """Mistakes of the text itself that are not syntax errors."""
        return [*self._duplicates, *((self.position(mistake.path), mistake) for mistake in self.mistakes)]

    def _value(self, part: Any, place: Place, around: tuple[int, ...]) -> Any:
        if id(part) in around:
            raise NotYamlError([SyntaxMistake(self.position(place), "an alias stands inside what it names")])
        self._values += 1
        if self._values > _MOST_VALUES:
            raise NotYamlError([SyntaxMistake(self.position(place), f"more than {_MOST_VALUES} values")])
        if isinstance(part, ScalarNode):
            return self._scalar(part, place)
        if not part.tag.startswith(_STANDARD):
            self.mistakes.append(Mistake(place, f'the tag "{part.tag}" means nothing here; leave it out'))
        around = (*around, id(part))
        if isinstance(part, MappingNode):
            return self._mapping(part, place, around)
        items = []
        for index, item in enumerate(part.value):
            self._positions[(*place, index)] = _position(item.start_mark)
            items.append(self._value(item, (*place, index), around))
        return items

    def _mapping(self, part: Any, place: Place, around: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for value in (value for key, value in part.value if key.tag == _MERGE):
            self._merge(merged, value, place, around)
        for key, value in ((key, value) for key, value in part.value if key.tag != _MERGE):
            position = _position(key.start_mark)
            if not isinstance(key, ScalarNode) or key.tag not in _TEXTS:
                shown = f' "{key.value}"' if isinstance(key, ScalarNode) else ""
                self._duplicates.append((position, Mistake(place, f"the key{shown} is not a text; put it in quotes")))
                continue
            inner = (*place, key.value)
            if key.value in found:
                first = self._positions[inner].line
                self._duplicates.append((position, Mistake(inner, f"duplicate key; the first is on line {first}")))
                continue
            self._positions[inner] = position
            found[key.value] = self._value(value, inner, around)
        return {**merged, **found}

    def _merge(self, merged: dict[str, Any], value: Any, place: Place, around: tuple[int, ...]) -> None:
        """YAML's merge key: what stands first wins, and the mapping's own keys win over all."""
        for part in [value] if isinstance(value, MappingNode) else value.value:
            if not isinstance(part, MappingNode):
                self.mistakes.append(Mistake(place, "`<<` takes a mapping, or a list of mappings"))
                return
            for key, inner in self._value(part, place, around).items():
                merged.setdefault(key, inner)

    def _scalar(self, part: ScalarNode, place: Place) -> Any:
        if part.tag in _TEXTS:
            return part.value
        if part.tag not in _TYPED:
            self.mistakes.append(Mistake(place, f'the tag "{part.tag}" means nothing here; leave it out'))
            return part.value
        try:
            return self._yaml.constructor.construct_object(part)
        except (LookupError, ValueError, YAMLError):
            self.mistakes.append(Mistake(place, f'"{part.value[:40]}" cannot be read as {part.tag.split(":")[-1]}'))
            return None


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _compose(yaml: YAML, text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is used again is no mistake in YAML 1.2
            return yaml.compose(text)
    except MarkedYAMLError as error:
        raise NotYamlError(_tabs(text) if "'\\t'" in str(error.problem) else [_in_plain_words(error)]) from error
    except ReaderError as error:
        raise NotYamlError([_unprintable(text, error.character)]) from error
    except RecursionError:
        raise NotYamlError([SyntaxMistake(Position(1, 1), "nested too deeply")]) from None


def _tabs(text: str) -> list[SyntaxMistake]:
    lines = text.splitlines()
    indents = [(number, re.match(r" *\t", line)) for number, line in enumerate(lines, 1)]
    found = [
        SyntaxMistake(Position(number, tab.end()), "a tab; YAML indents with spaces") for number, tab in indents if tab
    ]
    between = [(number, line.find("\t") + 1) for number, line in enumerate(lines, 1) if "\t" in line]
    return found or [SyntaxMistake(Position(*between[0]), "a tab; write spaces")]


def _unprintable(text: str, character: int | str) -> SyntaxMistake:
    code = character if isinstance(character, int) else ord(character)
    before = text[: text.find(chr(code))]
    position = Position(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
    return SyntaxMistake(position, f"the character U+{code:04X} cannot stand in YAML")


_PLAIN: tuple[tuple[str, bool, str], ...] = (
    ("mapping values are not allowed", False, 'a ":" that cannot stand here; check the indentation, or quote the text'),
    ("found unexpected end of stream", True, "the quote that opens here is not closed"),
    ("expected ',' or ']'", True, 'the "[" that opens here is not closed, or a "," is missing'),
    ("expected ',' or '}'", True, 'the "{" that opens here is not closed, or a "," is missing'),
    ("could not find expected ':'", True, 'a ":" is missing after this key'),
    ("expected <block end>", False, "does not fit what stands above; check the indentation, quotes and dashes"),
    ("sequence entries are not allowed", False, "a list item cannot begin here; put it on a line of its own"),
    ("but found another document", False, "a second document begins here; an experiment file holds one"),
)
"""Part of ruamel.yaml's problem, whether the context is the better position, and what we say."""


def _in_plain_words(error: MarkedYAMLError) -> SyntaxMistake:
    problem = str(error.problem)
    for part, at_context, words in _PLAIN:
        if part in problem:
            mark = error.context_mark if at_context and error.context_mark else error.problem_mark
            return SyntaxMistake(_position(mark), words)
    position = _position(error.problem_mark or error.context_mark)
    if match := re.search(r"found character '(.)' that cannot start", problem):
        return SyntaxMistake(position, f'a text cannot begin with "{match[1]}"; put it in quotes')
    if match := re.search(r"found undefined alias '(.*)'", problem):
        return SyntaxMistake(position, f'no anchor "&{match[1]}" stands before this alias')
    return SyntaxMistake(position, f"not YAML: {problem}")
