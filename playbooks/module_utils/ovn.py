"""What our modules know of OVN's two databases on this host, and of Open vSwitch's programs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DATA = Path("/var/lib/ovn")
SIDES = {"nb": ("OVN_Northbound", 6641, 6643), "sb": ("OVN_Southbound", 6642, 6644)}
"""Database -> its schema's name, the port for clients, the port for other members."""


class OvnError(Exception):
    """What could not be done."""


def run(*command: str, limit_s: float = 60.0) -> str:
    """A program's output. Raises OvnError with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise OvnError(f"{command[0]} has not ended after {limit_s:.0f} s") from None
    if done.returncode:
        raise OvnError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-800:] or f'code {done.returncode}'}")
    return done.stdout


def file_of(side: str) -> Path:
    """The file that holds a database."""
    return DATA / f"ovn{side}_db.db"


def connection(members: list[str], side: str) -> str:
    """How clients reach a database over all its members."""
    return ",".join(f"tcp:{address}:{SIDES[side][1]}" for address in members)


def status(side: str) -> dict[str, object]:
    """What this member of a cluster says: `member` (bool), `self` and `leader` (addresses; "" for none), `servers`.

    Raises:
        OvnError: the server does not answer.
    """
    control = f"/run/ovn/ovn{side}_db.ctl"
    return parsed_status(run("ovs-appctl", "-t", control, "cluster/status", SIDES[side][0], limit_s=10.0))


def parsed_status(text: str) -> dict[str, object]:
    """The same from the text that `cluster/status` answers."""
    fields = dict(re.findall(r"^(Status|Leader): (.*)$", text, re.MULTILINE))
    servers = re.findall(r"^ *(\w+) \(\w+ at tcp:([0-9.]+):\d+\)", text.partition("\nServers:\n")[2], re.MULTILINE)
    own = re.search(r"^Address: tcp:([0-9.]+):", text, re.MULTILINE)
    addresses = {**dict(servers), "self": own[1] if own else ""}
    return {
        "member": fields.get("Status") == "cluster member",
        "self": addresses["self"],
        "leader": addresses.get(fields.get("Leader", "unknown"), ""),
        "servers": [address for _, address in servers],
    }
