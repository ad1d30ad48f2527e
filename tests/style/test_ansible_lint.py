"""Playbooks and roles pass ansible-lint's strictest profile, and all YAML passes yamllint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lint(*command: str) -> str:
    """What a linter has to say; empty when nothing."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_playbooks_pass_ansible_lints_production_profile() -> None:
    assert lint("ansible-lint", "--offline", "--nocolor", "-q", "playbooks") == ""


def test_yaml_passes_yamllint() -> None:
    assert lint("yamllint", "--strict", "playbooks", "experiments", ".ansible-lint", ".yamllint") == ""
