"""A WAN router in a User-Mode-Linux process: how it is started, recognised, spoken to and ended. Standard library only.

The process outlives whoever started it. Commands reach it through a FIFO that is its serial line, answers come back in
another; the router itself holds both ends of both, so neither is closed when a client dies. A command is a file,
`calls/<nonce>.sh`; the line "<nonce>" runs it, its output goes to `calls/<nonce>.out` (the directory is mounted in the
router) and "##RC=<nonce>=<exit code>" comes back. What a crashed client left behind is recognised by its nonce.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from discovery_deploy.agent import machine, uml_kernel
from discovery_deploy.agent.machine import MachineError

PRIORITY = 50
"""SCHED_FIFO priority: without it a busy machine adds tens of milliseconds to the slowest packets."""
QUEUE_PACKETS = 10000
"""Transmit queue of the router's devices and of their ports."""
BOOT_LIMIT_S = 60.0
ANSWER_LIMIT_S = 15.0
KILL_LIMIT_S = 10.0
ADVICE_WHEN_DEAD = "Run `discovery-deploy reserve FILE`: it starts a router again that is dead or does not answer."
MEMORY_DIRECTORY = Path("/dev/shm")
"""Where the process keeps what is its memory."""


@dataclass(frozen=True)
class Port:
    """The router's foot in one site."""

    site: str
    bridge: str
    device: str
    """The router's own device."""
    tap: str
    """Its other end, on the machine: a port of the bridge."""
    address: str
    """Gateway of the site, with prefix length."""
    mac: str
    """Always the same, so that hosts still know their gateway after the router was started again."""


_INIT = """#!/bin/sh
# PID 1 of the WAN router. Its root is the machine's own file system, read-only.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
mkdir -p /run/lib/modules /run/router
ln -s "/usr/lib/uml/modules/$(uname -r)" "/run/lib/modules/$(uname -r)"
modprobe -d /run -a sch_netem sch_htb cls_u32 || exit 1
mount -t hostfs none /run/router -o {directory} || exit 1
cd /run/router
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
ip -batch addresses || exit 1
exec <>/dev/ttyS0 || exit 1
stty raw -echo
: > ready
while read -r nonce; do
  (. "./calls/$nonce.sh") > "calls/$nonce.out" 2>&1 < /dev/null
  echo "##RC=$nonce=$?" > /dev/ttyS0
done
"""

_LAUNCH = 'cat /proc/$$/stat > process.new && mv process.new process && exec "$@"'
"""The process writes down its own pid and start time before it becomes the router: no moment without a record."""


@dataclass(frozen=True)
class _Process:
    pid: int
    state: str
    start_ticks: int


def _parse_stat(text: str) -> _Process:
    pid, rest = text.split(" (", 1)
    fields = rest.rpartition(")")[2].split()
    return _Process(int(pid), fields[0], int(fields[19]))


