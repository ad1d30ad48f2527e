"""The agent on machines and hosts: brought once, and asked by ssh.

It is one archive that Python runs (zipapp), named by its hash; `agent.conversation` says what is spoken with it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import py_compile
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from discovery_deploy.agent import conversation
from discovery_deploy.agent.conversation import BLOCK_BYTES
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import PlaybookError, TestbedError
from discovery_deploy.system.remote import SSH_FAILED, Remote

Progress = Callable[[str], None]

HOSTS_HOME = Path("/var/lib/discovery-deploy/agent")
"""Where hosts keep it."""

CALL_LIMIT_S = 120.0
_START = "import sys\nfrom discovery_deploy.agent.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
_RECEIVE = """\
set -e
[ ! -f "$1/agent.pyz" ] || exit 0
umask 077
mkdir -p "$1"
base64 -d > "$1/.$$"
mv "$1/.$$" "$1/agent.pyz"
"""
"""Puts the archive into a directory, whole or not at all; somebody else may do the same."""
_ABSENT = 97
_RUN = f'[ -f "$1" ] || exit {_ABSENT}; exec python3 -I -S "$@"'


@cache
def archive() -> bytes:
    """The agent: the same bytes for the same code and the same Python.

    Modules are in it as source, and compiled for this Python: another one, on a machine, takes the source.
    """
    folder = Path(conversation.__file__).parent
    files = {"__main__.py": _START.encode()}
    files |= dict.fromkeys(("discovery_deploy/__init__.py", "discovery_deploy/agent/__init__.py"), b"")
    for path in sorted((*folder.glob("*.py"), *folder.glob("*.c"))):
        if path.name != "__init__.py":
            files[f"discovery_deploy/agent/{path.name}"] = path.read_bytes()
            if path.suffix == ".py":
                files[f"discovery_deploy/agent/{path.name}c"] = _compiled(path)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as into:
        for name, content in files.items():
            into.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _compiled(path: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="discovery-deploy-") as folder:
        made = Path(folder) / "made.pyc"
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), str(made), dfile=path.name, doraise=True, invalidation_mode=unchecked)
        return made.read_bytes()


class Agents:
    """Asks the agents of machines or hosts that are named in an ssh_config.

    Args:
        remote: ssh to them, as root.
        home: directory there in which the agent is kept, with other versions of it.
    """

    def __init__(self, remote: Remote, home: Path) -> None:
        self.remote = remote
        self.place = home / f"agent-{hashlib.sha256(archive()).hexdigest()[:16]}"

    def bring(self, name: str) -> None:
        """Have a machine hold the agent. Raises TestbedError."""
        text = base64.b64encode(archive()).decode()
        try:
            self.remote(name, ["sh", "-c", _RECEIVE, "sh", str(self.place)], stdin=text, timeout_s=CALL_LIMIT_S)
        except PlaybookError as error:
            raise TestbedError(error.what, error.advice) from error

    def command(self, verb: str) -> list[str]:
        """What is run there."""
        return ["sh", "-c", _RUN, "sh", str(self.place / "agent.pyz"), verb]

    def ask(
        self,
        name: str,
        verb: str,
        request: Mapping[str, Any],
        progress: Progress = lambda line: None,
        limit_s: float = CALL_LIMIT_S,
        archive: Path | None = None,
    ) -> Any:
        """What an agent answers; it is brought before, when it was not.

        Args:
            name: of the machine or host.
            verb: of `agent.__main__.MODULES`.
            request: what is asked; plain data.
            progress: takes its lines.
            limit_s: how long it may take, in seconds.
            archive: a file that follows the request.
        Raises:
            TestbedError: the machine cannot be reached, does not answer in time, or refuses; it is named.
        """

        def asked() -> Any:
            with self._opened(name, verb, request, progress, limit_s) as talk:
                if archive is not None:
                    talk.send(archive)
                return talk.answer()

        try:
            return asked()
        except _AbsentError:
            self.bring(name)
            return asked()

    @contextmanager
    def opened(
        self,
        name: str,
        verb: str,
        request: Mapping[str, Any],
        progress: Progress = lambda line: None,
        limit_s: float | None = CALL_LIMIT_S,
    ) -> Iterator[Talk]:
        """A conversation with an agent; it ends with the block. As `ask`; a limit of None is none."""
        self.bring(name)
        with self._opened(name, verb, request, progress, limit_s) as talk:
            yield talk

    @contextmanager
    def _opened(
        self, name: str, verb: str, request: Mapping[str, Any], progress: Progress, limit_s: float | None
    ) -> Iterator[Talk]:
        words = self.remote.arguments(name, self.command(verb))
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,
            interruption.watched(process),
            _limited(process, limit_s) as late,
        ):
            talk = Talk(name, verb, process, errors, progress, limit_s, late)
            talk.say(json.dumps(request))
            yield talk
            talk.close()
            process.wait()


class _AbsentError(TestbedError):
    """The agent is not there."""


class Talk:
    """With one agent, while it does what it was asked."""

    def __init__(
        self,
        name: str,
        verb: str,
        process: subprocess.Popen[bytes],
        errors: IO[bytes],
        progress: Progress,
        limit_s: float | None,
        late: list[bool],
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name = name
        self.verb = verb
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self._errors, self._progress = errors, progress
        self._limit_s, self._late = limit_s, late

    def say(self, line: str) -> None:
        """Tell it one line."""
        with suppress(BrokenPipeError):  # what it says, or has said, tells why
            self._to.write(line.encode() + b"\n")
            self._to.flush()

    def send(self, file: Path) -> None:
        """Tell it all of a file, and nothing more."""
        with suppress(BrokenPipeError), file.open("rb") as source:
            while block := source.read(BLOCK_BYTES):
                self._to.write(block)
        self.close()

    def close(self) -> None:
        """Tell it nothing more."""
        with suppress(BrokenPipeError):
            self._to.close()

    def hear(self) -> Any:
        """The next thing that it says before its end. Raises TestbedError."""
        return self._next("said")

    def answer(self) -> Any:
        """Its result. Raises TestbedError."""
        return self._next("result")

    def _next(self, kind: str) -> Any:
        for line in self._from:
            with suppress(ValueError):
                told = json.loads(line)
                if "progress" in told:
                    self._progress(told["progress"])
                elif "error" in told:
                    raise TestbedError(f"{self.name}: {told['error']['what']}", told["error"]["advice"])
                elif kind in told:
                    return told[kind]
        self.close()
        self._process.wait()
        raise self._no_answer()

    def _no_answer(self) -> TestbedError:
        self._errors.seek(0)
        told, code = self._errors.read().decode(errors="replace").strip()[-1000:], self._process.returncode
        of = f"{self.name}: `{self.verb}`"
        if self._late:
            return TestbedError(f"{of} gave no answer within {self._limit_s:g} s", "Look at the machine.")
        if code == _ABSENT:
            return _AbsentError(f"{of}: the agent is not there", "Run again.")
        if code == SSH_FAILED:
            what = f"{self.name}: not reachable by ssh: {told or 'connection closed'}"
            return TestbedError(what, "Run again when it answers.")
        return TestbedError(f"{of} ended with status {code}: {told or 'no message'}", "Look at the machine.")


@contextmanager
def _limited(process: subprocess.Popen[bytes], limit_s: float | None) -> Iterator[list[bool]]:
    """End a process when it takes too long: then a value is in the list. It ends in any case with the block."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        process.kill()

    timer = threading.Timer(limit_s or 0, end)
    if limit_s is not None:
        timer.start()
    try:
        yield late
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
