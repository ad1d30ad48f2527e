"""The images of hosts: unpacked Debian trees that hosts of this machine share, baked once per content of their recipe.

There are two: `base` has what Keystone alone needs, and `full` is the same with what OpenStack's other services need
besides. Everything that is built is built in the former, so that it is built once.

Also the ground for everything in the cache: `made_once` (content-addressed, atomic, one maker at a time) and
`run_logged` (a program that dies with the driver, whose output is kept and quoted when it fails).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from discovery_deploy.agent.machine import private
from discovery_deploy.software.seed import content_for
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress

Variant = Literal["base", "full"]

RELEASE = "bookworm"
ARCHIVE = "http://deb.debian.org/debian"
SUITES = {
    RELEASE: ARCHIVE,
    f"{RELEASE}-updates": ARCHIVE,
    f"{RELEASE}-security": "http://deb.debian.org/debian-security",
}
"""Suites of the image, with Debian's own address of each."""

PACKAGES = (
    # what makes it a host
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "ca-certificates", "netbase",
    "iproute2", "iputils-ping", "ethtool", "procps", "util-linux", "less", "lsof", "tcpdump", "curl", "rsync", "socat",
    # what the roles' `install` would otherwise fetch on every host
    "mariadb-server", "mariadb-backup", "galera-4", "memcached",
)  # fmt: skip
NOT_SHIPPED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
DISABLED = ("mariadb.service", "memcached.service", "rsync.service")
"""Roles start them when they have configured them."""
MASKED = (
    # no devices, kernel modules or consoles of its own; a clock that is the machine's; nothing that wakes up by itself
    "systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service", "systemd-modules-load.service", "console-getty.service", "getty.target",
    "systemd-timesyncd.service",
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "systemd-firstboot.service", "systemd-pstore.service", "remote-fs.target",
)  # fmt: skip
IDENTITY_HOOK = 'rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/hostname"; : > "$1/etc/machine-id"; rm -rf "$1/var/lib/mysql"/*'
"""Identities are each host's own; databases come from the seed."""
HOOKS = (
    f'chroot "$1" systemctl --quiet disable {" ".join(DISABLED)}',
    f'chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
    IDENTITY_HOOK,
    'mkdir -p -m 700 "$1/root/.ssh"; mkdir -p "$1/opt/discovery-deploy"; rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
)
FULL_PACKAGES = (
    "rabbitmq-server",
    "ovn-central", "ovn-host", "openvswitch-switch", "nftables",
    "libvirt-daemon-system", "libvirt-daemon-driver-qemu", "python3-libvirt", "qemu-system-x86", "qemu-utils",
    "genisoimage",
)  # fmt: skip
"""What the variant `full` has besides."""
FULL_HOOKS = (
    'find "$1/etc/systemd/system" -type l | sort > "$1/tmp/units"',
    'DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get install --yes --quiet=2 --no-install-recommends '
    + " ".join(FULL_PACKAGES),
    # what the packages let start by themselves; roles start it when they have configured it
    'find "$1/etc/systemd/system" -type l | sort | comm -13 "$1/tmp/units" - | xargs --no-run-if-empty rm',
    'rm -f "$1"/etc/libvirt/qemu/networks/autostart/* "$1/var/lib/rabbitmq/.erlang.cookie"',
)
"""How a base tree becomes a full one."""
LIMIT_S = 3600.0
"""For a bake or a build. One that hangs holds the lock of what it makes, for which all others wait."""
APT_LIMIT_S = 120.0
"""For asking apt how it is configured."""
KEPT_LINES = 12
"""Lines of a failed program's output that its error quotes."""


