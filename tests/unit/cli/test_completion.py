"""Shells complete the names of commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(sys.executable).parent / "discovery-deploy"


def test_bash_completes_commands() -> None:
    asked = {"_DISCOVERY_DEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": "discovery-deploy re", "COMP_CWORD": "1"}
    done = subprocess.run([TOOL], env={**os.environ, **asked}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["reserve", "report", "release"]
