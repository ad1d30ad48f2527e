"""One host of a machine plan as a systemd-nspawn container: its files, its supervisor, its readiness.

A host lives in `<directory>/hosts/<name>/`: `upper` (what differs from the base image), `log` (console), `supervise`
(the shell text of its supervisor), `pid`, `born.json`. The supervisor is a shell in a mount namespace of its own, where
the overlay is mounted: when it ends, no mount is left. Standard library only.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import cgroups, names
from discovery_deploy.agent.machine import MachineError, recorded, replace, run
from discovery_deploy.agent.plan import Host, Plan

_NEEDED_MB = 24
"""Disk that a host needs to start: 8 MB of journal, and room for the first files."""

_FIRST_BOOT_S = 60.0
_BOOT_S_PER_HOST = 15.0
"""More for each that starts beside it; a dead host is seen at once, not by this."""
AT_ONCE = 4 * (os.cpu_count() or 1)
"""Hosts of a plan that start at the same time: 12 on one emulated processor never came to an end."""
_INTRODUCTION_S = 20.0
"""How long a supervisor may take until it runs, on a machine that is very busy."""
_LOG_LINES = 12

_UNWANTED = (
    # The machine's own debugging and huge pages are not for its hosts, nor are its kernel modules.
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "sys-fs-fuse-connections.mount",
    *(f"modprobe@{name}.service" for name in ("configfs", "dm_mod", "drm", "efi_pstore", "fuse", "loop")),
    # Users come with packages; nobody counts logins; there is no disk, no device and no password to ask for.
    "systemd-sysusers.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-tmpfiles-setup-dev.service", "systemd-random-seed.service", "systemd-remount-fs.service",
    "dev-mqueue.mount", "systemd-ask-password-wall.path", "systemd-ask-password-console.path",
)  # fmt: skip
"""Units that hosts do without: a start takes 0.21-0.26 s of CPU instead of 0.28-0.33 (measured in turns)."""

_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
UseDNS no
MaxStartups 200
MaxSessions 200
"""


def folder(plan: Plan, host: Host) -> Path:
    """Where a host keeps everything. Raises MachineError when its name is none: the folder would be another's."""
    if not names.is_name(host.name, names.HOST_NAME):
        raise MachineError(f"{host.name[:60]!r} is not a name of a host", "look at the plan")
    return plan.directory / "hosts" / host.name


def bind_layers(plan: Plan, host: Host) -> list[tuple[Path, str]]:
    """(where, options) of the overlay in which a host sees each of the plan's binds, in their order. Pure.

    It has no upper layer: a host, which may mount what it likes, cannot make such a file system writable.
    """
    place = folder(plan, host)
    return [
        (place / "binds" / str(number), f"ro,lowerdir={bind.source}:{place / 'binds' / 'empty'}")
        for number, bind in enumerate(plan.binds)
    ]


def check(plan: Plan) -> None:
    """Whether hosts can have files here at all. Raises MachineError."""
    directory, base = plan.directory, plan.base
    if not (base / "usr").is_dir():
        raise MachineError(f"{base} is not an unpacked base image", "bake it again: `discovery-deploy run`")
    for bind in plan.binds:
        if not bind.source.exists():
            raise MachineError(f"{bind.source} is to be seen in hosts, but is not there", "prepare it again")
    for path in (directory, base, *(bind.source for bind in plan.binds)):
        if set(",:\\") & set(str(path)):
            raise MachineError(f"{path}: an overlay cannot have , : or \\ in its path", "choose another directory")
    new = [host for host in plan.hosts if host.system and not folder(plan, host).exists()]
    if not new:
        return
    free_mb, needed_mb = shutil.disk_usage(directory).free >> 20, _NEEDED_MB * len(new)
    if free_mb < needed_mb:
        raise MachineError(
            f"{directory}: {free_mb} MB free, {len(new)} new hosts need at least {needed_mb} MB (disk full)",
            "free space there, or choose another directory with DISCOVERY_DEPLOY_STATE",
        )
    problem = overlay_problem(directory)
    if problem:
        raise MachineError(
            f"{directory} cannot hold the files of hosts (upper layer of an overlay): {problem}",
            "choose a directory on ext4, xfs, btrfs or tmpfs with DISCOVERY_DEPLOY_STATE",
        )


