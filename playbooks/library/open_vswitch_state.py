"""Ansible module: this host's switch: which datapath it can have, what it is told, whether it is connected."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

from ansible.module_utils import ovn
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: open_vswitch_state
short_description: The datapath, identity and bridges of Open vSwitch on a host
description:
  - C(look) finds out whether the kernel has Open vSwitch's datapath (C(system)) or the userspace one is needed
    (C(netdev)). C(make) tells the switch's database who it is, where OVN is, and its bridges. C(wait) ends when OVN's
    controller is connected. C(remove) removes interfaces that a killed switch leaves.
options:
  step: {description: What to do., type: str, choices: [look, make, wait, remove], required: true}
  host: {description: The host's name, which is nova's too., type: str, default: ''}
  address: {description: Site address, where tunnels arrive., type: str, default: ''}
  ovn_sb: {description: OVN's southbound database., type: str, default: ''}
  datapath: {description: What C(look) has found., type: str, choices: [system, netdev, ''], default: ''}
  limit_s: {description: Seconds until a wait is given up., type: int, default: 60}
"""
GENERIC_NETLINK, CONTROL, GET_FAMILY, FAMILY_NAME, ERROR = 16, 16, 3, 2, 2
BRIDGES = {"br-int": "secure", "br-ex": "standalone"}
"""Bridge -> fail mode. br-ex is what the network `physnet1` is mapped to; no interface of the host is in it."""


def kernel_has_datapath() -> bool:
    """Whether the kernel (asked by generic netlink) knows the family `ovs_datapath`."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", "openvswitch"], check=False, timeout=60)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC_NETLINK) as connection:
        connection.settimeout(5)
        connection.bind((0, 0))
        connection.send(request("ovs_datapath"))
        kind = struct.unpack_from("=H", connection.recv(65536), 4)[0]
    return bool(kind != ERROR)


def request(family: str) -> bytes:
    """The message that asks the kernel for a family of generic netlink."""
    name = family.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), FAMILY_NAME) + name
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("=BBH", GET_FAMILY, 1, 0) + attribute
    return struct.pack("=IHHII", 16 + len(body), CONTROL, 1, 1, 0) + body


def settings(host: str, address: str, ovn_sb: str, datapath: str) -> list[str]:
    """Words of one `ovs-vsctl` transaction."""
    ids = {
        "system-id": host, "hostname": host, "ovn-remote": ovn_sb, "ovn-encap-type": "geneve", "ovn-encap-ip": address,
        "ovn-bridge-datapath-type": datapath, "ovn-bridge-mappings": "physnet1:br-ex",
        "ovn-remote-probe-interval": "60000", "ovn-openflow-probe-interval": "60",
        # invented chassis do not say so, and routers go where one says so
        "ovn-cms-options": "enable-chassis-as-gw",
    }  # fmt: skip
    words = ["set", "Open_vSwitch", ".", *(f'external_ids:{key}="{value}"' for key, value in ids.items())]
    bridges = {**BRIDGES, **({"br-tunnel": "standalone"} if datapath == "netdev" else {})}
    for bridge, mode in bridges.items():
        words += ["--", "--may-exist", "add-br", bridge]
        words += ["--", "set", "Bridge", bridge, f"datapath_type={datapath}", f"fail_mode={mode}"]
    return words


def make(host: str, address: str, ovn_sb: str, datapath: str) -> bool:
    """Say it to the switch's database, which need not have a switch yet. Returns whether it was news."""
    control = ("ovs-vsctl", "--no-wait", "--timeout=30")
    read = (*control, "--format=json", "--columns=external_ids,bridges", "list", "Open_vSwitch")
    ovn.run(*control, "init")
    before = ovn.run(*read)
    ovn.run(*control, *settings(host, address, ovn_sb, datapath))
    return before != ovn.run(*read)


def wait(host: str, limit_s: float) -> None:
    """Until the controller is connected. Raises ovn.OvnError."""
    until = time.monotonic() + limit_s
    while True:
        try:
            process = Path("/run/ovn/ovn-controller.pid").read_text().strip()
            answer = ovn.run("ovs-appctl", "-t", f"/run/ovn/ovn-controller.{process}.ctl", "connection-status")
            if answer.strip() == "connected":
                return
            problem = f"OVN's controller is {answer.strip()}"
        except (ovn.OvnError, OSError) as error:
            problem = str(error)
        if time.monotonic() > until:
            raise ovn.OvnError(f"{host}: after {limit_s:.0f} s: {problem}")
        time.sleep(0.3)


def remove() -> bool:
    """Remove taps and the pair of interfaces for tunnels, and the rules. Returns whether some were there."""
    names = {path.name for path in Path("/sys/class/net").iterdir()}
    left = sorted(names & {*BRIDGES, "br-tunnel", "ovs-netdev", "ovs-system", "tunnel-in", "tunnel-out"})
    for name in left:
        with contextlib.suppress(ovn.OvnError):  # the kernel removes one with another
            ovn.run("ip", "link", "delete", name)
    if Path("/run/netns/tunnels").exists():
        ovn.run("ip", "netns", "delete", "tunnels")
    if left and shutil.which("nft"):
        ovn.run("nft", "add table ip discovery_tunnels; delete table ip discovery_tunnels")
    return bool(left)


def main() -> None:
    """One step."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "make", "wait", "remove"], "required": True},
            **{name: {"type": "str", "default": ""} for name in ("host", "address", "ovn_sb")},
            "datapath": {"type": "str", "choices": ["system", "netdev", ""], "default": ""},
            "limit_s": {"type": "int", "default": 60},
        }
    )
    values = module.params
    try:
        if values["step"] == "look":
            module.exit_json(changed=False, datapath="system" if kernel_has_datapath() else "netdev")
        if values["step"] == "make":
            arguments = (values["host"], values["address"], values["ovn_sb"], values["datapath"])
            module.exit_json(changed=make(*arguments))
        if values["step"] == "remove":
            module.exit_json(changed=remove())
        wait(values["host"], values["limit_s"])
        module.exit_json(changed=False)
    except (ovn.OvnError, OSError) as error:
        module.fail_json(msg=f"Open vSwitch: {error}")


if __name__ == "__main__":
    main()
