"""Ansible module: which cells Nova has, written into the database of its API."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.database_program import run

DOCUMENTATION = """
module: nova_cells
short_description: Nova's cells, with their databases and brokers
description:
  - Runs on one host for all cells, in one transaction, as C(nova-manage cell_v2) would in seconds per cell. A cell that
    is no longer asked for is removed with its hosts; it must hold no servers.
options:
  environment_directory: {description: Python environment of OpenStack., type: path, required: true}
  api_database: {description: URL of the API's database., type: str, required: true}
  cell0_database: {description: URL of cell0's database., type: str, required: true}
  cells: {description: name, database and broker of each., type: list, elements: dict, required: true}
"""
PROGRAM = r"""
import uuid

connection = connect(asked["api_database"])

def change(what, statement, *values):
    cursor.execute(statement, values)
    changes.append(what)

CELL0 = str(uuid.UUID(int=0))
SPACE = uuid.UUID("0d1a9a43-6a8f-5f0c-8e5e-3c1b8e2f7a10")
wanted = {CELL0: ("cell0", "none:///", asked["cell0_database"])}
wanted |= {str(uuid.uuid5(SPACE, cell["name"])): (cell["name"], cell["broker"], cell["database"])
           for cell in asked["cells"]}
with connection, connection.cursor() as cursor:
    cursor.execute("SELECT uuid, id, name, transport_url, database_connection FROM cell_mappings FOR UPDATE")
    present = {row[0]: row[1:] for row in cursor.fetchall()}
    for key in sorted(set(present) - set(wanted)):
        number, name = present[key][:2]
        cursor.execute("SELECT COUNT(*) FROM instance_mappings WHERE cell_id = %s", (number,))
        servers = cursor.fetchone()[0]
        if servers:
            sys.exit(f"cell {name} is to be removed but holds {servers} servers: delete them, or run `destroy` first")
        cursor.execute("DELETE FROM host_mappings WHERE cell_id = %s", (number,))
        change(name, "DELETE FROM cell_mappings WHERE id = %s", number)
    for key, values in wanted.items():
        if key not in present:
            change(values[0], "INSERT INTO cell_mappings (created_at, uuid, name, transport_url, database_connection,"
                   " disabled) VALUES (UTC_TIMESTAMP(), %s, %s, %s, %s, 0)", key, *values)
        elif present[key][1:] != values:
            change(values[0], "UPDATE cell_mappings SET updated_at = UTC_TIMESTAMP(), name = %s, transport_url = %s,"
                   " database_connection = %s WHERE uuid = %s", *values, key)
    connection.commit()
print(json.dumps(changes))
"""


def main() -> None:
    """Run the program; `changes` names the cells that were not as wanted."""
    options = {"name": {"type": "str", "required": True}}
    options |= {name: {"type": "str", "required": True, "no_log": True} for name in ("database", "broker")}
    module = AnsibleModule(
        argument_spec={
            "environment_directory": {"type": "path", "required": True},
            "api_database": {"type": "str", "required": True, "no_log": True},
            "cell0_database": {"type": "str", "required": True, "no_log": True},
            "cells": {"type": "list", "elements": "dict", "required": True, "options": options},
        }
    )
    asked = {name: module.params[name] for name in ("api_database", "cell0_database", "cells")}
    changes = run(module, PROGRAM, asked, "Nova's cells")
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
