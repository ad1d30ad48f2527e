"""Whose hosts they are, and what changes of sites and hosts mean; without hosts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.bench.bench import SiteResult
from discovery_deploy.bench.campaign import settings
from discovery_deploy.driver import wan_acts
from discovery_deploy.driver.driver import Driver, PlannedRun
from discovery_deploy.driver.phases import PHASES, State
from discovery_deploy.driver.releasing import release
from discovery_deploy.driver.testbed import UNKNOWN, Testbed
from discovery_deploy.experiment.fields import set_at
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import image
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.remote import control_sockets
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.wan.verdict import WanReport

TWO: list[dict[str, Any]] = [{"name": "nantes"}, {"name": "rennes"}]
THREE = [*TWO, {"name": "lyon"}]
SITES: dict[str, Any] = {"path": "sites", "levels": [TWO, THREE]}
LOADS: dict[str, Any] = {"path": "campaign.load", "levels": ["light", "high"]}


def experiment(*factors: dict[str, Any]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "mine",
            "sites": TWO,
            "deployment": {"backend": {"type": "mariadb", "site": "nantes"}},
            "campaign": {"factors": factors, "scenarios": [{"task": "keystone/get_entities"}]},
        }
    )


class Silence:
    """An announcer that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str, detail: str) -> None:
        pass

    def line(self, text: str) -> None:
        self.said.append(text)

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        pass


class Machines:
    """A provider of hosts that are only names."""

    def __init__(self) -> None:
        self.workspace: Path | None = None
        self.made = 0

    def lacks(self) -> list[Any]:
        return []

    def reserve(
        self, asked: Experiment, public_key: str, image: Path, progress: Callable[[str], None],
        workspace: Path | None = None,
    ) -> Lease:  # fmt: skip
        self.workspace = workspace
        self.made += 1
        names = [(host.name, site.name, host.roles) for site in asked.sites for host in site.hosts]
        return Lease(
            provider="local",
            experiment=asked.name,
            hosts=tuple(
                LeasedHost(name=name, site=site, roles=roles, management_address="10.0.0.1", site_address="10.1.0.1")
                for name, site, roles in names
            ),
            site_subnets={site: f"10.1.{number}.0/24" for number, site in enumerate(asked.site_names)},
            site_devices={site: f"vec{number}" for number, site in enumerate(asked.site_names)},
            site_gateways={},
            identities={name: f"{name} {','.join(asked.site_names)}" for name, _, _ in names},
            router="netns",
        )

    def dead_hosts(self, lease: Lease) -> list[str]:
        return []

    def shape(self, lease: Lease, program: TcProgram) -> None:
        pass

    def read_shape(self, lease: Lease) -> NoReturn:
        raise AssertionError("nothing is known that could be compared")

    def router_facts(self, lease: Lease) -> str:
        return "none"

    def release(self, experiment_name: str, progress: Callable[[str], None]) -> None:
        self.workspace = None

    def holder(self, experiment_name: str) -> Path | None:
        return self.workspace

    def experiments(self) -> list[str]:
        return ["mine"] if self.workspace else []


@pytest.fixture(autouse=True)
def _no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image, "base_image", lambda cache, progress, variant="base": tmp_path)
    monkeypatch.setattr("discovery_deploy.system.remote.CONTROL_SOCKETS", tmp_path / "sockets")
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(tmp_path / "state"))


def workspace(folder: Path) -> Workspace:
    made = Workspace(folder)
    (folder / "name").write_text("mine\n")
    return made


def reserved(asked: Experiment, at: Workspace, machines: Machines, take_over: bool = False) -> Testbed:
    bed = Testbed(asked, at, machines, Silence(), take_over)
    bed.bring_to(settings(asked)[0], "reserve")
    return bed


def test_hosts_of_another_workspace_are_refused_named_and_taken_over_when_told(tmp_path: Path) -> None:
    machines, first, second = Machines(), workspace(tmp_path / "first"), workspace(tmp_path / "second")
    reserved(experiment(), first, machines)
    assert machines.workspace == first.path
    with pytest.raises(StateError, match=f"mine's hosts were reserved from {first.path}"):
        reserved(experiment(), second, machines)
    assert machines.workspace == first.path
    taken = reserved(experiment(), second, machines, take_over=True)
    assert machines.workspace == second.path
    assert taken.state.deployed == UNKNOWN, "nobody knows what the other has put there"
    back = Testbed(experiment(), first, machines, Silence())
    with pytest.raises(StateError, match=f"reserved from {second.path}"):
        back.stale(settings(experiment())[0], "reserve")


