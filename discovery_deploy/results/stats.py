"""Numbers from iterations: summaries with their uncertainty, and durations fitted against round-trip times. Pure.

Everything is deterministic: equal tables give equal numbers (the bootstrap's generator is seeded from its group).
Only valid runs count; durations are those of iterations (or atomic actions) that did not fail.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from discovery_deploy.bench.rally import OTHER, TOTAL
from discovery_deploy.bench.records import Placement, RunRecord, SettingRecord
from discovery_deploy.results.rtts import Against, abscissa, asked_and_measured
from discovery_deploy.system.strict import Strict

CONFIDENCE = 0.95
ENOUGH = 6
"""Fewest values that give a 95 % interval of a median: 2 x 0.5^6 < 0.05 <= 2 x 0.5^5."""
RESAMPLES = 1000
OTHER_POSITION = 10_000
"""Position of `(other)` rows: after every atomic action."""

Numbers = NDArray[np.float64]


def wilson(failures: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (nan, nan) when there is nothing to judge from.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    if count == 0:
        return math.nan, math.nan
    z = float(scipy_stats.norm.ppf((1 + confidence) / 2))
    share = failures / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def median_interval(values: Numbers, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Distribution-free interval of a median: two order statistics, at least as wide as the confidence asks.

    Returns (nan, nan) for fewer than `ENOUGH` values, which cannot give such an interval.
    Source: H. A. David, H. N. Nagaraja, Order Statistics, 7.1.
    """
    count = len(values)
    rank = int(scipy_stats.binom.ppf((1 - confidence) / 2, count, 0.5)) if count else 0
    if rank < 1:  # scipy's ppf is the smallest rank that reaches the tail; below 1 there is no such order statistic
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[count - rank])


def ecdf(values: Numbers) -> tuple[Numbers, Numbers]:
    """Steps of the empirical distribution: sorted values, and the share of values at most as large."""
    ordered = np.sort(np.asarray(values, dtype=float))
    return ordered, np.arange(1, len(ordered) + 1) / max(len(ordered), 1)


