"""Rally's process on bench hosts, kept from run to run: with the real programs and pipes, without Rally and ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import rally_process
from discovery_deploy.bench import bench
from discovery_deploy.experiment.lease import LeasedHost
from discovery_deploy.system.remote import Remote

STAND_IN = Path(__file__).parents[2] / "rally_stand_in.py"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def runs(pid: int) -> bool:
    """Whether a process is there, and is not one that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(started: Path) -> bool:
    """Whether the process whose id a file holds ends soon."""
    assert within(30, started.exists)
    pid = int(started.read_text())
    return within(30, lambda: not runs(pid))


class Told:
    """The program, over pipes."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN), rally_process.__file__, "none", str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.hear() == {"loaded": "stand-in"}

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def run(self, name: str, limit_s: float = 60, **task: Any) -> str:
        """One run. Returns how it ended."""
        self.tell(run=name, task=task, limit_s=limit_s)
        while "ended" not in (answer := self.hear()):
            if "ready" in answer:
                self.tell(begin=True)
        return str(answer["ended"])

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path)
    yield made
    assert made.end() == 0


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "rally.json").read_text())
    return found


def test_a_task_reaches_rally_as_it_is_written(told: Told, tmp_path: Path) -> None:
    odd = "{{ 6 * 7 }} {% raw %} {# no #} %s $HOME ' \" \u00e9\n"
    assert told.run("one", args={"name": odd}) == ""
    assert report(tmp_path / "one")["task"]["args"]["name"] == odd
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o700


def test_a_run_sees_nothing_of_the_one_before(told: Told, tmp_path: Path) -> None:
    assert told.run("one", mark="one") == ""
    assert told.run("two", mark="two") == ""
    assert report(tmp_path / "two")["marks"] == []
    (tmp_path / "two" / "more").write_text("of an attempt")
    assert told.run("two", mark="two") == ""
    assert not (tmp_path / "two" / "more").exists()


def test_a_task_is_validated_with_the_clouds_help_once_and_only_when_it_passed(told: Told, tmp_path: Path) -> None:
    def log(name: str) -> str:
        return (tmp_path / name / "rally.log").read_text().splitlines()[0]

    runs: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("one", {"mark": "a"}, "validated now"),
        ("two", {"mark": "a"}, "validated before"),
        ("three", {"mark": "b"}, "validated now"),
        ("four", {"fail": "no flavor"}, "validated now"),
        ("five", {"fail": "no flavor"}, "validated now"),
    )
    for name, task, said in runs:
        told.run(name, **task)
        assert log(name) == said, name


def test_a_failure_is_told_and_the_next_run_works(told: Told, tmp_path: Path) -> None:
    assert told.run("one", fail="no such flavor") == "it ended with exit code 1"
    assert "RuntimeError: no such flavor" in (tmp_path / "one" / "rally.log").read_text()
    assert told.run("two") == ""


def test_a_run_that_hangs_is_killed_alone_with_all_that_it_started(told: Told, tmp_path: Path) -> None:
    started = tmp_path / "started"
    assert told.run("one", limit_s=1, load_s=1000, started=str(started)) == "it had not ended after 1 s"
    assert gone(started)
    assert told.run("two") == ""


def test_a_run_is_stopped_when_told_while_it_is_set_up_and_while_it_loads(told: Told, tmp_path: Path) -> None:
    for name, task in (("one", {"set_up_s": 1000}), ("two", {"load_s": 1000})):
        started = tmp_path / f"started-{name}"
        told.tell(run=name, limit_s=60, task={**task, "started": str(started)})
        if name == "two":
            assert told.hear() == {"ready": True}
            told.tell(begin=True)
            assert "begun" in told.hear()
        assert within(30, started.exists)
        told.tell(stop=True)
        assert told.hear() == {"ended": "it was told to stop"}
        assert gone(started)
    told.tell(stop=True)  # too late: nothing runs
    assert told.run("three") == ""


def test_when_nobody_waits_any_more_the_task_ends_and_the_program(tmp_path: Path) -> None:
    made = Told(tmp_path)
    started = tmp_path / "started"
    made.tell(run="one", limit_s=60, task={"load_s": 1000, "started": str(started)})
    assert made.hear() == {"ready": True}
    made.tell(begin=True)
    assert "begun" in made.hear()
    assert made.end() == 0
    assert gone(started)


@pytest.mark.parametrize("name", ["../one", "/one", "", ".", "a/b", ".."])
def test_a_name_is_never_a_path(told: Told, tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    assert "is no name of a folder" in told.run(name)
    assert kept.exists()


def test_a_folder_that_cannot_be_made_is_told(told: Told, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a file")
    assert "Not a directory" in told.run("one")
    assert told.run("two") == ""


# from the driver's side


class Here(Remote):
    """Hosts that are folders: their commands run on this machine."""

    def __init__(self) -> None:
        super().__init__(Path("none"))
        self.started: list[str] = []

    def arguments_alone(self, host: str, command: Sequence[str]) -> list[str]:
        return self.arguments(host, command)

    def arguments(self, host: str, command: Sequence[str]) -> list[str]:
        words = list(command)
        if words[0] == "systemctl":
            return ["echo", "not-found"]
        if words[0] == "systemd-run":
            self.started.append(host)
            words = [sys.executable, *words[words.index(str(STAND_IN)) :]]
        root = bench.REMOTE_RUNS
        return ["env", f"STAND_IN_HOST={host}", *(word.replace(root, f"{root}/{host}") for word in words)]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setattr(bench, "REMOTE_RUNS", str(root))
    monkeypatch.setattr(bench, "PROGRAM", str(root / "rally_process.py"))
    return Here()


def host(site: str) -> LeasedHost:
    return LeasedHost(
        name=f"{site}-1", site=site, roles=("bench",), management_address="10.0.0.1", site_address="10.0.0.1"
    )


@pytest.fixture
def clients(here: Here) -> Iterator[bench.Clients]:
    with bench.Clients(here, (str(STAND_IN), "rally.conf")) as made:
        yield made


def test_the_process_is_kept_from_run_to_run_and_the_files_come_home(
    clients: bench.Clients, here: Here, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        [result] = clients.load([host("lyon")], name, {"mark": name}, 1, tmp_path / name)
        assert result.problem == ""
        assert report(tmp_path / name / "lyon")["task"] == {"mark": name}
        assert {path.name for path in (tmp_path / name / "lyon").iterdir()} == set(bench.RESULTS)
    assert here.started == ["lyon-1"]


def test_a_failure_is_a_result_with_the_logs_end(clients: bench.Clients, here: Here, tmp_path: Path) -> None:
    [result] = clients.load([host("lyon")], "one", {"fail": "no such flavor"}, 1, tmp_path)
    assert result.problem.startswith("Rally at lyon failed: it ended with exit code 1 (")
    assert "RuntimeError: no such flavor" in result.problem
    assert clients.load([host("lyon")], "two", {}, 1, tmp_path)[0].problem == ""
    assert here.started == ["lyon-1"]


def test_a_process_that_is_killed_is_a_result_and_there_is_a_new_one_for_the_next_run(
    clients: bench.Clients, here: Here, tmp_path: Path
) -> None:
    assert clients.load([host("lyon")], "one", {}, 1, tmp_path)[0].problem == ""
    clients._open["lyon-1"]._ssh.send_signal(signal.SIGKILL)
    [result] = clients.load([host("lyon")], "two", {}, 1, tmp_path)
    assert "Rally at lyon failed: its process ended" in result.problem
    assert clients.load([host("lyon")], "three", {}, 1, tmp_path)[0].problem == ""
    assert here.started == ["lyon-1", "lyon-1"]


def test_a_program_that_does_not_start_says_why(here: Here, tmp_path: Path) -> None:
    with bench.Clients(here, (str(STAND_IN), "rally.conf")) as clients:
        (Path(bench.REMOTE_RUNS) / "lyon-1" / Path(bench.PROGRAM).name).mkdir(parents=True)
        [result] = clients.load([host("lyon")], "one", {}, 1, tmp_path)
    assert "Rally at lyon failed: " in result.problem
    assert "directory" in result.problem.lower()
    assert clients._open == {}


def test_closing_ends_what_runs(clients: bench.Clients, here: Here, tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = clients._process("lyon-1")
    process.load()
    process.tell({"run": "one", "limit_s": 60, "task": {"set_up_s": 1000, "started": str(started)}})
    assert within(30, started.exists)
    os.kill(process._ssh.pid, 0)
    assert process._ssh.stdin is not None
    process._ssh.stdin.close()  # as when the driver is killed
    assert gone(started)


def test_sites_begin_together_however_long_each_sets_up(clients: bench.Clients, here: Here, tmp_path: Path) -> None:
    task = {"at": {"lyon-1": {"set_up_s": 1.0}}}
    results = clients.load([host("lyon"), host("nantes"), host("rennes")], "one", task, 1, tmp_path)
    assert [result.problem for result in results] == ["", "", ""]
    begun = {result.site: report(tmp_path / result.site)["begun"] for result in results}
    assert max(begun.values()) - min(begun.values()) < 0.9, "no site waited for another one's setting up alone"
    for result in results:
        assert abs(result.clock_ahead_s) <= result.clock_error_s + 0.005
        assert result.clock_error_s < 2


def test_when_one_site_is_not_ready_no_other_begins_and_their_processes_are_kept(
    clients: bench.Clients, here: Here, tmp_path: Path
) -> None:
    task = {"at": {"lyon-1": {"fail": "no such flavor"}}}
    lyon, nantes = clients.load([host("lyon"), host("nantes")], "one", task, 1, tmp_path)
    assert "no such flavor" in lyon.problem
    assert "it did not begin, since another site's was not ready" in nantes.problem
    assert not (tmp_path / "nantes" / "rally.json").exists()
    assert [one.problem for one in clients.load([host("lyon"), host("nantes")], "two", {}, 1, tmp_path)] == ["", ""]
    assert sorted(here.started) == ["lyon-1", "nantes-1"]


# when the sites' clients began


def begun_at(folder: Path, site: str, *timestamps: float) -> None:
    data = [{"timestamp": at, "duration": 1.0, "error": [], "atomic_actions": []} for at in timestamps]
    (folder / site).mkdir()
    content = {"tasks": [{"status": "finished", "subtasks": [{"workloads": [{"data": data}]}]}]}
    (folder / site / "rally.json").write_text(json.dumps(content))


def test_the_skew_is_between_first_requests_by_one_clock(tmp_path: Path) -> None:
    begun_at(tmp_path, "lyon", 1003.0, 1000.0)
    begun_at(tmp_path, "nantes", 1012.3, 1015.0)  # its clock is 12 s ahead
    lyon = bench.SiteResult(site="lyon", clock_error_s=0.001)
    nantes = bench.SiteResult(site="nantes", clock_ahead_s=12.0, clock_error_s=0.002)
    assert bench.start_skew(tmp_path, [lyon, nantes]) == {"start_skew_s": 0.3, "start_skew_error_s": 0.003}
    assert bench.start_skew(tmp_path, [lyon]) == {}


def test_sites_that_begin_too_far_apart_make_the_run_not_valid() -> None:
    assert bench.skew_problems({"start_skew_s": 0.5, "start_skew_error_s": 0.0}, 0.5) == ()
    assert bench.skew_problems({"start_skew_s": 0.62, "start_skew_error_s": 0.0}, 0.5) == (
        "the sites' first requests lie 620 ms apart, more than 500 ms (campaign.start_skew)",
    )
    assert bench.skew_problems({}, 0.5) == ()


def test_a_site_without_any_iteration_gives_no_skew(tmp_path: Path) -> None:
    begun_at(tmp_path, "lyon", 1000.0)
    begun_at(tmp_path, "nantes")
    sites = [bench.SiteResult(site=site) for site in ("lyon", "nantes", "rennes")]
    assert bench.start_skew(tmp_path, sites) == {}
