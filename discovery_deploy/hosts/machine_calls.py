"""Calls of `nested_machine` on machines, by ssh: its code and the base image are brought there first."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from discovery_deploy.agent import (
    cgroups,
    containers,
    machine,
    machine_plans,
    names,
    nested_machine,
    nspawn,
    plan,
    site_networks,
    tc_device,
    uml_kernel,
    wan_router,
    wan_tunnels,
    wan_uml,
)
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import PlaybookError, TestbedError
from discovery_deploy.system.files import digest
from discovery_deploy.system.remote import SSH_FAILED, Remote

Progress = Callable[[str], None]

CALL_LIMIT_S = 120.0
UP_LIMIT_S = 900.0
IMAGE_LIMIT_S = nested_machine.IMAGE_LIMIT_S
PACK_LIMIT_S = 1200.0
MODULES = (
    cgroups, containers, machine, machine_plans, names, nested_machine, nspawn, plan, site_networks, tc_device,
    uml_kernel, wan_router, wan_tunnels, wan_uml,
)  # fmt: skip
"""What runs on machines."""
_RECEIVE = """\
set -e
[ ! -d "$1" ] || exit 0
rm -rf "$1.$$" && mkdir -p "$1.$$"
base64 -d | tar --extract --gzip --directory="$1.$$"
mv -T "$1.$$" "$1" || [ -d "$1" ]
rm -rf "$1.$$"
"""
"""Puts an archive's files into a directory that is not there yet; somebody else may do the same."""


def code_files() -> dict[str, bytes]:
    """Path below the code's directory -> contents, of what runs on machines."""
    files = [*(Path(str(module.__file__)) for module in MODULES), uml_kernel.SHIM_SOURCE]
    packages = {f"{folder}/__init__.py": b"" for folder in ("discovery_deploy", "discovery_deploy/agent")}
    return {**packages, **{f"discovery_deploy/agent/{file.name}": file.read_bytes() for file in files}}


def code_archive(files: Mapping[str, bytes]) -> bytes:
    """A compressed tar archive of files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


class Caller:
    """Calls machines that are named in an ssh_config.

    Args:
        remote: ssh to the machines, as root.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.files = code_files()
        self.code = nested_machine.HOME / f"code-{digest({name: text.hex() for name, text in self.files.items()})}"

    def bring_code(self, name: str) -> None:
        """Have a machine know what it is asked. Raises TestbedError."""
        text = base64.b64encode(code_archive(self.files)).decode()
        try:
            self.remote(name, ["sh", "-c", _RECEIVE, "sh", str(self.code)], stdin=text, timeout_s=CALL_LIMIT_S)
        except PlaybookError as error:
            raise TestbedError(error.what, error.advice) from error

    def call(
        self,
        name: str,
        verb: str,
        request: Mapping[str, Any],
        progress: Progress = lambda line: None,
        limit_s: float = CALL_LIMIT_S,
        archive: Path | None = None,
    ) -> Any:
        """What a machine answers to a verb of `nested_machine`.

        Args:
            name: of the machine.
            verb: of the verbs.
            request: what it is asked; plain data.
            progress: takes its lines.
            limit_s: how long it may take, in seconds.
            archive: a file that follows the request.
        Raises:
            TestbedError: the machine cannot be reached, does not answer in time, or refuses; it is named.
        """
        command = ["env", f"PYTHONPATH={self.code}", "PYTHONDONTWRITEBYTECODE=1", "python3", "-m"]
        command += ["discovery_deploy.agent.nested_machine", verb]
        with tempfile.TemporaryFile() as said, subprocess.Popen(
            self.remote.arguments(name, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            with interruption.watched(process), _limited(process, limit_s) as late:
                with suppress(BrokenPipeError):  # what it says tells why
                    _send(process.stdin, request, archive)
                answer = _answer(process.stdout, progress)
                with suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
            said.seek(0)
            told = said.read().decode(errors="replace").strip()[-1000:]
        if answer is None:
            raise _no_answer(name, verb, process.returncode, told, limit_s if late else None)
        if "error" in answer:
            raise TestbedError(f"{name}: {answer['error']['what']}", answer["error"]["advice"])
        return answer["result"]


def _send(stream: IO[bytes], request: Mapping[str, Any], archive: Path | None) -> None:
    stream.write(json.dumps(request).encode() + b"\n")
    if archive is not None:
        with archive.open("rb") as source:
            while block := source.read(nested_machine.BLOCK_BYTES):
                stream.write(block)
        stream.close()
    else:
        stream.flush()


def _answer(stream: IO[bytes], progress: Progress) -> dict[str, Any] | None:
    """The answer among the lines of a stream; None when it ends without one."""
    for line in stream:
        with suppress(ValueError):
            told = json.loads(line)
            if "progress" in told:
                progress(told["progress"])
            elif "result" in told or "error" in told:
                answer: dict[str, Any] = told
                return answer
    return None


@contextmanager
def _limited(process: subprocess.Popen[bytes], limit_s: float) -> Iterator[list[bool]]:
    """End a process when it takes too long: then a value is in the list. It ends in any case with the block."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        process.kill()

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        yield late
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def _no_answer(name: str, verb: str, code: int, told: str, limit_s: float | None) -> TestbedError:
    if limit_s is not None:
        return TestbedError(f"{name}: `{verb}` gave no answer within {limit_s:g} s", "Look at the machine.")
    if code == SSH_FAILED:
        return TestbedError(
            f"{name}: not reachable by ssh: {told or 'connection closed'}", "Run again when it answers."
        )
    return TestbedError(f"{name}: `{verb}` ended with status {code}: {told or 'no message'}", "Look at the machine.")


def tree_name(tree: Path) -> str:
    """Name of a base image on machines: its own, and a hash of names, sizes and times of its files."""
    seen = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        seen.update(f"{path.relative_to(tree)}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return f"{tree.name}-{seen.hexdigest()[:12]}"


@contextmanager
def packed_tree(tree: Path) -> Iterator[tuple[Path, str]]:
    """A compressed archive of a base image, for as long as the block lasts, and its SHA-256. Raises TestbedError."""
    with tempfile.TemporaryDirectory(prefix="discovery-deploy-", dir="/var/tmp") as folder:
        archive = Path(folder) / "tree.tar.gz"
        pack = ["tar", "--create", f"--file={archive}", "--use-compress-program=gzip -1", "--numeric-owner", "--xattrs",
                "--xattrs-include=*", f"--directory={tree}", "."]  # fmt: skip
        try:
            done = interruption.run(pack, None, PACK_LIMIT_S)
        except subprocess.TimeoutExpired:
            what = f"{tree}: packing it for machines timed out after {PACK_LIMIT_S:g} s"
            raise TestbedError(what, "Look at the disks of the cache and of /var/tmp, then run again.") from None
        if done.returncode:
            raise TestbedError(f"{tree}: cannot be packed for machines", "See `df -h /var/tmp`; free space there.")
        seen = hashlib.sha256()
        with archive.open("rb") as source:
            while block := source.read(nested_machine.BLOCK_BYTES):
                seen.update(block)
        yield archive, seen.hexdigest()
