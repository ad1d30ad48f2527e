"""The WAN of a campaign: verifications as a table, and as what the report shows of each setting. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from discovery_deploy.bench.records import RunRecord
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.units import format_rate
from discovery_deploy.results.report.text import NONE, milliseconds, percent
from discovery_deploy.results.report.wan_figures import LEGIBLE, SiteView, error_map, picture, shape_text, usual
from discovery_deploy.wan.shapes import Pair, PathShape, path_shapes
from discovery_deploy.wan.verdict import PairVerdict, WanReport

MATRIX = 8
"""Up to so many sites the matrix is a table with numbers; with more a heat map."""

COLUMNS = [
    *("setting", "run_id", "when", "measured_at", "source", "destination", "asked_delay_s", "asked_jitter_s"),
    *("asked_loss", "asked_rate_bps", "asked_rtt_s", "base_rtt_s", "rtt_median_s", "rtt_p99_s", "rtt_max_s"),
    *("error_s", "sent", "received", "one_way_median_s", "jitter_s", "loss", "rate_bps", "not_measured", "problems"),
]


def wan_table(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run, verification (before, after) and ordered pair; `error_s` is measured - base - asked RTT."""
    rows = [
        {"setting": run.setting.label, "run_id": run.id, "when": when, **_pair_columns(report, pair)}
        for run in runs
        for when, report in (("before", run.wan_before), ("after", run.wan_after))
        if report is not None
        for pair in report.pairs
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = [name for name in COLUMNS if name.endswith(("_s", "_bps", "loss"))]
    return table.astype(dict.fromkeys(numbers, float))


def _pair_columns(report: WanReport, pair: PairVerdict) -> dict[str, Any]:
    asked, measured = pair.asked, pair.measured
    rtt_s = math.nan if measured.rtt_median_s is None else measured.rtt_median_s
    return {
        "measured_at": report.measured_at,
        "source": measured.source,
        "destination": measured.destination,
        "asked_delay_s": asked.delay_s,
        "asked_jitter_s": asked.jitter_s,
        "asked_loss": asked.loss,
        "asked_rate_bps": asked.rate_bps,
        "asked_rtt_s": pair.asked_rtt_s,
        "base_rtt_s": report.base_of(pair),
        "rtt_median_s": rtt_s,
        "rtt_p99_s": measured.rtt_p99_s,
        "rtt_max_s": measured.rtt_max_s,
        "error_s": rtt_s - report.base_of(pair) - pair.asked_rtt_s,
        "sent": measured.sent,
        "received": measured.received,
        "one_way_median_s": measured.one_way_median_s,
        "jitter_s": measured.jitter_s,
        "loss": measured.loss,
        "rate_bps": measured.rate_bps,
        "not_measured": "; ".join(pair.not_measured),
        "problems": "; ".join(pair.problems),
    }


def site_views(experiment: Experiment, runs: Sequence[RunRecord], names: Sequence[str]) -> list[SiteView]:
    """What the picture says of each of these sites: where databases and clients are, in which settings."""
    holders: dict[str, list[str]] = {name: [] for name in names}
    clients = set(experiment.bench_sites()) if experiment.campaign.scenarios and not runs else set()
    found: list[tuple[str, str]] = []
    for run in runs:
        for place in run.placements:
            clients.add(place.bench_site)
            single = len(place.database_sites) == 1
            found += [(site, "MariaDB" if single else "Galera master") for site in place.database_sites]
    single = len(experiment.database_sites()) == 1
    fallback = [(site, "MariaDB" if single else "Galera master") for site in experiment.database_sites()]
    for site, kind in found or fallback:
        if site in holders and kind not in holders[site]:
            holders[site].append(kind)
    return [
        SiteView(
            name=name,
            roles=tuple([" or ".join(kinds)] if kinds else []) + (("Rally (client)",) if name in clients else ()),
            has_database=bool(kinds),
            has_client=name in clients,
        )
        for name, kinds in holders.items()
    ]


def asked_shapes(
    experiment: Experiment, runs: Sequence[RunRecord], names: Sequence[str]
) -> dict[Pair, tuple[PathShape, ...]]:
    """Ordered pair -> the distinct shapes asked of it over all settings; the file's own when nothing was measured."""
    found: dict[Pair, dict[PathShape, None]] = {}
    for run in runs:
        for pair in run.wan_before.pairs if run.wan_before else ():
            found.setdefault((pair.measured.source, pair.measured.destination), {})[pair.asked] = None
    written = path_shapes(experiment.network, list(dict.fromkeys([*names, *experiment.site_names])))
    return {pair: tuple(found.get(pair, {shape: None})) for pair, shape in written.items() if set(pair) <= set(names)}


def wan_picture(experiment: Experiment, runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """The picture (SVG text) of these sites and what is said under it."""
    shapes = asked_shapes(experiment, runs, names)
    views = site_views(experiment, runs, names)
    pairs = [
        {"pair": f"{a} → {b}", "shape": shape_text(found)} for (a, b), found in sorted(shapes.items())
    ]  # fmt: skip
    return {"svg": picture(views, shapes, "wan"), "pairs": pairs if len(pairs) <= 56 else [], "usual": usual(shapes)}


def setting_matrices(experiment: Experiment, table: pd.DataFrame, site_names: Sequence[str]) -> list[dict[str, Any]]:
    """Asked against measured for each setting, ready to print: a matrix of cells, or a heat map for many sites.

    Args:
        experiment: its tolerances count.
        table: as from `wan_table`.
        site_names: sites of all settings; those that a setting has measured are in its matrix.
    """
    matrices = []
    for number, (setting, part) in enumerate(table.groupby("setting", sort=False)):
        pairs = _by_pair(part)
        measured = {*pairs["source"], *pairs["destination"]}
        names = [name for name in site_names if name in measured]
        view: dict[str, Any] = {
            "names": names,
            "setting": setting,
            "verifications": part[["run_id", "when"]].drop_duplicates().shape[0],
            "worst": milliseconds(pairs["worst_s"].max()),
            "base": milliseconds(part["base_rtt_s"].median()),
            "bad_pairs": int(pairs["bad"].sum()),
            "not_measured": _not_measured(part),
            "rows": [],
            "svg": None,
            "wide": len(names) > LEGIBLE,
            "one_way": _one_way_rows(pairs),
        }
        if len(names) <= MATRIX:
            known = {(row.source, row.destination): row for row in pairs.itertuples()}
            view["rows"] = [{"source": a, "cells": [_cell(known.get((a, b))) for b in names]} for a in names]
        else:
            view["svg"] = _map(pairs, names, experiment.network.verify.rtt_tolerance, f"errors{number}")
        matrices.append(view)
    return matrices


def _by_pair(part: pd.DataFrame) -> pd.DataFrame:
    """One row per ordered pair over all verifications of a setting."""
    judged = part.assign(worst_s=part["error_s"].abs(), bad=part["problems"] != "")
    return (
        judged.groupby(["source", "destination"], sort=False)
        .agg(
            asked_low_s=("asked_rtt_s", "min"),
            asked_high_s=("asked_rtt_s", "max"),
            measured_s=("rtt_median_s", "median"),
            worst_s=("worst_s", "max"),
            bad=("bad", "any"),
            asked_loss=("asked_loss", "max"),
            asked_delay_s=("asked_delay_s", "max"),
            one_way_s=("one_way_median_s", "median"),
            asked_jitter_s=("asked_jitter_s", "max"),
            jitter_s=("jitter_s", "median"),
            loss=("loss", "median"),
            asked_rate_bps=("asked_rate_bps", "max"),
            rate_bps=("rate_bps", "median"),
        )
        .reset_index()
    )


def _cell(row: Any) -> dict[str, Any]:
    """One ordered pair: asked and median measured RTT in ms, the worst error, and whether it had a problem."""
    if row is None:
        return {"asked": "", "measured": "", "worst": "", "class": "self"}
    kind = "bad" if row.bad else "good" if math.isfinite(row.measured_s) else "unknown"
    asked = dict.fromkeys([milliseconds(row.asked_low_s), milliseconds(row.asked_high_s)])
    return {"asked": " to ".join(asked), "measured": milliseconds(row.measured_s), "class": kind,
            "worst": milliseconds(row.worst_s)}  # fmt: skip


def _map(pairs: pd.DataFrame, names: Sequence[str], tolerance_s: float, name: str) -> str:
    place = {site: index for index, site in enumerate(names)}
    errors = np.full((len(names), len(names)), np.nan)
    bad = np.zeros(errors.shape, dtype=bool)
    rows, columns = pairs["source"].map(place), pairs["destination"].map(place)
    errors[rows, columns] = pairs["worst_s"]
    bad[rows, columns] = pairs["bad"]
    return error_map(errors, bad, names, tolerance_s, name)


def _not_measured(part: pd.DataFrame) -> str:
    """What of a setting was asked and not measured, with the number of ordered pairs; "" when all was."""
    pairs = part[["source", "destination"]].drop_duplicates().shape[0]
    kinds = part.assign(kind=part["not_measured"].str.split("; ")).explode("kind")
    kinds = kinds[kinds["kind"] != ""][["source", "destination", "kind"]].drop_duplicates()
    counts = sorted(kinds["kind"].value_counts().items())
    return ", ".join(f"{kind} ({count} of {pairs} pairs)" for kind, count in counts)


def _one_way_rows(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """Ordered pairs of which more is asked than one delay both ways, or measured than delays."""
    other_way = 2 * pairs["asked_delay_s"] != pairs["asked_high_s"]
    more = pairs["loss"].notna() | (pairs[["asked_loss", "asked_jitter_s"]] > 0).any(axis=1)
    rows: Any = pairs[other_way | more | pairs["asked_rate_bps"].notna()].itertuples()
    return [
        {
            "pair": f"{row.source} → {row.destination}",
            "asked_delay": milliseconds(row.asked_delay_s),
            "delay": milliseconds(row.one_way_s),
            "asked_jitter": milliseconds(row.asked_jitter_s),
            "jitter": milliseconds(row.jitter_s),
            "asked_loss": percent(row.asked_loss),
            "loss": percent(row.loss) if math.isfinite(row.loss) else NONE,
            "asked_rate": format_rate(row.asked_rate_bps) if math.isfinite(row.asked_rate_bps) else "not limited",
            "rate": format_rate(round(row.rate_bps, -3)) if math.isfinite(row.rate_bps) else NONE,
            "class": "bad" if row.bad else "",
        }
        for row in rows
    ]
