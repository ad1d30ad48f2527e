"""The sites and the WAN as a picture, and measured errors as a heat map, as SVG text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from discovery_deploy.model import Strict
from discovery_deploy.report.figures import COLOURS, INK, style, svg
from discovery_deploy.wan import Pair, PathShape

FEW = 4
"""Up to so many sites every pair carries its shape; with more only those that differ from most."""
LEGIBLE = 16
"""Up to so many sites the roles stand as text beside a site; with more the legend explains colours."""
QUIET = "#AAB2BD"
DIFFERENT = COLOURS[3]
DATABASE = COLOURS[0]
CLIENT = COLOURS[1]


class SiteView(Strict):
    """What the picture shows of a site."""

    name: str
    roles: tuple[str, ...]
    """Lines of text, such as "database (mariadb@nantes)"."""
    has_database: bool
    """In some setting."""
    has_client: bool


def shape_text(shapes: Sequence[PathShape]) -> str:
    """The distinct shapes of a path over all settings: "25 ms", "0 ms | 25 ms", "0 ms … 150 ms (5 levels)"."""
    texts = [
        str(shape) for shape in sorted(set(shapes), key=lambda s: (s.delay_s, s.jitter_s, s.loss, s.rate_bps or 0))
    ]
    return " | ".join(texts) if len(texts) <= 3 else f"{texts[0]} … {texts[-1]} ({len(texts)} levels)"


def pair_texts(shapes: Mapping[Pair, Sequence[PathShape]]) -> dict[Pair, tuple[str, str]]:
    """Unordered pair (in order of names) -> (text there, text back)."""
    return {(a, b): (shape_text(found), shape_text(shapes[b, a])) for (a, b), found in shapes.items() if a < b}


def usual(shapes: Mapping[Pair, Sequence[PathShape]]) -> str | None:
    """The text that most pairs have both ways; None when there are no pairs, or no text is shared by two pairs."""
    counts = Counter(there for there, back in pair_texts(shapes).values() if there == back)
    if not counts:
        return None
    text, count = max(counts.items(), key=lambda item: (item[1], item[0]))
    return text if count > 1 else None


def picture(sites: Sequence[SiteView], shapes: Mapping[Pair, Sequence[PathShape]], name: str) -> str:
    """Sites on a circle, the WAN between them, where databases and clients are.

    Args:
        sites: in the order of the file.
        shapes: ordered pair -> its shape in each setting.
        name: prefix of ids.
    """
    places = _places([site.name for site in sites])
    many = len(sites) > LEGIBLE
    with style():
        side = 7.2 if many else 5.6 if len(sites) > FEW else 4.6
        figure = Figure(figsize=(7.4, side if len(sites) > 2 else 1.9))
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        _edges(axes, places, shapes, len(sites))
        for site in sites:
            _site(axes, site, places[site.name], many, len(sites))
        reach = 1.45 if many else 1.5
        axes.set_xlim(-reach - 0.4, reach + 0.4)
        axes.set_ylim(*((-0.45, 0.45) if len(sites) <= 2 else (-reach + 0.1, reach - 0.1)))
        _legend(axes, sites, shapes, many)
        return svg(figure, name, "The sites, the WAN between them, databases and clients")


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Site -> point on the unit circle, the first at the top, clockwise; two sites side by side."""
    count = len(names)
    start = math.pi if count <= 2 else math.pi / 2
    angles = [start - 2 * math.pi * index / count for index in range(count)]
    return {name: (math.cos(angle), math.sin(angle)) for name, angle in zip(names, angles, strict=True)}


