"""Ansible module: who may use which database."""

from __future__ import annotations

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: mariadb_databases
short_description: Databases, each with a user that has all rights on it, from any address
options:
  databases: {description: name, user and password of each., type: list, elements: dict, required: true}
"""


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


def main() -> None:
    """Say it to the server, over its socket."""
    options = {name: {"type": "str", "required": True} for name in ("name", "user")}
    options["password"] = {"type": "str", "required": True, "no_log": True}
    databases = {"type": "list", "elements": "dict", "required": True, "options": options}
    module = AnsibleModule(argument_spec={"databases": databases})
    try:
        before = mariadb.sql("SELECT user, authentication_string FROM mysql.user ORDER BY 1; SHOW DATABASES;")
        mariadb.sql(statements(module.params["databases"]))
        after = mariadb.sql("SELECT user, authentication_string FROM mysql.user ORDER BY 1; SHOW DATABASES;")
    except mariadb.ServerError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=before != after)


if __name__ == "__main__":
    main()
