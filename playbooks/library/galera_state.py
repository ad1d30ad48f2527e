"""Ansible module: what a member of a Galera cluster is at the moment."""

from __future__ import annotations

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: galera_state
short_description: Whether this member had been part of a whole cluster, belongs to one now, and how far it came
description: Changes nothing. Returns C(state) for the filter galera_plan.
options: {}
"""


def main() -> None:
    """Look."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        whole = (mariadb.DATA / mariadb.WHOLE).exists()
        status = mariadb.galera_status() if mariadb.is_active() else {}
        primary = (
            status.get("wsrep_cluster_status") == "Primary" and status.get("wsrep_local_state_comment") == "Synced"
        )
        seqno = int(status.get("wsrep_last_committed", -1))
        if whole and not status:
            seqno = mariadb.recovered_seqno()
    except mariadb.ServerError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, state={"whole": whole, "primary": primary, "seqno": seqno})


if __name__ == "__main__":
    main()
