"""The first login on a machine: what is run there, and what follows from what it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds.first_login import Entered, enter, host_keys, seen, way_in
from discovery_deploy.testbeds.vagrant_plan import Way

SHOWN = json.dumps(
    [
        {"ifname": "eth0", "addr_info": [{"local": "192.168.121.7"}]},
        {"ifname": "eth1", "addr_info": [{"local": "10.192.0.245"}]},
    ]
)


def test_the_device_with_the_address_is_found() -> None:
    assert seen("a", f"debian 12\n{SHOWN}", "10.192.0.245") == Entered(address="10.192.0.245", device="eth1")


def test_another_system_is_refused_by_name() -> None:
    with pytest.raises(TestbedError, match=r"paris-1: it is ubuntu 22\.04; hosts must be Debian 12"):
        seen("paris-1", f"ubuntu 22.04\n{SHOWN}", "10.192.0.245")


def test_a_machine_without_its_address_is_refused() -> None:
    with pytest.raises(TestbedError, match=r"paris-1: none of its network devices has the address 10\.192\.0\.9"):
        seen("paris-1", f"debian 12\n{SHOWN}", "10.192.0.9")


def test_who_is_not_root_becomes_root_with_no_question() -> None:
    way = Way(name="a", address="127.0.0.1", port=2222, user="vagrant", key="/keys/a b")
    words = way_in(way, Path("/known"))
    assert words[-5:] == ["-l", "vagrant", "--", "127.0.0.1", "sudo -n sh -s"]
    assert words[words.index("-i") + 1] == "/keys/a b"
    assert words[words.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in words
    assert way_in(way.model_copy(update={"user": "root"}), Path("/known"))[-1] == "sh -s"


def test_a_machine_is_known_by_the_key_that_it_showed_first(tmp_path: Path) -> None:
    known = tmp_path / "a b %h" / "known_hosts"
    words = way_in(Way(name="paris-1", address="192.0.2.7", port=2222, user="root", key="/keys/a"), known)
    command = [words[0], "-G", *words[1:-3], words[-2]]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    found = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert (found["stricthostkeychecking"], found["hostkeyalias"]) == ("accept-new", "paris-1")
    assert found["userknownhostsfile"].strip('"').replace("%%", "%") == str(known)
    assert (found["hashknownhosts"], found["globalknownhostsfile"]) == ("no", "/dev/null")


def test_the_keys_that_were_seen_are_those_of_the_lease(tmp_path: Path) -> None:
    assert host_keys(tmp_path / "none") == {}
    (tmp_path / "known").write_text("paris-1 ssh-ed25519 AAAA\nlyon-1 ssh-ed25519 BBBB\n")
    assert host_keys(tmp_path / "known") == {"paris-1": "ssh-ed25519 AAAA", "lyon-1": "ssh-ed25519 BBBB"}


def test_another_machine_in_its_place_is_told_as_that() -> None:
    refused = ["sh", "-c", "echo Host key verification failed. >&2; exit 255"]
    with pytest.raises(TestbedError, match="paris-1: it shows another host key than at its first login") as told:
        enter("paris-1", refused, "key", {"paris-1": "10.0.0.1"})
    assert "release, and reserve again" in told.value.advice


def test_what_fails_there_is_quoted() -> None:
    with pytest.raises(TestbedError, match="paris-1: the first login failed: no python3"):
        enter("paris-1", ["sh", "-c", "echo no python3 >&2; exit 10"], "key", {"paris-1": "10.0.0.1"})


def test_the_script_gets_the_key_and_the_names_as_they_are() -> None:
    echo = ["sh", "-c", """s=$(cat); eval "$(echo "$s" | sed "/^set/q")"; echo "$KEY|$HOSTS" >&2; exit 1"""]
    with pytest.raises(TestbedError) as raised:
        enter("b", echo, "ssh-ed25519 'AAA' me\n", {"b": "10.0.0.2", "a": "10.0.0.1"})
    assert "ssh-ed25519 'AAA' me|127.0.0.1 localhost\n10.0.0.1 a\n10.0.0.2 b" in raised.value.what
