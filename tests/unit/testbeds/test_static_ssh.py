"""How given machines are reached, and what ssh's failures are said to mean."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.model import Machine
from discovery_deploy.testbeds import static_ssh

KNOWN = Path("/state of/known_hosts")


def machine(**more: Any) -> Machine:
    return Machine.model_validate({"host": "paris-1", "address": "192.0.2.7", **more})


def understood(words: list[str], host: str = "192.0.2.7") -> dict[str, str]:
    """What ssh itself makes of its options."""
    shown = subprocess.run(["ssh", "-G", "-F", "none", *words, host], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A file that ssh takes for a key: it says nothing of those that are not there."""
    file = tmp_path / "a key"
    file.touch()
    return str(file)


def test_user_port_and_key_are_the_machine_s(key: str) -> None:
    seen = understood(static_ssh.options(machine(user="debian", port=2222, key=key), KNOWN))
    assert (seen["user"], seen["port"], seen["identityfile"]) == ("debian", "2222", key)
    assert (seen["identitiesonly"], seen["batchmode"], seen["stricthostkeychecking"]) == ("yes", "yes", "accept-new")
    assert seen["connecttimeout"] == str(static_ssh.CONNECT_S)


def test_new_host_keys_are_kept_with_the_experiment_and_those_of_the_user_must_fit() -> None:
    files = understood(static_ssh.options(machine(), KNOWN))["userknownhostsfile"]
    assert files.startswith(str(KNOWN))
    assert "/.ssh/known_hosts" in files.removeprefix(str(KNOWN))


def expanded(command: str, host: str, port: str) -> str:
    """What ssh makes of the tokens of a ProxyCommand."""
    return command.replace("%%", "\0").replace("%h", host).replace("%p", port).replace("\0", "%")


def test_a_jump_host_is_entered_with_the_machine_s_own_key(key: str) -> None:
    words = static_ssh.options(machine(jump="me@gate:2022", key=key), KNOWN)
    proxy = shlex.split(expanded(understood(words)["proxycommand"], "192.0.2.7", "22"))
    assert proxy[0] == "ssh"
    assert proxy[-3:] == ["-W", "[192.0.2.7]:22", "gate"]
    seen = understood(proxy[1:-3], "gate")
    assert (seen["user"], seen["port"], seen["identityfile"]) == ("me", "2022", key)


def test_several_jump_hosts_are_passed_in_their_order() -> None:
    proxy = shlex.split(expanded(static_ssh.proxy(machine(jump="a@first,b@second:2022"), KNOWN), "192.0.2.7", "22"))
    assert proxy[-3:] == ["-W", "[192.0.2.7]:22", "second"]
    inner = next(word for word in proxy if word.startswith("ProxyCommand=")).removeprefix("ProxyCommand=")
    before = shlex.split(expanded(inner, "second", "2022"))
    assert before[-3:] == ["-W", "[second]:2022", "first"]
    assert before[before.index("-l") + 1] == "a"


def test_the_driver_s_lines_are_an_ssh_config(tmp_path: Path) -> None:
    lines = static_ssh.driver_options(machine(port=2222, jump="me@gate"), KNOWN)
    config = tmp_path / "config"
    config.write_text("Host paris-1\n" + "".join(f"  {name} {value}\n" for name, value in lines.items()))
    shown = subprocess.run(["ssh", "-G", "-F", config, "paris-1"], capture_output=True, text=True, check=True).stdout
    assert "port 2222\n" in shown
    assert f"proxycommand {lines['ProxyCommand']}\n" in shown
    assert "stricthostkeychecking true\n" in shown
    assert set(static_ssh.driver_options(machine(), KNOWN)) == {"StrictHostKeyChecking", "UserKnownHostsFile"}


def test_words_reach_the_machine_as_they_are_and_as_root() -> None:
    words = ["python3", "-", '{"a": "b c\'d"}']
    assert shlex.split(static_ssh.as_root(machine(), words)) == words
    assert shlex.split(static_ssh.as_root(machine(become=True), words)) == ["sudo", "-n", *words]


@pytest.mark.parametrize(
    ("said", "what", "advice"),
    [
        ("debian@192.0.2.7: Permission denied (publickey).", "does not let debian in", "`key`"),
        ("ssh: connect to host 192.0.2.7 port 22: Connection timed out", "does not answer", "`port`"),
        ("ssh: connect to host 192.0.2.7 port 22: Connection refused", "does not answer", "Is it up"),
        (
            "@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@\nHost key verification failed.",
            "host key",
            "keygen -R",
        ),
        ("ssh: Could not resolve hostname x: Name or service not known", "no address", "`address`"),
        ("something else", "ssh failed: something else", "ssh debian@192.0.2.7"),
        ("", "connection closed", "ssh debian@192.0.2.7"),
    ],
)
def test_failures_of_ssh_say_what_to_do(said: str, what: str, advice: str) -> None:
    found = static_ssh.ssh_failure(machine(user="debian"), said)
    assert what in found[0]
    assert advice in found[1]


@pytest.mark.parametrize(
    ("said", "what", "advice"),
    [
        ("bash: line 1: python3: command not found", "python3 is not installed", "apt-get install -y python3"),
        ("sh: 1: python3: not found", "python3 is not installed", "apt-get install -y python3"),
        ("sudo: a password is required", "debian may not become root", "NOPASSWD"),
        ("bash: line 1: sudo: command not found", "sudo is not installed", "apt-get install -y sudo"),
        ("Traceback\n  x\nKeyError: 1", "KeyError: 1", "Debian 12"),
    ],
)
def test_failures_of_what_is_sent_say_what_to_do(said: str, what: str, advice: str) -> None:
    found = static_ssh.program_failure(machine(user="debian", become=True), said)
    assert what in found[0]
    assert advice in found[1]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"permitrootlogin": "no"}, "root may not log in: PermitRootLogin is no"),
        ({"permitrootlogin": "forced-commands-only"}, "root may not log in: PermitRootLogin is forced-commands-only"),
        ({"permitrootlogin": "yes", "pubkeyauthentication": "no"}, "sshd takes no keys: PubkeyAuthentication is no"),
        (
            {"authorizedkeysfile": "/etc/ssh/keys/%u"},
            "root's keys are not read from ~/.ssh/authorized_keys: AuthorizedKeysFile is /etc/ssh/keys/%u",
        ),
        ({"permitrootlogin": "without-password", "authorizedkeysfile": ".ssh/authorized_keys .ssh/x"}, None),
        ({}, None),
    ],
)
def test_what_keeps_root_out_is_found_in_sshd_s_settings(settings: dict[str, str], what: str | None) -> None:
    found = static_ssh.root_login_problem(settings)
    assert (found[0] if found else None) == what
