"""The box of Vagrant's machines, on paper; tests/integration/test_vagrant.py starts it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.software import box, image
from discovery_deploy.system.errors import TestbedError

LISTED = """\
1700000000,,ui,info,mine (libvirt%!(VAGRANT_COMMA) 12.7)
1700000000,,box-name,discovery-deploy
1700000000,,box-provider,libvirt
1700000000,,box-version,12.7
1700000000,,box-name,debian/bookworm64
1700000000,,box-provider,virtualbox
1700000000,,box-version,12.20240905.1
1700000000,,box-name,discovery-deploy
1700000000,,box-provider,virtualbox
1700000000,,box-version,1
"""


def test_the_boxes_that_vagrant_lists_are_read() -> None:
    assert box.parse_boxes(LISTED) == [
        ("discovery-deploy", "libvirt", "12.7"),
        ("debian/bookworm64", "virtualbox", "12.20240905.1"),
        ("discovery-deploy", "virtualbox", "1"),
    ]
    assert box.parse_boxes("1700000000,,ui,warn,There are no installed boxes!\n") == []


def test_only_versions_of_our_box_for_libvirt_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "vagrant", lambda *arguments: LISTED)
    assert box.versions() == ["12.7"]


def test_another_recipe_is_another_version_that_vagrant_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = box.box_version(box.box_hash())
    assert re.fullmatch(r"12\.[0-9]+", before)
    monkeypatch.setattr(box, "PACKAGES", (*box.PACKAGES, "vim-tiny"))
    assert box.box_version(box.box_hash()) != before


def test_another_base_image_is_another_box(monkeypatch: pytest.MonkeyPatch) -> None:
    before = box.box_hash()
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "vim-tiny"))
    assert box.box_hash() != before


def test_the_catalog_and_the_metadata_say_what_vagrant_reads(tmp_path: Path) -> None:
    told = json.loads(box.catalog(tmp_path / "a b.box", "12.7"))
    assert told["name"] == box.NAME
    (version,) = told["versions"]
    assert (version["version"], version["providers"][0]["name"]) == ("12.7", "libvirt")
    assert version["providers"][0]["url"] == f"file://{tmp_path}/a%20b.box"
    assert json.loads(box.metadata()) == {"provider": "libvirt", "format": "qcow2", "virtual_size": box.DISK_GB}


def test_hooks_are_shell_and_write_the_files_of_the_box(tmp_path: Path) -> None:
    """Those that write files run on an empty directory; all are read by the shell."""
    for hook in box.hooks():
        subprocess.run(["sh", "-n", "-c", hook], check=True)
    for hook in box.hooks():
        if "chroot" not in hook and hook.startswith("mkdir"):
            subprocess.run(["sh", "-euc", hook, "hook", str(tmp_path)], check=True)
    assert {path: (tmp_path / path).read_text() for path in box.FILES} == box.FILES


def test_units_that_the_base_image_masks_for_containers_are_there_for_machines() -> None:
    assert set(box.UNMASKED) <= set(image.MASKED)
    assert any(hook.endswith(f"unmask {' '.join(box.UNMASKED)}") for hook in box.hooks())


def test_the_bake_begins_with_the_base_image_and_ends_with_hosts_own_directories(tmp_path: Path) -> None:
    command = image.bake_command(tmp_path / "root", tmp_path / "apt", tmp_path / "base", box.hooks())
    hooks = [word.partition("=")[2] for word in command if word.startswith("--customize-hook=")]
    assert hooks == [*box.hooks(), image.HOOKS[-1]]
    copied = next(word for word in command if word.startswith("--setup-hook="))
    assert f'cp -a --reflink=auto {tmp_path}/base/. "$1"' in copied


def test_a_missing_vagrant_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TestbedError, match="vagrant is missing") as raised:
        box.vagrant("box", "list")
    assert raised.value.advice == "apt-get install -y vagrant"


def test_what_a_build_lacks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TestbedError, match="cannot be built without mmdebstrap, mke2fs, qemu-img") as raised:
        box.build(tmp_path / "cache", print)
    assert {"apt-get", "e2fsprogs", "qemu-utils", "vagrant"} <= set(raised.value.advice.split())


def test_a_failing_vagrant_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "vagrant"
    fake.write_text("#!/bin/sh\necho 'The box could not be found' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TestbedError, match="box remove x` failed:\n    The box could not be found"):
        box.vagrant("box", "remove", "x")