def overlay_problem(directory: Path) -> str:
    """Why a directory cannot hold hosts' files, found by trying; "" when it can."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".overlay-") as name:
        parts = {part: Path(name) / part for part in ("lower", "upper", "work", "root")}
        for part in parts.values():
            part.mkdir()
        options = _overlay_options(parts["lower"], parts["upper"], parts["work"], volatile=True)
        try:
            run("unshare", "-m", "mount", "-t", "overlay", "overlay", "-o", options, str(parts["root"]))
        except MachineError as error:
            return error.what.rpartition("status ")[2]
    return ""


def _overlay_options(lower: Path, upper: Path, work: Path, volatile: bool) -> str:
    return f"lowerdir={lower},upperdir={upper},workdir={work}{',volatile' if volatile else ''}"


def _volatile(plan: Plan) -> bool:
    return plan.upper == "volatile"


def identity_files(plan: Plan, host: Host) -> dict[str, tuple[str, int]]:
    """Path -> (text, mode) of what tells a host who it is. Pure."""
    elsewhere = (pair for peer in plan.peers for pair in peer.hosts.items())
    known = sorted([*((entry.name, entry.site_address) for entry in plan.hosts), *elsewhere])
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known)]
    return {
        "etc/hostname": (f"{host.name}\n", 0o644),
        "etc/hosts": ("\n".join(lines) + "\n", 0o644),
        "etc/ssh/sshd_config.d/discovery-deploy.conf": (_SSHD, 0o644),
        "root/.ssh/authorized_keys": ("".join(f"{key}\n" for key in plan.authorized_keys), 0o600),
    }


def supervisor_text(plan: Plan, host: Host, groups: list[Path], hybrid: bool) -> str:
    """Shell text of a host's supervisor. Pure.

    It first joins the host's control groups and fails when they are gone: then `down` was faster. systemd-nspawn ends
    with status 133 when the host asks for a reboot.

    Args:
        plan: the machine plan.
        host: the host.
        groups: `cgroup.procs` files to join.
        hybrid: the machine has cgroup v1 hierarchies; the host is shown only the v2 one.
    """
    place = folder(plan, host)
    quoted = {part: shlex.quote(str(place / part)) for part in ("pid", "root")}
    options = _overlay_options(plan.base, place / "upper", place / "work", _volatile(plan))
    lines = ["set -eu", "umask 022", *(f"echo $$ > {shlex.quote(str(group))}" for group in groups)]
    lines += [
        f'echo "$$ $(cut -d" " -f22 "/proc/$$/stat")" > {quoted["pid"]}.new',
        f"mv {quoted['pid']}.new {quoted['pid']}",
        f"mount -t overlay overlay -o {shlex.quote(options)} {quoted['root']}",
        f"mkdir -p {shlex.quote(str(place / 'binds' / 'empty'))}",
    ]
    for where, layers in bind_layers(plan, host):
        lines.append(f"mkdir -p {shlex.quote(str(where))}")
        lines.append(f"mount -t overlay overlay -o {shlex.quote(layers)} {shlex.quote(str(where))}")
    if hybrid:
        lines.append("umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    joins = f"echo $$ > /sys/fs/cgroup/dd{plan.slot}/{host.name}/host/cgroup.procs"
    starter = shlex.quote(joins + ' && exec "$@"')
    lines += [
        "export SYSTEMD_SECCOMP=0 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_LOCK=0",
        "while :; do",
        "  status=0",
        f"  sh -c {starter} sh {shlex.join(_nspawn(plan, host))} || status=$?",
        '  [ "$status" = 133 ] || exit "$status"',
        "done",
    ]
    return "\n".join(lines) + "\n"


def _nspawn(plan: Plan, host: Host) -> list[str]:
    layers = [where for where, _ in bind_layers(plan, host)]
    binds = [
        f"--bind-ro={_bind(str(where))}:{_bind(bind.target)}" for where, bind in zip(layers, plan.binds, strict=True)
    ]
    return [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", f"--directory={folder(plan, host)}/root",
        f"--machine={host.namespace}", f"--hostname={host.name}",
        f"--network-namespace-path=/run/netns/{host.namespace}", "--capability=all", "--console=pipe",
        "--resolv-conf=off", "--timezone=off", "--link-journal=no", *binds,
        *(f"systemd.mask={unit}" for unit in _UNWANTED),
    ]  # fmt: skip


def _bind(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def status(plan: Plan, host: Host) -> tuple[str, dict[str, int | None]]:
    """(why it is dead or "", process ids of its supervisor and of its own process 1)."""
    supervisor = recorded(folder(plan, host) / "pid")
    pids = {"supervisor": supervisor, "init": cgroups.leader(plan.slot, host.name)}
    return ("" if supervisor else "its container does not run", pids)


def up(plan: Plan, host: Host, tell: Callable[[str], None], stop: threading.Event) -> None:
    """Have a host run and answer: start it when it is dead, wait until it is ready.

    Raises:
        MachineError: it ends, hangs, or units fail in its first boot; the end of its log is quoted.
    """
    if stop.is_set():
        raise MachineError("interrupted", "try again")
    place = folder(plan, host)
    ready, booted = place / "ready", place / "booted"
    if recorded(place / "pid") is None:
        cgroups.end(plan.slot, host.name)
        ready.unlink(missing_ok=True)
        _prepare_files(plan, host, tell)
        _spawn(plan, host)
    else:
        _refresh_files(plan, host)
    if not ready.exists():  # started now, or by someone who did not live to see it
        _wait(plan, host, tell, stop, first=not booted.exists())
        booted.touch()
        ready.touch()


def born(plan: Plan, host: Host) -> dict[str, Any]:
    """Facts of a host since its files were made: `machine_id` (another one: other files) and `host_key` (of sshd)."""
    facts: dict[str, Any] = json.loads((folder(plan, host) / "born.json").read_text())
    return facts


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _prepare_files(plan: Plan, host: Host, tell: Callable[[str], None]) -> None:
    """Make a host's files ready for a start: new ones, or those of its last start."""
    place = folder(plan, host)
    kept = born(plan, host) if (place / "born.json").exists() else None
    if kept and _volatile(plan) and kept["boot_id"] != _boot_id():
        tell(f"{host.name}: the machine has been restarted; its files may be damaged and are made anew")
        kept = None
    if kept:
        # A volatile overlay refuses a second mount. The machine has not crashed since, so what is there is whole.
        shutil.rmtree(place / "work")
        (place / "work").mkdir()
        (place / "upper").chmod(0o755)
        _refresh_files(plan, host)
        return
    if place.exists():
        shutil.rmtree(place)
    for part in ("upper", "work", "root"):
        (place / part).mkdir(parents=True)
        (place / part).chmod(0o755)  # `upper` becomes the host's `/`, which all its users pass
    _write_identity(plan, host, uuid.uuid4().hex)