def with_other(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a row `(other)` per iteration that succeeded: its duration outside all atomic actions."""
    keys = ["run_id", "site", "iteration"]
    if table.empty:
        return table
    whole = table[(table["atomic_action"] == TOTAL) & ~table["failed"] & table["duration_s"].notna()]
    inside = table[table["atomic_action"] != TOTAL].groupby(keys, sort=False)["duration_s"].sum()
    if whole.empty or inside.empty:
        return table
    other = whole.set_index(keys)
    sums = inside.reindex(other.index)
    other = other[sums.notna()].copy()
    other["duration_s"] = (other["duration_s"] - sums[sums.notna()]).clip(lower=0.0)
    other["atomic_action"], other["position"] = OTHER, OTHER_POSITION
    other = other.reset_index()[table.columns].astype(table.dtypes.to_dict())
    return pd.concat([table, other], ignore_index=True)


GROUP = ["scenario", "setting", "site", "beside_only_database", "atomic_action"]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row per scenario, setting, bench site and atomic action ("" is the whole iteration), in the table's order.

    Columns: those of the group, `position`; `runs` and `excluded_runs` (valid, not valid); `count` (attempts),
    `failures`, `failure_rate` with Wilson's interval; and of the durations that did not fail, in seconds:
    median with interval, quartiles, 95th percentile, median absolute deviation, mean, least and largest, and the
    least and largest median of a single run. NaN where there is nothing to compute from.
    """
    rows = [_summary(dict(zip(GROUP, key, strict=True)), part) for key, part in _groups(table, GROUP)]
    return pd.DataFrame(rows, columns=[*GROUP, "position", *_SUMMARY])


_SUMMARY = [
    *("runs", "excluded_runs", "count", "failures", "failure_rate", "failure_rate_low", "failure_rate_high"),
    *("median_s", "median_low_s", "median_high_s", "q1_s", "q3_s", "p95_s", "mad_s", "mean_s", "min_s", "max_s"),
    *("run_median_min_s", "run_median_max_s"),
]


def _groups(table: pd.DataFrame, keys: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups in the order in which scenario, setting and site first stand in the table; actions by position."""
    if table.empty:
        return []
    parts: dict[tuple[Any, ...], pd.DataFrame] = dict(iter(table.groupby(keys, sort=False)))
    places = [{value: place for place, value in enumerate(table[key].drop_duplicates())} for key in keys[:-1]]

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        firsts = [place[value] for place, value in zip(places, key[:-1], strict=True)]
        return (*firsts, int(parts[key]["position"].min()), str(key[-1]))

    return [(key, parts[key]) for key in sorted(parts, key=order)]


def _summary(row: dict[str, Any], part: pd.DataFrame) -> dict[str, Any]:
    valid = part[part["valid"]]
    good = valid[~valid["failed"] & np.isfinite(valid["duration_s"])]
    count, failures = len(valid), int(valid["failed"].sum())
    low, high = wilson(failures, count)
    row |= {
        "position": int(part["position"].min()),
        "runs": valid["run_id"].nunique(),
        "excluded_runs": part.loc[~part["valid"], "run_id"].nunique(),
        "count": count,
        "failures": failures,
        "failure_rate": failures / count if count else math.nan,
        "failure_rate_low": low,
        "failure_rate_high": high,
    }
    return row | _spread(good["duration_s"].to_numpy(dtype=float)) | _run_medians(good)


def _spread(values: Numbers) -> dict[str, float]:
    if len(values) == 0:
        return {}
    low, high = median_interval(values)
    q1, median, q3, p95 = (float(value) for value in np.percentile(values, [25, 50, 75, 95]))
    return {
        "median_s": median,
        "median_low_s": low,
        "median_high_s": high,
        "q1_s": q1,
        "q3_s": q3,
        "p95_s": p95,
        "mad_s": float(np.median(np.abs(values - median))),
        "mean_s": float(values.mean()),
        "min_s": float(values.min()),
        "max_s": float(values.max()),
    }


def _run_medians(good: pd.DataFrame) -> dict[str, float]:
    medians = good.groupby("run_id")["duration_s"].median()
    return {} if medians.empty else {"run_median_min_s": medians.min(), "run_median_max_s": medians.max()}


# Duration against round-trip time


class Level(Strict):
    """The iterations at one round-trip time."""

    rtt_s: float
    median_s: float
    count: int


class Fit(Strict):
    """duration = base_s + round_trips x RTT, through the medians of settings that differ only in the WAN's delay."""

    scenario: str
    group: str
    """What the settings have in common, e.g. "mariadb@nantes"; "" when nothing else varies."""
    site: str
    atomic_action: str
    position: int
    against: Against
    """`database`: RTT between the API and its database; `commit`: the one that a Galera commit waits for;
    `sites`: the largest between two sites, which is what is fitted when more than Keystone is asked."""
    rtt_from: Literal["measured", "asked"]
    levels: tuple[Level, ...]
    """At least two, by growing RTT."""
    round_trips: float
    round_trips_low: float | None
    round_trips_high: float | None
    """95 % interval of `round_trips`; None with fewer than `ENOUGH` iterations at a level."""
    base_s: float
    base_low_s: float | None
    base_high_s: float | None
    r2: float | None
    """Share of the iterations' variance that the line explains; None when they do not vary."""
    largest_residual_s: float | None
    """Largest distance of a level's median from the line; None with two levels, which any line joins."""

    @property
    def significant(self) -> bool:
        """Whether the interval of `round_trips` is known and excludes zero."""
        return self.round_trips_low is not None and not (self.round_trips_low <= 0 <= (self.round_trips_high or 0.0))

    @property
    def at_most_half(self) -> bool:
        """Whether the interval of `round_trips` is known and lies within half a round trip of zero."""
        low, high = self.round_trips_low, self.round_trips_high
        return low is not None and high is not None and low > -0.5 and high < 0.5


class NoFit(Strict):
    """Settings that cannot be fitted, and why."""

    scenario: str
    group: str
    site: str
    settings: tuple[str, ...]
    """Labels of the settings that have valid runs."""
    reason: str


def without_delays(values: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a setting without the WAN's delays: equal for settings that differ only in those."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items() if key != "delay"}
        return [strip(item) for item in value] if isinstance(value, (list, tuple)) else value

    kept = {}
    for path, value in values.items():
        wan = path == "network" or path.startswith("network.")
        if wan and path.endswith(".delay"):
            continue
        kept[path] = strip(value) if wan else value
    return kept


def delay_group(setting: SettingRecord) -> tuple[str, str]:
    """(key, label) of the settings that differ from this one only in the WAN's delay."""
    kept = without_delays(setting.values)
    untouched = [setting.labels[path] for path, value in kept.items() if value == setting.values[path]]
    changed = [json.dumps(value, sort_keys=True) for path, value in kept.items() if value != setting.values[path]]
    return json.dumps(kept, sort_keys=True, default=str), ", ".join(untouched + changed)


def regressions(table: pd.DataFrame, runs: Sequence[RunRecord]) -> tuple[list[Fit], list[NoFit]]:
    """Fits for every scenario, group of settings, bench site and atomic action; and what could not be fitted.

    Settings are compared when they differ in nothing but the WAN's delay. The abscissa of a scenario that asks Keystone
    alone is the RTT from its API to the database where the delay moves that away, otherwise the one a commit waits for
    (Galera). A scenario that asks more services sends messages and requests between many places, and one whose API is
    away from its client crosses the WAN for each request: their abscissa is the largest RTT between two sites. Runs
    that say nothing about the WAN are never mixed with others.
    """
    places = [(run, placement) for run in runs if run.valid for placement in run.placements]
    groups: dict[tuple[str, str, str, bool], list[tuple[RunRecord, Placement]]] = {}
    for run, placement in places:
        blind = run.says_nothing_of_the_wan(placement)
        key = (run.scenario.task, delay_group(run.setting)[0], placement.bench_site, blind)
        groups.setdefault(key, []).append((run, placement))
    fits: list[Fit] = []
    refused: list[NoFit] = []
    for members in groups.values():
        found = _fit_group(table, members)
        (refused.append(found) if isinstance(found, NoFit) else fits.extend(found))
    return fits, refused


def _fit_group(table: pd.DataFrame, members: Sequence[tuple[RunRecord, Placement]]) -> list[Fit] | NoFit:
    run, placement = members[0]
    common = {"scenario": run.scenario.task, "group": delay_group(run.setting)[1], "site": placement.bench_site}
    labels = tuple(dict.fromkeys(member.setting.label for member, _ in members))
    if run.says_nothing_of_the_wan(placement):
        return NoFit(**common, settings=labels, reason="the client sits beside the only database")
    against = abscissa(members)
    levels = _rtt_levels(members, against)
    if len(levels) < 2:
        return NoFit(**common, settings=labels, reason="its valid runs have one round-trip time only")
    rows = table[table["valid"] & ~table["failed"] & np.isfinite(table["duration_s"])] if len(table) else table
    rows = rows[rows["site"] == placement.bench_site] if len(rows) else rows
    known = rows[rows["run_id"].isin([run_id for _, ids, _ in levels for run_id in ids])] if len(rows) else rows
    fits = []
    for (action,), part in _groups_by_action(known):
        samples = [(rtt_s, _durations(part, ids)) for rtt_s, ids, _ in levels]
        samples = [(rtt_s, values) for rtt_s, values in samples if len(values)]
        if len(samples) > 1:
            source: Literal["measured", "asked"] = levels[0][2]
            fits.append(_fit(samples, source, against, action, int(part["position"].min()), common))
    reason = "fewer than two round-trip times have an iteration that succeeded"
    return fits or NoFit(**common, settings=labels, reason=reason)


def _groups_by_action(rows: pd.DataFrame) -> list[tuple[tuple[str], pd.DataFrame]]:
    if rows.empty:
        return []
    parts = [((str(action),), part) for action, part in rows.groupby("atomic_action", sort=False)]
    return sorted(parts, key=lambda item: (int(item[1]["position"].min()), item[0]))


def _durations(part: pd.DataFrame, run_ids: list[str]) -> Numbers:
    return part.loc[part["run_id"].isin(run_ids), "duration_s"].to_numpy(dtype=float)


def _rtt_levels(
    members: Sequence[tuple[RunRecord, Placement]], against: Against
) -> list[tuple[float, list[str], Literal["measured", "asked"]]]:
    """(RTT in s, run ids, where the RTT is from) by growing asked RTT; measured ones if every run has them."""
    rtts = [asked_and_measured(run, placement, against) for run, placement in members]
    complete = all(measured is not None for _, measured in rtts)
    levels: dict[float, list[tuple[str, float]]] = {}
    for (run, _), (asked, measured) in zip(members, rtts, strict=True):
        rtt_s = measured if complete and measured is not None else asked
        levels.setdefault(round(asked, 9), []).append((run.id, rtt_s))
    source: Literal["measured", "asked"] = "measured" if complete else "asked"
    return [
        (sum(rtt for _, rtt in found) / len(found), [run_id for run_id, _ in found], source)
        for _, found in sorted(levels.items())
    ]


def fitted_rtts(runs: Sequence[RunRecord], fits: Sequence[Fit]) -> dict[tuple[str, str], dict[str, float]]:
    """(group, bench site) -> run id -> RTT (s) at which the fits place that run's iterations, of one scenario."""
    wanted = {(fit.group, fit.site): fit for fit in fits}
    groups: dict[tuple[str, str], list[tuple[RunRecord, Placement]]] = {}
    for run in runs:
        for place in run.placements:
            key = (delay_group(run.setting)[1], place.bench_site)
            if run.valid and not run.says_nothing_of_the_wan(place) and key in wanted:
                groups.setdefault(key, []).append((run, place))
    return {
        key: {run_id: rtt_s for rtt_s, ids, _ in _rtt_levels(members, wanted[key].against) for run_id in ids}
        for key, members in groups.items()
    }


def _fit(
    samples: list[tuple[float, Numbers]],
    source: Literal["measured", "asked"],
    against: Against,
    action: str,
    position: int,
    common: dict[str, str],
) -> Fit:
    rtts = np.array([rtt_s for rtt_s, _ in samples])
    counts = np.array([len(values) for _, values in samples], dtype=float)
    medians = np.array([np.median(values) for _, values in samples])
    slopes, bases = _line(rtts, medians[np.newaxis, :], counts)
    slope, base = float(slopes[0]), float(bases[0])
    interval: list[float | None] = [None] * 4
    if counts.min() >= ENOUGH:
        seed = zlib.crc32(json.dumps([common, action, [v.tolist() for _, v in samples]], sort_keys=True).encode())
        drawn = _line(rtts, _resampled_medians([values for _, values in samples], seed), counts)
        tails = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
        interval = [float(bound) for values in drawn for bound in np.percentile(values, tails)]
    residuals = np.abs(medians - (base + slope * rtts))
    return Fit(
        **common,
        atomic_action=action,
        position=position,
        against=against,
        rtt_from=source,
        levels=tuple(Level(rtt_s=float(r), median_s=float(m), count=int(c))
                     for r, m, c in zip(rtts, medians, counts, strict=True)),
        round_trips=slope,
        round_trips_low=interval[0],
        round_trips_high=interval[1],
        base_s=base,
        base_low_s=interval[2],
        base_high_s=interval[3],
        r2=_explained(samples, slope, base),
        largest_residual_s=float(residuals.max()) if len(samples) > 2 else None,
    )  # fmt: skip


def _line(x: Numbers, y: Numbers, weights: Numbers) -> tuple[Numbers, Numbers]:
    """Weighted least squares of each row of `y` (rows x levels) on `x`: (slopes, intercepts)."""
    total = weights.sum()
    mean_x = (weights * x).sum() / total
    mean_y = (y * weights).sum(axis=1) / total
    deviation = weights * (x - mean_x)
    slopes = (y - mean_y[:, np.newaxis]) @ deviation / (deviation * (x - mean_x)).sum()
    return slopes, mean_y - slopes * mean_x


def _resampled_medians(samples: Sequence[Numbers], seed: int) -> Numbers:
    """Medians of `RESAMPLES` bootstrap samples of each level, as an array (resamples x levels)."""
    generator = np.random.default_rng(seed)
    columns = []
    for values in samples:
        rows = max(1, 2_000_000 // len(values))  # bounds the memory for long runs
        parts = []
        for start in range(0, RESAMPLES, rows):
            size = (min(rows, RESAMPLES - start), len(values))
            parts.append(np.median(values[generator.integers(0, len(values), size)], axis=1))
        columns.append(np.concatenate(parts))
    return np.column_stack(columns)


def _explained(samples: list[tuple[float, Numbers]], slope: float, base: float) -> float | None:
    values = np.concatenate([part for _, part in samples])
    predicted = np.concatenate([np.full(len(part), base + slope * rtt_s) for rtt_s, part in samples])
    total = float(((values - values.mean()) ** 2).sum())
    return None if total == 0 else 1 - float(((values - predicted) ** 2).sum()) / total
