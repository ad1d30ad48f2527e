"""A Vagrant and a virsh whose machines are hosts that are there already: what EnOSlib and the provider ask of them.

Its first argument is `vagrant` or `virsh`: which of them it is. $FAKE_VAGRANT is a folder: `pool.json` says which hosts
stand for which machines (name -> address and key), `state.json` what was made. A machine that is made gets its address
on the device of its host; one that is destroyed leaves its host as it was. Where the Vagrantfile says
`# NAME never boots`, it does not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_VAGRANT"])
State = dict[str, dict[str, Any]]


def state() -> State:
    file = FOLDER / "state.json"
    return json.loads(file.read_text()) if file.exists() else {"machines": {}, "networks": {}}


def keep(new: State) -> None:
    partial = FOLDER / "state.new"
    partial.write_text(json.dumps(new, indent=1))
    partial.replace(FOLDER / "state.json")


def on(name: str, script: str) -> None:
    host = json.loads((FOLDER / "pool.json").read_text())[name]
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
    words = ["ssh", "-F", "/dev/null", *(word for option in options for word in ("-o", option)), "-i", host["key"]]
    subprocess.run([*words, f"root@{host['address']}", script], check=True, stdin=subprocess.DEVNULL)


SAVED = "for f in /etc/hosts /root/.ssh/authorized_keys; do test -e $f.before || cp -p $f $f.before; done"
RESTORED = "for f in /etc/hosts /root/.ssh/authorized_keys; do test ! -e $f.before || mv $f.before $f; done"


def asked() -> tuple[str, dict[str, str]]:
    """Prefix of the names, and machine -> address, of the Vagrantfile here."""
    text = Path("Vagrantfile").read_text()
    names = re.findall(r'config\.vm\.define "(.+?)"', text)
    addresses = re.findall(r'private_network, ip: "(.+?)"', text)
    prefix = re.findall(r"default_prefix = '(.+?)'", text)[0]
    return prefix, dict(zip(names, addresses, strict=True))


def up() -> None:
    prefix, machines = asked()
    text = Path("Vagrantfile").read_text()
    for name, address in machines.items():
        print(f"==> {name}: Waiting for machine to boot. This may take a few minutes...", flush=True)
        now = state()
        network = f"{Path.cwd().name}0"
        now["networks"].setdefault(network, {"address": f"{address.rpartition('.')[0]}.1"})
        machine = now["machines"].setdefault(f"{prefix}{name}", {"uuid": str(uuid.uuid4()), "address": address})
        keep(now)
        if f"# {name} never boots" in text:
            sys.exit("Timed out while waiting for the machine to boot.")
        on(name, f"{SAVED}; ip address replace {shlex.quote(address)}/24 dev mgmt0")
        keep({**now, "machines": {**now["machines"], f"{prefix}{name}": {**machine, "running": True}}})


def ssh_config(name: str) -> None:
    host = json.loads((FOLDER / "pool.json").read_text())[name]
    print(f"Host {name}\n  HostName {host['address']}\n  User vagrant\n  Port 22\n  IdentityFile {host['key']}")


def vagrant(words: list[str]) -> None:
    if words[:2] == ["box", "list"]:
        print("1,,box-name,paper\n1,,box-provider,libvirt\n1,,box-version,1")
    elif words[:2] == ["plugin", "list"]:
        print("vagrant-libvirt (0.11.2, system)")
    elif words[0] == "up":
        up()
    elif words[0] == "ssh-config":
        ssh_config(words[1])
    elif words[0] == "destroy":
        prefix, machines = asked()
        for name in machines:
            print(f"==> {name}: Removing domain...", flush=True)
            undefine(f"{prefix}{name}")
        now = state()
        now["networks"].pop(f"{Path.cwd().name}0", None)
        keep(now)
    elif words[0] != "provision":
        sys.exit(f"vagrant {words}: not known here")


def undefine(domain: str) -> None:
    now = state()
    machine = now["machines"].get(domain)
    if machine is not None:
        on(domain.split("_")[2], f"{RESTORED}; ip address del {machine['address']}/24 dev mgmt0 2>/dev/null; true")
        del now["machines"][domain]
        keep(now)


def virsh(words: list[str]) -> None:
    now = state()
    machines, networks = now["machines"], now["networks"]
    verb, rest = words[0], words[1:]
    if verb == "list":
        print("\n".join(name for name, one in machines.items() if "--all" in rest or one.get("running")))
    elif verb == "domuuid":
        print(machines[rest[0]]["uuid"])
    elif verb == "destroy":
        keep({**now, "machines": {**machines, rest[0]: {**machines[rest[0]], "running": False}}})
    elif verb == "undefine":
        undefine(rest[0])
    elif verb == "net-list":
        print("\n".join(networks))
    elif verb == "net-dumpxml":
        print(f"<network><ip address='{networks[rest[0]]['address']}' netmask='255.255.255.0'/></network>")
    elif verb == "net-undefine":
        keep({**now, "networks": {name: one for name, one in networks.items() if name != rest[0]}})
    elif verb not in ("net-destroy", "pool-list"):
        sys.exit(f"virsh {words}: not known here")


if __name__ == "__main__":
    if sys.argv[1] == "vagrant":
        vagrant(sys.argv[2:])
    else:
        virsh(sys.argv[sys.argv.index("--connect") + 2 :])