def digest(*parts: object) -> str:
    """Short stable hash (16 hex digits of SHA-256) of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def variant(services: Sequence[str]) -> Variant:
    """The variant of the hosts of a deployment with these services. Pure."""
    return "base" if content_for(services) == "keystone" else "full"


def image_hash(variant: Variant = "base") -> str:
    """Hash of the recipe: release, packages and changes. The day of the bake and the mirror are not in it."""
    base = digest(RELEASE, PACKAGES, NOT_SHIPPED, HOOKS)
    return base if variant == "base" else digest(base, FULL_HOOKS, IDENTITY_HOOK)


def base_image(cache: Path, progress: Progress, variant: Variant = "base") -> Path:
    """The unpacked tree of a variant, baked by mmdebstrap from this machine's own apt sources when the cache lacks it.

    Args:
        cache: directory of the cache; the tree is `images/<hash>` below it.
        progress: takes one short line per step.
        variant: `full` is made from a copy of `base`, which is baked first.
    Returns:
        The tree. Never write into it: it is the lower layer of running hosts.
    Raises:
        TestbedError: not root, mmdebstrap is missing or failed; the end of its log is quoted.
    """
    cache = cache.absolute()
    private_folder(cache / "images")
    base = base_image(cache, progress) if variant == "full" else None

    def bake(tree: Path) -> None:
        progress(f"baking the {variant} image (about half a minute, once)")
        log = private_folder(cache / "logs") / f"image-{image_hash(variant)}.log"
        told = steps(r"^I: (installing|extracting|down).*", progress)
        with apt_options_file() as apt_options:
            command = contained(bake_command(tree, apt_options, base))
            run_logged(command, log, f"the bake of the {variant} image", told, stdin=sources_text(apt_sources()))

    return made_once(cache / "images" / image_hash(variant), bake, f"the {variant} image", progress)


def bake_command(
    tree: Path,
    apt_options: Path,
    base: Path | None = None,
    hooks: Sequence[str] = (*FULL_HOOKS, IDENTITY_HOOK),
) -> list[str]:
    """The mmdebstrap command line that makes `tree`; it reads `sources_text` on standard input.

    Args:
        tree: where.
        apt_options: file with apt's configuration that is needed to reach the archives; not kept in the tree.
        base: tree of the variant `base`; given, `tree` is made from a copy of it.
        hooks: shell commands that change the copy, whose path is "$1"; default: those of the variant `full`.
    """
    options = ["--mode=root", "--format=directory", "--dpkgopt=force-unsafe-io"]
    options += ['--aptopt=Acquire::Languages "none"', f"--aptopt={apt_options}"]
    options += [f"--dpkgopt=path-exclude={path}" for path in NOT_SHIPPED]
    options += ["--dpkgopt=path-include=/usr/share/locale/locale.alias"]
    if base is None:
        options += ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        options += [f"--customize-hook={hook}" for hook in HOOKS]
    else:  # the copy brings its own apt sources and rules, which are the same, and all that is set up before
        options += ["--variant=custom", f'--setup-hook=cp -a --reflink=auto {shlex.quote(str(base))}/. "$1"']
        options += [f"--customize-hook={hook}" for hook in (*hooks, HOOKS[-1])]
    return ["mmdebstrap", *options, RELEASE, str(tree), "-"]


def sources_text(sources: Mapping[str, str]) -> str:
    """The sources.list of the image, for suite -> address of its archive: addresses may have passwords. Pure."""
    return "".join(f"deb {address} {suite} main\n" for suite, address in sources.items())


def without_passwords(text: str) -> str:
    """A text whose addresses have no user names and passwords. Pure."""
    return re.sub(r"//[^/\s]*@", "//", text)


def apt_sources() -> dict[str, str]:
    """Suite -> archive of the image: as this machine reaches them, else Debian's own addresses."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    return choose_sources(_apt("apt-get", "indextargets", "--format", form, "Created-By: Packages"))


def _apt(*command: str) -> str:
    """What a program of apt's prints; "" where there is none. Raises TestbedError: it timed out."""
    try:
        return interruption.run(command, None, APT_LIMIT_S).stdout
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        what = f"`{command[0]} {command[1]}` timed out after {APT_LIMIT_S:g} s"
        raise TestbedError(what, "Look at apt's configuration in /etc/apt, then run again.") from None


def choose_sources(listed: str) -> dict[str, str]:
    """Suite -> archive, from lines `address release component` of `apt-get indextargets`. Pure."""
    chosen = dict(SUITES)
    for line in reversed(listed.splitlines()):
        words = line.split()
        if len(words) == 3 and words[1] in chosen and words[2] == "main" and words[0].startswith(("http:", "https:")):
            chosen[words[1]] = words[0].rstrip("/")
    return chosen


def apt_acquire_options() -> list[str]:
    """Lines of this machine's apt configuration that say how to reach archives (proxies, certificates)."""
    dump = _apt("apt-config", "dump", "Acquire")
    wanted = re.compile(r'^Acquire::https?::(Proxy|CaInfo|CaPath|Verify-Peer|Verify-Host)\S* ".+";$', re.IGNORECASE)
    return [line for line in dump.splitlines() if wanted.match(line)]


@contextmanager
def apt_options_file() -> Iterator[Path]:
    """A file with `apt_acquire_options` that only this user reads: they hold passwords of proxies. Gone afterwards."""
    with tempfile.NamedTemporaryFile("w", prefix="discovery-deploy-apt-", encoding="utf-8") as file:  # mode 0600
        file.write("".join(f"{line}\n" for line in apt_acquire_options()))
        file.flush()
        yield Path(file.name)


