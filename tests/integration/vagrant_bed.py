"""libvirt of a test's own, in namespaces of its own: nothing of it reaches the machine, and all ends with one process.

Whatever talks to it, also the command line of this tool, runs in the same namespaces (`VagrantBed.run`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

START = """\
mount --make-rprivate /
mount -t sysfs sysfs /sys                     # fresh: libvirt sees the bridges of this network namespace
ip link set lo up
for place in run/libvirt var/lib/libvirt etc/libvirt var/cache/libvirt var/log/libvirt; do
  mkdir -p "/$place" "$BED/root/$place"
  case $place in etc/*|var/lib/*) cp -an "/$place/." "$BED/root/$place/" ;; esac
  mount --bind "$BED/root/$place" "/$place"
done
mkdir -p /var/lib/libvirt/images
printf '%s\\n' 'stdio_handler = "file"' 'security_driver = "none"' 'cgroup_controllers = []' 'namespaces = []' \\
  'remember_owner = 0' \\
  > /etc/libvirt/qemu.conf
libvirtd &
wait
"""
"""The shell is process 1 of its namespace: it waits for whatever libvirt leaves, and all ends with it."""


def child(process_id: int) -> str:
    """Process id of a process's only child; "" when it has none."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children")
    return children.read_text().strip() if children.exists() else ""


class VagrantBed:
    """libvirt, Vagrant's home and this tool's state, in a directory.

    Args:
        directory: of the bed; the namespaces of its libvirt end with `stop`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables = {
            **os.environ,
            "BED": str(directory),
            "VAGRANT_HOME": str(directory / "vagrant"),
            "DISCOVERY_DEPLOY_STATE": str(directory / "state"),
            "DISCOVERY_DEPLOY_RESULTS": str(directory / "results"),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        with (directory / "libvirtd.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--mount-proc", "bash", "-ec", START],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.variables,
            )  # fmt: skip

    def wait_for_libvirt(self, limit_s: float = 60.0) -> None:
        """Until libvirt answers. Raises AssertionError with its log."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self.process.poll() is None:
            if self.inside() and self.run("virsh", "--connect", "qemu:///system", "uri").returncode == 0:
                return
            time.sleep(0.5)
        raise AssertionError(f"libvirt does not answer:\n{(self.directory / 'libvirtd.log').read_text()}")

    def inside(self) -> str:
        """Process id, seen from here, of process 1 of the namespaces; "" before it is there."""
        return child(self.process.pid)

    def enter(self) -> list[str]:
        """The command line that runs another one beside libvirt, in the bed's directory."""
        return ["nsenter", "--net", "--mount", "--pid", f"--wd={self.directory}", "-t", self.inside(), "--"]

    def run(
        self, *command: str, limit_s: float = 60.0, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command beside libvirt, to its end; it may fail."""
        return subprocess.run(
            [*self.enter(), *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s,
            env={**self.variables, **(variables or {})}, check=False,
        )  # fmt: skip

    def tool(self, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `discovery-deploy` beside libvirt."""
        return self.run(sys.executable, "-m", "discovery_deploy", *arguments, limit_s=limit_s)

    def well(self, *arguments: str, limit_s: float = 60.0) -> str:
        """What `discovery-deploy` prints; raises AssertionError with all that it said when it fails."""
        done = self.tool(*arguments, limit_s=limit_s)
        assert done.returncode == 0, f"{arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kill_when(self, condition: Callable[[], bool], *arguments: str, limit_s: float = 300.0) -> None:
        """Run `discovery-deploy` until a condition holds, then kill it with no chance to clear away."""
        process = subprocess.Popen(
            [*self.enter(), sys.executable, "-m", "discovery_deploy", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.variables,
        )  # fmt: skip
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, f"not so within {limit_s:g} s"
            assert process.poll() is None, "it ended before"
            time.sleep(0.5)
        os.kill(int(child(process.pid)), signal.SIGKILL)
        process.wait()

    def virsh(self, *arguments: str) -> list[str]:
        """Lines that virsh prints."""
        done = self.run("virsh", "--quiet", "--connect", "qemu:///system", *arguments)
        assert done.returncode == 0, done.stderr
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    def stop(self) -> None:
        """End libvirt and all machines."""
        self.process.kill()
        self.process.wait()
