"""A program that hangs ends after its limit, with the error of its kind: each is a real one that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import tc_device, wan_router
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.driver import provenance
from discovery_deploy.hosts import base_image
from discovery_deploy.software import box, image
from discovery_deploy.system import errors, workspace

LIMIT_S = 0.5


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts programs on the PATH that do not end by themselves soon."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def hang(*names: str) -> None:
        for name in names:
            (folder / name).write_text("#!/bin/sh\nexec sleep 20\n")
            (folder / name).chmod(0o755)

    return hang


def packed(folder: Path) -> None:
    with base_image.packed_tree(folder):
        pass


CASES: dict[str, tuple[Any, str, Callable[[Path], object], type[Exception]]] = {
    "ssh-keygen": (workspace, "KEYGEN_LIMIT_S", lambda at: workspace.Workspace(at / "w").public_key(),
                   errors.StateError),
    "apt-get": (image, "APT_LIMIT_S", lambda at: image.apt_sources(), errors.TestbedError),
    "apt-config": (image, "APT_LIMIT_S", lambda at: image.apt_acquire_options(), errors.TestbedError),
    "vagrant": (box, "COMMAND_LIMIT_S", lambda at: box.versions(), errors.TestbedError),
    "git": (provenance, "GIT_LIMIT_S", lambda at: provenance.tool_commit(), errors.TestbedError),
    "ip": (wan_router, "CALL_LIMIT_S", lambda at: wan_router._ip(["link"]), MachineError),
    "tc": (tc_device, "LIMIT_S", lambda at: tc_device._tc([], "qdisc show"), tc_device.DeviceError),
    "tar": (base_image, "PACK_LIMIT_S", packed, errors.TestbedError),
}  # fmt: skip
"""Program -> module and name of the limit, what runs it, and the error."""


@pytest.mark.parametrize("program", CASES)
def test_a_program_that_hangs_is_ended_and_told(
    program: str, hanging: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, limit, act, kind = CASES[program]
    hanging(program)
    monkeypatch.setattr(module, limit, LIMIT_S)
    began_s = time.monotonic()
    with pytest.raises(kind, match=f"timed out after {LIMIT_S:g} s") as told:
        act(tmp_path)
    assert time.monotonic() - began_s < 15
    assert str(getattr(told.value, "what", "")) != ""


def test_a_key_is_not_made_again_because_a_program_hangs(
    hanging: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = workspace.Workspace(tmp_path / "w")
    public, private = at.public_key(), at.key.read_text()
    hanging("ssh-keygen")
    monkeypatch.setattr(workspace, "KEYGEN_LIMIT_S", LIMIT_S)
    with pytest.raises(errors.StateError, match="ssh-keygen timed out"):
        at.public_key()
    assert (at.key.with_suffix(".pub").read_text().strip(), at.key.read_text()) == (public, private)


def test_a_kernel_that_does_not_say_what_it_has_is_taken_for_one_that_lacks_it(
    hanging: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging("unshare", "modprobe")
    monkeypatch.setattr(tc_device, "LIMIT_S", LIMIT_S)
    assert tc_device.kernel_lacks() == ("network namespaces", f"timed out after {LIMIT_S:g} s")