def test_hosts_are_not_taken_from_a_driver_at_work(tmp_path: Path) -> None:
    machines, first, second = Machines(), workspace(tmp_path / "first"), workspace(tmp_path / "second")
    reserved(experiment(), first, machines)
    with first.lock(), pytest.raises(StateError, match="another discovery-deploy works on this experiment"):
        reserved(experiment(), second, machines, take_over=True)


def test_hosts_of_a_lost_workspace_are_taken_without_a_word(tmp_path: Path) -> None:
    machines, second = Machines(), workspace(tmp_path / "second")
    machines.workspace = tmp_path / "gone"
    assert reserved(experiment(), second, machines).state.deployed == UNKNOWN
    assert machines.workspace == second.path


def test_release_tells_whose_hosts_they_were(tmp_path: Path) -> None:
    machines, announcer = Machines(), Silence()
    machines.workspace = tmp_path / "first"
    release("mine", [machines], announcer)
    assert announcer.said[0] == f"its hosts were reserved from {tmp_path / 'first'}"
    assert machines.workspace is None


def test_release_removes_the_sockets_of_its_own_workspace_only(tmp_path: Path) -> None:
    machines = Machines()
    machines.workspace = tmp_path / "lost"
    mine, others = control_sockets(tmp_path / "lost"), control_sockets(tmp_path / "other")
    for folder in (mine, others):
        folder.mkdir(parents=True)
    (mine / "socket").touch()
    release("mine", [machines], Silence())
    assert not mine.exists()
    assert others.is_dir()


def test_other_sites_are_reserved_anew_and_nothing_is_deployed_there(tmp_path: Path) -> None:
    machines, asked = Machines(), experiment(SITES)
    few, many = settings(asked)
    bed = reserved(asked, workspace(tmp_path / "w"), machines)
    bed._keep(bed.state.model_copy(update={"deployed": bed.wanted(few.experiment)["deploy"]}))
    assert bed.stale(many) == PHASES
    assert "towards lyon" in bed.program(many.experiment)
    bed.bring_to(many, "reserve")
    assert bed.state.deployed is None
    assert [host.site for host in bed.lease.hosts] == ["nantes", "rennes", "lyon"]
    assert "Host lyon-1" in bed.workspace.ssh_config.read_text()
    assert "vec2" in bed.program(many.experiment)
    bed.wan.bring(wan_acts.asked(many.experiment))
    bed.bring_to(few, "reserve")
    bed.wan.bring(wan_acts.asked(few.experiment))  # what was put on the WAN between three sites is no start for two


def all_done(bed: Testbed, asked: Experiment) -> None:
    state, wanted = State(), bed.wanted(asked)
    for phase in PHASES:
        state = state.started(phase, wanted[phase], "t").done(phase, "t", 1.0)
    bed._keep(state)


def test_facts_are_asked_of_the_hosts_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment(SITES)
    few, many = settings(asked)
    bed = reserved(asked, workspace(tmp_path / "w"), Machines())
    driver = Driver(bed, "")
    seen: list[tuple[str, ...]] = []

    def facts(_: Testbed, at: Experiment) -> dict[str, dict[str, Any]]:
        seen.append(at.site_names)
        return {host.name: {"os": "o", "kernel": "k", "cpu": "c", "packages": {}} for host in bed.lease.hosts}

    monkeypatch.setattr(Testbed, "collect", facts)
    for one in (few, many):
        bed.bring_to(one, "reserve")
        all_done(bed, one.experiment)
        driver.collect()
    assert seen == [few.experiment.site_names, many.experiment.site_names]
    (tmp_path / "w" / "facts" / "old-1.json").write_text(
        json.dumps({"name": "old-1", "site": "old", "os": "", "kernel": "", "cpu": "", "packages": {}})
    )
    assert [host.name for host in driver.provenance().hosts] == ["lyon-1", "nantes-1", "rennes-1"]
    bed._keep(State())
    driver.collect()
    assert len(seen) == 2, "hosts of no setting of this file are not asked"


