"""The base image: its recipe, its sources, and what the cache does with makers that fail or die."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from discovery_deploy.software import image
from discovery_deploy.system.errors import TestbedError


def silent(_line: str) -> None:
    pass


def test_sources_are_this_machines_where_it_has_them_and_debians_otherwise() -> None:
    listed = (
        "http://mirror.example/debian/ bookworm main\n"
        "http://mirror.example/debian/ bookworm contrib\n"
        "http://second.example/debian/ bookworm main\n"
        "https://deb.nodesource.com/node_20.x nodistro main\n"
    )
    assert image.choose_sources(listed) == {
        "bookworm": "http://mirror.example/debian",
        "bookworm-updates": "http://deb.debian.org/debian",
        "bookworm-security": "http://deb.debian.org/debian-security",
    }


def test_a_machine_without_usable_sources_takes_debians() -> None:
    assert image.choose_sources("file:/media/cdrom/ bookworm main\nnonsense\n") == image.SUITES


def test_the_bake_is_told_how_to_reach_archives_and_the_tree_forgets_it() -> None:
    command = image.bake_command(Path("/c/t"), Path("/c/apt"))
    assert "--aptopt=/c/apt" in command
    assert any("99mmdebstrap" in word and "rm" in word for word in command)
    assert command[-3:] == ["bookworm", "/c/t", "-"], "sources come by standard input"
    assert image.sources_text(image.SUITES).splitlines() == [
        "deb http://deb.debian.org/debian bookworm main",
        "deb http://deb.debian.org/debian bookworm-updates main",
        "deb http://deb.debian.org/debian-security bookworm-security main",
    ]


def test_the_hash_is_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.image_hash()
    assert before == image.image_hash()
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "etcd-server"))
    assert image.image_hash() != before


def test_the_full_image_is_made_from_the_base_and_its_hash_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    command = image.bake_command(Path("/c/t"), Path("/c/apt"), Path("/c/images/a b"))
    assert "--variant=custom" in command
    assert """--setup-hook=cp -a --reflink=auto '/c/images/a b'/. "$1\"""" in command
    assert not any(word.startswith("--include") for word in command)
    before = image.image_hash("full")
    assert before not in (image.image_hash(), image.image_hash("base"))
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "etcd-server"))
    assert image.image_hash("full") != before


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "images" / "abc"

    def make(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "file").write_text("content")

    assert image.made_once(target, make, "it", silent) == target

    def refuse(_temporary: Path) -> None:
        raise AssertionError("made twice")

    assert image.made_once(target, refuse, "it", silent) == target
    assert (target / "file").read_text() == "content"


def test_a_maker_that_fails_leaves_nothing_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    target = tmp_path / "abc"

    def fail(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "half").write_text("")
        raise TestbedError("no")

    with pytest.raises(TestbedError, match="no"):
        image.made_once(target, fail, "it", silent)
    assert [path.name for path in tmp_path.iterdir()] == [".abc.lock"]


def test_what_a_killed_maker_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".abc.partial" / "left").mkdir(parents=True)
    seen: list[bool] = []

    def make(temporary: Path) -> None:
        seen.append(temporary.exists())
        temporary.mkdir()

    image.made_once(tmp_path / "abc", make, "it", silent)
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

    first = threading.Thread(target=image.made_once, args=(tmp_path / "abc", make, "the thing", silent))
    first.start()
    assert inside.wait(10)
    image.made_once(tmp_path / "abc", make, "the thing", told)
    first.join()
    assert made == [1]
    assert lines == ["waiting for another process that makes the thing"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TestbedError, match="file") as caught:
        image.made_once(tmp_path / "file" / "abc", lambda _t: None, "the base image", silent)
    assert "DISCOVERY_DEPLOY_CACHE" in caught.value.advice


def test_a_program_that_fails_is_quoted_and_its_output_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(TestbedError, match=r"the build failed[^\0]*second") as caught:
        image.run_logged(
            ["sh", "-c", "echo first; echo second >&2; exit 3"], tmp_path / "log", "the build", lines.append
        )
    assert lines == ["first", "second"]
    assert "first\nsecond\n" in (tmp_path / "log").read_text()
    assert str(tmp_path / "log") in caught.value.what


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo cp: No space left on device; exit 1"]
    with pytest.raises(TestbedError, match="the disk is full"):
        image.run_logged(command, tmp_path / "log", "the build", silent)


def test_a_missing_program_is_named_with_the_command_that_mends_it(tmp_path: Path) -> None:
    for command in (["no-such-program"], ["setpriv", "no-such-program"]):
        with pytest.raises(TestbedError, match="no-such-program is not installed") as caught:
            image.run_logged(command, tmp_path / "log", "the build", silent)
        assert caught.value.advice == "apt-get install no-such-program"


@pytest.mark.integration
def test_what_runs_contained_ends_with_the_driver(tmp_path: Path) -> None:
    mark = tmp_path / "still"
    command = image.contained(["sh", "-c", f"echo up; while :; do date > {mark}; sleep 0.05; done"])
    program = f"import subprocess,time\nsubprocess.Popen({command!r})\ntime.sleep(60)\n"
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up\n"
    driver.kill()
    assert driver.stdout.read() == ""  # the end of the pipe: nobody who could write is left
    driver.wait()