def _write_identity(plan: Plan, host: Host, machine_id: str) -> None:
    """Write who a host is, with an ssh host key of its own, into its upper layer; `born.json` comes last."""
    place = folder(plan, host)
    files = identity_files(plan, host)
    upper, base = place / "upper", plan.base
    for path, (text, mode) in {**files, "etc/machine-id": (f"{machine_id}\n", 0o444)}.items():
        _place(upper, base, path, text, mode)
    key = upper / "etc/ssh/ssh_host_ed25519_key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", str(key))
    key.with_suffix(".pub").chmod(0o644)
    facts = {
        "boot_id": _boot_id(),
        "machine_id": machine_id,
        "host_key": key.with_suffix(".pub").read_text().strip(),
        "files": {path: text for path, (text, _) in files.items()},
    }
    replace(place / "born.json", json.dumps(facts, indent=2, sort_keys=True))


def _place(upper: Path, base: Path, path: str, text: str, mode: int) -> None:
    """Write a file into an upper layer; folders get the mode that they have in the base, which they would hide."""
    made = upper
    for part in Path(path).parent.parts:
        made = made / part
        if not made.exists():
            below = base / made.relative_to(upper)
            made.mkdir()
            made.chmod(below.stat().st_mode & 0o7777 if below.exists() else 0o700)
    file = upper / path
    file.unlink(missing_ok=True)
    file.write_text(text)
    file.chmod(mode)


