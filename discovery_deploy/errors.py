"""Failures that a user can act on, each with the exit code of its kind.

An error says what happened, where, and what to do next. Anything that is not a `DiscoveryError` is a bug:
it keeps its traceback and exits with `EXIT_BUG`.
"""

from __future__ import annotations

EXIT_EXPERIMENT = 2
EXIT_TESTBED = 3
EXIT_PLAYBOOK = 4
EXIT_NOT_VALID = 5
EXIT_STATE = 6
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class DiscoveryError(Exception):
    """A failure with a message for the user.

    Args:
        what: what happened, and where (file:line:column, host or task).
        advice: what to do next; one imperative sentence, may be empty.
    """

    exit_code = EXIT_BUG

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what}\n  {self.advice}" if self.advice else self.what


class ExperimentError(DiscoveryError):
    """The experiment file is wrong; `what` holds every mistake, one a line."""

    exit_code = EXIT_EXPERIMENT


class TestbedError(DiscoveryError):
    """Machines, containers, networks or what they need could not be had."""

    __test__ = False  # not a test, whatever pytest makes of the name
    exit_code = EXIT_TESTBED


class PlaybookError(DiscoveryError):
    """A task failed on a host, or a program run on a host did."""

    exit_code = EXIT_PLAYBOOK


class MeasurementError(DiscoveryError):
    """What was measured is not what was asked, or a measurement could not be made."""

    exit_code = EXIT_NOT_VALID


class StateError(DiscoveryError):
    """The workspace is locked, unreadable, or belongs to another experiment."""

    exit_code = EXIT_STATE


class InterruptedByUserError(DiscoveryError):
    """Ctrl-C or SIGTERM; what was done is kept."""

    exit_code = EXIT_INTERRUPTED
