"""The provider `local` gives everything back, whatever was killed or lost before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discovery_deploy.agent import machine
from tests.integration.leftovers import Snapshot
from tests.integration.local_bed import LocalBed, experiment, until

pytestmark = pytest.mark.integration


def test_other_sites_are_another_plan_and_hosts_are_made_anew(bed: LocalBed) -> None:
    before = Snapshot.take(bed.state)
    first = bed.reserve(experiment("grows", "paris"))
    bed.ssh(first, "paris-1", "touch /root/file")
    second = bed.reserve(experiment("grows", "paris", "lyon"))
    assert any("made anew" in line for line in bed.said)
    assert bed.ssh(second, "paris-1", "ls /root") == ""
    assert second.identities["paris-1"] != first.identities["paris-1"]
    bed.provider.release("grows", bed.said.append)
    assert Snapshot.take(bed.state).leftovers(before) == []
    assert not bed.state.exists()


def _lose_nothing(directory: Path) -> None:
    pass


def _lose_plan(directory: Path) -> None:
    (directory / "plan.json").unlink()


def _cut_plan(directory: Path) -> None:
    text = (directory / "plan.json").read_text()
    (directory / "plan.json").write_text(text[: len(text) // 2])


def _lose_directory(directory: Path) -> None:
    shutil.rmtree(directory)


@pytest.mark.parametrize("damage", [_lose_nothing, _lose_plan, _cut_plan, _lose_directory])
def test_release_leaves_nothing_with_and_without_the_plan(bed: LocalBed, damage: object) -> None:
    before = Snapshot.take(bed.state)
    lease = bed.reserve(experiment("gone", "paris", "lyon"))
    # What a driver that has died may have left running in a host's network.
    probe = subprocess.Popen(["ip", "netns", "exec", f"dd{bed.plan(lease).slot}-paris-1", "sleep", "60"])
    assert callable(damage)
    damage(bed.state / "gone")
    assert len(Snapshot.take(bed.state).leftovers(before)) > 20
    bed.provider.release("gone", bed.said.append)
    assert Snapshot.take(bed.state).leftovers(before) == []
    assert probe.wait(5) == -signal.SIGKILL
    assert not bed.state.exists()
    bed.provider.release("gone", bed.said.append)  # once more is no mistake


RESERVE = """
import sys
from pathlib import Path
from tests.integration.local_bed import LocalBed, experiment
bed = LocalBed(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
bed.reserve(experiment("killed", "paris", "lyon", "lille"))
print("done")
"""


def _start_reserving(bed: LocalBed, text: str = RESERVE) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", text, str(bed.image), str(bed.key), str(bed.state.parent)]
    environment = {**os.environ, "DISCOVERY_DEPLOY_STATE": str(bed.state)}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _begun(bed: LocalBed, sign: str) -> bool:
    directory = bed.state / "killed"
    return any(directory.glob(sign)) if "/" in sign or "*" in sign else (directory / sign).exists()


@pytest.mark.parametrize(
    ("sign", "later_s"),
    [("plan.json", 0.0), ("plan.json", 0.06), ("hosts/*/supervise", 0.0), ("hosts/*/pid", 0.05), ("hosts/*/pid", 0.4)],
)
def test_after_kill_9_of_a_reserve_release_leaves_nothing(bed: LocalBed, sign: str, later_s: float) -> None:
    before = Snapshot.take(bed.state)
    process = _start_reserving(bed)
    until(lambda: _begun(bed, sign), pause_s=0.002)
    time.sleep(later_s)
    process.kill()
    process.wait()
    bed.provider.release("killed", bed.said.append)
    left = Snapshot.take(bed.state).leftovers(before)
    time.sleep(0.3)  # nothing may appear later either
    assert (left, Snapshot.take(bed.state).leftovers(before)) == ([], [])
    assert not bed.state.exists()


def test_after_kill_9_of_a_reserve_the_next_one_goes_on(bed: LocalBed) -> None:
    process = _start_reserving(bed)
    until(lambda: _begun(bed, "hosts/*/pid"), pause_s=0.002)
    process.kill()
    process.wait()
    lease = bed.reserve(experiment("killed", "paris", "lyon", "lille"))
    assert bed.provider.dead_hosts(lease) == []
    names = ["paris-1", "lyon-1", "lille-1"]
    assert [bed.ssh(lease, host, "hostname") for host in names] == names


def test_while_one_process_works_on_an_experiment_another_waits(bed: LocalBed) -> None:
    directory = bed.state / "killed"
    with machine.hold(directory):
        process = _start_reserving(bed)
        until(lambda: (directory / "plan.json").exists())
        time.sleep(0.5)
        assert process.poll() is None
        assert {entry.name for entry in directory.iterdir()} == {machine.MARK, "plan.json"}
    output, _ = process.communicate(timeout=30)
    assert output == "done\n"


@pytest.mark.parametrize("later_s", [0.03, 0.15, 0.4])
def test_after_kill_9_of_a_release_the_next_one_leaves_nothing(bed: LocalBed, later_s: float) -> None:
    before = Snapshot.take(bed.state)
    bed.reserve(experiment("killed", "paris", "lyon"))
    text = RESERVE.replace(
        'bed.reserve(experiment("killed", "paris", "lyon", "lille"))', 'print("begun", flush=True); bed.release_all()'
    )
    process = _start_reserving(bed, text)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(later_s)
    process.kill()
    process.wait()
    bed.release_all()
    assert Snapshot.take(bed.state).leftovers(before) == []
    assert not bed.state.exists()
