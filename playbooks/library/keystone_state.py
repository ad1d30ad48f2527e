"""Ansible module: an empty Keystone becomes this experiment's: the administrator's password, regions, endpoints."""

from __future__ import annotations

import json
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: keystone_state
short_description: The administrator's password, and a region with endpoints for each site
description:
  - Runs once for all sites, by Keystone's own Python, in one transaction over Keystone's own database connection, so
    that it works before any Keystone does and costs one process for any number of sites.
options:
  environment_directory: {description: Python environment of OpenStack., type: path, required: true}
  database: {description: URL of Keystone's database., type: str, required: true}
  admin_password: {description: Password of the user admin., type: str, required: true}
  urls: {description: Site (which is its region's name) -> URL of its Keystone., type: dict, required: true}
"""
PROGRAM = r"""
import json, sys, uuid
from urllib.parse import unquote, urlsplit
import bcrypt, pymysql

asked = json.load(sys.stdin)
url = urlsplit(asked["database"])
connection = pymysql.connect(host=url.hostname, port=url.port or 3306, database=url.path.strip("/"),
                             user=url.username, password=unquote(url.password),
                             connect_timeout=30, read_timeout=120, autocommit=False)
changes = []

def change(what, statement, *values):
    cursor.execute(statement, values)
    changes.append(what)

def is_password(text, hashed):
    try:
        return bcrypt.checkpw(text.encode(), hashed.encode())
    except ValueError:
        return False

with connection, connection.cursor() as cursor:
    cursor.execute("SELECT p.id, p.password_hash FROM password p JOIN local_user u ON p.local_user_id = u.id"
                   " WHERE u.name = 'admin' AND u.domain_id = 'default' ORDER BY p.created_at_int DESC LIMIT 1")
    row, hashed = cursor.fetchone()
    if not is_password(asked["admin_password"], hashed or ""):
        new = bcrypt.hashpw(asked["admin_password"].encode(), bcrypt.gensalt(12)).decode()
        change("password", "UPDATE password SET password_hash = %s WHERE id = %s", new, row)
    cursor.execute("SELECT id FROM service WHERE type = 'identity'")
    found = cursor.fetchone()
    service = found[0] if found else uuid.uuid4().hex
    if not found:
        change("service", "INSERT INTO service (id, type, enabled, extra) VALUES (%s, 'identity', 1, %s)",
               service, json.dumps({"name": "keystone"}))
    cursor.execute("SELECT id FROM region")
    regions = {name for (name,) in cursor}
    for name in sorted(set(asked["urls"]) - regions):
        change(name, "INSERT INTO region (id, description, extra) VALUES (%s, '', '{}')", name)
    wanted = {(name, interface): address for name, address in asked["urls"].items()
              for interface in ("public", "internal", "admin")}
    cursor.execute("SELECT id, region_id, interface, url FROM endpoint WHERE service_id = %s", (service,))
    present = {(region, interface): (row, address) for row, region, interface, address in cursor.fetchall()}
    for key, (row, address) in sorted(present.items()):
        if wanted.get(key) != address:
            change(key[0], "DELETE FROM endpoint WHERE id = %s", row)
    for key, address in sorted(wanted.items()):
        if present.get(key, (None, None))[1] != address:
            change(key[0], "INSERT INTO endpoint (id, interface, service_id, url, extra, enabled, region_id)"
                   " VALUES (%s, %s, %s, %s, '{}', 1, %s)", uuid.uuid4().hex, key[1], service, address, key[0])
    for name in sorted(regions - set(asked["urls"])):
        change(name, "DELETE FROM region WHERE id = %s", name)
    connection.commit()
print(json.dumps(changes))
"""


def main() -> None:
    """Run the program; `changes` says what was not as wanted."""
    module = AnsibleModule(
        argument_spec={
            "environment_directory": {"type": "path", "required": True},
            "database": {"type": "str", "required": True, "no_log": True},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "urls": {"type": "dict", "required": True},
        }
    )
    asked = {name: module.params[name] for name in ("database", "admin_password", "urls")}
    python = f"{module.params['environment_directory']}/bin/python"
    done = subprocess.run(
        [python, "-c", PROGRAM], input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        module.fail_json(msg=f"Keystone's database: {lines[-1]}", stderr=done.stderr)
    changes = sorted(set(json.loads(done.stdout)))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
