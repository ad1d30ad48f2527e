"""The first login on a machine: what is run there, and what follows from what it says."""

from __future__ import annotations

import json

import pytest

from discovery_deploy.errors import TestbedError
from discovery_deploy.first_login import Entered, enter, seen, way_in
from discovery_deploy.vagrant_plan import Way

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
    words = way_in(way)
    assert words[-5:] == ["-l", "vagrant", "--", "127.0.0.1", "sudo -n sh -s"]
    assert words[words.index("-i") + 1] == "/keys/a b"
    assert words[words.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in words
    assert way_in(way.model_copy(update={"user": "root"}))[-1] == "sh -s"


def test_what_fails_there_is_quoted() -> None:
    with pytest.raises(TestbedError, match="paris-1: the first login failed: no python3"):
        enter("paris-1", ["sh", "-c", "echo no python3 >&2; exit 10"], "key", {"paris-1": "10.0.0.1"})


def test_the_script_gets_the_key_and_the_names_as_they_are() -> None:
    echo = ["sh", "-c", """s=$(cat); eval "$(echo "$s" | sed "/^set/q")"; echo "$KEY|$HOSTS" >&2; exit 1"""]
    with pytest.raises(TestbedError) as raised:
        enter("b", echo, "ssh-ed25519 'AAA' me\n", {"b": "10.0.0.2", "a": "10.0.0.1"})
    assert "ssh-ed25519 'AAA' me|127.0.0.1 localhost\n10.0.0.1 a\n10.0.0.2 b" in raised.value.what
