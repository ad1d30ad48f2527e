"""Numbers and names as the report prints them. Pure.

Every number of a report comes from here, so that tables, sentences and figures round alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from discovery_deploy.bench.rally import OTHER, TOTAL
from discovery_deploy.results.stats import Fit, NoFit

BESIDE = "client beside the only database"
"""What every table and figure says of runs that tell nothing about the WAN."""
NONE = "–"
MOST_STEPS = 5
"""Steps that a sentence names; tables have them all."""


def known(value: float | None) -> bool:
    """Whether there is a number to print."""
    return value is not None and math.isfinite(value)


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent; integers of more digits stay whole."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9996 has one digit less behind the point than 0.9994
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.{decimals}f}"
    return text if float(text) else "0"


def seconds(value: float | None) -> str:
    """A duration: "354 ms", "1.13 s"; "–" when there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{significant(value)} s" if abs(value) >= 0.9995 else f"{significant(value * 1e3)} ms"


def seconds_range(low: float | None, high: float | None) -> str:
    """ "340 to 361 ms" in the unit of the larger one; "–" when there is none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    largest = max(abs(low), abs(high))
    scale, unit = (1.0, "s") if largest >= 0.9995 else (1e3, "ms")
    decimals = max(0, 2 - math.floor(math.log10(largest * scale))) if largest else 0
    return f"{low * scale:.{decimals}f} to {high * scale:.{decimals}f} {unit}"


def milliseconds(value: float | None) -> str:
    """A network time in ms with a tenth: "50.3"; "–" when there is none."""
    return NONE if value is None or not math.isfinite(value) else f"{value * 1e3:.1f}"


def count_of(value: float | None) -> str:
    """A fitted number of round trips, with a tenth below 100: "9.3", "120"; never "-0.0"."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
    return "0.0" if text == "-0.0" else text


def count_range(low: float | None, high: float | None) -> str:
    """ "9.1 to 9.4"; "–" when there is none."""
    return NONE if low is None or high is None else f"{count_of(low)} to {count_of(high)}"


def percent(value: float | None) -> str:
    """A share: "0 %", "2.5 %", "12 %"; "–" when there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    scaled = value * 100
    return f"{scaled:.1f} %" if 0 < scaled < 10 else f"{scaled:.0f} %"


def failure_rate(row: pd.Series) -> str:
    """ "0 % (0/40, ≤ 8.8 %)": the rate, what it is made of, and Wilson's 95 % interval."""
    if not row["count"]:
        return NONE
    low, high = row["failure_rate_low"], row["failure_rate_high"]
    interval = f"≤ {percent(high)}" if row["failures"] == 0 else f"{percent(low)} to {percent(high)}"
    return f"{percent(row['failure_rate'])} ({int(row['failures'])}/{int(row['count'])}, {interval})"


def action_name(name: str) -> str:
    """An atomic action for people: "create_user", "whole iteration", "outside actions"."""
    if name == TOTAL:
        return "whole iteration"
    if name == OTHER:
        return "outside actions"
    return name.rsplit(".", 1)[-1] if name.startswith("keystone_v") else name


def yes_no(answer: bool | None) -> str:
    """ "yes", "no", or "–" when it was not asked."""
    return NONE if answer is None else "yes" if answer else "no"


def names(sites: Sequence[str]) -> str:
    """Names of sites, or how many they are when that is more than a table's cell holds."""
    return ", ".join(sites) if len(sites) <= 8 else f"{len(sites)} sites"


def runs_not_counted(count: int) -> str:
    """ "2 runs of it do not count"; "" for none."""
    return "" if count == 0 else "1 run of it does not count" if count == 1 else f"{count} runs of it do not count"


def size(octets: int) -> str:
    """ "812 B", "1.4 kB", "2.0 MB"."""
    if octets < 1000:
        return f"{octets} B"
    return f"{octets / 1e3:.1f} kB" if octets < 1e6 else f"{octets / 1e6:.1f} MB"


