"""Ansible module: OVN's two databases on a host, alone or as members of a Raft cluster."""

from __future__ import annotations

import time
from pathlib import Path

from ansible.module_utils import ovn
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ovn_database
short_description: OVN's northbound and southbound database seen, made, waited for
description:
  - C(look) says whether both files are there. C(make) creates what is not there, alone, as the first of a cluster, or
    as one that joins; a member that has lost its files is first put out of the cluster by its leader.
  - C(wait) ends when both databases can be written and all members belong to them.
options:
  step: {description: What to do., type: str, choices: [look, make, wait], required: true}
  address: {description: Site address of this member., type: str, default: ''}
  members: {description: Addresses of all members; the first makes the cluster., type: list, elements: str, default: []}
  present: {description: Addresses of the members that have their files., type: list, elements: str, default: []}
  northd: {description: Wait also for northd to follow a change., type: bool, default: false}
  limit_s: {description: Seconds until a wait is given up., type: int, default: 120}
"""
ELECTION_MS = 5000
"""A follower that has heard nothing for so long calls an election; leaders send three signs of life in that time. Fit
for round trips of 300 ms on hosts that are busy."""
PAUSE_S = 0.3


def decision(address: str, members: list[str], present: list[str], clustered: bool | None) -> str:
    """`keep`, `create` (alone), `found` (a cluster) or `join`.

    Args:
        clustered: of the file that is there; None for no file.
    Raises:
        ovn.OvnError: the file belongs to another kind of deployment.
    """
    if clustered is not None:
        if clustered != (len(members) > 1):
            raise ovn.OvnError("the database belongs to another deployment: run `destroy` first")
        return "keep"
    if len(members) == 1:
        return "create"
    return "found" if not present and address == members[0] else "join"


def clustered(path: Path) -> bool | None:
    """Whether a file is a member of a cluster; None for no file."""
    if not path.exists():
        return None
    return ovn.run("sh", "-c", f"if ovsdb-tool db-is-clustered {path}; then echo yes; fi").strip() == "yes"


def make(side: str, address: str, members: list[str], present: list[str]) -> bool:
    """Make one database as decided. Returns whether there was something to make."""
    path = ovn.file_of(side)
    name, _, port = ovn.SIDES[side]
    schema = f"/usr/share/ovn/ovn-{side}.ovsschema"
    act = decision(address, members, [other for other in present if other != address], clustered(path))
    if act == "keep":
        return False
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    mine = f"tcp:{address}:{port}"
    if act == "create":
        ovn.run("ovsdb-tool", "create", str(new), schema)
    elif act == "found":
        ovn.run("ovsdb-tool", f"--election-timer={ELECTION_MS}", "create-cluster", str(new), schema, mine)
    else:
        others = [other for other in (present or members[:1]) if other != address]
        ovn.run("ovsdb-tool", "join-cluster", str(new), name, mine, *(f"tcp:{other}:{port}" for other in others))
    new.replace(path)
    return True


def put_out(side: str, missing: list[str], limit_s: float) -> None:
    """On the leader: members that have lost their files leave the cluster, so that they can join anew.

    When the lost one was the leader, the others first have to notice and to elect another.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            seen = ovn.status(side)
        except ovn.OvnError:
            return  # it does not run: another is the leader
        lost = [address for address in missing if address in seen["servers"]]
        if not lost or seen["leader"] not in ("", seen["self"], *missing):
            return
        if seen["leader"] == seen["self"]:
            break
        if time.monotonic() > until:
            raise ovn.OvnError(f"the {side} database has no leader but members that are lost: {', '.join(lost)}")
        time.sleep(PAUSE_S)
    for address in lost:
        server = f"tcp:{address}:{ovn.SIDES[side][2]}"
        ovn.run("ovs-appctl", "-t", f"/run/ovn/ovn{side}_db.ctl", "cluster/kick", ovn.SIDES[side][0], server)


def lack(side: str, members: list[str]) -> str:
    """What a database still lacks; empty when it can be written and all members belong to it."""
    if len(members) > 1:
        seen = ovn.status(side)
        missing = sorted(set(members) - set(seen["servers"]))
        if missing:
            return f"the {side} database lacks its members at {', '.join(missing)}"
        if not (seen["member"] and seen["leader"]):
            return f"the {side} database has no leader"
    database = f"--db={ovn.connection(members, side)}"
    ovn.run(f"ovn-{side}ctl", "--timeout=10", database, "get-connection", limit_s=15.0)
    return ""


def wait(members: list[str], northd: bool, limit_s: float) -> None:
    """Until nothing is lacking. Raises ovn.OvnError at the limit, with what is."""
    until = time.monotonic() + limit_s
    while True:
        try:
            problem = next(filter(None, (lack(side, members) for side in ovn.SIDES)), "")
            if not problem and northd:
                database = f"--db={ovn.connection(members, 'nb')}"
                ovn.run("ovn-nbctl", "--timeout=20", database, "--wait=sb", "sync", limit_s=30.0)
            if not problem:
                return
        except ovn.OvnError as error:
            problem = str(error)
        if time.monotonic() > until:
            raise ovn.OvnError(f"after {limit_s:.0f} s: {problem}")
        time.sleep(PAUSE_S)


def main() -> None:
    """One step."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "make", "wait"], "required": True},
            "address": {"type": "str", "default": ""},
            "members": {"type": "list", "elements": "str", "default": []},
            "present": {"type": "list", "elements": "str", "default": []},
            "northd": {"type": "bool", "default": False},
            "limit_s": {"type": "int", "default": 120},
        }
    )
    values = module.params
    address, members, present = values["address"], values["members"], values["present"]
    try:
        if values["step"] == "look":
            module.exit_json(changed=False, present=all(ovn.file_of(side).exists() for side in ovn.SIDES))
        if values["step"] == "wait":
            wait(members, values["northd"], values["limit_s"])
            module.exit_json(changed=False)
        ovn.DATA.mkdir(parents=True, exist_ok=True)
        if address in present:
            for side in ovn.SIDES:
                put_out(side, [member for member in members if member not in present], values["limit_s"])
        made = [side for side in ovn.SIDES if make(side, address, members, present)]
        module.exit_json(changed=bool(made), made=made)
    except (ovn.OvnError, OSError) as error:
        module.fail_json(msg=f"OVN: {error}")


if __name__ == "__main__":
    main()
