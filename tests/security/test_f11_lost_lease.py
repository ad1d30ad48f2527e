"""F11: a lease that is lost or damaged, or a release that was cut off, costs a reservation, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery_deploy.bench.campaign import settings
from discovery_deploy.driver.phases import PHASES, State
from discovery_deploy.driver.testbed import UNKNOWN, Testbed
from discovery_deploy.system.workspace import Workspace
from tests.security.tool import workspace_of
from tests.unit.driver.test_testbed import Machines, Silence, all_done, experiment, reserved


@pytest.fixture(autouse=True)
def _no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("discovery_deploy.software.image.base_image", lambda cache, progress, variant="base": tmp_path)
    monkeypatch.setattr("discovery_deploy.system.remote.CONTROL_SOCKETS", tmp_path / "sockets")
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(tmp_path / "state"))


def test_the_state_goes_before_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_of(tmp_path / "ws", "mine")
    workspace.save("state.json", State())
    gone: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: gone.append(self.name))
    workspace.remove_lease()
    assert gone[:2] == ["state.json", "lease.json"]


@pytest.mark.parametrize("damage", ["lost", "", "{", '{"provider": "local"}', b"\xff"])
def test_without_a_readable_lease_the_next_command_reserves_again(tmp_path: Path, damage: str | bytes) -> None:
    asked, machines = experiment(), Machines()
    bed = reserved(asked, workspace_of(tmp_path / "ws", "mine"), machines)
    all_done(bed, asked)
    file = bed.workspace.path / "lease.json"
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    again = Testbed(asked, Workspace(tmp_path / "ws"), machines, Silence())
    assert again.stale(settings(asked)[0]) == PHASES
    again.bring_to(settings(asked)[0], "reserve")
    assert [host.name for host in again.lease.hosts] == ["nantes-1", "rennes-1"]
    assert again.state.deployed == UNKNOWN, "nobody knows any more that these are the hosts that were deployed"