def _edges(axes: Any, places: Mapping[str, tuple[float, float]], shapes: Mapping[Pair, Sequence[PathShape]],
           count: int) -> None:  # fmt: skip
    common = usual(shapes)
    for (a, b), (there, back) in sorted(pair_texts(shapes).items()):
        differs = (there, back) != (common, common)
        if count > LEGIBLE and not differs:
            continue
        (x1, y1), (x2, y2) = places[a], places[b]
        strong = differs and common is not None
        axes.plot([x1, x2], [y1, y2], color=DIFFERENT if strong else QUIET, zorder=1,
                  linewidth=1.4 if strong or count <= FEW else 0.8, alpha=1.0 if count <= LEGIBLE else 0.5)  # fmt: skip
        if count <= FEW or (strong and count <= LEGIBLE):
            text = there if there == back else f"{a} → {b}: {there}\n{b} → {a}: {back}"
            along = 0.5 if count <= 3 else 0.38  # diagonals cross in the middle
            axes.text(x1 + along * (x2 - x1), y1 + along * (y2 - y1), text, ha="center", va="center", fontsize=8,
                      zorder=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip


def _site(axes: Any, site: SiteView, place: tuple[float, float], many: bool, count: int) -> None:
    x, y = place
    face = DATABASE if site.has_database else "white"
    edge = CLIENT if site.has_client else INK
    axes.plot(x, y, "o", markersize=7 if many else 17, markerfacecolor=face, markeredgecolor=edge,
              markeredgewidth=1.6 if many else 3.2 if site.has_client else 1.2, zorder=3)  # fmt: skip
    if many:
        angle = math.degrees(math.atan2(y, x))
        turned = angle if -90 <= angle <= 90 else angle + 180
        axes.text(1.06 * x, 1.06 * y, site.name, rotation=turned, rotation_mode="anchor", va="center", fontsize=7.5,
                  ha="left" if -90 <= angle <= 90 else "right")  # fmt: skip
        return
    align = "center" if abs(x) < 0.3 and count > 2 else "left" if x > 0 else "right"
    outward = 0.16 if align != "center" else 0.0
    dy = 0.0 if align != "center" else math.copysign(0.14, y)
    below = align != "center" or y < 0
    name_y = y + dy + (0.0 if align == "center" else 0.05 if site.roles else 0.0)
    lines = "\n".join(site.roles)
    if align == "center" and not below and site.roles:
        name_y += 0.085 * len(site.roles)
    axes.text(x + math.copysign(outward, x), name_y, site.name, ha=align, fontsize=10, fontweight="bold", zorder=4,
              va="center" if align != "center" else "top" if y < 0 else "bottom")  # fmt: skip
    roles_y = name_y - (0.075 if align != "center" else 0.12 if y < 0 else 0.02)
    axes.text(x + math.copysign(outward, x), roles_y, lines, ha=align, va="top", fontsize=7.8, color="#4A525E",
              zorder=4)  # fmt: skip


def _legend(axes: Any, sites: Sequence[SiteView], shapes: Mapping[Pair, Sequence[PathShape]], many: bool) -> None:
    lines = []
    common = usual(shapes)
    if common is not None and len(sites) > FEW:
        others = any(texts != (common, common) for texts in pair_texts(shapes).values())
        lines.append(f"every {'other ' if others else ''}pair: {common} one way")
    if many:
        lines.append("blue: holds a database in some setting; orange ring: runs Rally")
    if lines:
        axes.text(0.5, -0.01, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=8.5)


def error_map(errors_s: NDArray[np.float64], bad: NDArray[np.bool_], names: Sequence[str], name: str) -> str:
    """Largest |measured - asked| RTT of every ordered pair as a heat map; crosses: out of tolerance.

    Args:
        errors_s: source x destination, in seconds; NaN where not measured.
        bad: the same shape; whether a pair had a problem.
        names: of the sites, in the order of rows and columns.
        name: prefix of ids.
    """
    with style():
        side = 2.2 + 0.085 * len(names)
        figure = Figure(figsize=(side + 1.0, side), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(errors_s * 1e3, cmap="cividis_r", interpolation="none", vmin=0)
        rows, columns = np.nonzero(bad)
        axes.plot(columns, rows, "x", color=DIFFERENT, markersize=4, markeredgewidth=1.2)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=6 if len(names) > LEGIBLE else 7.5)
        axes.set_yticks(ticks, names, fontsize=6 if len(names) > LEGIBLE else 7.5)
        axes.grid(visible=False)
        axes.set_xlabel("to")
        axes.set_ylabel("from")
        figure.colorbar(shown, ax=axes, label="largest |measured − asked| RTT (ms)", shrink=0.8)
        return svg(figure, name, "Measured minus asked round-trip time for every ordered pair of sites")
