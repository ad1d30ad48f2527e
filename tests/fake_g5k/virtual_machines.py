"""Machines of the fake as virtual machines: what is deployed boots from the box, and has a kernel of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from discovery_deploy.software.box import COMMAND_LINE, EMULATED
from tests.fake_g5k import views
from tests.fake_g5k.machines import NamespaceMachines, answers, run

BOOT_S = 300.0
KERNEL_COMMAND_LINE = f"{COMMAND_LINE} {EMULATED} systemd.hostname="


class VirtualMachines(NamespaceMachines):
    """As `NamespaceMachines`, but `deploy` boots a virtual machine.

    Args:
        work: folder for their files.
        base: unpacked Debian of what is not deployed.
        box: directory of the cache with `discovery-deploy.box`, `vmlinuz` and `initrd.img`.
        accelerated: what QEMU is told with -accel.
    """

    def __init__(self, work: Path, base: Path, box: Path, accelerated: str) -> None:
        super().__init__(work, base)
        self.box = box
        self.accelerated = accelerated
        self.disk = work / "box.img"
        run("tar", "-xf", str(box / "discovery-deploy.box"), "-C", str(work), "box.img")
        known = work / "vagrant"
        subprocess.run(["vagrant", "box", "list"], env={**os.environ, "VAGRANT_HOME": str(known)}, check=True,
                       capture_output=True)  # fmt: skip
        self.key = known / "insecure_private_key"
        self._give_addresses(work)

    def _give_addresses(self, work: Path) -> None:
        """A DHCP server for the bridges of the sites; a machine's address follows from its MAC."""
        hosts = [
            f"{self._mac(address)},{address},{name.partition('.')[0]}"
            for name, address in self.names.items() if "kavlan" not in name and name != views.GATEWAY
        ]  # fmt: skip
        (work / "dhcp.hosts").write_text("\n".join(hosts) + "\n")
        command = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--port=0", "--user=root"]
        command += ["--bind-interfaces", "--except-interface=lo", f"--dhcp-hostsfile={work}/dhcp.hosts"]
        command += [f"--dhcp-leasefile={work}/leases", f"--pid-file={work}/dnsmasq.pid"]
        for index, _ in views.SITES.values():
            network = f"10.103.{64 + index}"
            command += [f"--interface=site{index}", f"--dhcp-range=set:s{index},{network}.0,static,255.255.255.0"]
            command += [f"--dhcp-option=tag:s{index},3,{network}.254"]
        with (work / "dnsmasq.log").open("w") as log:
            self.processes["dhcp"] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @staticmethod
    def _mac(address: str) -> str:
        third, fourth = (int(part) for part in address.split(".")[2:])
        return f"52:54:00:67:{third:02x}:{fourth:02x}"

    def deploy(self, name: str, environment: str, vlan: str, keys: str) -> bool:
        """See `grid.Machines`; a vlan as primary network is not known here."""
        if vlan != "DEFAULT":
            return False
        self.release(name)
        folder, device, address = self.folder / f"{name}.vm", self._tap(name), self.names[name]
        folder.mkdir(parents=True)
        disk = folder / "disk.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.disk), "-F", "qcow2", str(disk))
        run("ip", "tuntap", "add", device, "mode", "tap")
        run("ip", "link", "set", device, "master", f"site{int(address.split('.')[2]) - 64}", "up")
        with (folder / "log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                self._emulator(name, disk, device, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return answers(address, BOOT_S) and self._installed(name, environment, keys)

    def _emulator(self, name: str, disk: Path, device: str, folder: Path) -> list[str]:
        short = name.partition(".")[0]
        return [
            "qemu-system-x86_64", "-name", short, "-machine", "q35", "-accel", self.accelerated,
            "-m", "2048", "-smp", "1", "-display", "none", "-serial", f"file:{folder / 'console'}",
            "-kernel", str(self.box / "vmlinuz"), "-initrd", str(self.box / "initrd.img"),
            "-append", KERNEL_COMMAND_LINE + short,
            "-drive", f"file={disk},if=virtio,cache=unsafe",
            "-netdev", f"tap,id=n0,ifname={device},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=n0,mac={self._mac(self.names[name])}",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip

    def _installed(self, name: str, environment: str, keys: str) -> bool:
        """What kadeploy leaves: the keys that are let in, and the name of what is installed."""
        script = (
            f"mkdir -p /etc/grid5000; echo {environment}-{views.RELEASE} > /etc/grid5000/release; "
            f"cat > /root/.ssh/authorized_keys; hostname {name}"
        )
        options = ["-i", str(self.key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
                   "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"]  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end:
            done = subprocess.run(["ssh", *options, f"root@{self.names[name]}", script], input=keys, text=True,
                                  capture_output=True, check=False)  # fmt: skip
            if done.returncode == 0:
                return True
            time.sleep(1)
        return False

    def _tap(self, name: str) -> str:
        return "t" + "_".join(self.names[name].split(".")[2:])

    def release(self, name: str) -> bool:
        """See `grid.Machines`."""
        super().release(name)
        subprocess.run(["ip", "link", "delete", self._tap(name)], capture_output=True, check=False)  # may not be there
        folder = self.folder / f"{name}.vm"
        if folder.exists():
            shutil.rmtree(folder)
        return True
