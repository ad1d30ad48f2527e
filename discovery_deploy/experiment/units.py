"""The only reader and printer of units: durations, rates and ratios.

In memory a duration is a float in seconds, a rate a float in bits per second, a ratio a float in [0, 1].
In files each is a text with a unit, so that nobody has to guess.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%µ/]*)\s*$")
_DURATION_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_RATE_BPS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_RATIO = {"%": 0.01}
KNOWN = (
    ("duration", tuple(_DURATION_S), "25 ms"),
    ("rate", tuple(_RATE_BPS), "100 Mbit/s"),
    ("ratio", tuple(_RATIO), "5 %"),
)
"""Each quantity with its units and an example, for documents."""


def _parse(value: object, units: dict[str, float], example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'expected a text with a unit, for example "{example}"')
    text = str(value)
    match = _QUANTITY.match(text)
    if match is None:
        what = "is negative" if text.strip().startswith("-") else "is not a number with a unit"
        raise ValueError(f'"{text}" {what}; write for example "{example}"')
    number, unit = match.groups()
    if not unit:
        hint = f"{number} {example.split()[1]}"
        raise ValueError(f'"{text}" has no unit; write for example "{hint}"')
    if unit not in units:
        raise ValueError(f'"{text}": unknown unit "{unit}"; {_known_units(unit, units)}')
    quantity = float(number) * units[unit]
    if not isfinite(quantity):
        raise ValueError("the number is too large")
    return quantity


def _known_units(unit: str, units: dict[str, float]) -> str:
    alike = [known for known in units if known.lower() == unit.lower()]
    return f'did you mean "{alike[0]}"?' if alike else f"known here: {', '.join(units)}"


def parse_duration(value: object) -> float:
    """Seconds of a text such as "37.5 ms". Raises ValueError when there is no number or no known unit."""
    return round(_parse(value, _DURATION_S, "25 ms"), 9)


def parse_rate(value: object) -> float:
    """Bits per second of a text such as "20 Mbit/s" (decimal prefixes). Raises ValueError."""
    rate = float(round(_parse(value, _RATE_BPS, "100 Mbit/s")))
    if rate < 1000:
        raise ValueError(f'"{value}": a rate must be at least 1 kbit/s')
    return rate


def parse_ratio(value: object) -> float:
    """Ratio in [0, 1] of a text such as "5 %". Raises ValueError, also above 100 %."""
    ratio = round(_parse(value, _RATIO, "5 %"), 9)
    if ratio > 1:
        raise ValueError(f'"{value}" is more than 100 %')
    return ratio


_TC_DELAY_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_TC_DELAY_S |= {f"{unit[:-1]}{word}": value for unit, value in _TC_DELAY_S.items() for word in ("sec", "secs")}
_TC_PREFIXES = {
    "": 1.0,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "t": 1e12,
    "ki": 2.0**10,
    "mi": 2.0**20,
    "gi": 2.0**30,
    "ti": 2.0**40,
}
_TC_RATE_BPS = {
    prefix + unit: value * bits for prefix, value in _TC_PREFIXES.items() for unit, bits in (("bit", 1.0), ("bps", 8.0))
}
_TC_RATIO = {"%": 0.01, "": 0.01}


def parse_tc_delay(value: object) -> float:
    """Seconds of a delay as tc reads it ("25ms"). Raises ValueError.

    Also for a number without a unit, which tc takes for microseconds and a person for milliseconds; 0 needs none.
    """
    if str(value).strip() == "0":
        return 0.0
    return round(_parse_tc(value, _TC_DELAY_S, "25ms", "tc would take it for microseconds"), 9)


def parse_tc_rate(value: object) -> float:
    """Bits per second of a rate as tc reads it: "10gbit"; in "bps" tc counts bytes. Raises ValueError."""
    rate = float(round(_parse_tc(value, _TC_RATE_BPS, "10gbit", "tc would take it for bits per second")))
    if rate < 1000:
        raise ValueError(f'"{value}": a rate must be at least 1kbit')
    return rate


def parse_tc_loss(value: object) -> float:
    """Ratio in [0, 1] of a loss as tc reads it: percent, with the sign or without ("0.1%", 0.1). Raises ValueError."""
    ratio = round(_parse_tc(value, _TC_RATIO, "0.1%", ""), 9)
    if ratio > 1:
        raise ValueError(f'"{value}" is more than 100%')
    return ratio


def _parse_tc(value: object, units: dict[str, float], example: str, bare: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'expected a quantity, for example "{example}"')
    match = _QUANTITY.match(str(value))
    if match is None:
        what = "is negative" if str(value).strip().startswith("-") else "is not a quantity"
        raise ValueError(f'"{value}" {what}; write for example "{example}"')
    number, unit = match.groups()
    if not unit and "" not in units:
        raise ValueError(f'"{value}" has no unit ({bare}); write for example "{example}"')
    if unit.lower() not in units:
        raise ValueError(f'"{value}": tc knows no unit "{unit}" here; write for example "{example}"')
    return float(number) * units[unit.lower()]


def _number(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def format_duration(seconds: float) -> str:
    """Text that `parse_duration` reads back: milliseconds below a second, seconds below a minute or not round."""
    if seconds < 1:
        return f"{_number(seconds * 1e3)} ms"
    for unit in ("h", "min"):
        if seconds >= _DURATION_S[unit] and seconds % _DURATION_S[unit] == 0:
            return f"{_number(seconds / _DURATION_S[unit])} {unit}"
    return f"{_number(seconds)} s"


def format_rate(bps: float) -> str:
    """Text that `parse_rate` reads back, in the largest unit that keeps the number at 1 or more."""
    unit = next((unit for unit in ("Gbit/s", "Mbit/s", "kbit/s") if bps >= _RATE_BPS[unit]), "bit/s")
    return f"{_number(bps / _RATE_BPS[unit])} {unit}"


def format_ratio(ratio: float) -> str:
    """Text that `parse_ratio` reads back, in percent."""
    return f"{_number(ratio * 100)} %"


def _schema(example: str, units: dict[str, float]) -> WithJsonSchema:
    names = "|".join(re.escape(unit) for unit in units)
    return WithJsonSchema(
        {"type": "string", "pattern": rf"^\s*[0-9]+(\.[0-9]+)?\s*({names})\s*$", "examples": [example]}
    )


Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration), _schema("25 ms", _DURATION_S)
]
"""Seconds, >= 0; in files a text such as "25 ms"."""
Rate = Annotated[float, BeforeValidator(parse_rate), PlainSerializer(format_rate), _schema("100 Mbit/s", _RATE_BPS)]
"""Bits per second; in files a text such as "100 Mbit/s"."""
Ratio = Annotated[float, BeforeValidator(parse_ratio), PlainSerializer(format_ratio), _schema("5 %", _RATIO)]
"""In [0, 1]; in files a text such as "5 %"."""
