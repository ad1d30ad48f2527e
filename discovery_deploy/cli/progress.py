"""What is being done, told; for a person on standard error."""

from __future__ import annotations

import time

from rich.console import Console
from rich.status import Status


class ConsoleAnnouncer:
    """Shows phases as they go: a spinner with the present step on a terminal, plain lines elsewhere.

    Args:
        console: usually standard error.
        verbose: print each step as a line of its own, also on a terminal.
    """

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose or not console.is_terminal
        self._status: Status | None = None
        self._phase = ""
        self._began_s = time.monotonic()

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _clock(self) -> str:
        elapsed_s = int(time.monotonic() - self._began_s)
        return f"{elapsed_s // 60:3d}:{elapsed_s % 60:02d}"

    def phase(self, name: str, detail: str) -> None:
        """A phase begins."""
        self.stop()
        self._phase = name
        self._print(f"{self._clock()}  {name:<10} {detail}".rstrip())
        if not self.verbose:
            self._status = self.console.status(name)
            self._status.start()

    def line(self, text: str) -> None:
        """A step of the present phase."""
        if self._status is not None:
            self._status.update(f"{self._phase}: {text[: max(20, self.console.width - len(self._phase) - 8)]}")
        else:
            self._print(f"        {text}")

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        """The phase has ended well."""
        self.stop()
        self._print(f"{self._clock()}  {name:<10} done in {seconds:.1f} s{'; ' + detail if detail else ''}")

    def stop(self) -> None:
        """End the spinner, so that other output can be written."""
        if self._status is not None:
            self._status.stop()
            self._status = None
