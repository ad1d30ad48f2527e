"""The agent: all that machines and hosts do for a driver, one verb at a time. Standard library only.

    python3 agent.pyz VERB

What it hears and says is `conversation`'s. Whoever asks keeps standard input open until the answer is there: when it
ends before, he is gone, and what is under way ends too.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from discovery_deploy.agent.conversation import Conversation
from discovery_deploy.agent.machine import MachineError

Verb = Callable[[dict[str, Any], Conversation], Any]
"""Does what a request asks; the result. Raises MachineError, OSError: they are told."""

MODULES = {
    **dict.fromkeys(
        ("look", "install", "image", "up", "down", "status", "shape", "read", "facts", "reach"), "machine_verbs"
    ),
    "code": "code_proof",
    "count": "sql_capture",
}
"""Verb -> the module that has its function; only that is loaded."""
LISTENS = ("image", "count")
"""Verbs to which more is said after the request."""


def verb(name: str) -> Verb:
    """The function of a verb."""
    found: Verb = getattr(importlib.import_module(f"discovery_deploy.agent.{MODULES[name]}"), name)
    return found


def answer(act: Verb, conversation: Conversation, listens: bool) -> None:
    """Hear a request, and answer it."""
    request = json.loads(conversation.line())
    if not listens:
        threading.Thread(target=_end_with, args=(conversation,), daemon=True).start()
    try:
        conversation.result(act(request, conversation))
    except MachineError as error:
        conversation.error(error.what, error.advice)
    except OSError as error:
        place = error.filename or ""
        conversation.error(f"{place}: {error.strerror}", f"look at {place}" if place else "")


def _end_with(conversation: Conversation) -> None:
    """Interrupt this process when whoever asked is gone."""
    for _ in conversation.blocks():
        pass
    os.kill(os.getpid(), signal.SIGINT)


def main(arguments: list[str]) -> int:
    """One verb; the exit status is 0 when there is an answer, also when it is an error."""
    if len(arguments) != 1 or arguments[0] not in MODULES:
        print(f"usage: python3 agent.pyz {'|'.join(MODULES)}", file=sys.stderr)
        return 2
    os.umask(0o022)  # the login's may be another
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may have had it ignored
    answer(verb(arguments[0]), Conversation(), arguments[0] in LISTENS)
    os._exit(0)  # a thread may still wait for standard input


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
