"""The Makefile on a machine that lacks everything; `make bench PART=bare` runs it there."""

from __future__ import annotations

from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_nothing_is_looked_for_before_it_is_installed() -> None:
    """Make expands the whole recipe before its first line runs: what `$(shell ...)` finds there was there before."""
    assert "$(shell" not in MAKEFILE.read_text(encoding="utf-8")
