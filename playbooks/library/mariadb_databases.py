"""Ansible module: who may use which database."""

from __future__ import annotations

import time

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: mariadb_databases
short_description: Databases, each with a user that has all rights on it, from any address
options:
  databases: {description: name, user and password of each., type: list, elements: dict, required: true}
  server: {description: Which server of the host., type: str, choices: [mariadb, site-mariadb], default: mariadb}
  site: {description: The server's site., type: str, required: true}
  host: {description: The server's host., type: str, required: true}
  limit_s:
    description:
      - Seconds that a server which is coming up is waited for. One that has stopped is waited for no longer. After a
        failure the unit is at rest, so that the next start is a new one.
    type: int
    default: 120
"""
PAUSE_S = 0.1
STATE = "SELECT user, authentication_string FROM mysql.user ORDER BY 1; SHOW DATABASES;"


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def statements(databases: list[dict[str, str]]) -> str:
    """SQL that makes databases and users as asked, whatever was there before."""
    lines = []
    for database in databases:
        name, user = f"`{database['name']}`", f"{quoted(database['user'])}@'%'"
        lines += [
            f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb3;",
            f"CREATE USER IF NOT EXISTS {user};",
            f"ALTER USER {user} IDENTIFIED BY {quoted(database['password'])};",
            f"GRANT ALL PRIVILEGES ON {name}.* TO {user};",
        ]
    return "\n".join(lines) + "\n"


def wait(server: mariadb.Server, site: str, host: str, limit_s: int) -> None:
    """Until the server answers. Raises ServerError, with its last words, when it has stopped or the time is over.

    One that is to be restarted may still answer: it is not asked before that is done.
    """
    until = time.monotonic() + limit_s
    while True:
        condition = mariadb.condition(server)
        try:
            if condition == "ordered":
                raise mariadb.ServerError("it is still starting")
            mariadb.sql("DO 0", server)
        except mariadb.ServerError as error:
            stopped = condition == "stopped"
            if stopped or time.monotonic() > until:
                reason = "has stopped" if stopped else f"does not answer after {limit_s} s ({error})"
                said = mariadb.never_up(server, site, host, reason)
                mariadb.stop(kill=True, server=server)
                raise mariadb.ServerError(said) from error
            time.sleep(PAUSE_S)
        else:
            return


def main() -> None:
    """Say it to the server, over its socket."""
    options = {name: {"type": "str", "required": True} for name in ("name", "user")}
    options["password"] = {"type": "str", "required": True, "no_log": True}
    databases = {"type": "list", "elements": "dict", "required": True, "options": options}
    server = {"type": "str", "choices": list(mariadb.SERVERS), "default": "mariadb"}
    place = {name: {"type": "str", "required": True} for name in ("site", "host")}
    limit = {"type": "int", "default": 120}
    module = AnsibleModule(argument_spec={"databases": databases, "server": server, **place, "limit_s": limit})
    chosen = mariadb.SERVERS[module.params["server"]]
    try:
        wait(chosen, module.params["site"], module.params["host"], module.params["limit_s"])
        before = mariadb.sql(STATE, chosen)
        mariadb.sql(statements(module.params["databases"]), chosen)
        after = mariadb.sql(STATE, chosen)
    except mariadb.ServerError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=before != after)


if __name__ == "__main__":
    main()
