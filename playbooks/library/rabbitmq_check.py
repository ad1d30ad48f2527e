"""Ansible module: whether a RabbitMQ broker is what was asked for: all members, all accounts, no alarm."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: rabbitmq_check
short_description: Wait until a RabbitMQ member has all members around it and knows all accounts
description:
  - Asks the running broker by erl_call, which takes milliseconds where rabbitmqctl starts an Erlang of its own.
    On success remembers that the cluster has been whole.
options:
  address: {description: Site address of the member., type: str, required: true}
  members: {description: host and address of all members., type: list, elements: dict, required: true}
  users: {description: Users that must be known., type: list, elements: str, required: true}
  vhosts: {description: Virtual hosts that must be there., type: list, elements: str, required: true}
  directory: {description: Data of the broker., type: path, default: /var/lib/rabbitmq}
  limit_s: {description: Seconds until it is given up., type: int, default: 180}
"""
UNIT = "rabbitmq-server.service"
WHOLE = "discovery-deploy.whole"
PAUSE_S = 0.2
ASK_LIMIT_S = 20
EXPRESSION = """\
Text = fun(Term) -> iolist_to_binary(io_lib:format("~p", [Term])) end,
Answer = case rabbit:is_running() of
    false -> #{<<"running">> => false};
    true -> #{
        <<"running">> => true,
        <<"members">> => [atom_to_binary(Member) || Member <- rabbit_mnesia:cluster_nodes(running)],
        <<"known">> => [atom_to_binary(Member) || Member <- rabbit_mnesia:cluster_nodes(all)],
        <<"partitions">> => [atom_to_binary(Member) || Member <- rabbit_node_monitor:partitions()],
        <<"alarms">> => [Text(Alarm) || Alarm <- rabbit_alarm:get_alarms()],
        <<"vhosts">> => rabbit_vhost:list_names(),
        <<"users">> => [proplists:get_value(user, User) || User <- rabbit_auth_backend_internal:list_users()]
    }
end,
binary_to_list(base64:encode(iolist_to_binary(rabbit_json:encode(Answer)))).
"""
"""What the broker evaluates; base64, so that erl_call's way to print texts does not matter."""


def answer_of(printed: str) -> dict | None:
    """The broker's state from what erl_call printed; None when it is no answer."""
    found = re.search(r'\{ok,\s*"([A-Za-z0-9+/=\s]*)"\}', printed)
    return json.loads(base64.b64decode(found[1])) if found else None


def lacking(state: dict | None, members: list[dict], users: list[str], vhosts: list[str]) -> str:
    """What a broker still lacks, as a sentence; empty when nothing."""
    if state is None:
        return "the broker does not answer yet"
    if not state["running"]:
        return "the broker is still starting"
    names = {f"rabbit@{member['address']}": member["host"] for member in members}
    away = [names[name] for name in names if name not in state["members"]]
    if away:
        return f"{len(names) - len(away)} of {len(names)} members are together; away: {', '.join(away)}"
    strangers = sorted(set(state["known"]) - set(names))
    if strangers:
        return f"members that nobody asked for: {', '.join(strangers)}"
    for what, wanted in (("users", users), ("vhosts", vhosts)):
        missing = sorted(set(wanted) - set(state[what]))
        if missing:
            return f"{what} are missing: {', '.join(missing)}"
    if state["partitions"]:
        return f"the cluster is parted; not seen: {', '.join(state['partitions'])}"
    return f"alarms: {', '.join(state['alarms'])}" if state["alarms"] else ""


def ask(address: str, home: str) -> dict | None:
    """The state of the broker at an address; None while it does not answer. erl_call reads the cookie below `home`."""
    try:
        done = subprocess.run(
            ["erl_call", "-name", f"rabbit@{address}", "-e"],
            input=EXPRESSION, capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False,
            env={**os.environ, "HOME": home},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return answer_of(done.stdout)


def main() -> None:
    """Wait, and remember on success that the cluster has been whole."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "dict", "required": True},
            "users": {"type": "list", "elements": "str", "required": True},
            "vhosts": {"type": "list", "elements": "str", "required": True},
            "directory": {"type": "path", "default": "/var/lib/rabbitmq"},
            "limit_s": {"type": "int", "default": 180},
        }
    )
    wanted = [module.params[name] for name in ("members", "users", "vhosts")]
    until = time.monotonic() + module.params["limit_s"]
    watch = Watch([UNIT])
    try:
        while problem := lacking(ask(module.params["address"], module.params["directory"]), *wanted):
            if time.monotonic() > until:
                raise UnitError(f"after {module.params['limit_s']} s {problem}")
            watch.look()
            time.sleep(PAUSE_S)
        (Path(module.params["directory"]) / WHOLE).touch()
    except UnitError as error:
        told = watch.told()
        module.fail_json(msg=f"RabbitMQ at {module.params['address']} ({told.pop('state')}): {error}", **told)
    except OSError as error:
        module.fail_json(msg=f"RabbitMQ: {error}")
    module.exit_json(changed=False, report={"rabbitmq": {"members": len(wanted[0]), "vhosts": sorted(wanted[2])}})


if __name__ == "__main__":
    main()
