"""What runs inside EnOSlib's own Python environment: takes one request, does it, answers, ends.

Run as a program by `enoslib_calls`. A request is one JSON object on standard input; its `verb` is
`<family>.<name>`, served by the function `VERBS[name]` of the module `enoslib_<family>` beside this file. Answers are
JSON objects on standard output, one a line: any number of {"progress": text}, then one {"result": ...} or
{"error": {"what", "advice", "host"}}. All that EnOSlib and its programs print goes to standard error, the log.

Imports the standard library alone; the modules that serve verbs import EnOSlib besides.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

Progress = Callable[[str], None]
Verb = Callable[[dict[str, Any], Progress], Any]
"""Takes the request's `arguments` and what takes progress; returns what JSON can hold. Raises WorkerError."""

PR_SET_PDEATHSIG = 1


class WorkerError(Exception):
    """A failure with a message for the user.

    Args:
        what: what happened, and where.
        advice: what to do next; one imperative sentence, may be empty.
        host: the host that it is about, or "".
    """

    def __init__(self, what: str, advice: str = "", host: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.host = host


class _Told(logging.Handler):
    """Passes on as progress what EnOSlib does (not its errors: it raises them), first line only, once in a row."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record."""
        text = re.sub(r"^\[[^\]]*\] ", "", (record.getMessage().strip().splitlines() or [""])[0])[:200]
        if text and text != self.last and record.levelno == logging.INFO:
            self.last = text
            self.progress(text)


def about(arguments: dict[str, Any], progress: Progress) -> dict[str, str]:
    """Versions of what does the work, for provenance."""
    from importlib.metadata import version

    return {name: version(name) for name in ("enoslib", "ansible-core", "python-grid5000", "python-vagrant")}


VERBS: dict[str, Verb] = {"about": about}


def serve() -> None:
    """Serve the request that stands on standard input."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as answers:
        request = json.loads(sys.stdin.read())
        os.dup2(2, 1)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)  # no program that is started here waits for a person
        _end_with(int(request["driver"]))
        _answer(answers, _outcome(request, lambda text: _answer(answers, {"progress": text})))


def _outcome(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    try:
        return {"result": _verb(str(request["verb"]), progress)(request["arguments"], progress)}
    except WorkerError as error:
        return {"error": {"what": error.what, "advice": error.advice, "host": error.host}}
    except Exception as error:  # whatever EnOSlib, its clients or Ansible raise: there is no other end of this program
        traceback.print_exc()
        said = " ".join(str(error).split())[:600]
        what = f"EnOSlib, in {request['verb']}: {type(error).__name__}{f': {said}' if said else ''}"
        return {"error": {"what": what, "advice": "", "host": ""}}


def _verb(verb: str, progress: Progress) -> Verb:
    family, _, name = verb.partition(".")
    module = importlib.import_module(f"discovery_deploy.testbeds.enoslib_{family}")
    log = logging.getLogger("enoslib")
    log.setLevel(logging.INFO)
    log.addHandler(_Told(progress))
    served: Mapping[str, Verb] = module.VERBS
    return served[name]


def _answer(answers: TextIO, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")


def _end_with(driver: int) -> None:
    """Let this program and what it starts end when the driver (its process id) does, or asks for it."""
    own = os.getpid()

    def ended(number: int, frame: FrameType | None) -> None:
        """Ends the whole process group (`enoslib_calls` makes it): ssh, vagrant and Ansible's workers among them."""
        if os.getpid() == own:  # not so in what Ansible forks and ends when it is done with it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, ended)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != driver:  # it died before this was said
        ended(signal.SIGTERM, None)


def _as_package() -> Any:
    """This module, as part of the package `discovery_deploy`.

    The package's directory must not be on sys.path: a module of ours would hide one of theirs (`ansible`).
    """
    here = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "discovery_deploy", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["discovery_deploy"] = package
    spec.loader.exec_module(package)
    return importlib.import_module("discovery_deploy.testbeds.enoslib_worker")


if __name__ == "__main__":
    _as_package().serve()
