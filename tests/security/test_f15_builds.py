"""F15: what a build may do is said; it is no boundary."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_on_patches_says_that_builds_are_no_boundary() -> None:
    text = " ".join((ROOT / "docs" / "patches.md").read_text(encoding="utf-8").split())
    assert "A build does run the project's code" in text
    assert "as root" in text
    assert "**That is no boundary**" in text
