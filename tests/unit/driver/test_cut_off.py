"""The WAN of a testbed that is cut and healed by changes, whatever happens meanwhile, and counts as not constrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.driver.phases import State
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds.base import ProviderInterface
from tests.leased import lease
from tests.unit.bench.test_smoke import Announcer

MADE = Experiment.model_validate(
    {
        "name": "e",
        "sites": [{"name": "nantes"}, {"name": "lyon"}],
        "network": {"default": {"delay": "25 ms"}},
        "deployment": {"backend": {"type": "mariadb", "site": "lyon"}},
    }
)


class Provider:
    """Keeps the programs that it is told to run."""

    def __init__(self) -> None:
        self.programs: list[TcProgram] = []

    def shape(self, lease: Lease, program: TcProgram) -> None:
        self.programs.append(program)

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        return {"qdisc": {}, "class": {}, "filter": {}}


@pytest.fixture
def bed(tmp_path: Path) -> tuple[Testbed, Provider]:
    workspace, provider = Workspace(tmp_path), Provider()
    made = Testbed(MADE, workspace, cast("ProviderInterface", provider), Announcer())
    workspace.save("lease.json", lease(MADE))
    state = State()
    for phase, wanted in made.wanted(MADE).items():
        state = state.started(phase, wanted, "now").done(phase, "now", 1.0)
    workspace.save("state.json", state)
    return made, provider


def lossy(program: TcProgram) -> bool:
    return any("loss 100" in line for line in program.lines)


def test_everything_is_lost_until_the_end(bed: tuple[Testbed, Provider]) -> None:
    testbed, provider = bed
    before = testbed.state
    with testbed.cut_off(MADE, "lyon"):
        assert [lossy(program) for program in provider.programs] == [True]
        assert set(testbed.state.phases) == {"reserve", "prepare", "deploy", "constrain"}
        assert testbed.state.phases["constrain"].status == "started"
    assert [lossy(program) for program in provider.programs] == [True, False]
    assert testbed.state == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_wan_heals_whatever_happens(error: Any, bed: tuple[Testbed, Provider]) -> None:
    testbed, provider = bed
    with pytest.raises(error), testbed.cut_off(MADE, "lyon"):
        raise error
    assert not lossy(provider.programs[-1])
    assert testbed.state.phases["verify"].status == "done"
