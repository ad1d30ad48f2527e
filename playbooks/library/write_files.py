"""Ansible module: many small files in one go."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: write_files
short_description: Many small files with owner and mode, in one task
description:
  - Each file is replaced atomically, only when its content, owner or mode differ. Contents never appear in results.
options:
  files: {description: path, content, mode (0600) and owner of each., type: list, elements: dict, required: true}
  owner: {description: User and group where a file names none., type: str, default: root}
"""


def make_directory(path: Path, uid: int, gid: int) -> bool:
    """A directory (0750) with its missing parents, owned by the user. Returns whether it had to be made."""
    if path.is_dir():
        return False
    make_directory(path.parent, 0, 0)
    path.mkdir(mode=0o750 if (uid or gid) else 0o755)
    os.chown(path, uid, gid)
    return True


def is_as_wanted(path: Path, content: bytes, mode: int, uid: int, gid: int) -> bool:
    """Whether the file is already what it should be."""
    try:
        found = path.lstat()
        same = (found.st_mode, found.st_uid, found.st_gid) == (0o100000 | mode, uid, gid)
        return same and path.read_bytes() == content
    except FileNotFoundError:
        return False


def write(path: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    """Replace a file; it never exists half written or readable by others than it should."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chown(temporary, uid, gid)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main() -> None:
    """Write what differs; `written` names it."""
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True, "no_log": True},
        "mode": {"type": "str", "default": "0600"},
        "owner": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": options},
            "owner": {"type": "str", "default": "root"},
        },
        supports_check_mode=True,
    )
    written = []
    for file in module.params["files"]:
        path, content, mode = Path(file["path"]), file["content"].encode(), int(file["mode"], 8)
        owner = file["owner"] or module.params["owner"]
        try:
            uid, gid = pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid
        except KeyError:
            module.fail_json(msg=f"there is no user and group {owner}; run the role's install first")
        if is_as_wanted(path, content, mode, uid, gid):
            continue
        written.append(str(path))
        if not module.check_mode:
            try:
                make_directory(path.parent, uid, gid)
                write(path, content, mode, uid, gid)
            except OSError as error:
                module.fail_json(msg=f"{path}: cannot be written: {error.strerror}")
    module.exit_json(changed=bool(written), written=written)


if __name__ == "__main__":
    main()
