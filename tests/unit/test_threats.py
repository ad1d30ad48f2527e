"""The threat table of docs/architecture.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## What is trusted"


def rows() -> list[list[str]]:
    """The cells of each row of the threat table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_row_names_a_test_that_exists() -> None:
    assert len(rows()) >= 20
    for row in rows():
        _, _, test = row
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
        assert named, row
        path = ROOT / named[1]
        assert path.is_file(), row
        found = {part.name for part in ast.walk(ast.parse(path.read_text())) if isinstance(part, ast.FunctionDef)}
        assert named[2] in found, row


def test_every_file_of_tests_of_a_finding_has_a_row() -> None:
    named = {row[2].strip("`").partition("::")[0] for row in rows()}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "security").glob("test_f*.py")}
    assert len(files) > 10
    assert files - named == set()
