"""Ansible module: one member of a Galera cluster, set going in the way that was decided for it."""

from __future__ import annotations

import re
from pathlib import Path

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: galera_member
short_description: Start a member of a Galera cluster
options:
  act: {description: What the filter galera_plan decided., type: str, required: true}
  seed: {description: Data directory of a member that was shut down cleanly., type: path, required: true}
  view: {description: gvwstate.dat for C(form)., type: str, default: ''}
"""
VIEW = "gvwstate.dat"
POSITION = "grastate.dat"


def may_bootstrap(text: str, may: bool) -> str:
    """A grastate.dat that says whether its member may start a cluster."""
    return re.sub(r"^safe_to_bootstrap:.*$", f"safe_to_bootstrap: {int(may)}", text, flags=re.MULTILINE)


def go(act: str, seed: Path, view: str) -> None:
    """Lay out data as the act needs them, and start. Waits only for the first member of a restarted cluster."""
    mariadb.stop(kill=act in ("form", "join empty"))
    mariadb.run("systemctl", "daemon-reload")
    if act == "form":
        position = may_bootstrap((seed / POSITION).read_text(), may=False)
        mariadb.lay_out(seed, {VIEW: view, POSITION: position})
    elif act == "join empty":
        mariadb.lay_out(None, {})
    else:
        (mariadb.DATA / VIEW).unlink(missing_ok=True)
    if act == "bootstrap":
        position_file = mariadb.DATA / POSITION
        position_file.write_text(may_bootstrap(position_file.read_text(), may=True))
        mariadb.run("galera_new_cluster")
    else:
        mariadb.run("systemctl", "start", "--no-block", mariadb.UNIT)


def main() -> None:
    """Do it."""
    module = AnsibleModule(
        argument_spec={
            "act": {"type": "str", "required": True, "choices": ["form", "bootstrap", "join", "join empty"]},
            "seed": {"type": "path", "required": True},
            "view": {"type": "str", "default": ""},
        }
    )
    try:
        go(module.params["act"], Path(module.params["seed"]), module.params["view"])
    except (mariadb.ServerError, OSError) as error:
        module.fail_json(msg=f"{module.params['act']}: {error}")
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
