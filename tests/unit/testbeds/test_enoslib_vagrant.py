"""What the worker tells of Vagrant while it runs, and when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery_deploy.testbeds.enoslib_vagrant import _vagrant, machine_named, step
from discovery_deploy.testbeds.enoslib_worker import WorkerError


def test_steps_of_machines_are_told_and_what_belongs_to_them_is_not() -> None:
    assert step("==> paris-1: Waiting for domain to get an IP address...") == (
        "paris-1: Waiting for domain to get an IP address..."
    )
    assert step("==> paris-1:  -- Memory:            512M") == ""
    assert step("    paris-1: SSH address: 192.168.121.7:22") == ""
    assert step("Bringing machine 'paris-1' up with 'libvirt' provider...") == ""


def test_an_error_is_of_the_machine_that_was_spoken_of_last() -> None:
    lines = ["==> paris-1: Booting", "==> lyon-1: Waiting", "    lyon-1: Warning", "Timed out while waiting"]
    assert machine_named(lines) == "lyon-1"
    assert machine_named(["The box 'x' could not be found"]) == ""


def test_a_vagrant_that_fails_is_quoted_from_what_it_said_now(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("==> lyon-1: of yesterday\n")
    text = (
        "print('==> paris-1: Booting'); print('Timed out while waiting for the machine to boot'); raise SystemExit(1)"
    )
    told: list[str] = []
    with pytest.raises(WorkerError) as raised, _vagrant(log, told.append), log.open("a") as said:
        subprocess.run([sys.executable, "-c", text], stdout=said, check=True)
    assert "Timed out while waiting for the machine to boot" in raised.value.what
    assert "yesterday" not in raised.value.what
    assert raised.value.host == "paris-1"
    assert told == ["paris-1: Booting"]


def test_what_else_goes_wrong_is_not_taken_for_vagrants_failure(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(KeyError), _vagrant(tmp_path / "log", print):
        raise KeyError("x")
