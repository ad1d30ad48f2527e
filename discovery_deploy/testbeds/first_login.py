"""The first login on a machine that is new: with the key of whoever made it; afterwards root has the experiment's.

It is also looked at what machine it is: roles are written for Debian 12.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import config_word, option_words
from discovery_deploy.system.strict import Strict
from discovery_deploy.testbeds.vagrant_plan import Way

LIMIT_S = 180.0
RELEASE = ("debian", "12")
"""ID and VERSION_ID of os-release on hosts."""

SCRIPT = """\
set -eu
. /etc/os-release
if ! command -v python3 >/dev/null; then echo "no python3" >&2; exit 10; fi
mkdir -p -m 700 /root/.ssh
touch /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
grep -qxF "$KEY" /root/.ssh/authorized_keys || printf '%s\\n' "$KEY" >> /root/.ssh/authorized_keys
printf %s "$HOSTS" > /etc/hosts
printf '%s %s\\n' "$ID" "$VERSION_ID"
ip -j -4 address show
"""
"""Run by sh as root; prints the release and what `ip` shows."""


class Entered(Strict):
    """What was seen on a machine."""

    address: str
    """Its address on the network of the sites."""
    device: str
    """Its network device with that address."""


def way_in(way: Way, known_hosts: Path) -> list[str]:
    """The ssh command line that runs `sh` as root on a machine, with the key of whoever made it. Pure.

    Args:
        way: to the machine.
        known_hosts: takes the host key that it shows at first, under its name; another one is refused then.
    """
    options = {
        "StrictHostKeyChecking": "accept-new", "HostKeyAlias": way.name, "HashKnownHosts": "no",
        "UserKnownHostsFile": config_word(known_hosts), "GlobalKnownHostsFile": "/dev/null", "ConnectTimeout": "30",
    }  # fmt: skip
    shell = "sh -s" if way.user == "root" else "sudo -n sh -s"
    words = ["ssh", "-F", "/dev/null", *option_words(options, way.key)]
    return [*words, "-p", str(way.port), "-l", way.user, "--", way.address, shell]


def host_keys(known_hosts: Path) -> dict[str, str]:
    """Host -> its public key, of a file that `way_in` has written; empty when there is none."""
    if not known_hosts.exists():
        return {}
    lines = known_hosts.read_text(encoding="utf-8").splitlines()
    return {name: key for name, _, key in (line.partition(" ") for line in lines) if key}


def enter(name: str, way: Sequence[str], public_key: str, addresses: Mapping[str, str]) -> Entered:
    """Let the experiment's key in for root, tell the machine the others' names, and see what it is.

    Args:
        name: of the host.
        way: command line that runs `sh` as root there, with its script on standard input.
        public_key: may log in as root from now on.
        addresses: host -> site address, of all hosts.
    Raises:
        TestbedError: it does not answer, is not the machine it was, is not Debian 12, lacks Python, or does not have
            its address.
    """
    lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in sorted(addresses.items()))]
    given = {"KEY": public_key.strip(), "HOSTS": "\n".join(lines) + "\n"}
    script = "".join(f"{key}={shlex.quote(value)}\n" for key, value in given.items()) + SCRIPT
    try:
        done = interruption.run(way, script, LIMIT_S)
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{name}: no answer by ssh within {LIMIT_S:g} s", "Reserve again, or release.") from None
    if "Host key verification failed" in done.stderr:
        raise TestbedError(
            f"{name}: it shows another host key than at its first login: another machine may answer in its place",
            "Look at the machines of this machine's hypervisor; then release, and reserve again.",
        )
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise TestbedError(f"{name}: the first login failed: {said}", "Look at the box, its `user` and its packages.")
    return seen(name, done.stdout, addresses[name])


def seen(name: str, printed: str, address: str) -> Entered:
    """What follows from what the script printed. Pure.

    Raises:
        TestbedError: it is not Debian 12, or no device has the address.
    """
    release, _, shown = printed.partition("\n")
    if tuple(release.split()) != RELEASE:
        raise TestbedError(f"{name}: it is {release}; hosts must be Debian 12", "Choose another box.")
    for link in json.loads(shown):
        if any(one.get("local") == address for one in link["addr_info"]):
            return Entered(address=address, device=link["ifname"])
    raise TestbedError(f"{name}: none of its network devices has the address {address}", "Release, and reserve again.")
