"""Ansible module: an empty Keystone becomes this experiment's: passwords, regions, endpoints, services' users."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.database_program import run

DOCUMENTATION = """
module: keystone_state
short_description: The administrator's password, a region for each site, endpoints, and the services' and clients' users
description:
  - Runs once for all sites, by Keystone's own Python, in one transaction over Keystone's own database connection, so
    that it works before any Keystone does and costs one process for any number of sites.
options:
  environment_directory: {description: Python environment of OpenStack., type: path, required: true}
  database: {description: URL of Keystone's database., type: str, required: true}
  admin_password: {description: Password of the user admin., type: str, required: true}
  urls: {description: Site (which is its region's name) -> URL of its Keystone., type: dict, required: true}
  endpoints: {description: "region, service, type and url of services.", type: list, elements: dict, default: []}
  service_users: {description: Users in the project service., type: list, elements: str, default: []}
  service_password: {description: Their password., type: str, default: ''}
  bench_users: {description: "Users with the role member, each in a project of its name.", type: list, elements: str,
    default: []}
  bench_password: {description: Their password., type: str, default: ''}
  hash_rounds: {description: "Of bcrypt, as a power of two: what Keystone is configured with.", type: int,
    default: 12}
"""
PROGRAM = r"""
import datetime, uuid
import bcrypt

connection = connect(asked["database"])

def change(what, statement, *values):
    cursor.execute(statement, values)
    changes.append(what)

def is_password(text, hashed):
    try:
        return int(hashed.split("$")[2]) == asked["hash_rounds"] and bcrypt.checkpw(text.encode(), hashed.encode())
    except (IndexError, ValueError):
        return False

def new_hash(text):
    return bcrypt.hashpw(text.encode(), bcrypt.gensalt(asked["hash_rounds"])).decode()

def identity(table, **known):
    cursor.execute(f"SELECT id FROM {table} WHERE " + " AND ".join(f"{name} = %s" for name in known),
                   tuple(known.values()))
    found = cursor.fetchone()
    return found[0] if found else None

def insert(what, table, **columns):
    names = ", ".join(columns)
    change(what, f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(columns))})", *columns.values())

def set_administrator():
    cursor.execute("SELECT p.id, p.password_hash FROM password p JOIN local_user u ON p.local_user_id = u.id"
                   " WHERE u.name = 'admin' AND u.domain_id = 'default' ORDER BY p.created_at_int DESC LIMIT 1")
    row, hashed = cursor.fetchone()
    if not is_password(asked["admin_password"], hashed or ""):
        change("password", "UPDATE password SET password_hash = %s WHERE id = %s",
               new_hash(asked["admin_password"]), row)

def set_regions(wanted):
    cursor.execute("SELECT id FROM region")
    present = {name for (name,) in cursor}
    for name in sorted(wanted - present):
        insert(name, "region", id=name, description="", extra="{}")
    return present - wanted

# wanted: (region, interface) -> url
def set_endpoints(service_name, service_type, wanted):
    service = identity("service", type=service_type)
    if service is None:
        service = uuid.uuid4().hex
        insert(service_name, "service", id=service, type=service_type, enabled=1,
               extra=json.dumps({"name": service_name}))
    cursor.execute("SELECT id, region_id, interface, url FROM endpoint WHERE service_id = %s", (service,))
    present = {(region, interface): (row, address) for row, region, interface, address in cursor.fetchall()}
    for key, (row, address) in sorted(present.items()):
        if wanted.get(key) != address:
            change(key[0], "DELETE FROM endpoint WHERE id = %s", row)
    for key, address in sorted(wanted.items()):
        if present.get(key, (None, None))[1] != address:
            insert(key[0], "endpoint", id=uuid.uuid4().hex, interface=key[1], service_id=service, url=address,
                   extra="{}", enabled=1, region_id=key[0])

def set_project(name):
    project = identity("project", name=name, domain_id="default")
    if project is None:
        project = uuid.uuid4().hex
        insert(name, "project", id=project, name=name, extra="{}", description="", enabled=1, domain_id="default",
               parent_id="default", is_domain=0)
    return project

def set_user(name, project, roles, password):
    user = identity("local_user", name=name, domain_id="default")
    if user is None:
        row = uuid.uuid4().hex
        insert(name, "user", id=row, extra="{}", enabled=1, default_project_id=project, domain_id="default",
               created_at=now)
        insert(name, "local_user", user_id=row, domain_id="default", name=name)
        insert(name, "password", local_user_id=cursor.lastrowid, self_service=0, password_hash=hash_of(password),
               created_at=now, created_at_int=int(now.timestamp() * 1000000))
    else:
        cursor.execute("SELECT p.id, p.password_hash FROM password p WHERE p.local_user_id = %s"
                       " ORDER BY p.created_at_int DESC LIMIT 1", (user,))
        at, hashed = cursor.fetchone()
        if hashed != known_hashes.get(password) and not is_password(password, hashed or ""):
            change(name, "UPDATE password SET password_hash = %s WHERE id = %s", hash_of(password), at)
        else:
            known_hashes[password] = hashed
        cursor.execute("SELECT user_id FROM local_user WHERE id = %s", (user,))
        (row,) = cursor.fetchone()
    for role in roles:
        cursor.execute("SELECT 1 FROM assignment WHERE type = 'UserProject' AND actor_id = %s AND target_id = %s"
                       " AND role_id = %s", (row, project, role))
        if not cursor.fetchone():
            insert(name, "assignment", type="UserProject", actor_id=row, target_id=project, role_id=role, inherited=0)

# one hash for all users of a password, since hashing takes a third of a second
known_hashes = {}

def hash_of(password):
    if password not in known_hashes:
        known_hashes[password] = new_hash(password)
    return known_hashes[password]

def set_service_users():
    project = set_project("service")
    roles = [identity("role", name=name) for name in ("admin", "service")]
    for name in asked["service_users"]:
        set_user(name, project, roles, asked["service_password"])

def set_bench_users():
    for name in asked["bench_users"]:
        set_user(name, set_project(name), [identity("role", name="member")], asked["bench_password"])

KEYSTONE = {("keystone", "identity")}
INTERFACES = ("public", "internal", "admin")
now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
with connection, connection.cursor() as cursor:
    set_administrator()
    unwanted = set_regions(set(asked["urls"]) | {endpoint["region"] for endpoint in asked["endpoints"]})
    set_endpoints("keystone", "identity",
                  {(name, interface): url for name, url in asked["urls"].items() for interface in INTERFACES})
    for name, type_ in sorted({(endpoint["service"], endpoint["type"]) for endpoint in asked["endpoints"]} - KEYSTONE):
        set_endpoints(name, type_, {(endpoint["region"], interface): endpoint["url"]
                                    for endpoint in asked["endpoints"] if endpoint["type"] == type_
                                    for interface in INTERFACES})
    if asked["service_users"]:
        set_service_users()
    set_bench_users()
    for name in sorted(unwanted):
        change(name, "DELETE FROM region WHERE id = %s", name)
    connection.commit()
print(json.dumps(changes))
"""


def main() -> None:
    """Run the program; `changes` says what was not as wanted."""
    parts = {name: {"type": "str", "required": True} for name in ("region", "service", "type", "url")}
    module = AnsibleModule(
        argument_spec={
            "environment_directory": {"type": "path", "required": True},
            "database": {"type": "str", "required": True, "no_log": True},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "urls": {"type": "dict", "required": True},
            "endpoints": {"type": "list", "elements": "dict", "default": [], "options": parts},
            "service_users": {"type": "list", "elements": "str", "default": []},
            "service_password": {"type": "str", "default": "", "no_log": True},
            "bench_users": {"type": "list", "elements": "str", "default": []},
            "bench_password": {"type": "str", "default": "", "no_log": True},
            "hash_rounds": {"type": "int", "default": 12},
        }
    )
    asked = {name: value for name, value in module.params.items() if name != "environment_directory"}
    changes = sorted(set(run(module, PROGRAM, asked, "Keystone's database")))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
