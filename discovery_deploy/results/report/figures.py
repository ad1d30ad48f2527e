"""Figures of durations as SVG text: stacked medians, distributions, durations against round-trip times.

Only `Figure` objects, no pyplot: no state is shared. Equal data give equal text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from discovery_deploy.bench.rally import OTHER, TOTAL
from discovery_deploy.results.report.text import BESIDE, action_name, against, count_of, seconds
from discovery_deploy.results.stats import Fit, ecdf

WIDTH_IN = 8.4
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
"""Okabe and Ito's palette, told apart also by colour-blind readers; black is for the whole iteration."""
GREY = "#B8BCC2"
INK = "#20242A"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (10, 3)), (0, (3, 1, 1, 1, 1, 1)))
MOST_ROWS = 48
"""Bars in one figure; more cannot be read, and the tables have them all."""
MOST_PANELS = 12

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#5C6470",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names are text: a dollar sign begins no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "discovery-deploy",
    "hatch.linewidth": 0.6,
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure; restores matplotlib's settings."""
    with mpl.rc_context(_STYLE):
        yield


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element to be placed in HTML: no date, own ids, a title for screen readers."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.04)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid=")', rf"\g<1>{name}-", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg([^>]*?) width="[^"]*pt"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*pt"', r"<svg\1", text, count=1)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    width = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+)', text)
    limit = f' style="max-width:{float(width.group(1)) * 4 / 3:.0f}px"' if width else ""
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"{limit}', 1).strip()


def row_label(row: Any, with_site: bool) -> str:
    """Setting, bench site when there are several, and whether the run says nothing about the WAN."""
    parts = [row.setting or "the one setting"]
    if with_site:
        parts[0] += f" · {row.site}"
    if row.beside_only_database:
        parts.append(f"({BESIDE})")
    return "\n".join(parts)


def action_colours(actions: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Atomic action -> (colour, hatch): the same in every figure of a scenario."""
    colours = {}
    named = [action for action in actions if action not in (TOTAL, OTHER)]
    hatches = ["", "////", "....", "xxxx"]
    for place, action in enumerate(named):
        colours[action] = (COLOURS[place % len(COLOURS)], hatches[(place // len(COLOURS)) % len(hatches)])
    return {**colours, OTHER: (GREY, ""), TOTAL: ("#000000", "")}


def stacked(summary: pd.DataFrame, name: str) -> str | None:
    """Medians of the atomic actions, one on the other, a bar per setting (and bench site).

    Args:
        summary: rows of one scenario, as from `stats.summarise` with `(other)`.
        name: prefix of ids.
    Returns:
        SVG text, or None when no iteration succeeded.
    """
    whole = summary[(summary["atomic_action"] == TOTAL) & summary["median_s"].notna()].head(MOST_ROWS)
    if whole.empty:
        return None
    parts = summary[(summary["atomic_action"] != TOTAL) & summary["median_s"].notna()]
    actions = list(parts.sort_values("position", kind="stable")["atomic_action"].drop_duplicates())
    colours, keys = action_colours(actions), ["setting", "site", "beside_only_database"]
    with style():
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.36 * len(whole)))
        axes = figure.subplots()
        for place, row in enumerate(whole.itertuples()):
            mine = parts[(parts[keys] == [row.setting, row.site, row.beside_only_database]).all(axis=1)]
            left = 0.0
            for action in actions:
                for width in mine.loc[mine["atomic_action"] == action, "median_s"]:
                    colour, hatch = colours[action]
                    axes.barh(place, width, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="white",
                              linewidth=0.5)  # fmt: skip
                    left += width
            _whole_marker(axes, place, row)
        axes.set_yticks(range(len(whole)), [row_label(row, whole["site"].nunique() > 1) for row in whole.itertuples()])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.margins(x=0.09)
        axes.set_xlabel("median duration (s)")
        _stack_legend(figure, actions, colours)
        return svg(figure, name, "Median durations stacked by atomic action, per setting")


def _whole_marker(axes: Any, place: int, row: Any) -> None:
    """The whole iteration's median, with its interval when there is one, and its number."""
    end = row.median_s
    if np.isfinite(row.median_low_s):
        spread = [[row.median_s - row.median_low_s], [row.median_high_s - row.median_s]]
        axes.errorbar(row.median_s, place, xerr=spread, color="black", capsize=2.5, linewidth=1, marker="D",
                      markersize=3)  # fmt: skip
        end = row.median_high_s
    else:
        axes.plot(row.median_s, place, color="black", marker="D", markersize=3)
    failed = f", {row.failures}/{row.count} failed" if row.failures else ""
    axes.annotate(f"{seconds(row.median_s)}{failed}", (end, place), xytext=(6, 0), textcoords="offset points",
                  va="center", fontsize=8)  # fmt: skip


def _stack_legend(figure: Figure, actions: Sequence[str], colours: dict[str, tuple[str, str]]) -> None:
    handles: list[Any] = [
        Patch(facecolor=colours[action][0], hatch=colours[action][1], edgecolor="white", label=action_name(action))
        for action in actions
    ]
    handles.append(Line2D([], [], color="black", marker="D", markersize=3, linewidth=1,
                                    label="whole iteration, 95 % CI"))  # fmt: skip
    columns = min(5, len(handles))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.02, 1.0), ncols=columns, columnspacing=1.2,
                  handlelength=1.4, bbox_transform=figure.axes[0].transAxes)  # fmt: skip