def _refresh_files(plan: Plan, host: Host) -> None:
    """Give a host that has its files already the names and keys of a changed plan."""
    place = folder(plan, host)
    facts = born(plan, host)
    wanted = identity_files(plan, host)
    changed = {path: pair for path, pair in wanted.items() if facts["files"].get(path) != pair[0]}
    if not changed:
        return
    root = place / "upper"
    if recorded(place / "pid"):
        leader = cgroups.leader(plan.slot, host.name)
        if leader is None:
            raise MachineError("it is restarting", "try again")
        root = Path(f"/proc/{leader}/root")
    for path, (text, mode) in changed.items():
        _place(root, plan.base, path, text, mode)
    facts["files"] = {path: text for path, (text, _) in wanted.items()}
    replace(place / "born.json", json.dumps(facts, indent=2, sort_keys=True))


def _spawn(plan: Plan, host: Host) -> None:
    """Start a host's supervisor; it belongs to nobody and outlives this process."""
    place = folder(plan, host)
    groups = cgroups.make(plan.slot, host.name)
    script = place / "supervise"
    script.write_text(supervisor_text(plan, host, groups, hybrid=bool(cgroups.hierarchies().legacy)))
    (place / "pid").unlink(missing_ok=True)
    with (place / "log").open("ab") as log:
        subprocess.run(
            ["setsid", "--fork", "unshare", "--mount", "--propagation", "slave", "sh", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            check=True,
        )


def _wait(plan: Plan, host: Host, tell: Callable[[str], None], stop: threading.Event, first: bool) -> None:
    """Wait until sshd answers and systemd has come to rest."""
    count = sum(entry.system for entry in plan.hosts)
    end = time.monotonic() + _FIRST_BOOT_S + _BOOT_S_PER_HOST * min(count, AT_ONCE)
    _until(lambda: _answers(host.management_address), plan, host, end, stop, "sshd does not answer")
    state = _system_state(plan, host, end)
    if state == "running":
        return
    failed = _inside(plan, host, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    units = ", ".join(line.split()[0] for line in failed.splitlines() if line.strip())
    what = f"systemd says {state}; failed units: {units or 'none'}"
    if first:
        raise MachineError(what, f"look with `journalctl -b -u {units.split(',')[0] or 'UNIT'}` in the host")
    tell(f"{host.name}: {what}")  # services of the deployment, which is stale now; their phase starts them


def _until(
    condition: Callable[[], bool], plan: Plan, host: Host, end: float, stop: threading.Event, otherwise: str
) -> None:
    place = folder(plan, host)
    started = time.monotonic()
    while not condition():
        if stop.wait(0.03):
            raise MachineError("interrupted", "try again")
        # The supervisor needs a moment until it has written who it is; looked at first, or that moment may lie between.
        introduced = (place / "pid").exists() or time.monotonic() > started + _INTRODUCTION_S
        if introduced and recorded(place / "pid") is None:
            raise MachineError(f"its container has ended{_quoted_log(place)}", f"the whole log: {place / 'log'}")
        if time.monotonic() > end:
            raise MachineError(f"{otherwise} in time{_quoted_log(place)}", f"the whole log: {place / 'log'}")


def _quoted_log(place: Path) -> str:
    with suppress(FileNotFoundError):
        lines = (place / "log").read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            return "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)
    return "; its log is empty"


def _answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(16).startswith(b"SSH")
    except OSError:
        return False


def _system_state(plan: Plan, host: Host, end: float) -> str:
    """What `systemctl is-system-running` says once the boot is over."""
    left = max(1.0, end - time.monotonic())
    return _inside(plan, host, "systemctl", "is-system-running", "--wait", limit_s=left, good=(0, 1)).strip()


def _inside(plan: Plan, host: Host, *command: str, limit_s: float = 20, good: tuple[int, ...] = (0,)) -> str:
    leader = cgroups.leader(plan.slot, host.name)
    if leader is None:
        raise MachineError(
            f"its container has ended{_quoted_log(folder(plan, host))}", f"the whole log: {folder(plan, host) / 'log'}"
        )
    enter = ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid"]
    return run(*enter, *command, limit_s=limit_s, keeps_lock=False, good=good)
