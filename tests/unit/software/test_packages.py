"""Debian packages on hosts: what is asked of apt and dpkg, what is written down, and how it is told when they fail."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import host_packages
from discovery_deploy.software import apt_archive, image, packages
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import Remote

SIMULATED = """\
NOTE: This is only a simulation!
Inst libnew (1.2-3 localhost [amd64])
Inst libold [1.0] (1:1.1-1 localhost [amd64]) []
Inst foreign:i386 (2 localhost [i386])
Conf libnew (1.2-3 localhost [amd64])
"""


class Host:
    """A host whose apt and dpkg are told here what they do."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.installed = {"tar": "1.34", "libold": "1.0"}
        self.coming = {"memcached": "1.6", "libnew": "1.2-3"}
        self.simulated = (
            "Inst memcached (1.6 localhost)\nInst libnew (1.2-3 localhost)\nInst libold [1.0] (2 localhost)\n"
        )
        self.removal = ""
        self.locked = 0
        self.config = {"libnew"}
        self.ran: list[str] = []
        self.during: list[str] = []
        (root / "etc").mkdir()
        (root / "units").mkdir()
        (root / "policy").write_text("#!/bin/sh\nexit 0\n")
        self.accounts = ["root", "nova"]
        names = {"STATE": "state", "ARCHIVE": "state/apt", "RECORD": "state/packages.json", "UNITS": "units"}
        names |= {"POLICY": "policy", "ASIDE": "policy.aside", "DATABASES": "mysql/mysql", "OURS": "mysql/ours"}
        for name, path in names.items():
            patch.setattr(host_packages, name, root / path)
        patch.setattr(host_packages, "run", self.run)
        patch.setattr(host_packages, "names_in", lambda file: list(self.accounts))
        patch.setattr(host_packages, "LEFT", {"memcached": (str(root / "left"), str(root / "policy"))})

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "state" / "packages.json").read_text())
        return found

    def run(self, *command: str, accepted: Sequence[int] = (0,)) -> str:
        line = " ".join(word for word in command if not word.startswith("-o") and word not in host_packages.COMMON)
        self.ran.append(line)
        if self.locked and line.startswith("apt-get"):
            self.locked -= 1
            raise host_packages.PackageError("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1")
        if line.startswith("dpkg-query --show"):
            rows = [f"{name}\tamd64\tii \t{version}" for name, version in self.installed.items()]
            rows += [f"{name}\tamd64\trc \t0" for name in self.config - set(self.installed)]
            return "\n".join([*rows, "tar\ti386\tun \t"])
        if line == "dpkg --print-architecture":
            return "amd64\n"
        if line.startswith("dpkg-query --listfiles"):
            return "/lib/systemd/system/memcached.service\n/lib/systemd/system/memcached@.service\n"
        if line.startswith("apt-get --simulate"):
            return self.removal if " remove " in line else self.simulated
        if line.startswith("apt-get install"):
            self.during = [(self.root / "policy").read_text(), *self.record["packages"]]
            self.installed |= self.coming
            self.accounts.append("memcache")
            for unit in {"memcached.service", "dbus.service"} - {path.name for path in (self.root / "units").iterdir()}:
                (self.root / "units" / unit).symlink_to("/nowhere")
            (self.root / "data").mkdir(exist_ok=True)
            (self.root / "data" / "new").write_text("")
        return ""

    def install(self, *names: str, carried: bool = True) -> dict[str, Any]:
        asked = {"packages": names, "carried": carried, "source": "a", "kept_units": ["dbus.service"]}
        asked |= {"timers": ["a.timer"]}
        patterns = [f"{self.root}/data/*", f"{self.root}/units/*.here"]
        return host_packages.install({**asked, "emptied": {"memcached": patterns, "libold": [f"{self.root}/policy"]}})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "state" / "apt").mkdir(parents=True)
    return Host(tmp_path, monkeypatch)


def test_what_apt_would_do_is_read(host: Host) -> None:
    host.simulated = SIMULATED
    assert host_packages.plan({"packages": ["libnew"], "carried": True}) == {
        "new": [["libnew", "1.2-3"], ["foreign:i386", "2"]],
        "upgraded": [["libold", "1:1.1-1"]],
    }
    assert (host.root / "state/apt/sources.list").read_text() == f"deb [trusted=yes] file:{host.root}/state/apt ./\n"


