"""Programs on hosts, by ssh over the management network."""

from __future__ import annotations

import base64
import hashlib
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import DiscoveryError, PlaybookError, TestbedError, together
from discovery_deploy.system.files import write_file
from discovery_deploy.system.workspace import Workspace

Item = TypeVar("Item")
Result = TypeVar("Result")
SSH_FAILED = 255
QUIET = {"BatchMode": "yes", "LogLevel": "ERROR"}
ALIVE = {"ServerAliveInterval": "10", "ServerAliveCountMax": "3"}
"""A connection whose other end has gone is noticed after half a minute."""
CONTROL_SOCKETS = Path("/run/discovery-deploy")
"""Where ssh keeps the sockets of shared connections: their paths must be short."""


def control_sockets(workspace: Path) -> Path:
    """Folder of ssh's sockets of one workspace; two workspaces never share it, whatever their experiments' names."""
    return CONTROL_SOCKETS / hashlib.sha256(str(workspace).encode()).hexdigest()[:8]


def remove_control_sockets(workspaces: Iterable[Path]) -> None:
    """Remove these folders alone: another workspace's may be empty for the moment, and its next ssh needs it."""
    for folder in map(control_sockets, workspaces):
        for socket in folder.glob("*"):
            socket.unlink(missing_ok=True)  # a connection that ends meanwhile removes its own
        with suppress(FileNotFoundError):
            folder.rmdir()
    with suppress(OSError):  # others still use theirs, or it never was
        CONTROL_SOCKETS.rmdir()


def known_hosts_text(keys: Mapping[str, str]) -> str:
    """Text of a known_hosts file: host -> its public key, as `ssh_config_text` lets ssh look it up."""
    return "".join(f"{name} {key.strip()}\n" for name, key in sorted(keys.items()))


def option_words(options: Mapping[str, str], key: str | None = None) -> list[str]:
    """Words of an ssh command line for options of ssh_config; none of them asks a person anything.

    Args:
        options: besides `BatchMode` and `LogLevel`.
        key: file of the only private key that is tried; None: as the user's own configuration and agent have it.
    """
    own = {} if key is None else {"IdentitiesOnly": "yes"}
    words = [f"{name}={value}" for name, value in {**QUIET, **ALIVE, **own, **options}.items()]
    return [*(part for word in words for part in ("-o", word)), *(["-i", key] if key is not None else [])]


def ssh_config_text(
    ways: Mapping[str, tuple[str, Mapping[str, str]]], key: Path, control: Path, known_hosts: Path, *, all_known: bool
) -> str:
    """Text of an ssh_config for hosts: name -> management address, and more options with which it is reached.

    Args:
        ways: the options may name a known_hosts file of their own.
        key: private key of the experiment.
        control: folder of the sockets of shared connections.
        known_hosts: keys of the hosts, by their names.
        all_known: whether all of them are in it; else the key that a host shows first is put there, and must stay.
    """
    lines: list[str] = []
    for name, (address, options) in sorted(ways.items()):
        known = {} if "UserKnownHostsFile" in options else {"HostKeyAlias": name}
        lines += [f"Host {name} {address}", f"  HostName {address}"]
        lines += [f"  {option} {value}" for option, value in sorted({**known, **options}.items())]
    lines += [
        "Host *",
        "  User root",
        f"  IdentityFile {config_word(key)}",
        "  IdentitiesOnly yes",
        f"  StrictHostKeyChecking {'yes' if all_known else 'accept-new'}",
        f"  UserKnownHostsFile {config_word(known_hosts)}",
        "  GlobalKnownHostsFile /dev/null",
        "  LogLevel ERROR",
        "  ConnectTimeout 10",
        *(f"  {option} {value}" for option, value in ALIVE.items()),
        "  ControlMaster auto",
        f"  ControlPath {control}/%C",
        "  ControlPersist 60",
    ]
    return "\n".join(lines) + "\n"


def write_ssh_config(
    workspace: Workspace,
    ways: Mapping[str, tuple[str, Mapping[str, str]]],
    keys: Mapping[str, str] | None,
    *,
    others: bool,
) -> None:
    """Let hosts be reached through the workspace's ssh_config, and know them again.

    Where nothing says which keys they have, those that they show first are theirs, as long as they are the same hosts:
    `prepare` brings them software by `Remote` before Ansible, which takes no new key, comes to them.

    Args:
        workspace: its key is let in.
        ways: as those of `ssh_config_text`.
        keys: host -> its public key; None or empty: not known, or the ways' options say how.
        others: whether these are other hosts than those the file was written for.
    """
    control = control_sockets(workspace.path)
    control.mkdir(parents=True, exist_ok=True, mode=0o700)
    (control / "workspace").write_text(str(workspace.path))  # never empty: no other release removes it
    known = workspace.path / "known_hosts"
    if keys or others:
        write_file(known, known_hosts_text(keys or {}), 0o600)
    text = ssh_config_text(ways, workspace.key, control, known, all_known=bool(keys))
    write_file(workspace.ssh_config, text, 0o600)


