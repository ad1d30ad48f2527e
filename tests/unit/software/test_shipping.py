"""Environments sent to hosts that are folders: what is sent, what is not, and what is told when something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from discovery_deploy.agent.host_environments import entries_of
from discovery_deploy.software import shipping
from discovery_deploy.software.contents import FOLDER, contents
from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import Remote

FIRST, SECOND = "openstack-aa", "openstack-bb"


class Folders(Remote):
    """Hosts that are folders of this machine: the very program of hosts runs, with other paths."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "ssh_config")
        self.root = root
        self.sent: list[tuple[str, str]] = []
        self.systems: dict[str, str] = {}
        self.busy, self.most = 0, 0
        self.guard = threading.Lock()

    def place(self, host: str, name: str = "") -> Path:
        return self.root / host / "opt" / name

    def _run(self, host: str, command: Sequence[str], timeout_s: float, stdin: str | IO[bytes]) -> str:
        if command[0] == "sh":
            return self.systems.get(host, f"debian|12|{os.uname().machine}|yes\n")
        program = command[4].replace('"/opt/discovery-deploy"', repr(str(self.place(host))))
        program = program.replace('"/var/lib/discovery-deploy/environments"', repr(str(self.root / host / "lists")))
        words = [sys.executable, *command[1:4], program, *command[5:]]
        done = interruption.run(words, stdin, 60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(self, host: str, command: Sequence[str], file: Path, timeout_s: float = 1800.0) -> str:
        with self.guard:
            self.sent.append((host, command[-1]))
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        try:
            return super().send(host, command, file, timeout_s)
        finally:
            with self.guard:
                self.busy -= 1


def make(cache: Path, name: str, **files: str) -> Path:
    """An environment as builds make them: others may write some files, there are links, and a hole."""
    root = cache / "environments" / name
    (root / "lib").mkdir(parents=True)
    for path, text in files.items():
        (root / "lib" / path).write_text(text)
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o775)
    (root / "lib" / "open").write_text("")
    (root / "lib" / "open").chmod(0o666)
    (root / "lib64").symlink_to("lib")
    (root / "python").symlink_to("/usr/bin/python3")
    with (root / "hole").open("wb") as stream:
        stream.truncate(1 << 20)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    make(tmp_path / "cache", FIRST, a="one", b="two")
    make(tmp_path / "cache", SECOND, a="one", b="another")
    return tmp_path / "cache"


@pytest.fixture
def hosts(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "hosts")


def ship(hosts: Folders, cache: Path, wanted: dict[str, Sequence[str]]) -> list[str]:
    """Lines that were told."""
    hosts.sent.clear()
    said: list[str] = []
    shipping.ship_environments(hosts, wanted, cache, said.append)
    return said


def test_all_of_an_environment_arrives_and_only_root_may_write(hosts: Folders, cache: Path) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    there = hosts.place("paris", FIRST)
    assert {str(path.relative_to(there)) for path in there.rglob("*")} == {
        "lib", "lib/a", "lib/b", "lib/open", "lib64", "program", "python", "hole",
    }  # fmt: skip
    assert (there / "lib" / "b").read_text() == "two"
    assert oct((there / "program").stat().st_mode) == "0o100755"
    assert oct((there / "lib" / "open").stat().st_mode) == "0o100644"
    assert str((there / "lib64").readlink()) == "lib"
    assert (there / "hole").stat().st_blocks < 100
    assert [path.name for path in hosts.place("paris").iterdir()] == [FIRST]


def test_what_is_packed_is_packed_once_and_few_are_sent_to_at_once(hosts: Folders, cache: Path) -> None:
    names = [f"host-{number}" for number in range(9)]
    said = ship(hosts, cache, {name: [FIRST] for name in names})
    assert sorted(hosts.sent) == [(name, FIRST) for name in names]
    assert said.count(f"packing {FIRST}") == 1
    assert 2 <= hosts.most <= shipping.AT_ONCE
    assert not [path for path in (cache / FOLDER).iterdir() if path.suffix != ".json"]


def test_what_is_there_is_not_sent_again(hosts: Folders, cache: Path) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    assert ship(hosts, cache, {"paris": [FIRST]}) == []
    assert hosts.sent == []


