"""What is done on all hosts: in their order, and every failure is told."""

from __future__ import annotations

import pytest

from discovery_deploy.system.errors import PlaybookError, TestbedError
from discovery_deploy.system.remote import on_all, option_words


def test_results_come_in_the_order_of_the_hosts() -> None:
    assert on_all(len, ["lyon-1", "a", "paris"]) == [6, 1, 5]


def test_every_failure_is_told_when_all_others_are_done() -> None:
    done: list[str] = []

    def act(host: str) -> None:
        if host == "lyon-1":
            raise PlaybookError("lyon-1: rsync failed", "Look at its disk.")
        if host == "nancy-1":
            raise TestbedError("nancy-1: not reachable", "Look at its disk.")
        done.append(host)

    with pytest.raises(PlaybookError) as caught:
        on_all(act, ["lyon-1", "paris-1", "nancy-1", "lille-1"])
    assert str(caught.value) == "lyon-1: rsync failed\nnancy-1: not reachable\n  Look at its disk."
    assert sorted(done) == ["lille-1", "paris-1"]


def test_ssh_is_given_one_key_or_the_users_own() -> None:
    words = option_words({"Port": "22"}, "/keys/id")
    assert words[words.index("IdentitiesOnly=yes") - 1] == "-o"
    assert words[-4:] == ["-o", "Port=22", "-i", "/keys/id"]
    assert "IdentitiesOnly=yes" not in option_words({})
    assert "BatchMode=yes" in option_words({})
