"""The base image: its recipe and its sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from discovery_deploy.software import image


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
    copied = next(word for word in command if word.startswith("--setup-hook="))
    assert """cp -a --reflink=auto '/c/images/a b'/. "$1\"""" in copied
    assert not any(word.startswith("--include") for word in command)
    before = image.image_hash("full")
    assert before not in (image.image_hash(), image.image_hash("base"))
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "etcd-server"))
    assert image.image_hash("full") != before


def test_passwords_of_archives_are_there_while_packages_are_fetched_and_in_no_image(tmp_path: Path) -> None:
    tree, base = tmp_path / "tree", tmp_path / "base"
    secret = "deb https://user:secret@mirror.example/debian bookworm main\n"
    for place in (tree, base):
        (place / "etc/apt").mkdir(parents=True)
    sources = tree / "etc/apt/sources.list"
    sources.write_text(secret)
    (base / "etc/apt/sources.list").write_text("deb https://mirror.example/debian bookworm main\n")
    (base / "baked").touch()

    def run(hook: str) -> None:
        subprocess.run(["sh", "-euc", hook, "sh", str(tree)], check=True)

    command = image.bake_command(tree, tmp_path / "apt", base)
    run(next(word.removeprefix("--setup-hook=") for word in command if word.startswith("--setup-hook=")))
    assert (tree / "baked").exists()
    assert sources.read_text() == secret
    hook = next(word.removeprefix("--customize-hook=") for word in reversed(command) if "--customize-hook=" in word)
    (tree / "root").mkdir()
    run(hook)
    assert sources.read_text() == "deb https://mirror.example/debian bookworm main\n"
    assert [path.name for path in (tree / "etc/apt").iterdir()] == ["sources.list"]
    bare = image.bake_command(tree, tmp_path / "apt")
    assert f"--customize-hook={hook}" in bare
