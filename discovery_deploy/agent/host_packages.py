"""Runs on a host, as root, by its own Python: installs Debian packages, and removes those again. Standard library only.

A verb on the command line, one JSON value on standard input (`receive`: a tar), one JSON object comes back; what went
wrong is {"failed": text}.

* `look`: {"packages": [name...]} -> "missing": those that are not installed, "installed": {package that we
  installed: version}, "upgraded": {package: version that it had}, "source": where they came from, "known": whether it
  is written down how the host was before us.
* `receive`: unpacks files into `ARCHIVE`: an apt archive, or a part of one.
* `plan`: {"carried", "packages"} -> "new": [[name, version]...] that apt would install, "upgraded" alike.
* `install`: {"carried", "packages", "source", "kept_units", "emptied", "timers"} -> as `look`. The timers stop. No
  service is started; what the packages let start by themselves is disabled, except the kept units. What they put at
  emptied paths (package -> patterns) is removed. How the host is before, and what is about to be new, is written down
  first.
* `remove`: {"accounts": [name...]} -> "removed": the packages that `install` brought. The accounts that came with them
  go too, and of the named accounts those that were not there before.
* `forget`: removes what we keep about packages here, and the carried archive.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/discovery-deploy")
ARCHIVE = STATE / "apt"
"""The carried apt archive: `Packages`, `sources.list`, and for as long as it takes the packages."""
RECORD = STATE / "packages.json"
"""{"packages": {package that we installed: "absent" or (of a removed package) "config", as it was before}, "upgraded":
{package: version that it had}, "source": where they came from, "left": [path that goes with them], "accounts": [account
or group that came with them], "passwd": [account that was there before], "group": [group that was there before]}."""
DATABASES, OURS = Path("/var/lib/mysql/mysql"), Path("/var/lib/mysql/discovery-deploy.seed")
UNITS = Path("/etc/systemd/system")
POLICY, ASIDE = Path("/usr/sbin/policy-rc.d"), Path("/usr/sbin/policy-rc.d.before-discovery-deploy")
POLICY_TEXT = "#!/bin/sh\n# discovery-deploy: roles start services\nexit 101\n"
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOCKED_S = 300
"""How long it is waited until another apt has ended."""
LINES = 12
"""Lines of a failed program's output that are told."""
COMMON = (
    "--yes", "--quiet=2", "--no-install-recommends", "--no-remove",
    "-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold", "-oDpkg::Use-Pty=0",
    f"-oDPkg::Lock::Timeout={LOCKED_S}", "-oAPT::Sandbox::User=root",
)  # fmt: skip
CARRIED = (
    f"-oDir::Etc::SourceList={ARCHIVE}/sources.list", "-oDir::Etc::SourceParts=-",
    f"-oDir::State::Lists={ARCHIVE}/lists", "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=",
    "-oAcquire::Languages=none",
)  # fmt: skip
"""apt's options by which it knows the carried archive and no other, and leaves its own lists alone."""
LEFT = {
    "mariadb-server": ("/var/lib/mysql", "/var/log/mysql", "/etc/mysql"),
    "rabbitmq-server": ("/var/lib/rabbitmq", "/var/log/rabbitmq", "/etc/rabbitmq"),
    "openvswitch-switch": ("/var/lib/openvswitch", "/var/log/openvswitch", "/etc/openvswitch"),
    "ovn-common": ("/var/lib/ovn", "/var/log/ovn", "/etc/ovn"),
    "libvirt-daemon-system": ("/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/etc/libvirt"),
    "swtpm": ("/var/lib/swtpm-localca",),
    "ca-certificates": ("/etc/ssl/certs/ca-certificates.crt",),
}
"""Package -> what stays when it is purged, and was not there before."""


class PackageError(Exception):
    """A program failed; the text tells what it said."""


