"""Failures that a user can act on, each with the exit code of its kind.

An error says what happened, where, and what to do next. Anything that is not a `DiscoveryError` is a bug:
it keeps its traceback and exits with `EXIT_BUG`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

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


def together(errors: Sequence[DiscoveryError], last: str = "") -> DiscoveryError:
    """One error of several, of the first one's kind: what happened in each case, and what to do, each once.

    Args:
        errors: at least one.
        last: more advice.
    """
    advice = dict.fromkeys([*(error.advice for error in errors), last])
    return type(errors[0])("\n".join(error.what for error in errors), "\n  ".join(text for text in advice if text))


_ADVICE = {
    errno.EACCES: "Run it as the user to whom this belongs, often root; or correct the permissions.",
    errno.EPERM: "Run it as the user to whom this belongs, often root; or correct the permissions.",
    errno.ENOSPC: "Free space there (`df -h`, `df -i`), then run again.",
    errno.EDQUOT: "Free space there (`quota`), then run again.",
    errno.EROFS: "It is mounted read-only: choose another place, or mount it again writable.",
    errno.EIO: "The disk fails: see `dmesg`.",
    errno.EMFILE: "Raise the limit of open files: `ulimit -n 4096`.",
    errno.ENFILE: "Raise the machine's limit of open files: `sysctl -w fs.file-max=1000000`.",
    errno.ENOMEM: "Memory is short: see `free -m`.",
    errno.ENOTDIR: "A part of this path is a file: choose another place.",
    errno.ELOOP: "A link in this path leads to itself: choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
}
"""What to do about what a machine refuses. Other failures of the operating system are bugs."""


def machine_refusal(error: BaseException) -> str | None:
    """Message for what the machine refused to do (permissions, a full disk, a limit); None for other failures."""
    if not isinstance(error, OSError) or error.errno not in _ADVICE:
        return None
    return f"{error.filename or 'standard output, or a file'}: {error.strerror}\n  {_ADVICE[error.errno]}"
