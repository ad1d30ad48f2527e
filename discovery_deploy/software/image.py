"""The images of hosts: unpacked Debian trees that hosts of this machine share, baked once per content of their recipe.

There are two: `base` has what Keystone alone needs, and `full` is the same with what OpenStack's other services need
besides. Everything that is built is built in the former, so that it is built once.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from discovery_deploy.software.seed import content_for
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import digest, made_once, private_folder
from discovery_deploy.system.programs import contained, run_logged, steps
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
    'mkdir -p -m 700 "$1/root/.ssh"; mkdir -p "$1/opt/discovery-deploy"; rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"; '
    # users and passwords of this machine's archives: hosts install nothing
    'sed -i "s#://[^/@ ]*@#://#" "$1/etc/apt/sources.list"',
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
APT_LIMIT_S = 120.0
"""For asking apt how it is configured."""


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
    else:  # the copy brings all that is set up before; its own apt sources have no passwords, so these stay
        kept = 'sources="$1/etc/apt/sources.list"; cp "$sources" "$sources.own"; {}; mv "$sources.own" "$sources"'
        copy = f'cp -a --reflink=auto {shlex.quote(str(base))}/. "$1"'
        options += ["--variant=custom", f"--setup-hook={kept.format(copy)}"]
        options += [f"--customize-hook={hook}" for hook in (*hooks, HOOKS[-1])]
    return ["mmdebstrap", *options, RELEASE, str(tree), "-"]


def sources_text(sources: Mapping[str, str]) -> str:
    """The sources.list of the image, for suite -> address of its archive: addresses may have passwords. Pure."""
    return "".join(f"deb {address} {suite} main\n" for suite, address in sources.items())


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