def test_a_run_in_which_every_iteration_failed_is_not_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment()
    driver = Driver(reserved(asked, workspace(tmp_path / "w"), Machines()), "")
    (planned,) = driver.planned()
    failed = [{"error": ["NotFound", "no such domain"], "timestamp": 1.0}] * planned.scenario.times
    report = {"tasks": [{"status": "finished", "subtasks": [{"title": "x", "workloads": [{"data": failed}]}]}]}

    class Clients:
        def load(self, hosts: Any, run: str, task: Any, times: int, folder: Path) -> list[SiteResult]:
            (folder / "nantes").mkdir(parents=True)
            (folder / "nantes" / "rally.json").write_text(json.dumps(report))
            return [SiteResult(site="nantes")]

    as_asked = WanReport(pairs=(), measured_at="t")
    monkeypatch.setattr(Driver, "_kept_clients", lambda self, asked: Clients())
    monkeypatch.setattr(Testbed, "verify", lambda self, asked: as_asked)
    driver._run(planned, as_asked, "1/1")
    (record,) = driver.records()
    assert (record.status, record.valid) == ("done", False)
    assert record.problems == ("every iteration at nantes failed; the first error: NotFound: no such domain",)


def test_facts_are_brought_home_before_hosts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment(LOADS, SITES)
    bed = reserved(asked, workspace(tmp_path / "w"), Machines())
    driver = Driver(bed, "")
    happened: list[str] = []
    report = WanReport(pairs=(), measured_at="t")
    monkeypatch.setattr(Testbed, "bring_to", lambda self, setting, until="verify": report)
    monkeypatch.setattr(Driver, "collect", lambda self: happened.append("collect"))

    def run(self: Driver, run: PlannedRun, before: WanReport, place: str) -> WanReport:
        happened.append(run.setting.record.label)
        return report

    monkeypatch.setattr(Driver, "_run", run)
    driver.bench()
    assert happened == [
        *("load light, sites nantes+rennes", "load high, sites nantes+rennes", "collect"),
        *("load light, sites nantes+rennes+lyon", "load high, sites nantes+rennes+lyon"),
    ]


def test_a_run_of_another_load_or_client_is_another_run(tmp_path: Path) -> None:
    asked = experiment(LOADS)
    bed = Testbed(asked, workspace(tmp_path / "w"), Machines(), Silence())
    planned = Driver(bed, "").planned()
    assert len({run.fingerprint for run in planned}) == len({run.id for run in planned}) == 2
    elsewhere = Testbed(set_at(asked, "campaign.bench_site", "rennes"), bed.workspace, Machines(), Silence())
    assert planned[0].fingerprint != Driver(elsewhere, "").planned()[0].fingerprint


@pytest.mark.parametrize(("taken_off", "measured"), [(True, 2), (False, 1)])
def test_what_is_taken_off_for_the_testbed_is_corrected_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_off: bool, measured: int
) -> None:
    happened: list[str] = []

    def verify(self: Testbed, asked: Experiment) -> WanReport:
        happened.append("verify")
        return WanReport(pairs=(), measured_at="t", readback_problems=("a path is too short",))

    def noted(phase: str) -> Callable[[Testbed, Experiment], str]:
        def act(self: Testbed, asked: Experiment) -> str:
            happened.append(phase)
            return ""

        return act

    for phase in ("prepare", "deploy", "constrain"):
        monkeypatch.setattr(Testbed, f"_{phase}", noted(phase))
    monkeypatch.setattr(Testbed, "verify", verify)
    monkeypatch.setattr(wan_acts.Wan, "correct", lambda self, asked, report: taken_off)
    bed = Testbed(experiment(), workspace(tmp_path / "w"), Machines(), Silence())
    report = bed.bring_to(settings(experiment())[0])
    assert report is not None
    assert report.problems
    assert happened == ["prepare", "deploy", *["constrain", "verify"] * measured]
    assert "verify" in bed.stale(settings(experiment())[0])


@pytest.mark.parametrize("well", [True, False])
def test_the_verification_after_a_run_is_the_one_before_the_next_when_the_wan_is_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    asked = set_at(experiment(), "campaign.repetitions", 2)
    driver = Driver(reserved(asked, workspace(tmp_path / "w"), Machines()), "")
    first, after, anew = (
        WanReport(pairs=(), measured_at=at, readback_problems=() if good else ("a path is too long",))
        for at, good in (("first", True), ("after", well), ("anew", True))
    )
    came = iter([first, None])
    seen: list[str] = []

    def run(self: Driver, run: PlannedRun, before: WanReport, place: str) -> WanReport:
        seen.append(before.measured_at)
        return after

    monkeypatch.setattr(Testbed, "bring_to", lambda self, setting, until="verify": next(came))
    monkeypatch.setattr(Testbed, "verify_corrected", lambda self, experiment: anew)
    monkeypatch.setattr(Driver, "_run", run)
    driver.bench()
    assert seen == ["first", "after" if well else "anew"]
