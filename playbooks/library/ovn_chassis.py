"""Ansible module: chassis of computes that have no switch, in OVN's southbound database."""

from __future__ import annotations

import hashlib
import ipaddress
import json

from ansible.module_utils import ovn
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ovn_chassis
short_description: What a real ovn-controller would register, for computes that have none
description:
  - Registers every chassis asked for, with its Chassis_Private row, and removes those that an earlier call registered
    and that are no longer asked for, all in one transaction. Chassis of real computes are left alone.
options:
  members: {description: Addresses of the southbound database's members., type: list, elements: str, required: true}
  chassis: {description: name and address of each., type: list, elements: dict, required: true}
"""
MARK = ("discovery-deploy", "invented")
"""In the external_ids of what we registered."""
ALIVE_MS = 4102444800000
"""When it was last heard of, in milliseconds since 1970: a time to come (2100), so that Neutron never calls it dead."""


def present(listed: str) -> dict[str, dict[str, str]]:
    """Name -> external_ids, from `list`'s JSON of the columns name and external_ids of Chassis."""
    return {name: dict(ids[1]) for name, ids in json.loads(listed)["data"]}


def encapsulation(name: str, taken: set[str]) -> str:
    """An address of 198.18.0.0/15 (for tests of networks) that no other chassis has: the database wants them unique.

    No packet ever goes there: what is bound to these chassis has no switch.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    while True:
        address = str(ipaddress.ip_address("198.18.0.1") + number % 0x1FFFE)
        if address not in taken:
            return address
        number += 1


def commands(wanted: dict[str, str], found: dict[str, dict[str, str]]) -> list[list[str]]:
    """Commands of one `ovn-sbctl` transaction; empty when all is as wanted.

    Args:
        wanted: name -> address of the host.
        found: what `present` says.
    """
    ours = {name: ids for name, ids in found.items() if ids.get(MARK[0]) == MARK[1]}
    gone = [name for name, ids in sorted(ours.items()) if wanted.get(name) != ids.get("address")]
    new = [name for name in sorted(wanted) if name in gone or name not in found]
    taken = {ids.get("encapsulation", "") for name, ids in ours.items() if name not in gone}
    made = [["--if-exists", "chassis-del", name] for name in gone]  # with its Chassis_Private
    for number, name in enumerate(new):
        address = encapsulation(name, taken)
        taken.add(address)
        made += _registration(number, name, wanted[name], address)
    return made


def _registration(number: int, name: str, host: str, address: str) -> list[list[str]]:
    chassis = [
        f"name={quoted(name)}", f"hostname={quoted(name)}", f"encaps=@e{number}",
        f"external_ids:{MARK[0]}={MARK[1]}", f"external_ids:address={quoted(host)}",
        f"external_ids:encapsulation={quoted(address)}",
        'other_config:ovn-bridge-mappings="physnet1:br-ex"', "other_config:datapath-type=netdev",
        "other_config:iface-types=tap",
    ]  # fmt: skip
    parts = ["type=geneve", f"ip={quoted(address)}", f"chassis_name={quoted(name)}", "options:csum=true"]
    return [
        [f"--id=@e{number}", "create", "Encap", *parts],
        [f"--id=@c{number}", "create", "Chassis", *chassis],
        ["create", "Chassis_Private", f"name={quoted(name)}", f"nb_cfg_timestamp={ALIVE_MS}", f"chassis=@c{number}"],
    ]


def quoted(text: str) -> str:
    """A text as `ovn-sbctl` reads it whatever stands in it."""
    return json.dumps(text)


def main() -> None:
    """Register and remove; `changes` names the chassis."""
    options = {name: {"type": "str", "required": True} for name in ("name", "address")}
    module = AnsibleModule(
        argument_spec={
            "members": {"type": "list", "elements": "str", "required": True},
            "chassis": {"type": "list", "elements": "dict", "required": True, "options": options},
        }
    )
    wanted = {entry["name"]: entry["address"] for entry in module.params["chassis"]}
    control = ("ovn-sbctl", "--timeout=60", f"--db={ovn.connection(module.params['members'], 'sb')}")
    try:
        listed = ovn.run(*control, "--format=json", "--columns=name,external_ids", "list", "Chassis")
        asked = commands(wanted, present(listed))
        if asked:
            words = [word for command in asked for word in ("--", *command)]
            ovn.run(*control, *words[1:], limit_s=90.0)
    except ovn.OvnError as error:
        module.fail_json(msg=f"OVN's southbound database: {error}")
    module.exit_json(changed=bool(asked))


if __name__ == "__main__":
    main()
