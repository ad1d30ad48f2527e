"""First process of the fake Grid'5000: python -m tests.fake_g5k.world FOLDER BASE [BOX ACCELERATION]

Must be started in network, mount and process namespaces of its own (`g5k_bed.py` does). FOLDER holds all its files;
BASE is an unpacked Debian with sshd and Python. With BOX, the directory of Vagrant's box, what is deployed is a virtual
machine, and QEMU gets ACCELERATION. Says "ready" on standard output when all is there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fake_g5k import views
from tests.fake_g5k.api import ACCOUNTS, Api, Faults
from tests.fake_g5k.grid import Grid
from tests.fake_g5k.machines import NamespaceMachines, run
from tests.fake_g5k.virtual_machines import VirtualMachines

PORT = 5050
USER, PASSWORD = next(iter(ACCOUNTS.items()))


def home(work: Path, port: int) -> None:
    """A home directory with an ssh key and an account; its `.ssh` is what every ssh in here takes for root's own."""
    keys = work / "home" / ".ssh"
    keys.mkdir(parents=True, mode=0o700)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "id_ed25519"))
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / "host_key"))
    account = work / "home" / ".python-grid5000.yaml"
    account.touch(0o600)
    account.write_text(
        f"uri: http://127.0.0.1:{port}/stable\nusername: {USER}\npassword: {PASSWORD}\nverify_ssl: false\n"
    )
    Path("/root/.ssh").mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", str(keys), "/root/.ssh")


def network(work: Path) -> None:
    """Bridges of the gateway (0) and of the sites, routes between them, and names."""
    hosts = work / "hosts"
    lines = [f"{address} {name}" for name, address in views.names().items()]
    hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
    run("mount", "--bind", str(hosts), "/etc/hosts")
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for index in (0, *(index for index, _ in views.SITES.values())):
        run("ip", "link", "add", f"site{index}", "type", "bridge")
        run("ip", "link", "set", f"site{index}", "up")
        run("ip", "address", "add", f"10.103.{64 + index}.254/24", "dev", f"site{index}")
        for vlan in views.NAMED_VLANS if index else ():
            run("ip", "address", "add", f"10.103.{64 + index + 4 * vlan}.254/24", "dev", f"site{index}")


def main() -> None:
    work, base = Path(sys.argv[1]), Path(sys.argv[2])
    box = (Path(sys.argv[3]), sys.argv[4]) if len(sys.argv) > 3 else None
    home(work, PORT)
    network(work)
    machines = NamespaceMachines(work, base)
    if box is not None:
        machines = VirtualMachines(work, base, *box)
    if not machines.reserve(views.GATEWAY, USER):
        raise SystemExit("the gateway does not come up")
    faults = Faults(work / "faults.json")
    server = Api(PORT, Grid(machines, faults), faults, work / "calls.jsonl")
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error.cmd}: {error.stderr.decode()}") from error