def test_of_another_environment_only_the_files_that_differ_are_sent(hosts: Folders, cache: Path) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    inode = (hosts.place("paris", FIRST) / "lib" / "a").stat().st_ino
    said = ship(hosts, cache, {"paris": [SECOND]})
    assert said[-1].startswith(f"paris: sending {SECOND}: 1 files")
    there = hosts.place("paris", SECOND)
    assert ((there / "lib" / "b").read_text(), (there / "lib" / "a").stat().st_ino) == ("another", inode)
    assert [path.name for path in hosts.place("paris").iterdir()] == [SECOND]


def test_an_environment_that_runs_stays_until_it_does_not(hosts: Folders, cache: Path) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    program = hosts.place("paris", FIRST) / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            ship(hosts, cache, {"paris": [SECOND]})
            assert program.exists()
        finally:
            process.kill()
    ship(hosts, cache, {"paris": [SECOND]})
    assert [path.name for path in hosts.place("paris").iterdir()] == [SECOND]
    assert [path.name for path in (hosts.root / "paris" / "lists").iterdir()] == [f"{SECOND}.json"]


@pytest.mark.parametrize("damage", ["changed", "mode", "missing", "added", "link", "cut off", "list lost"])
def test_damage_is_noticed_and_mended(hosts: Folders, cache: Path, damage: str) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    there = hosts.place("paris", FIRST)
    if damage == "changed":
        (there / "lib" / "b").write_text("owt")
    elif damage == "mode":
        (there / "lib" / "b").chmod(0o666)
    elif damage == "missing":
        (there / "lib" / "b").unlink()
    elif damage == "added":
        (there / "lib" / "more").write_text("")
    elif damage == "link":
        (there / "lib64").unlink()
    elif damage == "cut off":
        there.rename(there.with_name(f".{FIRST}.new"))
    else:
        (hosts.root / "paris" / "lists" / f"{FIRST}.json").unlink()
    ship(hosts, cache, {"paris": [FIRST]})
    nothing_lacks = ("added", "link", "list lost")
    assert hosts.sent == ([] if damage in nothing_lacks else [("paris", FIRST)])
    assert (there / "lib" / "b").read_text() == "two"
    assert not (there / "lib" / "more").exists()
    assert oct((there / "lib" / "b").stat().st_mode) == "0o100644"
    assert ship(hosts, cache, {"paris": [FIRST]}) == []


def test_what_changed_in_the_cache_does_not_take_the_place_of_what_is_there(hosts: Folders, cache: Path) -> None:
    ship(hosts, cache, {"paris": [FIRST]})
    contents(cache, SECOND)
    (cache / "environments" / SECOND / "lib" / "b").write_text("damaged")
    with pytest.raises(TestbedError, match=f"paris: {SECOND}: not as it was made: lib/b\n.*remove .*{SECOND}"):
        ship(hosts, cache, {"paris": [SECOND]})
    assert not hosts.place("paris", SECOND).exists()
    assert ship(hosts, cache, {"paris": [FIRST]}) == []


def test_an_environment_that_was_built_anew_is_looked_at_anew(cache: Path) -> None:
    before = contents(cache, FIRST)
    (cache / "environments" / FIRST).rename(cache / "gone")
    make(cache, FIRST, a="one", b="three")
    assert contents(cache, FIRST) != before
    assert len(list((cache / FOLDER).glob(f"{FIRST}-*"))) == 1


def test_every_host_that_cannot_is_told(hosts: Folders, cache: Path) -> None:
    hosts.systems = {"lyon": "debian|13|x86_64|yes", "oslo": "debian|12|x86_64|"}
    with pytest.raises(TestbedError) as failure:
        ship(hosts, cache, {"paris": [FIRST], "lyon": [FIRST], "oslo": []})
    assert failure.value.what.splitlines() == [
        "lyon: runs debian 13, not Debian 12",
        "oslo: has no /usr/bin/python3.11",
    ]
    assert hosts.place("paris", FIRST).is_dir()


def test_no_path_leads_out_of_an_environment() -> None:
    for path in ("/etc/passwd", "../other/file", "lib/../../x"):
        with pytest.raises(ValueError, match="outside the environment"):
            entries_of(f'[["{path}", "file", 420, 0, ""]]')


def test_what_is_no_file_is_told(cache: Path) -> None:
    os.mkfifo(cache / "environments" / FIRST / "pipe")
    with pytest.raises(TestbedError, match=r"pipe is no file"):
        contents(cache, FIRST)
    with pytest.raises(TestbedError, match="openstack-cc is not there"):
        contents(cache, "openstack-cc")
