"""Ansible module: wait until a member of a Galera cluster has all members around it and all data in it."""

from __future__ import annotations

import time

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: galera_wait
short_description: Wait until a member is synced in a cluster of all members
options:
  host: {description: Whose member., type: str, required: true}
  members: {description: host, site and address of each., type: list, elements: dict, required: true}
  limit_s: {description: Seconds until it is given up., type: int, default: 180}
"""
PAUSE_S = 0.1


def lacking(status: dict[str, str], members: list[dict]) -> str:
    """What a member still lacks, as a sentence; empty when nothing."""
    if not status:
        return "the server does not answer yet"
    state = status.get("wsrep_local_state_comment", "unknown")
    if status.get("wsrep_cluster_status") != "Primary":
        return f"it belongs to no primary component ({state})"
    if status.get("wsrep_cluster_size") != str(len(members)):
        met = {address.rpartition(":")[0] for address in status.get("wsrep_incoming_addresses", "").split(",")}
        away = [f"{member['host']} at {member['site']}" for member in members if member["address"] not in met]
        return f"the cluster has {status.get('wsrep_cluster_size')} of {len(members)} members; away: {', '.join(away)}"
    return "" if state == "Synced" else f"it is not synced yet ({state})"


def main() -> None:
    """Wait, and remember on success that the cluster has been whole."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "dict", "required": True},
            "limit_s": {"type": "int", "default": 180},
        }
    )
    host, members, limit_s = (module.params[name] for name in ("host", "members", "limit_s"))
    site = next(member["site"] for member in members if member["host"] == host)
    until = time.monotonic() + limit_s
    try:
        while problem := lacking(mariadb.galera_status(), members):
            stopped = mariadb.condition() == "stopped"
            if stopped or time.monotonic() > until:
                reason = (
                    "has stopped" if stopped else f"is no member of the whole cluster after {limit_s} s ({problem})"
                )
                module.fail_json(msg=f"Galera: {mariadb.never_up(mariadb.SHARED, site, host, reason)}")
            time.sleep(PAUSE_S)
        (mariadb.DATA / mariadb.WHOLE).touch()
    except (mariadb.ServerError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
