"""Whether virtual machines can run on this machine's processor (KVM), or must be emulated: found by trying.

/dev/kvm may be there and usable, and guests hang all the same (a virtual machine whose host does not nest).
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import write_file
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict

NOTED = "acceleration.json"
"""File of the cache with what was found, and when that holds."""
EMULATOR = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
LIMIT_S = 15.0
"""A kernel on KVM says its first word within one second, also on a busy machine."""
WORD = b"Linux version"
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Acceleration(Strict):
    """What was found out about KVM."""

    kvm: bool
    why: str
    """In words, for a person."""
    seconds: float = 0.0
    """How long the trial took."""
    holds_for: tuple[str, ...] = ()
    """The boot of this machine and the kernel file that were tried."""


def acceleration(cache: Path, kernel: Path | None, progress: Progress) -> Acceleration:
    """What was found since this machine started, or is found now by starting a guest kernel for some seconds.

    Args:
        cache: directory where it is noted.
        kernel: file of the guest kernel; None: this machine's own, when it is there.
        progress: takes one short line when it is tried.
    Raises:
        TestbedError: QEMU is missing.
    """
    tried = kernel or own_kernel()
    holds_for = (BOOT.read_text(encoding="ascii").strip(), str(tried))
    noted = read_noted(cache / NOTED)
    if noted is not None and noted.holds_for == holds_for:
        return noted
    started = time.monotonic()
    problem = device_problem(DEVICE)
    if problem:
        found = Acceleration(kvm=False, why=problem)
    elif tried is None:
        found = Acceleration(kvm=True, why=f"{DEVICE} is usable; there was no kernel to try it with")
    else:
        progress("trying whether guests run on KVM")
        found = judged(says(kvm_command(tried), WORD, LIMIT_S), LIMIT_S)
    seconds = round(time.monotonic() - started, 1)
    found = found.model_copy(update={"seconds": seconds, "holds_for": holds_for})
    write_file(cache / NOTED, found.model_dump_json(indent=2) + "\n")
    return found


def own_kernel() -> Path | None:
    """File of the kernel that runs here; None when it is not there."""
    file = Path(f"/boot/vmlinuz-{os.uname().release}")
    return file if os.access(file, os.R_OK) else None


def device_problem(device: Path) -> str:
    """Why KVM's device cannot be used, in words; "" when it can be opened."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""


def kvm_command(kernel: Path) -> list[str]:
    """The QEMU command line that starts a kernel on KVM, with its console on standard output. Pure."""
    options = ["-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none"]
    options += ["-no-reboot", "-serial", "stdio", "-kernel", str(kernel)]
    return [EMULATOR, *options, "-append", "console=ttyS0 earlyprintk=serial panic=-1"]


def judged(heard: tuple[bool, str], limit_s: float) -> Acceleration:
    """What follows from a trial: whether the word was heard, and what else was said. Pure."""
    if heard[0]:
        return Acceleration(kvm=True, why="a guest kernel started on KVM")
    last = f"; the last that was said: {heard[1]}" if heard[1] else ""
    return Acceleration(kvm=False, why=f"no guest kernel started on KVM within {limit_s:g} s{last}")


def says(command: Sequence[str], word: bytes, limit_s: float) -> tuple[bool, str]:
    """Whether a program prints a word within a time, and the last line that it printed; the program is ended.

    Raises:
        TestbedError: it is missing.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except FileNotFoundError as error:
        raise TestbedError(f"{command[0]} is missing", "apt-get install -y qemu-system-x86") from error
    late = threading.Timer(limit_s, process.kill)
    late.start()
    heard = b""
    try:
        assert process.stdout is not None
        while word not in heard:
            part = os.read(process.stdout.fileno(), 4096)
            if not part:
                break
            heard += part
    finally:
        late.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    lines = heard.decode("utf-8", "replace").split("\n")
    return word in heard, next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def read_noted(file: Path) -> Acceleration | None:
    """What was noted; None when nothing that can be read."""
    with suppress(OSError, ValueError):
        return Acceleration.model_validate_json(file.read_text(encoding="utf-8"))
    return None
