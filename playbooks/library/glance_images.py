"""Ansible module: images that a Glance has from the beginning, without an upload."""

from __future__ import annotations

import hashlib
import json
import pwd
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: glance_images
short_description: Public images in a file store and in its database
description:
  - Each image's file is linked into this host's store, and its rows are put into the database unless they are there.
    Images have the same identity everywhere, so sites that share a database have each the file in a store of their own.
options:
  environment_directory: {description: Python environment of OpenStack., type: path, required: true}
  database: {description: URL of Glance's database., type: str, required: true}
  directory: {description: The file store., type: path, required: true}
  images:
    description: id, name, path, disk_format, container_format and properties of each.
    type: list
    elements: dict
    required: true
"""
OWNER = "glance"
PROGRAM = r"""
import json, sys
from urllib.parse import unquote, urlsplit
import pymysql

asked = json.load(sys.stdin)
url = urlsplit(asked["database"])
connection = pymysql.connect(host=url.hostname, port=url.port or 3306, database=url.path.strip("/"),
                             user=url.username, password=unquote(url.password),
                             connect_timeout=30, read_timeout=120, autocommit=False)
changes = []
DEADLOCK, DUPLICATE = 1213, 1062

def put(cursor, image):
    cursor.execute("SELECT 1 FROM images WHERE id = %s", (image["id"],))
    if cursor.fetchone():
        return
    cursor.execute(
        "INSERT INTO images (id, name, size, status, created_at, updated_at, deleted, disk_format, container_format,"
        " checksum, min_disk, min_ram, protected, visibility, os_hidden, os_hash_algo, os_hash_value)"
        " VALUES (%s, %s, %s, 'active', UTC_TIMESTAMP(), UTC_TIMESTAMP(), 0, %s, %s, %s, 0, 0, 0, 'public', 0,"
        " 'sha512', %s)",
        [image[key] for key in ("id", "name", "size", "disk_format", "container_format", "md5", "sha512")])
    cursor.execute(
        "INSERT INTO image_locations (image_id, value, created_at, updated_at, deleted, meta_data, status)"
        " VALUES (%s, %s, UTC_TIMESTAMP(), UTC_TIMESTAMP(), 0, %s, 'active')",
        (image["id"], image["location"], json.dumps({"store": "file"})))
    for name, value in sorted(image["properties"].items()):
        cursor.execute(
            "INSERT INTO image_properties (image_id, name, value, created_at, updated_at, deleted)"
            " VALUES (%s, %s, %s, UTC_TIMESTAMP(), UTC_TIMESTAMP(), 0)", (image["id"], name, str(value)))
    changes.append(image["name"])

with connection, connection.cursor() as cursor:
    for image in asked["images"]:
        for attempt in range(20):
            try:
                put(cursor, image)
                connection.commit()
                break
            except pymysql.MySQLError as error:  # another site's host puts the same image into a shared database
                connection.rollback()
                if error.args[0] not in (DEADLOCK, DUPLICATE) or attempt == 19:
                    raise
print(json.dumps(changes))
"""


def digests(path: Path) -> dict[str, object]:
    """Size, md5 and sha512 of a file, as Glance keeps them."""
    md5, sha512 = hashlib.md5(usedforsecurity=False), hashlib.sha512()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            md5.update(chunk)
            sha512.update(chunk)
    return {"size": path.stat().st_size, "md5": md5.hexdigest(), "sha512": sha512.hexdigest()}


def link(directory: Path, identity: str, path: Path) -> bool:
    """The store's file of an image: a link to where its content is. Returns whether it had to be made."""
    place = directory / identity
    if place.is_symlink() and place.readlink() == path:
        return False
    new = directory / f".{identity}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(path)
    new.replace(place)
    return True


def main() -> None:
    """Link files, then put rows."""
    texts = {name: {"type": "str", "required": True} for name in ("id", "name", "disk_format", "container_format")}
    image = {**texts, "path": {"type": "path", "required": True}, "properties": {"type": "dict", "default": {}}}
    module = AnsibleModule(
        argument_spec={
            "environment_directory": {"type": "path", "required": True},
            "database": {"type": "str", "required": True, "no_log": True},
            "directory": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True, "options": image},
        }
    )
    directory = Path(module.params["directory"])
    images, linked = [], False
    try:
        if not directory.is_dir():
            owner = pwd.getpwnam(OWNER)
            directory.mkdir(mode=0o750)
            shutil.chown(directory, owner.pw_uid, owner.pw_gid)
        for asked in module.params["images"]:
            linked |= link(directory, asked["id"], Path(asked["path"]))
            location = f"file://{directory / asked['id']}"
            images.append({**asked, **digests(Path(asked["path"])), "location": location})
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    done = subprocess.run(
        [f"{module.params['environment_directory']}/bin/python", "-c", PROGRAM],
        input=json.dumps({"database": module.params["database"], "images": images}),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        module.fail_json(msg=f"Glance's database: {lines[-1]}", stderr=done.stderr)
    changes = json.loads(done.stdout)
    module.exit_json(changed=bool(changes or linked), changes=changes)


if __name__ == "__main__":
    main()
