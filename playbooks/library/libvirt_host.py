"""Ansible module: what virtual machines run on: KVM where it works, and libvirt."""

from __future__ import annotations

import os
import select
import shutil
import stat
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: libvirt_host
short_description: KVM tried, libvirt started, virtual machines ended
description:
  - C(look) starts the guest under KVM and says whether virtual machines can use it (C(virt_type) is kvm) or need
    emulation (qemu), since there are machines whose KVM begins and then hangs; it also puts Debian's binding of libvirt
    where nova's Python finds it, and nothing else.
  - C(start) starts libvirt, again when its configuration has changed. C(remove) ends all virtual machines.
options:
  step: {description: What to do., type: str, choices: [look, start, remove], required: true}
  directory: {description: Where the binding is linked., type: path, default: ''}
  guest: {description: Directory of the guest's files., type: path, default: ''}
  changed_files: {description: Files that were written anew., type: list, elements: str, default: []}
"""
DEVICE = Path("/dev/kvm")
NUMBERS = Path("/sys/devices/virtual/misc/kvm/dev")
PACKAGES = Path("/usr/lib/python3/dist-packages")
SIGN = b"GUEST-UP"
"""What the guest says on its console when it runs."""
TRIAL_S = 6.0
"""Where KVM works the guest runs after one second."""


def kvm_works(guest: Path) -> bool:
    """Whether the guest runs under KVM here; makes the device in a container that lacks it."""
    if not DEVICE.exists():
        if not NUMBERS.exists():
            return False
        major, minor = map(int, NUMBERS.read_text().strip().split(":"))
        try:
            os.mknod(DEVICE, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        except OSError:
            return False
    machine = ["-machine", "pc,accel=kvm", "-m", "96", "-display", "none", "-nodefaults", "-no-reboot"]
    kernel = ["-kernel", str(guest / "vmlinuz"), "-initrd", str(guest / "initrd.gz"), "-append", "console=ttyS0 quiet"]
    with subprocess.Popen(
        ["qemu-system-x86_64", *machine, *kernel, "-serial", "stdio"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            return says(process.stdout.fileno(), SIGN, TRIAL_S)
        finally:
            process.kill()


def says(stream: int, sign: bytes, limit_s: float) -> bool:
    """Whether a stream has a text in it before its end and before the time is over."""
    until = time.monotonic() + limit_s
    heard = b""
    while sign not in heard:
        if not select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
            return False
        chunk = os.read(stream, 4096)
        if not chunk:
            return False
        heard += chunk
    return True


def link_binding(directory: Path) -> bool:
    """Link Debian's libvirt binding into a directory of its own. Returns whether that was news."""
    files = [path for pattern in ("libvirt*.py", "libvirtmod*.so") for path in sorted(PACKAGES.glob(pattern))]
    if not files:
        raise FileNotFoundError(f"there is no libvirt binding in {PACKAGES}; run the role's install first")
    wanted = {path.name: path for path in files}
    if directory.is_dir():
        # what Python compiles of them is beside the links
        present = [path for path in directory.iterdir() if path.name != "__pycache__"]
        if {path.name: path.readlink() if path.is_symlink() else None for path in present} == wanted:
            return False
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    for name, path in wanted.items():
        (directory / name).symlink_to(path)
    return True


def start(module: AnsibleModule, changed_files: list[str]) -> bool:
    """Start libvirt. Returns whether it had to be."""
    if any(path.startswith("/etc/systemd/") for path in changed_files):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    active = module.run_command(["systemctl", "is-active", "libvirtd.service"])[0] == 0
    if any(path.startswith("/etc/libvirt/") for path in changed_files) or not active:
        module.run_command(["systemctl", "restart", "libvirtd.service"], check_rc=True)
        return True
    return False


def remove(module: AnsibleModule) -> bool:
    """End and forget all virtual machines of a libvirt that runs. Returns whether there were some."""
    if module.run_command(["systemctl", "is-active", "libvirtd.service"])[0]:
        return False
    names = module.run_command(["virsh", "list", "--all", "--name"], check_rc=True)[1].split()
    running = module.run_command(["virsh", "list", "--name"], check_rc=True)[1].split()
    for name in names:
        if name in running:
            module.run_command(["virsh", "destroy", name])  # it may have ended by itself
        module.run_command(["virsh", "undefine", name], check_rc=True)
    return bool(names)


def main() -> None:
    """One step."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "start", "remove"], "required": True},
            "directory": {"type": "path", "default": ""},
            "guest": {"type": "path", "default": ""},
            "changed_files": {"type": "list", "elements": "str", "default": []},
        }
    )
    values = module.params
    try:
        if values["step"] == "look":
            linked = link_binding(Path(values["directory"]))
            module.exit_json(changed=linked, virt_type="kvm" if kvm_works(Path(values["guest"])) else "qemu")
        if values["step"] == "start":
            module.exit_json(changed=start(module, values["changed_files"]))
        module.exit_json(changed=remove(module))
    except OSError as error:
        module.fail_json(msg=f"libvirt: {error}")


if __name__ == "__main__":
    main()