def distributions(table: pd.DataFrame, groups: dict[str, tuple[str, str]], name: str) -> str | None:
    """Empirical distribution of whole iterations, a curve per setting, a panel per bench site.

    Args:
        table: iterations of one scenario.
        groups: setting -> (what it has in common with settings of other delays, the rest), for colour and dash.
        name: prefix of ids.
    Returns:
        SVG text, or None when no iteration succeeded.
    """
    good = table[(table["atomic_action"] == TOTAL) & table["valid"] & ~table["failed"] & table["duration_s"].notna()]
    if good.empty:
        return None
    sites = list(good["site"].drop_duplicates())[:MOST_PANELS]
    columns = min(2, len(sites))
    lines = -(-len(sites) // columns)
    looks = _curve_looks(list(good["setting"].drop_duplicates()), groups)
    with style():
        figure = Figure(figsize=(WIDTH_IN if columns > 1 else 7.4, 2.8 * lines))
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        figure.subplots_adjust(right=0.98 if columns > 1 else 0.62, hspace=0.45)
        for axes, site in zip(grid.flat, sites, strict=False):
            here = good[good["site"] == site]
            for (setting, beside), part in here.groupby(["setting", "beside_only_database"], sort=False):
                x, y = ecdf(part["duration_s"].to_numpy(dtype=float))
                colour, dash = looks[str(setting)]
                label = (str(setting) or "the one setting") + (f" ({BESIDE})" if beside else "")
                axes.step(np.r_[x[0], x], np.r_[0, y], where="post", color=colour, linestyle=dash, linewidth=1.4,
                          label=f"{label}, n = {len(x)}")  # fmt: skip
            _distribution_axes(axes, f"from {site}" if len(sites) > 1 else "", good["duration_s"])
        return svg(figure, name, "Distribution of the duration of whole iterations, per setting")


def _distribution_axes(axes: Any, title: str, durations: pd.Series) -> None:
    axes.set_title(title)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of iterations")
    wide = durations.min() > 0 and durations.max() / durations.min() > 3
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("duration of an iteration (s" + (", logarithmic)" if wide else ")"))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0) if not title else None, fontsize=7.5)


def _curve_looks(settings: Sequence[str], groups: dict[str, tuple[str, str]]) -> dict[str, tuple[str, Any]]:
    """Setting -> (colour of its group, dash of its place in the group)."""
    families: dict[str, list[str]] = {}
    for setting in settings:
        families.setdefault(groups.get(setting, (setting, ""))[0], []).append(setting)
    if len(families) == 1:
        families = {setting: [setting] for setting in settings}
    looks = {}
    for colour, members in zip(cycle(COLOURS[:6]), families.values(), strict=False):
        looks.update({setting: (colour, dash) for setting, dash in zip(members, cycle(DASHES), strict=False)})
    return looks


