"""All mistakes of an experiment at once, also those that pydantic would only see after others are mended. Pure.

pydantic looks at a whole object only when its fields are right: a bad delay would hide a constraint that names an
unknown site. So what is wrong is taken out or replaced by a guess, and the rest is looked at again; what rests on a
guess is not reported.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from discovery_deploy.experiment.fields import get_in, is_model, keys_of, types_at
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.wording import Finding, findings
from discovery_deploy.system.mistake import Mistake, Place

_MOST_ROUNDS = 100


def find(data: Any, known_wrong: Iterable[Place] = ()) -> tuple[Experiment | None, list[Mistake]]:
    """The experiment that plain data holds (None when it is wrong), and everything that is wrong in it.

    Args:
        data: what YAML holds; a mapping.
        known_wrong: places that are wrong for a reason that is reported already.
    """
    patient = _Patient(data, known_wrong)
    mistakes: dict[tuple[Place, str], Mistake] = {}
    experiment = None
    for _ in range(_MOST_ROUNDS):
        try:
            experiment = Experiment.model_validate(patient.data, by_alias=True, by_name=False)
            break
        except ValidationError as error:
            found = findings(error, patient.data)
        for finding in patient.worth_reporting(found):
            place = patient.original(finding.place)
            mistakes.setdefault((place, finding.message), Mistake(place, finding.message))
        if not patient.mend(found):
            break
    return (None if mistakes else experiment), list(mistakes.values())


class _Patient:
    """A copy of the data that is mended step by step, and how its places relate to those of the file."""

    def __init__(self, data: Any, known_wrong: Iterable[Place]) -> None:
        self.data = copy.deepcopy(data)
        self._guesses: set[Place] = set(known_wrong)
        self._kept: dict[Place, list[int]] = {}
        self._renamed: dict[Place, str | int] = {}

    def original(self, place: Place) -> Place:
        """Where a place of the mended data is in the file."""
        there: Place = ()
        for step in place:
            kept = self._kept.get(there, []) if isinstance(step, int) else []
            if isinstance(step, int):
                there = (*there, kept[step] if step < len(kept) else step)
            else:
                there = (*there, self._renamed.get((*there, step), step))
        return there

    def worth_reporting(self, found: list[Finding]) -> list[Finding]:
        """Findings that rest on no guess, and no missing key that a mistyped one stands for."""
        typed = {(*finding.place[:-1], finding.meant) for finding in found if finding.meant}
        return [
            finding
            for finding in found
            if not (finding.kind == "missing key" and finding.place in typed)
            and not any(self._is_guessed(place) for place in (finding.place, *finding.rests_on))
        ]

    def _is_guessed(self, place: Place) -> bool:
        there = self.original(place)
        return any(there[: len(guess)] == guess[: len(there)] for guess in self._guesses)

    def mend(self, found: list[Finding]) -> bool:
        """Take out or replace what was found wrong. Returns whether anything changed."""
        before = copy.deepcopy(self.data)
        for finding in found:
            if finding.kind == "unknown key":
                self._take_out_key(finding)
        removed: set[Place] = set()
        for finding in found:
            missing = finding.kind == "missing key"
            if finding.kind == "wrong" or (missing and self._value(finding.place) is _NOTHING):
                self._mend_at(finding.place, removed)
        for place in sorted(removed, key=lambda place: (place[:-1], place[-1]), reverse=True):
            self._remove_item(place)
        return bool(self.data != before)

    def _take_out_key(self, finding: Finding) -> None:
        place = finding.place
        parent = get_in(self.data, place[:-1])
        if place[-1] not in parent:
            return
        there = self.original(place)
        value = parent.pop(place[-1])
        if finding.meant and finding.meant not in parent:
            parent[finding.meant] = value
            self._renamed[(*there[:-1], finding.meant)] = there[-1]
        else:
            self._guesses.add(there)

    def _mend_at(self, place: Place, removed: set[Place]) -> None:
        """Climb from a wrong place to the first that can be left out or guessed."""
        while place:
            guess = _guess(place, self._value(place))
            if guess is not None or self._can_be_left_out(place) or _is_removable_item(place):
                break
            place = place[:-1]
        if not place or (guess is None and self._value(place) is _NOTHING):
            return
        named = isinstance(guess, dict) and guess.get("name") == self._value(place)  # a site given by its name alone
        self._guesses.add(self.original((*place, "hosts") if named else place))
        if guess is not None:
            get_in(self.data, place[:-1])[place[-1]] = guess
        elif isinstance(place[-1], int):
            removed.add(place)
        else:
            get_in(self.data, place[:-1]).pop(place[-1])

    def _can_be_left_out(self, place: Place) -> bool:
        kinds = types_at(place[:-1], self.data)
        models = [kind for kind in kinds if is_model(kind)]
        if any(get_origin(kind) is dict for kind in kinds):
            return True
        return any(place[-1] in keys and not keys[str(place[-1])].is_required() for keys in map(keys_of, models))

    def _value(self, place: Place) -> Any:
        try:
            return get_in(self.data, place)
        except LookupError:
            return _NOTHING

    def _remove_item(self, place: Place) -> None:
        items, index = self._value(place[:-1]), place[-1]
        if items is _NOTHING:  # taken out as a whole meanwhile
            return
        kept = self._kept.setdefault(self.original(place[:-1]), list(range(len(items))))
        if isinstance(index, int) and index < len(items):
            items.pop(index)
            kept.pop(index)


_NOTHING = object()


def _is_removable_item(place: Place) -> bool:
    if not isinstance(place[-1], int) or len(place) == 2:  # a site is named by others: it stays
        return False
    lists = [kind for kind in types_at(place[:-1]) if get_origin(kind) is tuple]
    return any(get_args(kind)[1:] == (Ellipsis,) for kind in lists)


def _guess(place: Place, value: Any) -> Any:
    """What stands for a required place that cannot be left out, or None."""
    match place:
        case ("name",):
            return "guess"
        case ("sites",):
            return [{"name": "guess"}]
        case ("sites", int(index)) if not isinstance(value, dict):
            return {"name": value if isinstance(value, str) else f"guess-{index}"}
        case ("sites", int(index), "name"):
            return f"guess-{index}"
        case ("deployment",):
            return {"backend": {"type": "galera"}}
        case ("deployment", "backend"):
            return {"type": "galera"}
    return None