def config_word(path: Path) -> str:
    """A path as a word of an ssh_config or of an option of ssh, where "%" begins what ssh puts in."""
    return '"' + str(path).replace("%", "%%") + '"'


class Remote:
    """Runs commands on hosts named in an ssh_config.

    Args:
        ssh_config: file for `ssh -F`.
    """

    def __init__(self, ssh_config: Path) -> None:
        self.ssh_config = ssh_config

    def arguments(self, host: str, command: Sequence[str]) -> list[str]:
        """The ssh command line; the words of `command` reach the host as they are."""
        return ["ssh", "-F", str(self.ssh_config), host, *([shlex.join(command)] if command else [])]

    def arguments_alone(self, host: str, command: Sequence[str]) -> list[str]:
        """As `arguments`, over a connection of its own: when ssh ends, so does the command's standard input."""
        ssh, *words = self.arguments(host, command)
        return [ssh, "-S", "none", *words]

    def __call__(self, host: str, command: Sequence[str], stdin: str = "", timeout_s: float = 60.0) -> str:
        """Run a command on a host; its standard output.

        Raises:
            TestbedError: the host cannot be reached, or the command takes longer than `timeout_s` seconds.
            PlaybookError: the command ended with an error; its last lines are quoted.
        """
        return self._run(host, command, timeout_s, stdin)

    def send(self, host: str, command: Sequence[str], file: Path, timeout_s: float = 1800.0) -> str:
        """Run a command on a host that reads a file of this machine as its standard input. As `__call__`."""
        with file.open("rb") as stream:
            return self._run(host, command, timeout_s, stream)

    def _run(self, host: str, command: Sequence[str], timeout_s: float, stdin: str | IO[bytes]) -> str:
        what = f"{host}: `{command[0]} ...`" if len(command) > 1 else f"{host}: `{command[0]}`"
        try:
            done = interruption.run(self.arguments(host, command), stdin, timeout_s)
        except subprocess.TimeoutExpired:
            raise TestbedError(
                f"{what} gave no answer within {timeout_s:g} s", "Look at the host with `discovery-deploy ssh HOST`."
            ) from None
        if done.returncode == SSH_FAILED:
            raise TestbedError(
                f"{host}: not reachable by ssh: {done.stderr.strip() or 'connection closed'}",
                "Run again: `run` starts dead hosts anew.",
            )
        if done.returncode:
            tail = "\n    ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
            raise PlaybookError(
                f"{what} failed with exit code {done.returncode}:\n    {tail}", "Mend the cause, then run again."
            )
        return done.stdout

    def answers(self, host: str) -> bool:
        """Whether a host can be reached by ssh."""
        try:
            self(host, ["true"], timeout_s=30.0)
        except TestbedError:
            return False
        return True

    def fetch(self, host: str, path: str, to: Path) -> None:
        """Copy a file of a host. Raises as `__call__`."""
        to.write_bytes(base64.b64decode(self(host, ["base64", "-w0", path], timeout_s=120.0)))

    def close(self, hosts: Iterable[str]) -> None:
        """End the shared connections to hosts."""
        for host in hosts:
            command = ["ssh", "-F", str(self.ssh_config), "-O", "exit", host]
            with suppress(subprocess.TimeoutExpired):  # then it ends by itself, ControlPersist after its last use
                subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=10)


def side_by_side(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`act` on every item at the same time (threads); results in order; the first error is raised."""
    with interruption.pool(len(items)) as pool:
        return list(pool.map(act, items))


def on_all(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`act` on every item (host, machine) at the same time; results in order.

    Raises:
        DiscoveryError: of the first failure's kind; it tells of all that failed, when all others are done.
    """

    def tried(item: Item) -> tuple[list[Result], list[DiscoveryError]]:
        try:
            return [act(item)], []
        except DiscoveryError as error:
            return [], [error]

    outcomes = side_by_side(tried, items)
    if errors := [error for _, failed in outcomes for error in failed]:
        raise together(errors) from errors[0]
    return [result for results, _ in outcomes for result in results]
