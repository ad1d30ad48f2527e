"""Facts of the machine that drives, and of this tool."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError

GIT_LIMIT_S = 60.0
"""For a question to git about this checkout."""


def _first_value(path: str, key: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        name, _, value = line.replace("=", ":", 1).partition(":")
        if name.strip() == key:
            return value.strip().strip('"')
    return "unknown"


def machine_facts() -> dict[str, str]:
    """CPU, cores, memory, kernel, operating system and Python of this machine."""
    memory_kb = _first_value("/proc/meminfo", "MemTotal").split()[0]
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory_kb) / 1024 / 1024:.1f} GiB" if memory_kb.isdigit() else memory_kb,
        "kernel": platform.release(),
        "os": _first_value("/etc/os-release", "PRETTY_NAME"),
        "python": platform.python_version(),
    }


def tool_commit() -> str | None:
    """Commit of the checkout that this package runs from ("+" when it was changed); None when it is installed.

    Raises:
        TestbedError: git timed out.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        try:
            done = interruption.run(["git", "-C", str(root), *words], None, GIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            what = f"{root}: `git {words[0]}` timed out after {GIT_LIMIT_S:g} s"
            raise TestbedError(what, "Look at that disk, then run again.") from None
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    return (commit + ("+" if git("status", "--porcelain") else "")) or None