_AGAINST = {
    "database": "RTT to the database",
    "commit": "RTT that a commit waits for",
    "sites": "Largest RTT between two sites",
}


def against(fit: Fit) -> str:
    """The abscissa of a fit in words."""
    return _AGAINST[fit.against]


def levels(fit: Fit) -> str:
    """The points of a fit: "0.3 ms: 917 ms (20); 50.3 ms: 4.04 s (20)"."""
    points = [f"{milliseconds(level.rtt_s)} ms: {seconds(level.median_s)} ({level.count})" for level in fit.levels]
    return "; ".join(points)


def linearity(fits: Sequence[Fit]) -> str:
    """What can be said about the lines themselves."""
    tested = [fit for fit in fits if fit.largest_residual_s is not None]
    if not tested:
        return "Two RTTs only: any two points lie on a line, so that it is one is not tested."
    worst = max(tested, key=lambda fit: fit.largest_residual_s or 0.0)
    return (
        f"Medians lie at most {seconds(worst.largest_residual_s)} off their line "
        f"({action_name(worst.atomic_action)}, {worst.group or 'all settings'})."
    )


def fit_formula(fit: Fit) -> str:
    """ "354 ms + 9.3 × RTT"."""
    trips = count_of(fit.round_trips)
    return f"{seconds(fit.base_s)} {'−' if trips.startswith('-') else '+'} {trips.lstrip('-')} × RTT"


def fit_phrase(fit: Fit) -> str:
    """ "fetch_token 264 ms + 10.0 × RTT (95 % CI 9.9 to 10.1)", or that no dependence on the RTT is seen."""
    name = action_name(fit.atomic_action)
    if fit.round_trips_low is None:
        return f"{name} {fit_formula(fit)} (too few iterations for an interval)"
    interval = f"95 % CI {count_range(fit.round_trips_low, fit.round_trips_high)}"
    if fit.at_most_half:
        return f"{name} {seconds(fit.base_s)} at any RTT ({count_of(fit.round_trips)} × RTT, {interval})"
    if not fit.significant:
        return f"{name} {fit_formula(fit)}, not told from no dependence ({interval})"
    return f"{name} {fit_formula(fit)} ({interval})"


def fits_sentence(fits: Sequence[Fit]) -> str:
    """The fits of one group of settings and one bench site as a sentence.

    It names the steps that depend most on the RTT (at most `MOST_STEPS`) in their order, then the whole iteration.
    """
    first = fits[0]
    steps = [fit for fit in fits if fit.atomic_action not in (TOTAL, OTHER)]
    chosen = sorted(steps, key=lambda fit: -abs(fit.round_trips))[:MOST_STEPS]
    phrases = [fit_phrase(fit) for fit in steps if fit in chosen]
    if len(steps) > len(chosen):
        phrases.append(f"{len(steps) - len(chosen)} other steps less")
    phrases += [fit_phrase(fit) for fit in fits if fit.atomic_action == TOTAL]
    head = f"With {first.group}, from" if first.group else "From"
    most = max(fits, key=lambda fit: sum(level.count for level in fit.levels))
    basis = f"{sum(level.count for level in most.levels)} iterations at {len(most.levels)} RTTs"
    return f"{head} {first.site}: {'; '.join(phrases)}. {against(first)}; {basis}."


def no_fit_sentence(refused: NoFit) -> str:
    """Why there is no fit."""
    where = f"{refused.group}, from {refused.site}" if refused.group else f"From {refused.site}"
    return f"{where}: no fit, because {refused.reason}."


def start_skews(skews_s: Iterable[float | None]) -> list[tuple[str, str]]:
    """A row that says how far apart the first requests of several sites' clients were; none when no run had several."""
    known = [skew_s for skew_s in skews_s if skew_s is not None]
    return [("first requests of the sites of a run", f"at most {seconds(max(known))} apart")] if known else []
