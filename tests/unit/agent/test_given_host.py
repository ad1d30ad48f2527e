"""What is done to the files of a host given by hand, in a folder that stands for its root."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import given_host, host_cleaner
from discovery_deploy.agent.given_host import Files, is_holder, without_key

EMPTY: dict[str, list[str]] = {
    "units": [], "paths": ["/etc/ours", "/etc/ours.conf", "/etc/units/x@*.d", "/opt/ours"],
    "contents": ["/var/lib/data"],
    "scratch": ["/root/.scratch"], "users": [], "interfaces": [], "namespaces": [], "tables": [],
    "timers": [],
    "programs": ["/opt/ours"],
}  # fmt: skip
KEY = "ssh-ed25519 AAAA"
MARK = "discovery-deploy:pair"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = Files(tmp_path)
    for folder in ("etc/units", "var/lib/data", "root", "opt"):
        (tmp_path / folder).mkdir(parents=True)
    made.home.mkdir(parents=True)
    monkeypatch.setattr(given_host, "unit_states", lambda units: {})
    return made


def listing(root: Path) -> dict[str, tuple[int, str]]:
    """Every file and folder but our own, with mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if ".given" not in path.parts:
            text = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[str(path.relative_to(root))] = (path.lstat().st_mode, text)
    return found


def hold(files: Files) -> None:
    """As the host does it for the first time or again, without what needs systemd and sshd."""
    if files.read(given_host.FOUND) is None:
        files.write(given_host.FOUND, given_host.picture(files, EMPTY))
    given_host.move_aside(files, EMPTY)
    given_host.give_key(files, KEY, MARK)


def leave(files: Files) -> None:
    found = files.read(given_host.FOUND)
    if not (files.home / host_cleaner.RESTORING).exists():
        host_cleaner.remove_all(files, EMPTY, found)
        (files.home / host_cleaner.RESTORING).touch()
    host_cleaner.put_back(files, found)
    given_host.take_key(files, MARK)


def deploy(files: Files) -> None:
    """What an experiment does to it."""
    written = (
        "etc/ours/a",
        "etc/ours.conf",
        "etc/units/x@1.d/y",
        "opt/ours/bin",
        "var/lib/data/new",
        "root/.scratch/z",
    )
    for path in written:
        (files.root / path).parent.mkdir(parents=True, exist_ok=True)
        (files.root / path).write_text("an experiment's")


def test_a_host_with_nothing_of_the_kind_has_nothing_of_it_again(files: Files) -> None:
    before = listing(files.root)
    hold(files)
    deploy(files)
    leave(files)
    assert listing(files.root) == before


def test_what_was_there_before_is_kept_aside_and_comes_back(files: Files) -> None:
    (files.root / "etc/ours").mkdir(mode=0o750)
    (files.root / "etc/ours/a").write_text("precious")
    (files.root / "etc/ours.conf").symlink_to("nowhere")
    (files.root / "var/lib/data/table").write_text("precious too")
    (files.root / "var/lib/data").chmod(0o700)
    (files.root / "root/.scratch").mkdir()
    before = listing(files.root)
    hold(files)
    assert not (files.root / "etc/ours").exists()
    assert list((files.root / "var/lib/data").iterdir()) == []
    deploy(files)
    (files.root / "var/lib/data").chmod(0o711)
    (files.root / "root/.scratch/z").unlink()  # what was there is used, and stays
    hold(files)  # reserved again: what is the experiment's now is not taken for what was found
    leave(files)
    assert listing(files.root) == before


@pytest.mark.parametrize("moves", range(4))
def test_killed_at_any_move_it_is_done_again_and_nothing_is_lost(
    files: Files, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.root / "etc/ours").mkdir()
    (files.root / "etc/ours/a").write_text("precious")
    (files.root / "etc/ours.conf").write_text("precious")
    (files.root / "var/lib/data/table").write_text("precious")
    before = listing(files.root)
    move, left = given_host.move, [moves]

    def mortal(source: Path, target: Path) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        move(source, target)

    for module in (given_host, host_cleaner):
        monkeypatch.setattr(module, "move", mortal)
    for act in (hold, leave):
        left[0] = moves
        try:
            act(files)
        except KeyboardInterrupt:
            left[0] = -1
            act(files)
        if act is hold:
            deploy(files)
    assert listing(files.root) == before


@pytest.mark.parametrize("before", [None, b"", b"ssh-rsa BBBB me\n", b"ssh-rsa BBBB me", b"# x\n\nssh-rsa BBBB me \n"])
def test_root_s_keys_are_the_same_to_the_byte_afterwards(files: Files, before: bytes | None) -> None:
    keys = files.root / "root/.ssh/authorized_keys"
    if before is not None:
        keys.parent.mkdir(mode=0o700)
        keys.write_bytes(before)
        keys.chmod(0o640)
    hold(files)
    hold(files)
    assert keys.read_bytes() == f"{KEY} {MARK}\n".encode() + (before or b"")
    given_host.give_key(files, "ssh-ed25519 CCCC", MARK)  # another key takes the place of the first
    assert keys.read_bytes().count(MARK.encode()) == 1
    assert oct(keys.stat().st_mode)[-3:] == ("640" if before is not None else "600")
    leave(files)
    assert (keys.read_bytes() if keys.exists() else None) == before
    assert keys.parent.exists() == (before is not None)


