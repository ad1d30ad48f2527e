"""What our modules need to know of systemd units that they wait for: whether one has failed, and what it said."""

from __future__ import annotations

import re
import subprocess
import time

MOST_RESTARTS = 6
"""Restarts since the wait began after which a unit that systemd keeps restarting counts as failed."""
LOOK_EVERY_S = 1.0
KEPT_LINES = 400
QUOTED_LINES = 12


class UnitError(Exception):
    """A unit of this host does not run and will not come to run by waiting."""


def states(shown: str) -> dict[str, tuple[str, int]]:
    """Unit -> (ActiveState, NRestarts), from blocks of `systemctl show`. Pure."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    named = [block for block in blocks if "Id" in block]
    return {block["Id"]: (block.get("ActiveState", ""), int(block.get("NRestarts") or 0)) for block in named}


def failure(before: dict[str, tuple[str, int]], now: dict[str, tuple[str, int]]) -> str:
    """Why a wait for units is useless, from their states when it began and now; "" while it is not. Pure."""
    for unit, (state, restarts) in sorted(now.items()):
        if state == "failed":
            return f"{unit} has failed"
        since = restarts - before.get(unit, ("", 0))[1]
        if state != "active" and since >= MOST_RESTARTS:
            return f"{unit} was restarted {since} times and does not stay up"
    return ""


def cause(log: str) -> str:
    """The last line of the last Python traceback in a log, such as "KeyError: 'x'"; "" without one. Pure.

    Lines of a traceback may all begin with the same text, as oslo.log writes them.
    """
    lines = log.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        prefix, found, _ = lines[number].partition("Traceback (most recent call last):")
        if found:
            return _exception(lines[number + 1 :], prefix)
    return ""


def _exception(lines: list[str], prefix: str) -> str:
    """The first line after the indented lines of a traceback."""
    stamp = re.compile(re.sub(r"\\?\d", r"\\d", re.escape(prefix)))
    for line in lines:
        match = stamp.match(line)
        text = line[match.end() :] if match else line
        if text.strip() and not text.startswith(" "):
            return text.strip()
    return ""


def output(command: list[str]) -> str:
    """What a command of this host prints. Raises OSError, subprocess.SubprocessError."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=True).stdout


class Watch:
    """Units of this host, watched while something waits for what they do.

    Args:
        units: names or patterns; one that is not loaded is passed over.
    """

    def __init__(self, units: list[str]) -> None:
        self.units = units
        self.before = self._states()
        self.looked_at = time.monotonic()

    def _states(self) -> dict[str, tuple[str, int]]:
        if not self.units:
            return {}
        return states(output(["systemctl", "show", "--property=Id,ActiveState,NRestarts", *self.units]))

    def look(self) -> None:
        """Look once a second at most. Raises UnitError with the unit and what it said last."""
        if time.monotonic() - self.looked_at < LOOK_EVERY_S:
            return
        self.looked_at = time.monotonic()
        found = failure(self.before, self._states())
        if found:
            raise UnitError(found)

    def told(self) -> dict:
        """For `fail_json`: `state` (units and their states), `cause` ("; its traceback ends with: ..." or ""),
        `stderr` (last lines, quoted in the message) and `journal` (many lines, for the playbook's log)."""
        found = self._states()
        state = ", ".join(f"{unit} is {what[0]}" for unit, what in sorted(found.items())) or "no unit is loaded"
        words = [f"--unit={unit}" for unit in self.units]
        command = ["journalctl", *words, "-n", str(KEPT_LINES), "-o", "cat", "--no-pager"]
        lines = output(command).splitlines() if words else []
        reason = cause("\n".join(lines))
        return {
            "state": state,
            "cause": f"; its traceback ends with: {reason}" if reason else "",
            "stderr": "\n".join(lines[-QUOTED_LINES:]),
            "journal": lines,
        }
