"""A Debian as somebody may give it: an sshd and Python, and none of the packages that our image has."""

from __future__ import annotations

from pathlib import Path

from discovery_deploy.software import image
from discovery_deploy.system import files, programs

PACKAGES = ("systemd", "systemd-sysv", "openssh-server", "python3")
HOOKS = (
    f'chroot "$1" systemctl --quiet mask {" ".join(image.MASKED)}',
    'rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/hostname"; : > "$1/etc/machine-id"; mkdir -p -m 700 "$1/root/.ssh"',
    'rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
)


def plain_tree(cache: Path) -> Path:
    """The tree, baked once from this machine's own apt sources. In the cache it is an image that nobody uses."""

    def bake(tree: Path) -> None:
        options = ["--mode=root", "--format=directory", "--dpkgopt=force-unsafe-io", "--variant=minbase"]
        options += [f"--include={','.join(PACKAGES)}", *(f"--customize-hook={hook}" for hook in HOOKS)]
        log, sources = cache / "logs" / "plain.log", image.sources_text(image.apt_sources())
        (cache / "logs").mkdir(exist_ok=True)
        with image.apt_options_file() as apt:
            command = programs.contained(["mmdebstrap", *options, f"--aptopt={apt}", image.RELEASE, str(tree), "-"])
            programs.run_logged(command, log, "the bake of a plain Debian", lambda line: None, stdin=sources)

    name = f"plain-{files.digest(image.RELEASE, PACKAGES, HOOKS)}"
    return files.made_once(cache / "images" / name, bake, "a plain Debian", print)