def against_rtt(
    fits: Sequence[Fit], table: pd.DataFrame, runs_at: Mapping[tuple[str, str], Mapping[str, float]], name: str
) -> str | None:
    """Durations against the round-trip time, with fits: a panel per group of settings and bench site.

    Args:
        fits: those of one scenario.
        table: iterations of the scenario, for the points of whole iterations.
        runs_at: (group, bench site) -> run id -> RTT in seconds, as from `stats.fitted_rtts`.
        name: prefix of ids.
    Returns:
        SVG text, or None when there is no fit.
    """
    panels = list(dict.fromkeys((fit.group, fit.site) for fit in fits))[:MOST_PANELS]
    if not panels:
        return None
    actions = list(dict.fromkeys(fit.atomic_action for fit in sorted(fits, key=lambda fit: fit.position)))
    colours = action_colours(actions)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    top_s = max(level.median_s for fit in fits for level in fit.levels)
    with style():
        figure = Figure(figsize=(WIDTH_IN if columns > 1 else 5.6, 3.2 * lines))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        figure.subplots_adjust(left=0.08, right=0.82, wspace=0.55, hspace=0.45)
        for axes, (group, site) in zip(grid.flat, panels, strict=False):
            mine = [fit for fit in fits if (fit.group, fit.site) == (group, site)]
            _points(axes, table[table["site"] == site], runs_at.get((group, site), {}))
            _lines(axes, mine, colours, top_s)
            axes.set_title(f"{group or 'all settings'}, from {site}")
            axes.set_xlabel(f"{against(mine[0])}, {mine[0].rtt_from} (ms)")
            axes.set_ylim(bottom=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("duration (s)")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        return svg(figure, name, "Durations against the round-trip time, with fitted lines")


def _points(axes: Any, table: pd.DataFrame, runs_at: Mapping[str, float]) -> None:
    """Single iterations of the panel's runs, as faint dots."""
    rows = table[(table["atomic_action"] == TOTAL) & table["valid"] & ~table["failed"]]
    rows = rows[rows["run_id"].isin(list(runs_at))]
    axes.plot(rows["run_id"].map(runs_at).astype(float) * 1e3, rows["duration_s"], ".", color="black", alpha=0.2,
              markersize=4, markeredgewidth=0)  # fmt: skip


def _lines(axes: Any, fits: Sequence[Fit], colours: dict[str, tuple[str, str]], top_s: float) -> None:
    """Medians, fitted lines, and each line's name and number of round trips at its end."""
    ends = []
    for fit in fits:
        colour = colours[fit.atomic_action][0]
        x = np.array([level.rtt_s for level in fit.levels])
        axes.plot(x * 1e3, [level.median_s for level in fit.levels], "o", color=colour, markersize=4)
        span = np.array([0.0, x.max()])
        axes.plot(span * 1e3, fit.base_s + fit.round_trips * span, color=colour, linewidth=1.3)
        ends.append((fit.base_s + fit.round_trips * x.max(), fit, colour))
    last = -np.inf
    for end, fit, colour in sorted(ends, key=lambda item: item[0]):
        last = max(end, last + 0.058 * top_s)  # names must not lie on each other
        text = f"{action_name(fit.atomic_action)} {count_of(fit.round_trips)}"
        axes.annotate(text, (max(level.rtt_s for level in fit.levels) * 1e3, end), annotation_clip=False,
                      xytext=(1.03, last), textcoords=("axes fraction", "data"), va="center", fontsize=8,
                      color=INK if colour in (GREY, "#F0E442") else colour,
                      arrowprops={"arrowstyle": "-", "color": "#C6CAD0", "linewidth": 0.5})  # fmt: skip
