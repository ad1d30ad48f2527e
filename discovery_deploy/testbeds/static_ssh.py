"""How machines that are given by hand are reached: command lines of ssh, and what its failures mean. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from discovery_deploy.experiment.provider_models import Machine
from discovery_deploy.system.remote import option_words

CONNECT_S = 10
"""A machine that takes no connection for so long does not answer."""
DEFAULT_PORT = 22
_HOP = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:]+)(?::(?P<port>\d+))?")


def options(machine: Machine, known_hosts: Path) -> list[str]:
    """Options of ssh with which a machine is reached by its own user.

    Args:
        machine: its `key`, if any, is an absolute path.
        known_hosts: takes host keys that were not known; what the user's own files know must fit.
    """
    words = [*_common(machine.key, known_hosts), "-p", str(machine.port), "-l", machine.user]
    return [*words, *(["-o", f"ProxyCommand={proxy(machine, known_hosts)}"] if machine.jump else [])]


def _common(key: str | None, known_hosts: Path) -> list[str]:
    settings = {
        "ConnectTimeout": str(CONNECT_S), "ControlPath": "none",
        "StrictHostKeyChecking": "accept-new", "UserKnownHostsFile": _known_hosts(known_hosts),
    }  # fmt: skip
    return option_words(settings, key)


def _known_hosts(known_hosts: Path) -> str:
    own = str(known_hosts).replace("%", "%%")
    return f'"{own}" ~/.ssh/known_hosts ~/.ssh/known_hosts2'


def proxy(machine: Machine, known_hosts: Path) -> str:
    """The ProxyCommand through a machine's jump hosts, which the user's own key opens, not the experiment's.

    ssh's own ProxyJump would open them with the key and the user of the host behind.
    """
    command = ""
    for hop in (machine.jump or "").split(","):
        found = _HOP.fullmatch(hop)
        user, host, port = (found["user"], found["host"], found["port"]) if found else (None, hop, None)
        words = ["ssh", *_common(machine.key, known_hosts)]
        words += [*(["-p", port] if port else []), *(["-l", user] if user else [])]
        if command:
            words += ["-o", "ProxyCommand=" + command.replace("%", "%%")]
        # %h and %p are the next host's: ssh puts them in
        command = shlex.join([*words, "-W", "[%h]:%p", host.strip("[]")])
    return command


def driver_options(machine: Machine, known_hosts: Path) -> dict[str, str]:
    """Lines of an ssh_config with which the driver reaches root there, beside address, user and key."""
    lines = {"StrictHostKeyChecking": "yes", "UserKnownHostsFile": _known_hosts(known_hosts)}
    lines |= {} if machine.port == DEFAULT_PORT else {"Port": str(machine.port)}
    return lines if machine.jump is None else {**lines, "ProxyCommand": proxy(machine, known_hosts)}


def as_root(machine: Machine, command: Sequence[str]) -> str:
    """What the machine's shell is given, so that the words of a command run as root."""
    return shlex.join([*(["sudo", "-n"] if machine.become else []), *command])


FAILURES: Mapping[str, tuple[str, str]] = {
    r"permission denied|too many authentication|no supported authentication": (
        "it does not let {user} in",
        "Give the machine's `user`, and as `key` the file of a private key that it knows.",
    ),
    r"host key verification failed|identification has changed": (
        "its host key is another one than is known here",
        "If the machine was installed anew, forget the old key with `ssh-keygen -R {address}`.",
    ),
    r"could not resolve|name or service not known": (
        "its name has no address",
        "Mend its `address` (or that of its `jump`).",
    ),
    r"timed out|refused|no route|unreachable|closed|reset|banner|broken pipe|not responding": (
        "it does not answer",
        "Is it up, and are `address`, `port` and `jump` right?",
    ),
}
"""Text in what ssh says -> what it means, and what to do."""


def ssh_failure(machine: Machine, said: str) -> tuple[str, str]:
    """What happened and what to do when ssh itself failed, from its words."""
    last = (said.strip().splitlines() or ["connection closed"])[-1].strip()
    values = {"user": machine.user, "address": machine.address}
    for pattern, (what, advice) in FAILURES.items():
        if re.search(pattern, said, re.IGNORECASE):
            return f"{what.format(**values)}: {last}", advice.format(**values)
    return f"ssh failed: {last}", f"Try `ssh {machine.user}@{machine.address}` by hand."


def program_failure(machine: Machine, said: str) -> tuple[str, str]:
    """What happened and what to do when our program could not run there, from what was said."""
    if re.search(r"python3: (command )?not found|python3: No such file", said):
        return "python3 is not installed on it", "Run `apt-get install -y python3` there."
    if re.search(r"sudo: .*(password|terminal) is required|not in the sudoers|may not run sudo", said):
        return (
            f"{machine.user} may not become root by `sudo -n`",
            f"Put `{machine.user} ALL=(ALL) NOPASSWD: ALL` into a file of /etc/sudoers.d there.",
        )
    if re.search(r"sudo: (command )?not found", said):
        return "sudo is not installed on it", "Run `apt-get install -y sudo` there, or give root as `user`."
    tail = " / ".join(said.strip().splitlines()[-3:]) or "nothing was said"
    return f"our program failed on it: {tail}", "Debian 12 with its python3 is needed there."


def root_login_problem(settings: Mapping[str, str]) -> tuple[str, str] | None:
    """Why root could not log in with a key, from `sshd -T`; None when nothing speaks against it.

    Args:
        settings: sshd's settings for root, in lower case; empty when it is not OpenSSH's.
    """
    if not settings:
        return None
    place = "/etc/ssh/sshd_config.d/ there, then `systemctl reload ssh`"
    if settings.get("permitrootlogin") in ("no", "forced-commands-only"):
        what = f"root may not log in: PermitRootLogin is {settings['permitrootlogin']}"
        return what, f"Put `PermitRootLogin prohibit-password` into a file of {place}."
    if settings.get("pubkeyauthentication") == "no":
        return (
            "sshd takes no keys: PubkeyAuthentication is no",
            f"Put `PubkeyAuthentication yes` into a file of {place}.",
        )
    files = settings.get("authorizedkeysfile", ".ssh/authorized_keys").split()
    if not {".ssh/authorized_keys", "%h/.ssh/authorized_keys", "/root/.ssh/authorized_keys"} & set(files):
        what = f"root's keys are not read from ~/.ssh/authorized_keys: AuthorizedKeysFile is {' '.join(files)}"
        return what, f"Add `.ssh/authorized_keys` to AuthorizedKeysFile in a file of {place}."
    return None
