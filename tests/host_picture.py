"""Prints all of a host that a release must leave as it was, as sorted lines; runs there, standard library only."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

LIVES_ITS_OWN_LIFE = (
    "/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/systemd", "/run/systemd",
    "/run/log", "/run/udev", "/run/user", "/run/sudo", "/run/utmp", "/var/lib/dpkg", "/var/lib/apt",
    "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock",
)  # fmt: skip


def entry(path: Path) -> str:
    """A path with mode, owner and content."""
    status = path.lstat()
    content = ""
    if path.is_symlink():
        content = str(path.readlink())
    elif path.is_file():
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"{path} {status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"


def files() -> list[str]:
    """Every file of the host's own."""
    found = []
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(folder, name)) not in LIVES_ITS_OWN_LIFE]
        found += [Path(folder, name) for name in (*folders, *names)]
    return [entry(path) for path in found if str(path) not in LIVES_ITS_OWN_LIFE and not _of_a_boot(path)]


def _of_a_boot(path: Path) -> bool:
    """Sockets, and what programs write at each start: numbers of processes, say."""
    return path.is_socket() or (path.parts[1] == "run" and not path.is_dir())


def said(*command: str) -> list[str]:
    """Lines of a program's output."""
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [f"{command[0]}: {line.strip()}" for line in shown.splitlines()]


def main() -> None:
    """All of it."""
    lines = files()
    lines += said("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain")
    lines += said("systemctl", "list-units", "--no-legend", "--no-pager", "--plain", "--type=service,socket")
    lines += [re.sub(r"refcnt.*", "", line) for line in said("tc", "qdisc", "show")]
    lines += said("ip", "-o", "link", "show")
    print("\n".join(sorted(line for line in lines if "session-" not in line)))


if __name__ == "__main__":
    main()
