"""Numbers of the package's shape, for a person: `python -m tests.style.numbers`, anywhere in a checkout.

Rooms with their lines and largest file; how they import each other: floors, circles, arrows; modules with one
importer. A package without rooms has one, "". Looks at the syntax alone, also at what only type checkers see.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "discovery_deploy"


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        parts = [part for part in ast.walk(ast.parse(file.read_text())) if isinstance(part, ast.ImportFrom)]
        asked = {f"{part.module}.{alias.name}" for part in parts for alias in part.names}
        below = {whole.removeprefix("discovery_deploy.") for whole in asked if whole.startswith("discovery_deploy.")}
        found[name] = {whole if whole in known else whole.rpartition(".")[0] for whole in below} & set(known) - {name}
    return found


def room(name: str) -> str:
    """What a module is in: its folder, or "" at the top."""
    return name.partition(".")[0] if "." in name or (PACKAGE / name).is_dir() else ""


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of more than one that reach each other."""
    reach = {name: {name, *found} for name, found in arrows.items()}
    for through in arrows:
        for name in arrows:
            if through in reach[name]:
                reach[name] |= reach[through]
    groups = [{other for other in arrows if other in reach[name] and name in reach[other]} for name in arrows]
    return [group for index, group in enumerate(groups) if len(group) > 1 and group not in groups[:index]]


def floors(arrows: dict[str, set[str]]) -> int:
    """Longest way down, in rooms; each circle counts as one."""
    joined = circles(arrows)
    home = {name: next((index for index, group in enumerate(joined) if name in group), name) for name in arrows}
    depth: dict[int | str, int] = {}

    def height(one: int | str) -> int:
        if one not in depth:
            below = {home[to] for name in arrows if home[name] == one for to in arrows[name]} - {one}
            depth[one] = 1 + max(map(height, below), default=0)
        return depth[one]

    return max(height(home[name]) for name in arrows)


def main() -> None:
    """Print them."""
    known = modules()
    found = imports(known)
    lines = {name: len(file.read_text().splitlines()) for name, file in known.items()}
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, others in found.items():
        arrows[room(name)] |= {room(other) for other in others} - {room(name)}
    for one in sorted(arrows):
        inside = {name: lines[name] for name in known if room(name) == one}
        largest = max(inside, key=lambda name: inside[name])
        size = f"{len(inside):4} modules {sum(inside.values()):6} lines"
        print(f"{one or '(none)':12} {size}, largest {largest} {lines[largest]}")
    importers = {name: sum(name in others for others in found.values()) for name in known}
    print(f"{len(known)} modules, {sum(lines.values())} lines")
    print(
        f"rooms: {floors(arrows)} floors, {sum(map(len, arrows.values()))} arrows, circles {circles(arrows) or 'none'}"
    )
    print(
        f"modules: {floors(found)} floors, {sum(map(len, found.values()))} arrows, circles {circles(found) or 'none'}"
    )
    print(f"with one importer: {sum(number == 1 for number in importers.values())}")


if __name__ == "__main__":
    main()