def test_an_installation_starts_nothing_and_is_written_down_before(host: Host) -> None:
    (host.root / "units" / "own.service").symlink_to("/nowhere")
    found = host.install("memcached")
    assert found["installed"] == {"libnew": "1.2-3", "memcached": "1.6"}
    assert (found["missing"], found["source"], found["known"]) == ([], "a", True)
    assert host.during == [host_packages.POLICY_TEXT, "libnew", "memcached"]
    assert (host.root / "policy").read_text() == "#!/bin/sh\nexit 0\n"
    assert sorted(path.name for path in (host.root / "units").iterdir()) == ["dbus.service", "own.service"]
    assert list((host.root / "data").iterdir()) == []
    assert host.record["packages"] == {"memcached": "absent", "libnew": "config"}
    assert host.record["accounts"] == ["memcache"]
    assert host.record["upgraded"] == found["upgraded"] == {"libold": "1.0"}
    assert host.record["left"] == [str(host.root / "left")]  # the other path was there before


def test_what_a_killed_installation_left_is_put_in_order(host: Host) -> None:
    with pytest.raises(KeyboardInterrupt), host_packages.nothing_started():
        raise KeyboardInterrupt
    assert (host.root / "policy").read_text() == "#!/bin/sh\nexit 0\n"
    (host.root / "policy").rename(host.root / "policy.aside")
    (host.root / "policy").write_text(host_packages.POLICY_TEXT)
    host.install("memcached")
    assert (host.root / "policy").read_text() == "#!/bin/sh\nexit 0\n"
    assert not (host.root / "policy.aside").exists()
    host.install("memcached")
    assert "dpkg --force-confdef --force-confold --configure --pending" in host.ran


def test_an_apt_that_runs_by_itself_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    host.locked = 3
    assert host.install("memcached", carried=False)["missing"] == []
    host.locked = 1
    monkeypatch.setattr(host_packages, "LOCKED_S", -1)
    with pytest.raises(host_packages.PackageError, match="held by process 1"):
        host.install("memcached", carried=False)


def test_a_database_server_of_somebody_is_refused_and_ours_is_not(host: Host) -> None:
    (host.root / "mysql" / "mysql").mkdir(parents=True)
    with pytest.raises(host_packages.PackageError, match="holds databases that are not ours"):
        host.install("memcached")
    assert not any(line.startswith("apt-get install") for line in host.ran)
    (host.root / "mysql" / "ours").write_text("")
    host.install("memcached")


def test_exactly_what_came_is_removed(host: Host) -> None:
    host.install("memcached")
    host.accounts += ["keystone", "somebody"]
    host.installed["later"] = "1"
    (host.root / "left").mkdir()
    host.ran.clear()
    assert host_packages.remove_packages({"accounts": ["keystone", "nova"]}) == {"removed": ["libnew", "memcached"]}
    assert [line for line in host.ran if line.startswith("dpkg --")] == [
        "dpkg --print-architecture", "dpkg --remove libnew", "dpkg --purge memcached",
    ]  # fmt: skip
    assert [line for line in host.ran if "del " in line] == [
        "userdel keystone", "userdel memcache", "groupdel keystone", "groupdel memcache",
    ]  # fmt: skip
    assert not (host.root / "left").exists()
    assert (host.root / "policy").exists()


def test_packages_that_others_need_stay(host: Host) -> None:
    host.install("memcached")
    host.removal = "Remv later [1]\nRemv libnew [1.2-3]\nRemv memcached [1.6]\n"
    with pytest.raises(host_packages.PackageError, match=r"installed later need ours: later$"):
        host_packages.remove_packages({"accounts": []})
    assert not any(line.startswith("dpkg --purge") for line in host.ran)


