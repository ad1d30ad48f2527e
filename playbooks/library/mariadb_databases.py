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
  limit_s: {description: Seconds that a server which is coming up is waited for., type: int, default: 0}
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


def wait(server: mariadb.Server, limit_s: int) -> None:
    """Until the server answers. Raises ServerError, with its last words, when the time is over."""
    until = time.monotonic() + limit_s
    while True:
        try:
            mariadb.sql("DO 0", server)
        except mariadb.ServerError as error:
            if time.monotonic() > until:
                log = mariadb.run("journalctl", "-u", server.unit, "-n", "5", "-o", "cat", "--no-pager")
                raise mariadb.ServerError(f"{server.unit} did not come up in {limit_s} s: {error}\n{log}") from error
            time.sleep(PAUSE_S)
        else:
            return


def main() -> None:
    """Say it to the server, over its socket."""
    options = {name: {"type": "str", "required": True} for name in ("name", "user")}
    options["password"] = {"type": "str", "required": True, "no_log": True}
    databases = {"type": "list", "elements": "dict", "required": True, "options": options}
    server = {"type": "str", "choices": list(mariadb.SERVERS), "default": "mariadb"}
    limit = {"type": "int", "default": 0}
    module = AnsibleModule(argument_spec={"databases": databases, "server": server, "limit_s": limit})
    chosen = mariadb.SERVERS[module.params["server"]]
    try:
        if module.params["limit_s"]:
            wait(chosen, module.params["limit_s"])
        before = mariadb.sql(STATE, chosen)
        mariadb.sql(statements(module.params["databases"]), chosen)
        after = mariadb.sql(STATE, chosen)
    except mariadb.ServerError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=before != after)


if __name__ == "__main__":
    main()
