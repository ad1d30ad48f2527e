"""The box of Vagrant's machines: the base image with a kernel, as a disk that libvirt starts; baked once.

It has all that hosts of the variant `base` have, so that `prepare` on Vagrant's machines needs no network. libvirt
starts the kernel itself (direct kernel boot): the disk has no boot loader, and VirtualBox cannot start it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from discovery_deploy.agent import machine
from discovery_deploy.software import image
from discovery_deploy.system import files, programs
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress

NAME = "discovery-deploy"
"""Of the box, as Vagrant knows it."""
FOLDER = "boxes"
"""Of the cache."""
COMMAND_LIMIT_S = 1800.0
"""For a command of Vagrant's that makes no machine: the longest copies the box."""
DISK_GB = 16
"""Size of the machines' disk; what is not written takes no space."""

BOOT = {"kernel": "vmlinuz", "initrd": "initrd.img"}
"""Setting of Vagrant's libvirt provider -> file of the box, also beside it in the cache."""
PACKAGES = ("udev", "ifupdown", "isc-dhcp-client", "sudo", "fping", "kmod", "initramfs-tools")
"""What a virtual machine has besides the base image."""
KERNEL = "linux-image-cloud-amd64"
"""Has netem, HTB and u32, which shape the WAN."""
DRIVERS = ("ext4", "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod")
"""Kernel modules that find the disk; with these alone the initial ramdisk is small: emulated machines start sooner."""
UNMASKED = (
    "systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service", "systemd-modules-load.service",
)  # fmt: skip
"""Masked in the base image, where hosts have no devices of their own."""

_INSTALL = 'DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get install --yes --quiet=2 --no-install-recommends '
_HOST_KEY = """\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'f=/etc/ssh/ssh_host_ed25519_key; test -s $f || ssh-keygen -q -t ed25519 -N "" -f $f'
ExecStartPre=/usr/sbin/sshd -t
"""
"""Every machine makes its own host key when it starts for the first time."""
FILES = {
    "etc/systemd/system/ssh.service.d/host-key.conf": _HOST_KEY,
    "etc/ssh/sshd_config.d/vagrant.conf": "UseDNS no\nGSSAPIAuthentication no\nPasswordAuthentication no\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro,noatime 0 1\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 inet dhcp\n",
    "etc/hostname": f"{NAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {NAME}\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
}
"""Files of the box, and what is in them."""
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"
"""Of the kernel."""
EMULATED = "mitigations=off systemd.show_status=no"
"""Besides, where the machine is emulated: what guards against a real processor's faults guards nothing there, and costs
(a boot took 39 s of a processor without it, 50 with it; once each)."""
VAGRANTFILE = f"""\
Vagrant.configure("2") do |config|
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |libvirt|
    libvirt.machine_type = "q35"
    libvirt.kernel = File.expand_path("../vmlinuz", __FILE__)
    libvirt.initrd = File.expand_path("../initrd.img", __FILE__)
    libvirt.cmd_line = "{COMMAND_LINE}"
  end
end
"""
"""What every Vagrantfile that uses the box begins with."""

BUILD = """\
cd "$DIRECTORY"
"$@"
echo "I: installing is done; writing the disk"
cp -L root/vmlinuz root/initrd.img .
truncate -s "$DISK" disk
mke2fs -q -F -t ext4 -L root -d root disk
qemu-img convert -c -O qcow2 -o compression_type=zstd disk box.img
rm -rf disk root
echo "I: packing the box"
tar -cf "$BOX" metadata.json Vagrantfile box.img vmlinuz initrd.img
rm box.img
chmod 644 vmlinuz initrd.img
"""
"""Run by sh with the command that bakes `root` as its arguments."""

NEEDED = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils", "tar": "tar",
    "vagrant": "vagrant", "ssh-keygen": "openssh-client",
}  # fmt: skip
"""Commands that the build needs, and their Debian packages."""


def hooks() -> tuple[str, ...]:
    """Shell commands that make a virtual machine's tree of a copy of the base image, whose path is "$1". Pure."""
    written = []
    for path, text in FILES.items():
        written.append(f'mkdir -p "$(dirname "$1/{path}")"; printf %s {shlex.quote(text)} > "$1/{path}"')
    return (
        f'chroot "$1" systemctl --quiet unmask {" ".join(UNMASKED)}',
        _INSTALL + " ".join(PACKAGES),
        'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/discovery-deploy"',
        f'printf "%s\\n" {" ".join(DRIVERS)} >> "$1/etc/initramfs-tools/modules"',
        _INSTALL + KERNEL,
        image.IDENTITY_HOOK,
        *written,
        'chmod 440 "$1/etc/sudoers.d/vagrant"; chroot "$1" useradd --create-home --shell /bin/bash vagrant',
        # $KEYS is Vagrant's own public key, which is known to everyone; `vagrant up` puts another one in its place
        'for home in root home/vagrant; do mkdir -p "$1/$home/.ssh"; cp "$KEYS" "$1/$home/.ssh/authorized_keys"; '
        'chmod 700 "$1/$home/.ssh"; chmod 600 "$1/$home/.ssh/authorized_keys"; done',
        'chroot "$1" sh -c "chown -R vagrant:vagrant ~vagrant/.ssh"',
        'rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*',
    )


def box_hash() -> str:
    """Hash of the recipe; the day of the bake is not in it."""
    return files.digest(image.image_hash(), hooks(), BUILD, VAGRANTFILE, DISK_GB)


def box_version(hash_: str) -> str:
    """The version of the box of a hash, as Vagrant takes it: Debian's version and a number that says nothing. Pure."""
    return f"12.{int(hash_[:8], 16)}"


