"""Ansible module: wait until a member of a Galera cluster has all members around it and all data in it."""

from __future__ import annotations

import time

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: galera_wait
short_description: Wait until a member is synced in a cluster of all members
options:
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
            "members": {"type": "list", "elements": "dict", "required": True},
            "limit_s": {"type": "int", "default": 180},
        }
    )
    until = time.monotonic() + module.params["limit_s"]
    try:
        while problem := lacking(mariadb.galera_status(), module.params["members"]):
            stopped = not mariadb.is_active()
            if stopped or time.monotonic() > until:
                log = mariadb.run("journalctl", "-u", mariadb.UNIT, "-n", "8", "-o", "cat", "--no-pager")
                reason = "the server has stopped" if stopped else f"after {module.params['limit_s']} s {problem}"
                module.fail_json(msg=f"Galera: {reason}", stderr=log)
            time.sleep(PAUSE_S)
        (mariadb.DATA / mariadb.WHOLE).touch()
    except (mariadb.ServerError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
