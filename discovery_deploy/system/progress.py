"""How it is said what is being done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[str], None]
"""Takes one short line for the person who waits."""


class Announcer(Protocol):
    """Where it is said what is being done; the command line shows it to a person."""

    def phase(self, name: str, detail: str) -> None:
        """A phase begins."""

    def line(self, text: str) -> None:
        """A step of the present phase."""

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        """The phase has ended well."""
