"""Whether guests run on KVM: found by trying, with programs in QEMU's place."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import acceleration

PYTHON = [sys.executable, "-c"]


def test_a_program_that_says_the_word_is_heard_at_once_and_ended() -> None:
    started = time.monotonic()
    text = "import sys, time; print('SeaBIOS'); print('Linux version 6.1', flush=True); time.sleep(60)"
    assert acceleration.says([*PYTHON, text], b"Linux version", 30.0) == (True, "Linux version 6.1")
    assert time.monotonic() - started < 20


def test_a_program_that_hangs_is_not_waited_for() -> None:
    started = time.monotonic()
    text = "import time; print('SeaBIOS', flush=True); time.sleep(60)"
    assert acceleration.says([*PYTHON, text], b"Linux version", 2.0) == (False, "SeaBIOS")
    assert time.monotonic() - started < 20


def test_a_program_that_fails_tells_why() -> None:
    heard = acceleration.says([*PYTHON, "raise SystemExit('KVM is not for you')"], b"Linux version", 30.0)
    assert heard == (False, "KVM is not for you")
    assert not acceleration.judged(heard, 30.0).kvm
    assert "KVM is not for you" in acceleration.judged(heard, 30.0).why


def test_a_missing_emulator_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(TestbedError, match="no-such-qemu is missing") as raised:
        acceleration.says(["no-such-qemu"], b"", 1.0)
    assert raised.value.advice == "apt-get install -y qemu-system-x86"


def test_without_the_device_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "DEVICE", tmp_path / "kvm")
    found = acceleration.acceleration(tmp_path / "cache", tmp_path / "vmlinuz", print)
    assert not found.kvm
    assert found.why == f"{tmp_path}/kvm: No such file or directory"


def test_what_was_found_holds_until_the_next_boot_and_for_that_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    tried: list[list[str]] = []

    def says(command: list[str], word: bytes, limit_s: float) -> tuple[bool, str]:
        tried.append(command)
        return len(tried) > 1, ""

    monkeypatch.setattr(acceleration, "BOOT", boot)
    monkeypatch.setattr(acceleration, "DEVICE", Path("/dev/null"))
    monkeypatch.setattr(acceleration, "says", says)
    said: list[str] = []
    for _ in range(2):
        assert not acceleration.acceleration(tmp_path, Path("/a/vmlinuz"), said.append).kvm
    assert len(tried) == len(said) == 1
    boot.write_text("second\n")
    assert acceleration.acceleration(tmp_path, Path("/a/vmlinuz"), said.append).kvm
    assert acceleration.acceleration(tmp_path, Path("/b/vmlinuz"), said.append).kvm
    assert [command[command.index("-kernel") + 1] for command in tried] == ["/a/vmlinuz", "/a/vmlinuz", "/b/vmlinuz"]
    (tmp_path / acceleration.NOTED).write_text("{")
    assert acceleration.acceleration(tmp_path, Path("/b/vmlinuz"), said.append).kvm
    assert len(tried) == 4
