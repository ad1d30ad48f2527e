"""Ansible module: Rally's database of a site, from the one that its environment brings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: rally_state
short_description: Rally's database of a site
description:
  - Copies the database that Rally's own tools made when its environment was built, and puts the site's address, name
    and password where it holds marks. Old results are lost when one of these has changed.
options:
  environment_directory: {description: Rally's Python environment., type: path, required: true}
  directory: {description: Where rally.db will be., type: path, required: true}
  auth_url: {description: Of the site's Keystone., type: str, required: true}
  region_name: {description: The site's region., type: str, required: true}
  password: {description: Of the user admin., type: str, required: true}
  user: {description: "A user without rights, and its project.", type: str, required: true}
  user_password: {description: Its password., type: str, required: true}
"""
MARKED = (("envs", "spec"), ("platforms", "plugin_spec"), ("platforms", "platform_data"))
"""Columns with JSON texts in which marks stand."""


def filled(value: object, marks: dict[str, str]) -> object:
    """JSON-like data with texts that are marks replaced."""
    if isinstance(value, dict):
        return {key: filled(item, marks) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, marks) for item in value]
    return marks.get(value, value) if isinstance(value, str) else value


def fill(database: Path, marks: dict[str, str]) -> None:
    """Replace the marks in a database."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in MARKED:
            for row, text in connection.execute(f"SELECT id, {column} FROM {table}").fetchall():
                new = json.dumps(filled(json.loads(text), marks))
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (new, row))


def content(database: Path) -> list[object] | None:
    """What stands in the marked columns; None when there is no such database."""
    if not database.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            queries = (f"SELECT {column} FROM {table} ORDER BY id" for table, column in MARKED)
            return [json.loads(text) for query in queries for (text,) in connection.execute(query)]
    except (sqlite3.DatabaseError, ValueError):
        return None


def environment_uuid(database: Path) -> str:
    """Of Rally's only environment."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return str(connection.execute("SELECT uuid FROM envs").fetchone()[0])


def main() -> None:
    """Make rally.db as it should be, and its environment the one that commands use."""
    texts = ("auth_url", "region_name", "user")
    passwords = ("password", "user_password")
    module = AnsibleModule(
        argument_spec={
            "environment_directory": {"type": "path", "required": True},
            "directory": {"type": "path", "required": True},
            **{name: {"type": "str", "required": True} for name in texts},
            **{name: {"type": "str", "required": True, "no_log": True} for name in passwords},
        }
    )
    seed = Path(module.params["environment_directory"]) / "share/discovery-deploy/rally.db"
    database = Path(module.params["directory"]) / "rally.db"
    marks = {f"@{name}@": module.params[name] for name in (*texts, *passwords)}
    os.umask(0o077)
    database.parent.mkdir(parents=True, exist_ok=True)
    database.parent.chmod(0o700)
    new = database.with_name(".rally.db.new")
    shutil.copyfile(seed, new)
    fill(new, marks)
    changed = content(new) != content(database)
    if changed:
        new.replace(database)
    else:
        new.unlink()
    # As `rally env use` does.
    chosen = Path("~root/.rally/globals").expanduser()
    text = f"RALLY_ENV={environment_uuid(database)}\n"
    if not chosen.exists() or chosen.read_text() != text:
        chosen.parent.mkdir(exist_ok=True)
        chosen.write_text(text)
        changed = True
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