def _processes() -> Iterator[_Process]:
    """Processes that live (those that ended and wait to be reaped do not)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                process = _parse_stat((entry / "stat").read_text())
                if process.state not in "ZX":
                    yield process


@dataclass(frozen=True)
class UmlRouter:
    """The router whose files are in `directory`; making the object starts nothing."""

    directory: Path
    memory_mb: int
    ports: tuple[Port, ...]

    def _recorded(self) -> _Process | None:
        try:
            return _parse_stat((self.directory / "process").read_text())
        except FileNotFoundError:
            return None

    def _ours(self) -> Iterator[_Process]:
        """Living processes of this router: the recorded one, and those started with its directory as an argument."""
        recorded = self._recorded()
        for process in _processes():
            if recorded and (process.pid, process.start_ticks) == (recorded.pid, recorded.start_ticks):
                yield process
                continue
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                if words[0] == uml_kernel.KERNEL.encode() and f"uml_dir={self.directory}/uml".encode() in words:
                    yield process

    def alive(self) -> bool:
        """Whether the router's main process lives."""
        recorded = self._recorded()
        if recorded is None:
            return False
        try:
            now = _parse_stat(Path(f"/proc/{recorded.pid}/stat").read_text())
        except OSError:
            return False
        return now.start_ticks == recorded.start_ticks and now.state not in "ZX"

    def has_shim(self) -> bool:
        """Whether the router that runs has its kernel's shim for processors with AMX; False when none runs."""
        recorded = self._recorded()
        with contextlib.suppress(OSError):  # it has ended
            return recorded is not None and self.alive() and uml_kernel.has_shim(recorded.pid)
        return False

    def as_asked(self) -> bool:
        """Whether the router that was started last had these very ports and this memory."""
        asked = {"init": self._init_text(), "addresses": self._addresses_text(), "memory": str(self.memory_mb)}
        files = {name: self.directory / name for name in asked}
        return all(files[name].exists() and files[name].read_text() == text for name, text in asked.items())

    def _init_text(self) -> str:
        return _INIT.format(directory=self.directory)

    def _addresses_text(self) -> str:
        lines = ["link set lo up"]
        for port in self.ports:
            lines += [
                f"link set {port.device} address {port.mac} txqueuelen {QUEUE_PACKETS}",
                f"addr add {port.address} dev {port.device}",
                f"link set {port.device} up",
            ]
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Start the process; its taps must be there. `wait_ready` must follow.

        Raises:
            MachineError: User-Mode Linux is not installed, or cannot be started.
        """
        missing = uml_kernel.missing_commands()
        if missing:
            raise MachineError(
                f"User-Mode Linux lacks {', '.join(missing)}",
                f"Run: apt-get install -y {' '.join(sorted(set(missing.values())))}",
            )
        free_mb = shutil.disk_usage(MEMORY_DIRECTORY).free >> 20
        if free_mb < self.memory_mb:
            raise MachineError(
                f"the WAN router needs {self.memory_mb} MB in {MEMORY_DIRECTORY}, {free_mb} MB are free",
                f"Run: mount -o remount,size={2 * self.memory_mb}M {MEMORY_DIRECTORY}",
            )
        self.kill()
        for name in ("ready", "process", "in", "out"):
            (self.directory / name).unlink(missing_ok=True)
        init = self.directory / "init"
        init.write_text(self._init_text())
        init.chmod(0o700)
        (self.directory / "addresses").write_text(self._addresses_text())
        (self.directory / "memory").write_text(str(self.memory_mb))
        ends = []
        for name in ("in", "out"):
            os.mkfifo(self.directory / name, 0o600)
            ends.append(os.open(self.directory / name, os.O_RDWR | os.O_NONBLOCK))
        try:
            self._launch(*ends)
        finally:
            for end in ends:
                os.close(end)

    def _launch(self, commands: int, answers: int) -> None:
        priority = ["chrt", "-f", str(PRIORITY)]
        try:
            machine.run(*priority, "true")
        except MachineError:
            priority = ["nice", "-n", "-20"]
        (self.directory / "scheduling").write_text(" ".join(priority))
        options = [f"mem={self.memory_mb}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        options += [f"init={self.directory}/init", "con=null", "con0=null,fd:1", f"ssl0=fd:{commands},fd:{answers}"]
        # raid6 would spend most of the boot's time on choosing its fastest algorithm.
        options += ["initcall_blacklist=raid6_select_algo", "ssl=null", "quiet"]
        options += ["umid=wan", f"uml_dir={self.directory}/uml"]
        options += [f"{port.device}:transport=tap,ifname={port.tap},depth=128,gro=1" for port in self.ports]
        kernel = uml_kernel.command(options, self.directory)
        with (self.directory / "uml.log").open("wb") as log:
            # --fork: whoever reaps orphans reaps it; it is nobody's child and in a session of its own.
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", _LAUNCH, "sh", *priority, *kernel],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(commands, answers),
                cwd=self.directory,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": str(MEMORY_DIRECTORY)},
                check=True,
            )

    def wait_ready(self) -> None:
        """Wait until the router takes commands. Raises MachineError with its log when it dies or never does."""
        end = time.monotonic() + BOOT_LIMIT_S
        while not (self.directory / "ready").exists():
            if (self.directory / "process").exists() and not self.alive():
                raise self._dead("did not start", "Run `discovery-deploy doctor`: it starts this kernel alone.")
            if time.monotonic() > end:
                raise self._dead(f"was not ready after {BOOT_LIMIT_S:g} s")
            time.sleep(0.02)
        self.execute("true", ANSWER_LIMIT_S)

    def log(self) -> str:
        """The last lines that the router's kernel or its first process printed, without what follows a panic."""
        path = self.directory / "uml.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        before, panic, after = text.partition("Kernel panic")
        lines = (before + panic + after.partition("\n")[0] if panic else text).splitlines()
        return "\n    ".join([line.strip() for line in lines if line.strip()][-8:]) or "(its log is empty)"

    def _dead(self, what: str, advice: str = ADVICE_WHEN_DEAD) -> MachineError:
        return MachineError(
            f"the WAN router (User-Mode Linux, {self.directory}) {what}; its log ends with:\n    {self.log()}",
            advice,
        )

    def execute(self, script: str, limit_s: float) -> tuple[int, str]:
        """Run a shell script inside, in the router's directory; one at a time (the caller holds the lock).

        Returns:
            Exit code, and what it printed.
        Raises:
            MachineError: the router is dead, or does not answer in time.
        """
        calls = self.directory / "calls"
        nonce = os.urandom(6).hex()
        script_file, output_file = calls / f"{nonce}.sh", calls / f"{nonce}.out"
        script_file.write_text(script + "\n")
        try:
            code = self._exchange(nonce, limit_s)
            return code, output_file.read_text(errors="replace")
        finally:
            script_file.unlink(missing_ok=True)
            output_file.unlink(missing_ok=True)

    def _exchange(self, nonce: str, limit_s: float) -> int:
        with contextlib.ExitStack() as stack:
            try:
                commands = os.open(self.directory / "in", os.O_WRONLY | os.O_NONBLOCK)
                stack.callback(os.close, commands)
                answers = os.open(self.directory / "out", os.O_RDONLY | os.O_NONBLOCK)
                stack.callback(os.close, answers)
                os.write(commands, f"{nonce}\n".encode())
            except OSError as error:  # no reader: it is dead; EAGAIN: it reads no more
                raise self._dead(f"takes no commands ({error.strerror})") from error
            received, end = b"", time.monotonic() + limit_s
            while True:
                found = re.search(rb"##RC=%s=(\d+)\n" % nonce.encode(), received)
                if found:
                    return int(found[1])
                if not self.alive():
                    raise self._dead("died")
                if time.monotonic() > end:
                    raise self._dead(f"did not answer within {limit_s:g} s")
                if select.select([answers], [], [], 0.2)[0]:
                    received += os.read(answers, 65536)

    def kill(self) -> None:
        """End every process of this router. Raises MachineError when one does not end.

        The others before the main one, which is stopped first: it traces them to catch what its programs ask of their
        kernel, and a program that lost its tracer would ask this machine's kernel (its init mounts /run).
        """
        end = time.monotonic() + KILL_LIMIT_S
        while processes := list(self._ours()):
            recorded = self._recorded()
            main = [process for process in processes if recorded and process.pid == recorded.pid]
            traced = [process for process in processes if process not in main]
            for process, sign in (
                *((process, signal.SIGSTOP if traced else signal.SIGKILL) for process in main),
                *((process, signal.SIGKILL) for process in traced),
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, sign)
            if time.monotonic() > end:
                raise MachineError(f"processes of the WAN router do not end: {[p.pid for p in processes]}")
            time.sleep(0.01)