def private_folder(path: Path) -> Path:
    """A folder of the cache that nobody else may enter, made when missing. Raises TestbedError.

    Images have hosts' set-uid programs and users' numbers, which are other users' here.
    """
    try:
        private(path)
    except OSError as error:
        raise TestbedError(
            f"{path}: {error.strerror}",
            "Become root, which images need (`sudo -i`)." if os.geteuid() else "Choose another DISCOVERY_DEPLOY_CACHE.",
        ) from error
    return path


def made_once(target: Path, make: Callable[[Path], None], what: str, progress: Progress) -> Path:
    """`target`, made by `make(temporary)` when it is not there; atomic, and by one process at a time.

    What a killed maker left is removed by the next one, which holds the same lock.

    Raises:
        TestbedError: the cache cannot be written, or `make` raised it; nothing half-made stays.
    """
    if target.is_dir():
        return target
    temporary = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            _take(lock.fileno(), what, progress)
            if not target.is_dir():
                _remove(temporary)
                try:
                    make(temporary)
                    # What is renamed must be on the disk: after a loss of power it would count as made, and be empty.
                    os.sync()
                    temporary.rename(target)
                finally:
                    _remove(temporary)
    except OSError as error:
        raise TestbedError(
            f"{what}: {error.filename or target.parent}: {error.strerror}",
            "Become root, which builds need (`sudo -i`)."
            if os.geteuid() != 0
            else "Free space or mend the permissions of the cache, or choose another with DISCOVERY_DEPLOY_CACHE.",
        ) from error
    return target


def _take(lock: int, what: str, progress: Progress) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress(f"waiting for another process that makes {what}")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _remove(tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)


def contained(command: Sequence[str]) -> list[str]:
    """`command` in mount and process namespaces of its own: mounts and processes end with it, and it with us."""
    inner = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    return ["setpriv", "--pdeathsig", "KILL", *inner]


def steps(pattern: str, progress: Progress) -> Callable[[str], None]:
    """Takes lines of output and passes on those that match, without their first word when it is a level."""

    def take(line: str) -> None:
        if re.match(pattern, line):
            progress(re.sub(r"^[IWE]: ", "", line))

    return take


@contextmanager
def _ended_after(limit_s: float, process: subprocess.Popen[str], late: threading.Event) -> Iterator[None]:
    """Ends a process, with all of its group, at the end of the block or when the time is over, which sets `late`."""

    def end() -> None:
        late.set()
        _kill(process)

    clock = threading.Timer(limit_s, end)
    clock.daemon = True
    clock.start()
    try:
        yield
    except BaseException:
        _kill(process)
        raise
    finally:
        clock.cancel()


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _readable(text: str) -> Iterator[IO[bytes]]:
    """A nameless file of this text, to be read from its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def run_logged(
    command: Sequence[str],
    log: Path,
    what: str,
    line_taken: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
    stdin: str = "",
) -> None:
    """Run a program to its end; all it says goes to `log` (mode 0600) and, line by line, to `line_taken`.

    Addresses that it says lose their passwords; those that it needs are given on its standard input.

    Raises:
        TestbedError: it cannot be started, failed, or was still running after `limit_s`; the end of its output is
            quoted.
    """
    if os.geteuid() != 0:
        raise TestbedError(f"{what} needs root", "Run as root.")
    lines: list[str] = []
    late = threading.Event()
    try:
        log.unlink(missing_ok=True)
        log.touch(mode=0o600)
        with log.open("w", encoding="utf-8") as kept, _readable(stdin) as given, subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", env=environment, start_new_session=True,
        ) as process, _ended_after(limit_s, process, late):  # fmt: skip
            assert process.stdout is not None
            kept.write(f"$ {shlex.join(command)}\n")
            with interruption.watched(process):
                for said in process.stdout:
                    line = without_passwords(said)
                    kept.write(line)
                    lines = [*lines[1 - KEPT_LINES :], line.rstrip()]
                    line_taken(line.rstrip())
                process.wait()
    except FileNotFoundError as error:
        raise TestbedError(f"{what}: {error.filename} is not installed", f"apt-get install {error.filename}") from error
    if process.returncode or late.is_set():
        tail = "\n    ".join(lines) or "(no output)"
        if late.is_set():
            advice = "See in the log what it waited for (a proxy, an archive), then run again."
            raise TestbedError(f"{what} timed out after {limit_s:g} s (log: {log}):\n    {tail}", advice)
        if any("No space left on device" in line for line in lines):
            raise TestbedError(f"{what} failed: the disk is full:\n    {tail}", "Free space, then run again.")
        missing = re.search(r"failed to execute (\S+): No such file", tail)
        if missing:
            raise TestbedError(f"{what}: {missing[1]} is not installed", f"apt-get install {missing[1]}")
        raise TestbedError(f"{what} failed (log: {log}):\n    {tail}", "Mend the cause, then run again.")
