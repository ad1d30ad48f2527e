"""What is made once: makers that fail, die, or come two at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from discovery_deploy.system import files
from discovery_deploy.system.errors import TestbedError


def silent(_line: str) -> None:
    pass


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "images" / "abc"

    def make(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "file").write_text("content")

    assert files.made_once(target, make, "it", silent) == target

    def refuse(_temporary: Path) -> None:
        raise AssertionError("made twice")

    assert files.made_once(target, refuse, "it", silent) == target
    assert (target / "file").read_text() == "content"


def test_a_maker_that_fails_leaves_nothing_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    target = tmp_path / "abc"

    def fail(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "half").write_text("")
        raise TestbedError("no")

    with pytest.raises(TestbedError, match="no"):
        files.made_once(target, fail, "it", silent)
    assert [path.name for path in tmp_path.iterdir()] == [".abc.lock"]


def test_what_a_killed_maker_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".abc.partial" / "left").mkdir(parents=True)
    seen: list[bool] = []

    def make(temporary: Path) -> None:
        seen.append(temporary.exists())
        temporary.mkdir()

    files.made_once(tmp_path / "abc", make, "it", silent)
    assert seen == [False]


def test_two_makers_at_once_make_it_once(tmp_path: Path) -> None:
    made: list[int] = []
    lines: list[str] = []
    inside = threading.Event()
    go_on = threading.Event()

    def make(temporary: Path) -> None:
        made.append(1)
        inside.set()
        assert go_on.wait(10)
        temporary.mkdir()

    def told(line: str) -> None:
        lines.append(line)
        go_on.set()

    first = threading.Thread(target=files.made_once, args=(tmp_path / "abc", make, "the thing", silent))
    first.start()
    assert inside.wait(10)
    files.made_once(tmp_path / "abc", make, "the thing", told)
    first.join()
    assert made == [1]
    assert lines == ["waiting for another process that makes the thing"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TestbedError, match="file") as caught:
        files.made_once(tmp_path / "file" / "abc", lambda _t: None, "the base image", silent)
    assert "DISCOVERY_DEPLOY_CACHE" in caught.value.advice
