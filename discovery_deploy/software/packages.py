"""Debian packages on hosts: installed from their own sources or from a carried archive, and removed again."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from discovery_deploy.agent import host_packages
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.software.apt_archive import FOLDER, INDEX, AptArchive, apt_archive, wanted_packages
from discovery_deploy.software.contents import TAR_LIMIT_S
from discovery_deploy.software.image import Variant, base_image
from discovery_deploy.software.traces import TIMERS
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.remote import Remote

Packages = Literal["network", "carried"]
"""Where hosts get the packages that they lack."""
Send = Callable[[str, list[str], IO[bytes]], str]
"""Runs a command on a host that reads a file (from its beginning), when it is the host's turn."""

KEPT_UNITS = ("dbus.service", "dbus.socket")
"""What belongs to the system and may run; everything else is started by roles, when they have configured it."""
EMPTIED = {
    "mariadb-server": ["/var/lib/mysql/*"],
    "rabbitmq-server": ["/var/lib/rabbitmq/.erlang.cookie"],
    "libvirt-daemon-config-network": ["/etc/libvirt/qemu/networks/autostart/*"],
    "libvirt-daemon-system": ["/etc/libvirt/qemu/networks/autostart/*"],
}
"""Package -> what it puts on a host that roles bring themselves, or that must not start by itself."""
LIMIT_S = 1800.0
PROGRAM = Path(host_packages.__file__)


def ask(remote: Remote, host: str, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `host_packages` answers on a host. Raises TestbedError with what failed there."""
    return answer_of(host, remote(host, command(verb), json.dumps(asked), LIMIT_S))


def command(verb: str) -> list[str]:
    """The command line of `host_packages` on a host."""
    return ["/usr/bin/python3", "-I", "-S", "-c", PROGRAM.read_text(encoding="utf-8"), verb]


def answer_of(host: str, text: str) -> dict[str, Any]:
    """The answer in what a host printed. Raises TestbedError."""
    answer: dict[str, Any] = json.loads(text)
    if "failed" in answer:
        told = answer["failed"].replace("\n", "\n    ")
        raise TestbedError(f"{host}: Debian packages: {told}", _advice(answer["failed"]))
    return answer


def _advice(failed: str) -> str:
    if "holds databases" in failed:
        return "This host is somebody's database server: give another one, or move its databases away."
    if "need ours" in failed:
        return "Remove those first, or release without removing packages."
    if "held broken packages" in failed or "unmet dependencies" in failed:
        return "The host's packages do not fit: upgrade them (`apt-get dist-upgrade`), or give a fresh Debian 12."
    return "Where hosts reach no archive of Debian, say `packages: carried`; otherwise mend the cause, then run again."


def install_packages(
    remote: Remote, host: str, variant: Variant, packages: Packages, cache: Path, send: Send, progress: Progress
) -> dict[str, Any]:
    """Install the packages of a variant that a host lacks; nothing of them runs or starts by itself afterwards.

    Args:
        remote: ssh to hosts.
        host: its name.
        variant: of the hosts' image.
        packages: where they come from.
        cache: directory of the cache, for the carried archive.
        send: how files are sent.
        progress: takes one short line per step.
    Returns:
        "installed": package -> version of those that were not there before us; "upgraded": package -> version that it
        had; "source": where they came from.
    Raises:
        TestbedError: apt failed; the end of what it said is quoted.
    """
    seen = ask(remote, host, "look", {"packages": wanted_packages(variant)})
    missing: list[str] = seen["missing"]
    if seen["known"] and not missing:
        return seen
    asked = {"packages": missing, "carried": packages == "carried", "source": packages}
    if missing and packages == "carried":
        archive = apt_archive(cache, base_image(cache, progress), variant, progress)
        asked["source"] = f"{archive.name}, index {archive.index_sha256}"
        _carry(remote, host, asked, cache / FOLDER, archive, send)
    if missing:
        progress(f"{host}: installing {len(missing)} Debian packages and what they need")
    asked |= {"kept_units": KEPT_UNITS, "emptied": EMPTIED, "timers": TIMERS}
    installed = ask(remote, host, "install", asked)
    if installed["missing"]:
        raise TestbedError(f"{host}: still not installed: {', '.join(installed['missing'])}", "Run again.")
    return installed


def _carry(remote: Remote, host: str, asked: dict[str, Any], folder: Path, archive: AptArchive, send: Send) -> None:
    """Bring a host those packages of an archive that it needs."""
    _send_files(host, folder / archive.name, [INDEX], send)
    planned = ask(remote, host, "plan", asked)
    files = [archive.files[f"{name.split(':')[0]} {version}"] for name, version in planned["new"] + planned["upgraded"]]
    if files:
        _send_files(host, folder / archive.name, files, send)


def _send_files(host: str, folder: Path, files: list[str], send: Send) -> None:
    """Send files of a folder to where a host keeps the carried archive. Raises TestbedError."""
    with tempfile.TemporaryFile(dir=folder.parent) as stream:
        try:
            packed = subprocess.run(
                ["tar", "--create", "--file=-", f"--directory={folder}", "--", *files],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.PIPE, check=False, timeout=TAR_LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            what = f"{folder} could not be packed: tar timed out after {TAR_LIMIT_S:g} s"
            raise TestbedError(what, "Look at the disk of the cache, then run again.") from None
        if packed.returncode:
            told = packed.stderr.decode(errors="replace").strip()
            raise TestbedError(f"{folder} could not be packed: {told}", "Free space in the cache, then run again.")
        answer_of(host, send(host, command("receive"), stream))


def remove_packages(remote: Remote, host: str, asked: bool) -> list[str]:
    """Remove what is kept about packages on a host, and (if asked) the packages that `install_packages` brought.

    Returns:
        Names of the packages that went.
    Raises:
        TestbedError: packages that were installed later need them.
    """
    removed: list[str] = ask(remote, host, "remove", {"accounts": list(SERVICES)})["removed"] if asked else []
    ask(remote, host, "forget", {})
    return removed
