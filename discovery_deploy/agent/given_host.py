"""A host that was given by hand is held for one experiment: looked at, marked, opened for root's key.

Runs there as root, standard library only; `host_cleaner`, which is sent with it, gives the host back. What experiments
leave on hosts (`traces.Traces`) comes with the request, so nothing of that is written here.

At the first `hold` a picture is taken of what is there, and what stands in the way of an experiment is moved aside. It
may be killed at any moment and done again.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import pwd
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HOME = "/var/lib/discovery-deploy/.given"
"""Where the host keeps who holds it and what was found. No experiment of provider `local` is called so."""
HELD, FOUND, KEPT, WHOLE, LEAVING = "held.json", "found.json", "kept", "kept.whole", "leaving"
Traces = dict[str, list[str]]
AT_WORK = ("active", "activating", "reloading", "deactivating")
LOCK_S = 30.0


class HostError(Exception):
    """Something that cannot be done here; the text names the place."""


class Files:
    """The files of a host, below a root that is another one in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.home = self.at(HOME)

    def at(self, path: str) -> Path:
        """Where an absolute path of the host is."""
        return self.root / path.lstrip("/")

    def named(self, path: Path) -> str:
        """The absolute path on the host."""
        return "/" + str(path.relative_to(self.root))

    def expand(self, patterns: Iterable[str]) -> list[str]:
        """Paths that are there, of those and by those patterns."""
        found: list[str] = []
        for pattern in patterns:
            if "*" in pattern:
                found += [self.named(path) for path in sorted(self.root.glob(pattern.lstrip("/")))]
            elif os.path.lexists(self.at(pattern)):
                found.append(pattern)
        return found

    def read(self, name: str) -> Any:
        """One of our own JSON files; None when it is not there."""
        try:
            return json.loads((self.home / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, name: str, value: Any) -> None:
        """Replace one of our own files in one act."""
        new = self.home / f"{name}.new"
        new.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(self.home / name)

    def remove(self, path: str) -> None:
        """Remove a file or a tree that may not be there. Raises HostError."""
        place = self.at(path)
        try:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif os.path.lexists(place):
                place.unlink()
        except OSError as error:
            raise HostError(f"{error.filename or path} cannot be removed: {error.strerror}") from error


def run(*command: str, good: tuple[int, ...] = (0,), limit_s: float = 120) -> str:
    """What a program prints. Raises HostError with what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(command)} timed out after {limit_s:g} s") from error
    if done.returncode not in good:
        raise HostError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


@contextmanager
def locked(files: Files) -> Iterator[None]:
    """Our folder for one process at a time. Raises HostError."""
    end = time.monotonic() + LOCK_S
    with (files.home / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise HostError(f"another program has held {HOME} for {LOCK_S:g} s") from None
                time.sleep(0.1)
        yield


# what is there


def unit_states(units: Iterable[str]) -> dict[str, dict[str, str]]:
    """Unit -> its properties; only those that systemd knows."""
    shown = run("systemctl", "show", "--property=Id,LoadState,ActiveState,UnitFileState", *units)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    return {block["Id"]: block for block in blocks if block.get("Id")}


def at_work(units: Iterable[str]) -> list[str]:
    """Those units that run, or are about to."""
    return [name for name, unit in unit_states(units).items() if unit["ActiveState"] in AT_WORK]


def device_of(address: str) -> str:
    """The network device that has an address. Raises HostError, naming those that there are."""
    links = json.loads(run("ip", "-j", "-4", "address", "show"))
    present = {entry["local"]: link["ifname"] for link in links for entry in link.get("addr_info", [])}
    if address not in present:
        known = ", ".join(f"{name} {one}" for one, name in present.items() if name != "lo")
        raise HostError(f"no network device has the site_address {address}; there are {known or 'none'}")
    return str(present[address])


def own_discipline(device: str) -> str:
    """The queueing discipline that somebody gave a device, or "" when it is the kernel's own choice."""
    for entry in json.loads(run("tc", "-j", "qdisc", "show", "dev", device) or "[]"):
        if entry.get("root") and entry.get("handle", "0:") != "0:":
            return f"{entry['kind']} {entry['handle']}"
    return ""


def machine_id(files: Files) -> str:
    """What systemd knows the host by."""
    return files.at("/etc/machine-id").read_text(encoding="ascii").strip()


def sshd_settings() -> dict[str, str]:
    """How sshd would treat root's login; empty when it is not OpenSSH's."""
    try:
        shown = run("/usr/sbin/sshd", "-T", "-C", "user=root,host=driver,addr=127.0.0.1")
    except HostError:
        return {}
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


def picture(files: Files, traces: Traces) -> dict[str, Any]:
    """What of an experiment's traces is there before it."""
    contents = {}
    for path in traces["contents"]:
        place = files.at(path)
        if place.is_dir():
            status = place.stat()
            contents[path] = [status.st_mode & 0o7777, status.st_uid, status.st_gid]
    return {
        "paths": files.expand(traces["paths"]),
        "scratch": files.expand(traces["scratch"]),
        "contents": contents,
        "users": [name for name in traces["users"] if known(pwd.getpwnam, name)],
        "groups": [name for name in traces["users"] if known(grp.getgrnam, name)],
        "interfaces": [name for name in traces["interfaces"] if Path("/sys/class/net", name).exists()],
        "units": {name: unit["UnitFileState"] for name, unit in unit_states(traces["units"]).items()},
        "timers": at_work(traces["timers"]),
    }


def known(look_up: Callable[[str], Any], name: str) -> bool:
    """Whether a name is that of a user (`pwd.getpwnam`) or of a group (`grp.getgrnam`)."""
    try:
        look_up(name)
    except KeyError:
        return False
    return True


def lacks(files: Files, request: dict[str, Any]) -> list[str]:
    """Why this host cannot be had: everything at once, one sentence each. Changes nothing."""
    found = []
    release = dict(line.split("=", 1) for line in files.at("/etc/os-release").read_text().splitlines() if "=" in line)
    system = tuple(release.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    if system != ("debian", "12"):
        found.append(f"it has {release.get('PRETTY_NAME', 'another system')}, and Debian 12 is needed")
    if not Path("/run/systemd/system").is_dir():
        found.append("systemd does not run on it")
        return found
    try:
        device = device_of(request["site_address"])
        if not files.read(FOUND) and own_discipline(device):
            how = f"remove it with `tc qdisc del dev {device} root`"
            found.append(f"{device} has a queueing discipline of its own ({own_discipline(device)}); {how}")
    except HostError as error:
        found.append(str(error))
    if not files.read(FOUND):
        busy = at_work(request["traces"]["units"])
        if busy:
            how = f"`systemctl disable --now {' '.join(busy)}` when nobody needs it"
            found.append(f"{', '.join(busy)} is at work, which experiments bring themselves; {how}")
    return found


# held


def hold(files: Files, request: dict[str, Any]) -> dict[str, Any]:
    """Take the host for an experiment, unless another one has it. Raises HostError when it lacks something."""
    problems = lacks(files, request)
    if problems:
        raise HostError("; ".join(problems))
    device, before = device_of(request["site_address"]), files.home.parent.exists()
    files.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(files):
        marker = files.read(HELD)
        if marker is not None and not is_holder(marker, request):
            return {"held_by": marker}
        token = marker["token"] if marker else secrets.token_hex(8)
        keys = ("experiment", "driver", "driver_name", "workspace")
        files.write(HELD, {**{key: request[key] for key in keys}, "token": token})
        if files.read(FOUND) is None:
            files.write(FOUND, {**picture(files, request["traces"]), "device": device, "ours_alone": not before})
        timers = at_work(request["traces"]["timers"])
        if timers:
            run("systemctl", "stop", *timers)
        move_aside(files, request["traces"])
        give_key(files, request["key"], request["mark"])
    return {"held_by": None, "identity": f"{machine_id(files)} {token}", "device": device}


def is_holder(marker: dict[str, Any], request: dict[str, Any]) -> bool:
    """Whether the host is held by who asks: the experiment on that driver, from a workspace that counts as its own."""
    same = all(marker.get(key) == request[key] for key in ("experiment", "driver"))
    return same and marker.get("workspace") in request["workspaces"]


def move_aside(files: Files, traces: Traces) -> None:
    """What was found where experiments write goes to our folder; once. Raises HostError."""
    if (files.home / WHOLE).exists():
        return
    found = files.read(FOUND)
    places = list(found["paths"])
    for path in traces["contents"]:
        if path in found["contents"] and not path.startswith("/run/"):
            places += [f"{path}/{entry.name}" for entry in sorted(files.at(path).iterdir())]
    for path in places:
        if os.path.lexists(files.at(path)):
            move(files.at(path), files.home / KEPT / path.lstrip("/"))
    (files.home / WHOLE).touch()


def move(source: Path, target: Path) -> None:
    """Move a file or a tree, also to another file system. Raises HostError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            partial = target.with_name(f".{target.name}.partial")
            run("rm", "-rf", str(partial))
            run("cp", "-a", str(source), str(partial), limit_s=600)
            partial.rename(target)
            run("rm", "-rf", str(source))
    except OSError as error:
        raise HostError(f"{source} cannot be moved to {target}: {error.strerror}") from error


def give_key(files: Files, key: str, mark: str) -> None:
    """Let a key log in as root: one line, the first, so that the rest stays as it is to the byte."""
    keys = _keys(files)
    if not keys.parent.exists():
        keys.parent.mkdir(mode=0o700)
        (files.home / "made-ssh-directory").touch()
    present = keys.read_bytes() if keys.exists() else None
    if present is None:
        (files.home / "made-authorized-keys").touch()
    line = f"{key} {mark}\n".encode()
    _write_keys(keys, line + without_key(present or b"", mark))


def without_key(text: bytes, mark: str) -> bytes:
    """The text of an authorized_keys without the lines of a mark."""
    lines = text.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.rstrip().endswith(b" " + mark.encode()))


def take_key(files: Files, mark: str) -> None:
    """Remove the line again, and the file and folder when they were made for it."""
    keys = _keys(files)
    if keys.exists():
        before = keys.read_bytes()
        rest = without_key(before, mark)
        if not rest and (files.home / "made-authorized-keys").exists():
            keys.unlink()
        elif rest != before:
            _write_keys(keys, rest)
    if (files.home / "made-ssh-directory").exists():
        with suppress(OSError):  # somebody has put something there
            keys.parent.rmdir()


def _keys(files: Files) -> Path:
    return files.at(pwd.getpwnam("root").pw_dir) / ".ssh/authorized_keys"


def _write_keys(path: Path, text: bytes) -> None:
    new = path.with_name(f".{path.name}.discovery-deploy")
    with new.open("wb") as stream:
        os.fchmod(stream.fileno(), path.stat().st_mode & 0o7777 if path.exists() else 0o600)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def examine(files: Files, request: dict[str, Any]) -> dict[str, Any]:
    """Whether the host could be had: what it lacks, who holds it, how sshd treats root. Changes nothing."""
    marker = files.read(HELD)
    stranger = marker if marker is not None and not is_holder(marker, request) else None
    return {"problems": lacks(files, request), "sshd": sshd_settings(), "held_by": stranger}


def look(files: Files, request: dict[str, Any]) -> dict[str, Any]:
    """Which host it is; the identity is None when it is not held by who asks, or is being left."""
    marker = files.read(HELD)
    if marker is None or not is_holder(marker, request) or (files.home / LEAVING).exists():
        return {"identity": None}
    return {"identity": f"{machine_id(files)} {marker['token']}"}