class Answers(Remote):
    """A host that gives one answer."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        super().__init__(Path("nowhere"))
        self.left = list(answers)
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, host: str, command: Sequence[str], stdin: str = "", timeout_s: float = 60.0) -> str:
        self.asked.append((command[-1], json.loads(stdin)))
        return json.dumps(self.left.pop(0))


LACKS = {"missing": ["memcached"], "known": False, "installed": {}, "source": ""}
HAS = {"missing": [], "known": True, "installed": {"memcached": "1.6"}, "source": "carried"}


def no_sending(host: str, command: list[str], stream: Any) -> str:
    raise AssertionError("something is sent")


@pytest.mark.parametrize(
    ("failed", "advice"),
    [
        ("E: Unable to locate package memcached", "say `packages: carried`"),
        ("/var/lib/mysql holds databases that are not ours", "somebody's database server"),
        ("E: Unable to correct problems, you have held broken packages.", "dist-upgrade"),
    ],
)
def test_what_apt_says_is_told_with_the_host(tmp_path: Path, failed: str, advice: str) -> None:
    remote = Answers(LACKS, {"failed": f"`apt-get memcached` failed with exit code 100:\n{failed}"})
    with pytest.raises(TestbedError) as failure:
        packages.install_packages(remote, "paris-1", "base", "network", tmp_path, no_sending, print)
    assert failure.value.what.startswith("paris-1: Debian packages: `apt-get memcached` failed")
    assert failed in failure.value.what
    assert advice in failure.value.advice


def test_a_host_that_has_all_is_asked_once(tmp_path: Path) -> None:
    remote = Answers(HAS)
    assert packages.install_packages(remote, "a", "base", "carried", tmp_path, no_sending, print) == HAS
    assert [verb for verb, _ in remote.asked] == ["look"]


def test_how_a_host_was_is_written_down_even_if_it_lacks_nothing(tmp_path: Path) -> None:
    remote = Answers({**HAS, "known": False}, HAS)
    packages.install_packages(remote, "a", "base", "carried", tmp_path, no_sending, print)
    assert [(verb, asked["packages"]) for verb, asked in remote.asked][1] == ("install", [])


def test_of_the_carried_archive_a_host_gets_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "base_image", lambda cache, progress: tmp_path / "image")
    folder = tmp_path / "archives" / apt_archive.archive_name("base")
    folder.mkdir(parents=True)
    (folder / "Packages").write_text(INDEX)
    for name in ("memcached_1.6_amd64.deb", "libevent_1%3a2_amd64.deb", "tar_1_amd64.deb"):
        (folder / name).write_text(name)
    remote = Answers(LACKS, {"new": [["memcached", "1.6"], ["libevent", "1:2"]], "upgraded": []}, HAS)
    sent: list[list[str]] = []

    def send(host: str, command: list[str], stream: Any) -> str:
        stream.seek(0)
        listed = subprocess.run(["tar", "--list"], input=stream.read(), capture_output=True, check=True)
        sent.append(sorted(listed.stdout.decode().split()))
        assert (host, command[-1]) == ("a", "receive")
        return "{}"

    packages.install_packages(remote, "a", "base", "carried", tmp_path, send, print)
    assert sent == [["Packages"], ["libevent_1%3a2_amd64.deb", "memcached_1.6_amd64.deb"]]
    assert [verb for verb, _ in remote.asked] == ["look", "plan", "install"]
    assert remote.asked[-1][1]["source"].startswith(f"{folder.name}, index ")


INDEX = """\
Package: memcached
Version: 1.6
Description: cache
 Version: not this
Filename: ./memcached_1.6_amd64.deb
Size: 3

Package: libevent
Version: 1:2
Filename: ./libevent_1%3a2_amd64.deb

Package: tar
Version: 1
Filename: ./tar_1_amd64.deb

"""


def test_an_index_is_read() -> None:
    assert apt_archive.index_files(INDEX) == {
        "memcached 1.6": "memcached_1.6_amd64.deb",
        "libevent 1:2": "libevent_1%3a2_amd64.deb",
        "tar 1": "tar_1_amd64.deb",
    }


def test_the_archive_follows_the_packages_and_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    first = apt_archive.archive_name("base")
    assert first != apt_archive.archive_name("full")
    assert set(apt_archive.wanted_packages("base")) < set(apt_archive.wanted_packages("full"))
    monkeypatch.setattr(apt_archive, "PACKAGES", (*image.PACKAGES, "htop"))
    assert apt_archive.archive_name("base") != first


def test_the_build_can_be_read_by_a_shell() -> None:
    done = subprocess.run(["bash", "-n"], input=apt_archive.BUILD, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_of_hosts_answers_failures_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*command: str, accepted: Sequence[int] = (0,)) -> str:
        raise host_packages.PackageError("dpkg-query is broken")

    monkeypatch.setattr(host_packages, "run", fail)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"packages": []}'))
    host_packages.main("look")
    assert json.loads(capsys.readouterr().out) == {"failed": "dpkg-query is broken"}
