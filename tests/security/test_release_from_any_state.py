"""`release` works from any state for any name that the tool has accepted; what only looks leaves nothing to release."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import machine, wan_router
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.testbeds import g5k
from discovery_deploy.testbeds.g5k import RECORD, G5kProvider
from discovery_deploy.testbeds.local import LocalProvider, machine_plan

SITES = {"sites": [{"name": "a"}, {"name": "b"}], "deployment": {"backend": {"type": "galera"}}}
G5K = {"type": "g5k", "default": {"g5k_site": "rennes", "cluster": "paravance"}}


def experiment(**more: Any) -> Experiment:
    return Experiment.model_validate({"name": "mine", **SITES, **more})


# a state directory with a space


def test_a_path_that_the_router_cannot_be_told_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wan_router, "kernel_has_netem", lambda: False)
    provider = LocalProvider(tmp_path / "environments", tmp_path / "my state")
    with pytest.raises(TestbedError, match="takes only paths of letters") as caught:
        provider.reserve(experiment(), "ssh-ed25519 KEY", tmp_path, print)
    assert "DISCOVERY_DEPLOY_STATE" in caught.value.advice
    assert not (tmp_path / "my state").exists()
    assert not (tmp_path / "environments").exists()


def test_and_hosts_that_are_there_all_the_same_can_be_given_back(tmp_path: Path) -> None:
    directory = tmp_path / "my state" / "mine"
    plan = machine_plan(experiment(), 63, directory, tmp_path, tmp_path, "ssh-ed25519 KEY")
    machine.make_own(directory)
    (directory / "router").mkdir()
    (directory / "router" / "mode").write_text("uml")
    wan_router.down(plan)
    assert not (directory / "router").exists()
    with pytest.raises(MachineError):
        wan_router.run(plan, "true")


# a check of hosts of Grid'5000


class Slow:
    """An EnOSlib whose API does not answer."""

    def __init__(self, cache: Path, directory: Path, variables: Mapping[str, str], log: Path | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "enoslib.log").touch()

    def __call__(self, verb: str, arguments: Any, progress: Progress, limit_s: float | None = None) -> Any:
        if verb == "g5k.cores":
            print("asked", flush=True)
            time.sleep(30)
        raise TestbedError("Grid'5000's API does not answer: ConnectionError")


CHECK = """
import sys
from pathlib import Path
from discovery_deploy.testbeds import g5k
from tests.security.test_release_from_any_state import G5K, Slow, experiment
g5k.Enoslib = Slow
g5k.G5kProvider(Path(sys.argv[1]), Path(sys.argv[1]), Path(sys.argv[1])).request_text(experiment(provider=G5K))
"""


def test_a_killed_check_leaves_no_record(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", CHECK, str(tmp_path / "state")]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        assert G5kProvider(tmp_path, tmp_path / "state", tmp_path).experiments() == []
        process.kill()
    assert G5kProvider(tmp_path, tmp_path / "state", tmp_path).experiments() == []
    assert not (tmp_path / "state").exists()


def test_a_check_beside_a_reservation_leaves_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = G5kProvider(tmp_path, tmp_path / "state", tmp_path)
    directory = tmp_path / "state" / "g5k" / "mine"

    class Reserving(Slow):
        def __call__(self, *words: Any, **more: Any) -> Any:
            machine.make_own(directory)  # in this moment a reservation begins
            (directory / RECORD).touch()
            raise TestbedError("no answer")

    monkeypatch.setattr(g5k, "Enoslib", Reserving)
    provider.request_text(experiment(provider=G5K))
    assert (directory / RECORD).exists()
    assert provider.experiments() == ["mine"]


def test_a_record_in_which_nothing_was_asked_goes_although_the_api_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(g5k, "Enoslib", Slow)
    provider = G5kProvider(tmp_path, tmp_path / "state", tmp_path)
    old = tmp_path / "state" / "g5k" / "mine"
    old.mkdir(parents=True)
    (old / "enoslib.log").touch()  # of a killed check of an older version
    assert provider.experiments() == []
    with pytest.raises(TestbedError, match="does not answer"):
        provider.release("mine", print)
    assert not old.exists()
