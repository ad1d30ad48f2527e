"""Machines of the fake as network namespaces: an overlay of an unpacked Debian, and an sshd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.fake_g5k import views

NODE = Path(__file__).with_name("node.sh")
UP_S = 30.0


def run(*words: str) -> None:
    """Run a command; raises CalledProcessError."""
    subprocess.run(words, check=True, capture_output=True)


def answers(address: str, seconds: float) -> bool:
    """Whether an sshd answers within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((address, 22), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


class NamespaceMachines:
    """Acts on machines; runs where the bridges of `world.py` are.

    Args:
        work: folder for their files.
        base: unpacked Debian, the lower layer of all.
    """

    def __init__(self, work: Path, base: Path) -> None:
        self.folder = work / "machines"
        self.base = base
        self.host_key = work / "host_key"
        self.names = views.names()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def reserve(self, name: str, user: str) -> bool:
        """See `grid.Machines`."""
        return self._up(name, "", "", user)

    def deploy(self, name: str, environment: str, vlan: str, keys: str) -> bool:
        """See `grid.Machines`."""
        if not self._up(name, environment, keys, ""):
            return False
        if vlan != "DEFAULT":
            short, _, rest = name.partition(".")
            address = self.names[f"{short}-kavlan-{vlan}.{rest}"]
            run("ip", "-n", short, "address", "add", f"{address}/24", "dev", "eth0")
        return True

    def vlan(self, adapter: str, vlan: str) -> bool:
        """See `grid.Machines`; there is nothing to see of it."""
        return True

    def release(self, name: str) -> bool:
        """See `grid.Machines`."""
        process = self.processes.pop(name, None)
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        short, device = name.partition(".")[0], self._device(name)
        subprocess.run(["ip", "netns", "delete", short], capture_output=True, check=False)  # may not be there
        subprocess.run(["ip", "link", "delete", device], capture_output=True, check=False)
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        return True

    def _device(self, name: str) -> str:
        return "m" + "_".join(self.names[name].split(".")[2:])

    def _up(self, name: str, environment: str, keys: str, user: str) -> bool:
        self.release(name)
        folder = self.folder / name
        upper = folder / "up"
        for path in (folder / "root", folder / "work", upper / "etc/grid5000", upper / "etc/ssh", upper / "root/.ssh"):
            path.mkdir(parents=True)
        if environment:  # EnOSlib compares its words with those of the environment that is asked for
            (upper / "etc/grid5000/release").write_text(f"{environment}-{views.RELEASE}\n")
        authorized = upper / "root/.ssh/authorized_keys"
        authorized.write_text(keys + "\n")
        authorized.chmod(0o600)
        for path in (upper / "root", upper / "root/.ssh"):
            path.chmod(0o700)
        shutil.copy(self.host_key, upper / "etc/ssh/ssh_host_ed25519_key")
        self._network(name)
        command = ["ip", "netns", "exec", name.partition(".")[0], "unshare", "--uts", "--mount"]
        with (folder / "log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [*command, str(NODE), str(folder), name, user], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "BASE": str(self.base)}, start_new_session=True,
            )  # fmt: skip
        return answers(self.names[name], UP_S)

    def _network(self, name: str) -> None:
        short, device, address = name.partition(".")[0], self._device(name), self.names[name]
        network, _, _ = address.rpartition(".")
        bridge = f"site{int(network.split('.')[2]) - 64}"
        run("ip", "netns", "add", short)
        run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", short)
        run("ip", "link", "set", device, "master", bridge, "up")
        for device_inside in ("lo", "eth0"):
            run("ip", "-n", short, "link", "set", device_inside, "up")
        run("ip", "-n", short, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", short, "route", "add", "default", "via", f"{network}.254")