def catalog(file: Path, version: str) -> str:
    """What Vagrant is told about the box, as JSON. Pure.

    Args:
        file: the box.
        version: of the box: libvirt's copy of the disk is named after it, so another disk needs another version.
    """
    providers = [{"name": "libvirt", "url": file.as_uri()}]
    return json.dumps({"name": NAME, "versions": [{"version": version, "providers": providers}]}, indent=2) + "\n"


def metadata() -> str:
    """What Vagrant finds in the box about its disk, as JSON. Pure."""
    return json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GB}) + "\n"


def built(cache: Path) -> Path:
    """Where the cache has this version's box, when it has it."""
    return cache.absolute() / FOLDER / box_hash()


def build(cache: Path, progress: Progress) -> Path:
    """The directory of the cache with the box: `discovery-deploy.box`, `catalog.json`, and the files of `BOOT`.

    Raises:
        TestbedError: not root, a command is missing, or the build failed; the end of its log is quoted.
    """
    cache = cache.absolute()
    target = built(cache)
    if target.is_dir():
        return target
    missing = machine.missing_commands(NEEDED)
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise TestbedError(f"the box cannot be built without {', '.join(missing)}", f"apt-get install -y {packages}")
    base = image.base_image(cache, progress)

    def make(directory: Path) -> None:
        progress("building the box (two minutes, once)")
        directory.mkdir()
        (directory / "metadata.json").write_text(metadata(), encoding="utf-8")
        (directory / "Vagrantfile").write_text(VAGRANTFILE, encoding="utf-8")
        (directory / "catalog.json").write_text(catalog(target / f"{NAME}.box", box_version(target.name)))
        (directory / "keys").write_text(vagrant_public_keys(), encoding="utf-8")
        log = files.private_folder(cache / "logs") / f"box-{target.name}.log"
        variables = {
            **os.environ, "DIRECTORY": str(directory), "BOX": f"{NAME}.box", "DISK": f"{DISK_GB}G",
            "KEYS": str(directory / "keys"),
        }  # fmt: skip
        told = programs.steps(r"^I: (installing|extracting|down|packing).*", progress)
        with image.apt_options_file() as options:
            bake = image.bake_command(directory / "root", options, base, hooks())
            command = programs.contained(["/bin/sh", "-euc", BUILD, "build", *bake])
            sources = image.sources_text(image.apt_sources())
            programs.run_logged(command, log, "the build of the box", told, variables, stdin=sources)

    return files.made_once(target, make, "the box", progress)


def vagrant_public_keys() -> str:
    """Public parts of the keys with which Vagrant enters a machine that is new: everyone knows them. One a line.

    Raises:
        TestbedError: Vagrant is missing, or has no such key.
    """
    vagrant("box", "list")  # makes its keys when it runs for the first time
    home = vagrant_home()
    files = [home / "insecure_private_key", *sorted((home / "insecure_private_keys").glob("vagrant.key.*"))]
    found = [_run(["ssh-keygen", "-y", "-f", str(file)]).strip() for file in files if file.exists()]
    if not found:
        raise TestbedError(f"{home}: Vagrant has no file insecure_private_key there", "apt-get install -y vagrant")
    return "\n".join(dict.fromkeys(found)) + "\n"


def vagrant_home() -> Path:
    """Where Vagrant keeps boxes and keys: $VAGRANT_HOME, else ~/.vagrant.d."""
    return Path(os.environ.get("VAGRANT_HOME") or Path.home() / ".vagrant.d").absolute()


def versions() -> list[str]:
    """Versions of our box that Vagrant has. Raises TestbedError."""
    return sorted(version for name, provider, version in boxes() if (name, provider) == (NAME, "libvirt"))


def boxes() -> list[tuple[str, str, str]]:
    """The boxes that Vagrant has: name, provider and version. Raises TestbedError."""
    return parse_boxes(vagrant("box", "list", "--machine-readable"))


def parse_boxes(listed: str) -> list[tuple[str, str, str]]:
    """Boxes in what `vagrant box list --machine-readable` prints. Pure."""
    found: list[dict[str, str]] = []
    for line in listed.splitlines():
        words = line.split(",", 3)
        if len(words) == 4 and words[2].startswith("box-"):
            if words[2] == "box-name":
                found.append({})
            if found:
                found[-1][words[2]] = words[3]
    return [(box["box-name"], box.get("box-provider", ""), box.get("box-version", "")) for box in found]


def register(directory: Path, progress: Progress) -> str:
    """Give a built box to Vagrant, which makes its own copy, and take older versions from it; the version.

    Raises:
        TestbedError: Vagrant is missing or failed.
    """
    version = box_version(directory.name)
    known = versions()
    if version not in known:
        progress("adding the box to Vagrant")
        vagrant("box", "add", "--provider", "libvirt", str(directory / "catalog.json"))
    for old in known:
        if old != version:
            progress(f"removing version {old} of the box from Vagrant")
            remove(old)
    return version


def remove(version: str) -> None:
    """Take a version of our box from Vagrant; machines that were made of it stay. Raises TestbedError."""
    vagrant("box", "remove", "--force", "--provider", "libvirt", "--box-version", version, NAME)


def vagrant(*arguments: str) -> str:
    """What a Vagrant command that needs no Vagrantfile prints. Raises TestbedError."""
    return _run(["vagrant", *arguments])


def _run(command: Sequence[str]) -> str:
    package = NEEDED.get(command[0], command[0])
    late = "Is another Vagrant at work? Look with `ps`, then run again."
    return programs.output(command, COMMAND_LIMIT_S, package, late, directory=Path("/"))  # with no Vagrantfile there
