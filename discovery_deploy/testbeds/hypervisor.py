"""Virtual machines of this machine as libvirt and VirtualBox tell of them: by name, whoever made them.

Vagrant's own records may be lost, or not yet written when it was killed; names are not.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree
from contextlib import suppress
from typing import Protocol

from discovery_deploy.system import programs
from discovery_deploy.system.errors import TestbedError

LIMIT_S = 60.0
PACKAGES = {"virsh": "libvirt-clients", "VBoxManage": "virtualbox"}
"""Commands, and the Debian packages that bring them."""


class Hypervisor(Protocol):
    """What runs virtual machines. Every verb raises TestbedError when it cannot be asked."""

    def machines(self) -> list[str]:
        """Names of all machines."""

    def running(self) -> list[str]:
        """Names of those that run."""

    def identity(self, machine: str) -> str:
        """Text that is another one when the machine was made anew."""

    def networks(self) -> dict[str, str]:
        """Name -> CIDR of the networks that it has, also where no machine runs."""

    def remove(self, prefix: str) -> list[str]:
        """Remove machines, disks and networks whose names begin so; names of what was there."""

    def left(self, prefix: str) -> list[str]:
        """Names of machines, disks and networks that begin so."""


class Libvirt:
    """libvirt, asked by virsh at $LIBVIRT_DEFAULT_URI, else qemu:///system."""

    def machines(self) -> list[str]:
        """See `Hypervisor`."""
        return _words(_virsh("list", "--all", "--name"))

    def running(self) -> list[str]:
        """See `Hypervisor`."""
        return _words(_virsh("list", "--state-running", "--name"))

    def identity(self, machine: str) -> str:
        """See `Hypervisor`."""
        return _virsh("domuuid", machine).strip()

    def networks(self) -> dict[str, str]:
        """See `Hypervisor`."""
        return {
            name: cidr
            for name in _words(_virsh("net-list", "--all", "--name"))
            if (cidr := network_cidr(_virsh("net-dumpxml", name)))
        }

    def remove(self, prefix: str) -> list[str]:
        """See `Hypervisor`."""
        found = self.left(prefix)
        running = self.running()
        for name in self.machines():
            if name.startswith(prefix):
                if name in running:
                    _virsh("destroy", name)
                _virsh("undefine", name, "--managed-save", "--snapshots-metadata", "--nvram")
        for pool, volume in _volumes(prefix):
            _virsh("vol-delete", "--pool", pool, volume)
        active = _words(_virsh("net-list", "--name"))
        for name in _words(_virsh("net-list", "--all", "--name")):
            if name.startswith(prefix):
                if name in active:
                    _virsh("net-destroy", name)
                _virsh("net-undefine", name)
        return found

    def left(self, prefix: str) -> list[str]:
        """See `Hypervisor`."""
        names = [*self.machines(), *_words(_virsh("net-list", "--all", "--name"))]
        return [*(name for name in names if name.startswith(prefix)), *(volume for _, volume in _volumes(prefix))]


class VirtualBox:
    """VirtualBox, asked by VBoxManage. Host-only networks are left: VirtualBox shares them among all machines."""

    def machines(self) -> list[str]:
        """See `Hypervisor`."""
        return virtualbox_names(_ask("VBoxManage", "list", "vms"))

    def running(self) -> list[str]:
        """See `Hypervisor`."""
        return virtualbox_names(_ask("VBoxManage", "list", "runningvms"))

    def identity(self, machine: str) -> str:
        """See `Hypervisor`."""
        shown = _ask("VBoxManage", "showvminfo", machine, "--machinereadable")
        found = re.search(r'^UUID="(.+)"$', shown, re.MULTILINE)
        return found[1] if found else ""

    def networks(self) -> dict[str, str]:
        """None: an experiment's network is told from this machine's addresses."""
        return {}

    def remove(self, prefix: str) -> list[str]:
        """See `Hypervisor`."""
        found = self.left(prefix)
        running = self.running()
        for name in found:
            if name in running:
                _ask("VBoxManage", "controlvm", name, "poweroff")
            _ask("VBoxManage", "unregistervm", name, "--delete")
        return found

    def left(self, prefix: str) -> list[str]:
        """See `Hypervisor`."""
        return [name for name in self.machines() if name.startswith(prefix)]


BACKENDS: dict[str, type[Libvirt] | type[VirtualBox]] = {"libvirt": Libvirt, "virtualbox": VirtualBox}
"""Backend of Vagrant -> what is asked."""


def address() -> str:
    """Where libvirt is."""
    return os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system"


def network_cidr(text: str) -> str:
    """The IPv4 network that a network's XML describes, as CIDR; "" when it has none. Pure."""
    for ip in xml.etree.ElementTree.fromstring(text).iter("ip"):
        if ip.get("family", "ipv4") == "ipv4" and ip.get("address"):
            return f"{ip.get('address')}/{ip.get('netmask') or ip.get('prefix') or '24'}"
    return ""


def virtualbox_names(listed: str) -> list[str]:
    """Names in what `VBoxManage list vms` prints. Pure."""
    return re.findall(r'^"(.+)" \{[0-9a-f-]+\}$', listed, re.MULTILINE)


def volume_names(listed: str) -> list[str]:
    """Names in what `virsh --quiet vol-list` prints: name and path on each line. Pure."""
    return [line.split()[0] for line in listed.splitlines() if line.split()]


def _volumes(prefix: str) -> list[tuple[str, str]]:
    """Pool and name of the disks whose names begin so."""
    found = []
    for pool in _words(_virsh("pool-list", "--name")):
        with suppress(TestbedError):  # a pool that cannot be refreshed still lists what it knows
            _virsh("pool-refresh", pool)
        names = volume_names(_virsh("vol-list", "--pool", pool))
        found += [(pool, name) for name in names if name.startswith(prefix)]
    return found


def _words(listed: str) -> list[str]:
    return [line.strip() for line in listed.splitlines() if line.strip()]


def _virsh(*arguments: str) -> str:
    return _ask("virsh", "--quiet", "--connect", address(), *arguments)


def _ask(*command: str) -> str:
    """What a command prints. Raises TestbedError: it is missing, failed, or took longer than `LIMIT_S`."""
    variables = {**os.environ, "LC_ALL": "C"}
    return programs.output(command, LIMIT_S, PACKAGES[command[0]], "Look at what runs the machines.", variables)
