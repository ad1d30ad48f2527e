"""What tests of findings share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.tool import Tool, command_line


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """The command line in `tmp_path`/work."""
    return command_line(tmp_path, monkeypatch, capsys)
