"""Machines given by hand, to be logged in to: a User-Mode-Linux kernel each, with systemd and sshd of the base image.

They have netem, a disk, and an address on a network of this machine; nothing else is shared between them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from discovery_deploy.agent import uml_kernel
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.progress import Progress
from discovery_deploy.testbeds.base import Lack

BRIDGE, NETWORK = "ddm-net", "198.18.77"
DISK_BYTES = 4 << 30
BOOT_LIMIT_S = 120
_SETTINGS = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
OPTIONS = [word for setting in (*_SETTINGS, "ConnectTimeout=5") for word in ("-o", setting)]

INIT = """#!/bin/sh
# First process of the kernel: lays the machine's disk over the image and becomes the systemd that is there.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/modules/lib/modules /mnt/disk /mnt/root
ln -s "/usr/lib/uml/modules/$(uname -r)" "/mnt/modules/lib/modules/$(uname -r)"
modprobe -d /mnt/modules -a ext4 overlay bridge veth vxlan sch_netem sch_htb cls_u32
mount -t ext4 /dev/ubda /mnt/disk
mkdir -p /mnt/disk/upper/usr/bin /mnt/disk/upper/root/.ssh /mnt/disk/upper/etc/ssh /mnt/disk/work /mnt/disk/lib
chmod 700 /mnt/disk/upper/root /mnt/disk/upper/root/.ssh
cp /usr/bin/systemd-nspawn /mnt/disk/upper/usr/bin/
cp {job}/key.pub /mnt/disk/upper/root/.ssh/authorized_keys
chmod 600 /mnt/disk/upper/root/.ssh/authorized_keys
cp {job}/host_key /mnt/disk/upper/etc/ssh/ssh_host_ed25519_key
chmod 600 /mnt/disk/upper/etc/ssh/ssh_host_ed25519_key
echo {name} > /mnt/disk/upper/etc/hostname
mount -t overlay overlay -o lowerdir={image},upperdir=/mnt/disk/upper,workdir=/mnt/disk/work /mnt/root
mount --bind /mnt/disk/lib /mnt/root/var/lib
ip link set lo up
ip address add {address}/24 dev vec0
ip link set vec0 up
umount /proc
exec switch_root /mnt/root /lib/systemd/systemd systemd.show_status=0
"""


@dataclass
class UmlMachines:
    """Running machines: name -> address. As an inner provider it gives them out, and takes its key back.

    Args:
        addresses: of the machines.
        key: whose public part may log in.
    """

    addresses: dict[str, str]
    key: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Each leads the group of its machine's."""
    given: dict[str, tuple[str, Lease]] = field(default_factory=dict)
    """Experiment -> public key and lease."""

    def runs_in(self, process: Path) -> bool:
        """Whether a process, by its directory in /proc, is one of their kernels'."""
        group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
        return group in {kernel.pid for kernel in self.processes}

    def ssh(self, machine: str, command: str, text: str = "") -> str:
        done = subprocess.run(
            ["ssh", *OPTIONS, "-i", str(self.key), f"root@{self.addresses[machine]}", command],
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{machine}: {command}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def lacks(self) -> list[Lack]:
        return []

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        hosts = [(site.name, host) for site in experiment.sites for host in site.hosts]
        for _, host in hosts:
            known = self.ssh(host.name, "cat /root/.ssh/authorized_keys")
            if public_key not in known:
                self.ssh(host.name, "cat >> /root/.ssh/authorized_keys", f"{public_key}\n")
        lease = Lease(
            provider=experiment.provider.type,
            experiment=experiment.name,
            hosts=tuple(
                LeasedHost(
                    name=host.name,
                    site=site,
                    roles=host.roles,
                    management_address=self.addresses[host.name],
                    site_address=self.addresses[host.name],
                    site_device="vec0",
                )
                for site, host in hosts
            ),
            site_subnets={},
            site_devices={},
            site_gateways={},
            identities={host.name: self.ssh(host.name, "cat /etc/machine-id") for _, host in hosts},
            router="hosts",
            shaped="hosts",
            software="shipped",
        )
        self.given[experiment.name] = public_key, lease
        return lease

    def dead_hosts(self, lease: Lease) -> list[str]:
        return []

    def shape(self, lease: Lease, program: TcProgram) -> None:
        raise AssertionError("direct hosts have no router")

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        raise AssertionError("direct hosts have no router")

    def router_facts(self, lease: Lease) -> str:
        raise AssertionError("direct hosts have no router")

    def release(self, experiment_name: str, progress: Progress) -> None:
        public_key, lease = self.given.pop(experiment_name, ("", None))
        for host in lease.hosts if lease else ():
            keys = "/root/.ssh/authorized_keys"
            self.ssh(host.name, f"grep -vF '{public_key}' {keys} > /tmp/keys; cat /tmp/keys > {keys}; rm /tmp/keys")

    def holder(self, experiment_name: str) -> Path | None:
        return None

    def experiments(self) -> list[str]:
        return sorted(self.given)


@contextlib.contextmanager
def uml_machines(
    folder: Path, image: Path, key: Path, names: Sequence[str], memory_mb: int = 1024
) -> Iterator[UmlMachines]:
    """Machines that can be logged in to with a key; nothing of them is left at the end."""
    addresses = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(names)}
    found = UmlMachines(addresses, key)
    taps = {name: f"ddm-{number}" for number, name in enumerate(names)}
    try:
        _ip(f"link add {BRIDGE} type bridge", f"address add {NETWORK}.254/24 dev {BRIDGE}", f"link set {BRIDGE} up")
        for name in names:
            _ip(f"tuntap add dev {taps[name]} mode tap", f"link set {taps[name]} master {BRIDGE} up")
            found.processes.append(_start(folder / name, image, key, name, addresses[name], taps[name], memory_mb))
        for name in names:
            _wait(found, name, folder / name / "console")
        yield found
    finally:
        for process in found.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for device in (*taps.values(), BRIDGE):
            if Path(f"/sys/class/net/{device}").exists():
                _ip(f"link del {device}")
        for name in names:
            (folder / name / "disk").unlink(missing_ok=True)


def _ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def _start(
    job: Path, image: Path, key: Path, name: str, address: str, tap: str, memory_mb: int
) -> subprocess.Popen[bytes]:
    job.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(job / "host_key")], check=True)
    (job / "key.pub").write_bytes(key.with_suffix(".pub").read_bytes())
    with (job / "disk").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(job / "disk")], check=True)
    (job / "init").write_text(INIT.format(job=job, image=image, name=name, address=address))
    (job / "init").chmod(0o755)
    options = [f"mem={memory_mb}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
    options += [f"init={job}/init", f"ubd0={job}/disk", f"vec0:transport=tap,ifname={tap},depth=128,gro=1"]
    options += ["con=null", "con0=null,fd:1", "ssl=null", "quiet", f"umid={name}", f"uml_dir={job}/uml"]
    kernel = uml_kernel.command(options, job)
    with (job / "console").open("wb") as console:
        return subprocess.Popen(
            kernel, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait(found: UmlMachines, name: str, console: Path) -> None:
    end = time.monotonic() + BOOT_LIMIT_S
    while True:
        command = ["ssh", *OPTIONS, "-i", str(found.key), f"root@{found.addresses[name]}", "true"]
        if subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0:
            return
        assert time.monotonic() < end, console.read_text(errors="replace")[-3000:]
        time.sleep(0.5)