def run(*command: str, accepted: Sequence[int] = (0,)) -> str:
    """What a program prints. Raises PackageError."""
    variables = {"PATH": PROGRAMS, "LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode not in accepted:
        lines = (done.stdout + done.stderr).strip().splitlines()[-LINES:]
        raise PackageError(
            "\n".join([f"`{command[0]} {command[-1]}` failed with exit code {done.returncode}:", *lines])
        )
    return done.stdout


def apt(carried: bool, *words: str) -> str:
    """Run apt-get with the carried archive alone or with the host's own sources. Raises PackageError."""
    end = time.monotonic() + LOCKED_S
    while True:
        try:
            return run("apt-get", *COMMON, *(CARRIED if carried else ()), *words)
        except PackageError as error:  # a host that has just booted updates its lists by itself
            if "Could not get lock" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(2)


def states() -> dict[str, tuple[str, str]]:
    """Package -> (state as dpkg abbreviates it, version); a foreign architecture's is left out."""
    listed = run("dpkg-query", "--show", "--showformat=${Package}\t${Architecture}\t${db:Status-Abbrev}\t${Version}\n")
    rows = [line.split("\t") for line in listed.splitlines()]
    own = (run("dpkg", "--print-architecture").strip(), "all")
    return {name: (state.strip(), version) for name, architecture, state, version in rows if architecture in own}


def record() -> dict[str, Any]:
    """What was written down; when nothing was: how the host is now."""
    try:
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:
        now = {"passwd": names_in("passwd"), "group": names_in("group")}
        return {"packages": {}, "upgraded": {}, "source": "", "left": [], "accounts": [], **now}
    return found


def names_in(file: str) -> list[str]:
    """Names of the accounts or groups of this host."""
    return [line.split(":")[0] for line in Path("/etc", file).read_text(encoding="utf-8").splitlines() if ":" in line]


def write(found: dict[str, Any]) -> None:
    """Write down, at once."""
    STATE.mkdir(parents=True, exist_ok=True)
    new = RECORD.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.rename(RECORD)


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Which packages are missing, and which we brought."""
    found = states()
    known = record()
    ours = known["packages"]
    return {
        "missing": [name for name in asked["packages"] if found.get(name, ("", ""))[0] != "ii"],
        "installed": {name: found[name][1] for name in sorted(ours) if found.get(name, ("", ""))[0] == "ii"},
        "upgraded": known["upgraded"],
        "source": known["source"],
        "known": RECORD.exists(),
    }


def plan(asked: dict[str, Any]) -> dict[str, Any]:
    """What apt would do. Raises PackageError when it cannot, or would have to remove a package."""
    carried = asked["carried"]
    if not carried:
        apt(False, "update")
    else:
        (ARCHIVE / "lists").mkdir(exist_ok=True)
        (ARCHIVE / "sources.list").write_text(f"deb [trusted=yes] file:{ARCHIVE} ./\n", encoding="utf-8")
        apt(True, "update")
    told = apt(carried, "--simulate", "install", *asked["packages"])
    found = re.findall(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+) ", told, re.MULTILINE)
    return {
        "new": [[name, version] for name, old, version in found if not old],
        "upgraded": [[name, version] for name, old, version in found if old],
    }


def install(asked: dict[str, Any]) -> dict[str, Any]:
    """Install packages, without anything that runs. Raises PackageError."""
    known = record()
    if not RECORD.exists() and DATABASES.exists() and not OURS.exists():
        raise PackageError(f"{DATABASES.parent} holds databases that are not ours: save and remove them")
    write(known)
    if Path("/run/systemd/system").is_dir():
        run("systemctl", "stop", *asked["timers"], accepted=(0, 5))  # 5: there is no such timer
    if not asked["packages"]:
        return look(asked)
    with nothing_started():
        if known["packages"]:  # an installation may have been cut off
            run("dpkg", "--force-confdef", "--force-confold", "--configure", "--pending")
        before, links = states(), enabled()
        emptied = [(name, pattern) for name, pattern in pairs(asked["emptied"]) if not matching(pattern)]
        planned = plan(asked)
        coming = [name for name, _ in planned["new"]]
        known["upgraded"] = {**{name: before[name][1] for name, _ in planned["upgraded"]}, **known["upgraded"]}
        for name in coming:
            kept = "config" if before.get(name, ("", ""))[0] == "rc" else "absent"
            known["packages"].setdefault(name, kept)
        known["source"] = asked["source"]
        known["left"] += [path for name, path in pairs(LEFT) if name in coming and not Path(path).exists()]
        write(known)
        apt(asked["carried"], "install", *asked["packages"])
        for file in ("passwd", "group"):
            known["accounts"] += sorted(set(names_in(file)) - {*known[file], *known["accounts"]})
        write(known)
        new = [name for name, (state, _) in states().items() if state == "ii" and before.get(name, ("", ""))[0] != "ii"]
        silence(new, enabled() - links, set(asked["kept_units"]))
        for name, pattern in emptied:
            for path in matching(pattern) if name in new else []:
                remove(path)
    for package in ARCHIVE.glob("*.deb"):
        remove(package)
    return look(asked)


def matching(pattern: str) -> list[Path]:
    """Paths that match an absolute pattern."""
    return list(Path("/").glob(pattern[1:]))


def pairs(lists: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Every key with each of its values."""
    return [(name, value) for name, values in lists.items() for value in values]


def enabled() -> set[Path]:
    """Links by which units are started."""
    return {path for path in UNITS.rglob("*") if path.is_symlink()}


def silence(packages: list[str], links: set[Path], kept: set[str]) -> None:
    """Disable what packages have enabled, and stop what runs of them all the same, except the kept units."""
    for link in links:
        if link.name not in kept:
            link.unlink()
    if Path("/run/systemd/system").is_dir():
        run("systemctl", "daemon-reload")
        units = units_of(packages)
        run("systemctl", "stop", *sorted(units - kept), accepted=(0, 5)) if units - kept else ""
        run("systemctl", "start", *sorted(units & kept)) if units & kept else ""


def units_of(packages: Sequence[str]) -> set[str]:
    """Units that packages bring and that can be stopped; not those of systemd's own packages."""
    names = [name for name in packages if not name.startswith(("systemd", "udev", "libpam"))]
    listed = run("dpkg-query", "--listfiles", *names).splitlines() if names else []
    found = {Path(line).name for line in listed if re.search(r"/systemd/system/[^/@]+\.(service|socket|timer)$", line)}
    return {unit for unit in found if unit not in ("ssh.service", "ssh.socket", "sshd.service")}


@contextmanager
def nothing_started() -> Iterator[None]:
    """No package starts or stops a service until the end."""
    if POLICY.exists() and POLICY.read_text(encoding="utf-8", errors="replace") != POLICY_TEXT:
        POLICY.rename(ASIDE)
    POLICY.write_text(POLICY_TEXT, encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        allow_starts()


def allow_starts() -> None:
    """Put back what said which services may start; also what a killed installation has left."""
    if POLICY.exists() and POLICY.read_text(encoding="utf-8", errors="replace") == POLICY_TEXT:
        POLICY.unlink()
    if ASIDE.exists():
        ASIDE.rename(POLICY)


def remove_packages(asked: dict[str, Any]) -> dict[str, Any]:
    """Remove exactly what we installed. Raises PackageError when another package needs it."""
    known, found = record(), states()
    present = {name: was for name, was in known["packages"].items() if found.get(name, ("un", ""))[0] != "un"}
    installed = [name for name in present if found[name][0] != "rc"]
    needing = needed_elsewhere(set(installed)) if installed else []
    if needing:
        raise PackageError(f"packages that were installed later need ours: {', '.join(needing)}")
    if installed and Path("/run/systemd/system").is_dir():
        run("systemctl", "stop", *sorted(units_of(installed)), accepted=(0, 5))
    for word, kept in (("--remove", "config"), ("--purge", "absent")):
        names = sorted(name for name, was in present.items() if was == kept)
        run("dpkg", word, *names) if names else ""
    for path in known["left"]:
        remove(Path(path))
    for word, file in (("userdel", "passwd"), ("groupdel", "group")):
        gone = {*known["accounts"], *asked["accounts"]} - set(known[file])
        for name in sorted(gone & set(names_in(file))):
            run(word, name)
    if Path("/run/systemd/system").is_dir():
        run("systemctl", "daemon-reload")
    RECORD.unlink(missing_ok=True)
    return {"removed": sorted(present)}


def needed_elsewhere(ours: set[str]) -> list[str]:
    """Installed packages, not of ours, that depend on one of ours."""
    told = run("apt-get", "--simulate", "--quiet=2", "--yes", "--no-auto-remove", "remove", *sorted(ours))
    return sorted(set(re.findall(r"^Remv (\S+) ", told, re.MULTILINE)) - ours)


def forget() -> dict[str, Any]:
    """Remove what we keep here about packages."""
    allow_starts()
    RECORD.unlink(missing_ok=True)
    remove(ARCHIVE)
    if STATE.is_dir() and not any(STATE.iterdir()):
        STATE.rmdir()
    return {}


def remove(path: Path) -> None:
    """A tree, a file or a link; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def receive() -> dict[str, Any]:
    """Unpack what comes on standard input."""
    ARCHIVE.mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o755)
    command = ["tar", "--extract", "--file=-", "--directory", str(ARCHIVE), "--no-same-owner"]
    if subprocess.run(command, check=False).returncode:
        raise PackageError("the packages could not be unpacked")
    return {}


def main(verb: str) -> None:
    """Do what a verb says."""
    acts = {"look": look, "plan": plan, "install": install, "remove": remove_packages}
    others = {"receive": receive, "forget": forget}
    try:
        answer = acts[verb](json.load(sys.stdin)) if verb in acts else others[verb]()
    except PackageError as error:
        answer = {"failed": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
