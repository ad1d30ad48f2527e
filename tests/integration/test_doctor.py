"""`doctor` tries things for real: the WAN router's kernel and a host of the image, from a shell with odd settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery_deploy.agent import machine, wan_router, wan_uml
from discovery_deploy.testbeds import local

pytestmark = pytest.mark.integration

ODD = {
    "PATH": "/usr/bin:/bin", "LC_ALL": "xx_YY.UTF-8", "PYTHONWARNINGS": "error", "OS_CLOUD": "x", "http_proxy": "http://[",
    "DISCOVERY_DEPLOY_XSTATE_SHIM": "1",
}  # fmt: skip


def test_router_and_host_start_under_any_umask_and_leave_nothing(image: Path, tmp_path: Path) -> None:
    tool = [sys.executable, "-m", "discovery_deploy", "doctor"]
    done = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", *tool],
        env={**ODD, "DISCOVERY_DEPLOY_STATE": str(tmp_path / "state")},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "starting a host of the image" in done.stderr
    assert "nothing is missing for provider local" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert not [owner for owner in machine.claims().values() if tmp_path in owner.parents]


@pytest.mark.skipif(wan_router.kernel_has_netem(), reason="about the User-Mode-Linux router")
def test_a_router_whose_kernel_does_not_boot_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = wan_uml._INIT.replace("modprobe -d /run -a", "modprobe -d /run -a no_such_module")
    monkeypatch.setattr(wan_uml, "_INIT", broken)
    (lack,) = local._router_start_lacks(tmp_path)
    assert "did not start" in lack.what
    assert "no_such_module" in lack.what
    assert list(tmp_path.iterdir()) == []