def test_keys_that_were_added_meanwhile_stay(files: Files) -> None:
    hold(files)
    with (files.root / "root/.ssh/authorized_keys").open("a") as stream:
        stream.write("ssh-rsa BBBB discovery-deploy:pairs\n")
    leave(files)
    assert (files.root / "root/.ssh/authorized_keys").read_text() == "ssh-rsa BBBB discovery-deploy:pairs\n"


def test_only_lines_with_the_very_mark_go() -> None:
    text = b"k a discovery-deploy:pair\nk b discovery-deploy:pair-2\nk c x-discovery-deploy:pair\n"
    text += b"k d discovery-deploy:pair"
    assert without_key(text, MARK) == b"k b discovery-deploy:pair-2\nk c x-discovery-deploy:pair\n"


@pytest.mark.parametrize(
    ("marker", "ours"),
    [
        ({}, True),
        ({"workspace": "/old"}, True),
        ({"workspace": "/another"}, False),
        ({"experiment": "other"}, False),
        ({"driver": "d2"}, False),
    ],
)
def test_a_host_is_its_experiment_s_on_its_driver_from_a_known_workspace(marker: dict[str, str], ours: bool) -> None:
    request: dict[str, Any] = {"experiment": "pair", "driver": "d1", "workspaces": ["/new", "/old"]}
    assert is_holder({"experiment": "pair", "driver": "d1", "workspace": "/new", **marker}, request) is ours


def test_a_move_to_another_file_system_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b/a"
    (source / "in").mkdir(parents=True)
    (source / "in/file").write_text("text")
    (source / "in/file").chmod(0o604)
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self == source:
            raise OSError(18, os.strerror(18))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    given_host.move(source, target)
    assert (target / "in/file").read_text() == "text"
    assert oct((target / "in/file").stat().st_mode)[-3:] == "604"
    assert [path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())] == ["b", "a"]


def test_a_host_that_nobody_holds_only_loses_a_key(files: Files) -> None:
    given_host.give_key(files, KEY, MARK)
    files.home.joinpath("made-ssh-directory").unlink()
    files.home.joinpath("made-authorized-keys").unlink()
    files.home.rmdir()
    deploy(files)
    before = listing(files.root)
    assert host_cleaner.clean(files, {"mark": MARK}) == {"state": "not held"}
    assert listing(files.root) == {**before, "root/.ssh/authorized_keys": (before["root/.ssh/authorized_keys"][0], "")}


def test_a_release_that_was_cut_off_ends_before_the_host_is_held_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = {"experiment": "pair", "driver": "d1", "workspaces": ["/w"], "workspace": "/w", "driver_name": "x"}
    request = {**who, "mark": MARK, "key": KEY, "traces": EMPTY, "site_address": "192.0.2.1"}
    (files.root / "etc/machine-id").write_text("m1\n")
    (files.root / "etc/ours.conf").write_text("precious")
    files.home.rmdir()
    before = listing(files.root)
    monkeypatch.setattr(given_host, "lacks", lambda *_: [])
    monkeypatch.setattr(given_host, "device_of", lambda _: "eth0")
    for act in ("stop_all", "forget_software", "restore_units"):
        monkeypatch.setattr(host_cleaner, act, lambda *_: None)
    first = host_cleaner.hold_anew(files, request)
    assert (
        given_host.look(files, request)["identity"]
        == first["identity"]
        == host_cleaner.hold_anew(files, request)["identity"]
    )
    deploy(files)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(host_cleaner, "put_back", cut_off)
        with pytest.raises(KeyboardInterrupt):
            host_cleaner.clean(files, {**request, "remove_packages": False})
    assert given_host.look(files, request)["identity"] is None  # the driver takes it for dead
    second = host_cleaner.hold_anew(files, request)
    assert second["identity"] not in (None, first["identity"])
    deploy(files)
    host_cleaner.clean(files, {**request, "remove_packages": False})
    assert listing(files.root) == before


def test_a_host_of_another_is_left_alone(files: Files) -> None:
    held = {"experiment": "other", "driver": "d1", "workspace": "/w", "driver_name": "x", "token": "t"}
    files.write(given_host.HELD, held)
    deploy(files)
    before = listing(files.root)
    request = {"experiment": "pair", "driver": "d1", "workspaces": ["/w"], "mark": MARK}
    assert host_cleaner.clean(files, request) == {"state": "held by another", "held_by": held}
    assert listing(files.root) == before
    assert json.loads((files.home / given_host.HELD).read_text()) == held
