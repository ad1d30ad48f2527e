"""The sites and the WAN as a picture, and measured errors as a heat map, as SVG text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from discovery_deploy.results.report.figures import COLOURS, INK, style, svg
from discovery_deploy.system.strict import Strict
from discovery_deploy.wan.shapes import Pair, PathShape

FEW = 3
"""Up to so many sites every line carries its shape, if it is short."""
SHORT = 22
"""Characters that fit on a line of the picture."""
MOST_TAGS = 12
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
    inches = 2.4 if many else 1.9 if len(sites) > FEW else 1.5  # per radius of the circle
    below, above = (min(y for _, y in places.values()) - 0.45, max(y for _, y in places.values()) + 0.45)
    with style():
        figure = Figure(figsize=(4.2 * inches, (above - below) * inches))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-2.1, 2.1)
        axes.set_ylim(below, above)
        _edges(axes, places, shapes)
        for site in sites:
            _site(axes, site, places[site.name], many)
        _legend(axes, sites, shapes, many)
        return svg(figure, name, "The sites, the WAN between them, databases and clients")


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Site -> point on the unit circle, the first at the top, clockwise; two sites side by side."""
    count = len(names)
    start = math.pi if count <= 2 else math.pi / 2
    angles = [start - 2 * math.pi * index / count for index in range(count)]
    return {name: (math.cos(angle), math.sin(angle)) for name, angle in zip(names, angles, strict=True)}


def _edges(axes: Any, places: Mapping[str, tuple[float, float]], shapes: Mapping[Pair, Sequence[PathShape]]) -> None:
    """Lines between sites. Shapes stand on them when they are few and short; else those that differ have a letter."""
    common, count = usual(shapes), len(places)
    tags = edge_tags(shapes, count)
    for (a, b), (there, back) in sorted(pair_texts(shapes).items()):
        differs = (there, back) != (common, common)
        if count > LEGIBLE and not differs:
            continue
        (x1, y1), (x2, y2) = places[a], places[b]
        strong = differs and common is not None
        axes.plot([x1, x2], [y1, y2], color=DIFFERENT if strong else QUIET, zorder=1,
                  linewidth=1.4 if strong or count <= 4 else 0.8, alpha=1.0 if count <= LEGIBLE else 0.5)  # fmt: skip
        text = there if not tags else tags.get((a, b), "")
        if text and count <= LEGIBLE:
            along = 0.5 if count <= 3 else 0.38  # diagonals cross in the middle
            axes.text(x1 + along * (x2 - x1), y1 + along * (y2 - y1), text, ha="center", va="center", fontsize=8.5,
                      zorder=2, fontweight="bold" if tags else "normal",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip


def edge_tags(shapes: Mapping[Pair, Sequence[PathShape]], count: int) -> dict[Pair, str]:
    """Unordered pair -> the letter that stands on its line; empty when the shapes themselves can stand there."""
    texts = pair_texts(shapes)
    common = usual(shapes)
    if count <= FEW and all(there == back and len(there) <= SHORT for there, back in texts.values()):
        return {}
    differ = [pair for pair, (there, back) in sorted(texts.items()) if (there, back) != (common, common)]
    return dict(zip(differ[:MOST_TAGS], "abcdefghijkl", strict=False)) or {("", ""): ""}


def _site(axes: Any, site: SiteView, place: tuple[float, float], many: bool) -> None:
    """A site's mark, coloured by what it holds, with its name and roles beside it, away from the circle."""
    x, y = place
    face = DATABASE if site.has_database else "white"
    edge = CLIENT if site.has_client else INK
    ring = 3.2 if site.has_client and not many else 1.6 if many else 1.2
    axes.plot(x, y, "o", markersize=7 if many else 17, markerfacecolor=face, markeredgecolor=edge,
              markeredgewidth=ring, zorder=3)  # fmt: skip
    if many:
        angle = math.degrees(math.atan2(y, x))
        right = -90 <= angle <= 90
        axes.text(1.06 * x, 1.06 * y, site.name, rotation=angle if right else angle + 180, rotation_mode="anchor",
                  va="center", ha="left" if right else "right", fontsize=8)  # fmt: skip
        return
    roles = "\n".join(site.roles)
    beside = abs(x) >= 0.3
    align = "left" if beside and x > 0 else "right" if beside else "center"
    shift = math.copysign(14, x) if beside else 0
    if beside:
        name_y, roles_y, upward = 1, -2, True
    elif y > 0:
        name_y, roles_y, upward = 13 + 10 * len(site.roles), 11 + 10 * len(site.roles), True
    else:
        name_y, roles_y, upward = -13, -26, False
    _beside(axes, site.name, place, (shift, name_y), align, "bottom" if upward else "top",
            fontsize=10.5, fontweight="bold")  # fmt: skip
    _beside(axes, roles, place, (shift, roles_y), align, "top", fontsize=8, color="#4A525E")


def _beside(axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], align: str, anchor: str,
            **look: Any) -> None:  # fmt: skip
    axes.annotate(text, place, xytext=offset, textcoords="offset points", ha=align, va=anchor, zorder=4, **look)


def _legend(axes: Any, sites: Sequence[SiteView], shapes: Mapping[Pair, Sequence[PathShape]], many: bool) -> None:
    lines = []
    common, texts, tags = usual(shapes), pair_texts(shapes), edge_tags(shapes, len(sites))
    for pair, letter in tags.items():
        if letter:
            (a, b), (there, back) = pair, texts[pair]
            both = f"{a} – {b}: {there}" if there == back else f"{a} → {b}: {there};  {b} → {a}: {back}"
            lines.append(f"{letter}   {both}")
    differ = sum(found != (common, common) for found in texts.values())
    if tags and differ > len(tags):
        lines.append(f"and {differ - len(tags)} more pairs that differ")
    if tags and common is not None:
        lines.append(f"every {'other ' if differ else ''}pair: {common}")
    if many:
        lines.append("blue: holds a database in some setting; orange ring: runs Rally")
    if lines:
        axes.text(0.5, 0.0, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=8.5,
                  linespacing=1.5)  # fmt: skip


def error_map(
    errors_s: NDArray[np.float64], bad: NDArray[np.bool_], names: Sequence[str], tolerance_s: float, name: str
) -> str:
    """Largest |measured - asked| RTT of every ordered pair as a heat map; crosses: out of tolerance.

    Args:
        errors_s: source x destination, in seconds; NaN where not measured.
        bad: the same shape; whether a pair had a problem.
        names: of the sites, in the order of rows and columns.
        tolerance_s: the colours reach at least so far, so that a good WAN looks calm.
        name: prefix of ids.
    """
    with style():
        side = 2.2 + 0.085 * len(names)
        figure = Figure(figsize=(side + 1.0, side), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(errors_s * 1e3, cmap="cividis_r", interpolation="none", vmin=0,
                            vmax=max(tolerance_s, float(np.nanmax(errors_s, initial=0.0))) * 1e3)  # fmt: skip
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
