"""Playbooks and roles pass ansible-lint's strictest profile, and all YAML passes yamllint."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(*command: str) -> str:
    """What a linter has to say; empty when nothing."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def inputs() -> str:
    """A digest of all that ansible-lint's verdict comes from: what it reads, and its version."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("ansible-lint", "ansible-core", "yamllint"):
        digest.update(f"{name} {version(name)}\n".encode())
    files = [path for path in sorted((ROOT / "playbooks").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    for path in (ROOT / ".ansible-lint", ROOT / ".yamllint", *files):
        octets = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(octets)}\n".encode() + octets)
    return digest.hexdigest()


def test_playbooks_pass_ansible_lints_production_profile(pytestconfig: pytest.Config) -> None:
    """It takes a third of a minute, so equal inputs that have passed here are not looked at again."""
    cache, now = getattr(pytestconfig, "cache", None), inputs()
    if cache is None or cache.get("ansible-lint/passed", "") != now:
        assert lint("ansible-lint", "--offline", "--nocolor", "-q", "playbooks") == ""
        if cache is not None:
            cache.set("ansible-lint/passed", now)


def test_yaml_passes_yamllint() -> None:
    assert lint("yamllint", "--strict", "playbooks", "experiments", ".ansible-lint", ".yamllint") == ""
