"""What smoke asks of which deployment, what it makes of the answers, and that the WAN is healed whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from discovery_deploy.bench import smoke
from discovery_deploy.bench.campaign import Setting, settings
from discovery_deploy.bench.smoke import SmokeRecord
from discovery_deploy.driver import smoke_acts
from discovery_deploy.driver.phases import Phase, wanted_hashes
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software.inputs import Inputs
from discovery_deploy.system.errors import MeasurementError, TestbedError
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.wan.shapes import PathShape, path_shapes
from discovery_deploy.wan.verdict import WanReport
from tests.leased import ALL, SECRETS, lease

LIMIT_S, ROUND_TRIPS = smoke.BASE_LIMIT_S, smoke.ROUND_TRIPS
INPUTS = Inputs(image="i", openstack="o", rally="r", playbooks="p")


def experiment(
    topology: dict[str, str], sites: Sequence[str] = ("nantes", "rennes", "lyon"), **more: Any
) -> Experiment:
    deployment = {
        "services": ALL,
        "topology": topology,
        "backend": {"type": "galera"} if topology["type"] == "shared-state" else {"type": "mariadb", "site": sites[-1]},
        "computes": {"fake": 2, "libvirt": 1},
        **more,
    }
    network = {"default": {"delay": "25 ms"}}
    named = [{"name": name} for name in sites]
    return Experiment.model_validate({"name": "e", "sites": named, "network": network, "deployment": deployment})


REGIONS = experiment({"type": "regions"})
CENTRAL = experiment({"type": "centralized", "site": "lyon"})
SHARED = experiment({"type": "shared-state"})


# which sites, which cut


def test_every_site_has_its_computes_its_keystone_and_its_region() -> None:
    found = {site.site: site for site in smoke.smoke_sites(REGIONS, lease(REGIONS))}
    assert list(found) == ["nantes", "rennes", "lyon"]
    assert found["rennes"].computes == {
        "fake": ("rennes-1-fake-1", "rennes-1-fake-2"),
        "libvirt": ("rennes-1",),
    }
    assert (found["rennes"].host, found["rennes"].region) == ("rennes-1", "rennes")
    assert found["rennes"].auth_url == "http://10.128.1.10:5000/v3"


def test_without_a_control_plane_of_its_own_a_site_uses_the_central_one() -> None:
    found = {site.site: site for site in smoke.smoke_sites(CENTRAL, lease(CENTRAL))}
    assert {site.region for site in found.values()} == {"lyon"}
    assert {site.auth_url for site in found.values()} == {"http://10.128.2.10:5000/v3"}
    assert found["nantes"].computes["fake"][0].startswith("nantes-1-fake-")


@pytest.mark.parametrize(
    ("made", "waits"),
    [
        (REGIONS, False),  # one database, a broker for each site
        (SHARED, True),
        (experiment({"type": "regions"}, backend={"type": "galera"}), True),
        (experiment({"type": "shared-state"}, backend={"type": "mariadb", "site": "lyon"}), True),  # brokers, OVN
    ],
)
def test_only_clusters_over_sites_are_given_time_to_notice_a_cut(made: Experiment, waits: bool) -> None:
    assert smoke.settle_s(made) == (smoke.SETTLE_S if waits else 0.0)


def test_kinds_without_computes_are_not_asked() -> None:
    made = experiment({"type": "regions"}, computes={"fake": 1, "libvirt": 0})
    assert {tuple(site.computes) for site in smoke.smoke_sites(made, lease(made))} == {("fake",)}


@pytest.mark.parametrize(
    ("made", "cut"),
    [(REGIONS, "rennes"), (CENTRAL, "rennes"), (SHARED, "lyon"), (experiment({"type": "regions"}, ["paris"]), None)],
)
def test_the_site_that_is_cut_off_is_no_centre(made: Experiment, cut: str | None) -> None:
    assert smoke.site_to_cut(made, made.site_names) == cut


def test_when_every_site_is_a_centre_the_last_is_cut() -> None:
    made = experiment({"type": "centralized", "site": "nantes"}, ["nantes", "lyon"])
    assert smoke.site_to_cut(made, ["nantes", "lyon"]) == "lyon"


def test_a_cut_loses_all_of_one_site_and_nothing_else() -> None:
    shapes = path_shapes(REGIONS.network, REGIONS.site_names)
    cut = smoke.cut_off(shapes, "rennes")
    assert {pair for pair, shape in cut.items() if shape.loss == 1} == {pair for pair in shapes if "rennes" in pair}
    assert {shape.delay_s for shape in cut.values()} == {0.025}


def test_the_limit_grows_with_the_round_trip() -> None:
    shapes = {("a", "b"): PathShape(delay_s=0.1), ("b", "a"): PathShape(delay_s=0.1)}
    assert smoke.limit_s(shapes) == pytest.approx(LIMIT_S + ROUND_TRIPS * 0.2)
    assert smoke.limit_s({}) == smoke.limit_s({}, cut=True) == LIMIT_S


# what is said of it


def check(level: smoke.Level, passed: bool = True) -> smoke.SmokeCheck:
    answer: dict[str, Any] = {"error": "" if passed else "it did not come", "steps": []}
    return smoke.check(level, "lyon", "a server", answer, 1.5)


def record(*checks: smoke.SmokeCheck) -> SmokeRecord:
    return SmokeRecord(
        deployed="d", setting="", topology="regions, galera", checks=checks, started_at="s", finished_at="f"
    )


def test_a_level_is_reached_when_all_its_checks_passed() -> None:
    found = record(check("L1"), check("L1", passed=False), check("L3.2"))
    assert (found.reached("L1"), found.reached("L2.1"), found.reached("L3.2")) == (False, None, True)
    assert found.problems == ("L1 (a server): it did not come",)


def test_a_site_that_cannot_go_on_alone_is_a_finding_and_no_problem() -> None:
    smoke_acts.raise_on_problems(record(check("L1"), check("L3.2", passed=False)))
    with pytest.raises(
        MeasurementError, match=r"regions, galera does not work:\n  L2\.1 \(a server\): it did not come"
    ):
        smoke_acts.raise_on_problems(record(check("L2.1", passed=False)))


def test_the_table_has_a_line_per_check() -> None:
    lines = smoke.table(record(check("L1"), check("L3.2", passed=False))).splitlines()
    assert lines[1:] == ["L1\tlyon\ta server\tyes\t1.5\t-", "L3.2\tlyon\ta server\tno\t1.5\tit did not come"]


def test_the_topology_is_named_with_what_holds_its_state() -> None:
    assert smoke.topology_text(CENTRAL) == "centralized@lyon, mariadb@lyon"


# acts, on a testbed that only answers


class Announcer:
    def phase(self, name: str, detail: str) -> None: ...
    def line(self, text: str) -> None: ...
    def done(self, name: str, seconds: float, detail: str = "") -> None: ...


class PaperTestbed:
    """Answers each call of the client as a test says, and keeps what was asked."""

    def __init__(self, made: Experiment, folder: Path) -> None:
        self.made = made
        self.lease = lease(made)
        self.secrets, self.announce = SECRETS, Announcer()
        self.workspace = Workspace(folder)
        self.cut = ""
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.problems: tuple[str, ...] = ()
        self.fails_when_cut: set[str] = set()
        self.fails: dict[str, int] = {}
        """Host -> how many calls still fail."""

    def shapes(self, made: Experiment) -> dict[tuple[str, str], PathShape]:
        return path_shapes(made.network, made.site_names)

    def wanted(self, made: Experiment) -> dict[Phase, str]:
        return wanted_hashes(made, INPUTS)

    def verify(self, made: Experiment) -> WanReport:
        return WanReport(measured_at="now", pairs=(), readback_problems=self.problems)

    @contextmanager
    def cut_off(self, made: Experiment, site: str) -> Iterator[None]:
        self.cut = site
        try:
            yield
        finally:
            self.cut = ""

    def remote(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        specification = json.loads(json.loads(stdin.rstrip().splitlines()[-1].removeprefix("main(").removesuffix(")")))
        self.asked.append((host, specification, self.cut))
        assert "admin-secret" not in " ".join(command)
        assert timeout_s > specification["limit_s"]
        if self.fails.get(host, 0) > 0:
            self.fails[host] -= 1
            raise TestbedError(f"{host}: not reachable by ssh", "Run again.")
        error = "no answer" if self.cut and host in self.fails_when_cut else ""
        return json.dumps({"error": error, "steps": [{"name": "sign in", "seconds": 0.1}]})


def setting(made: Experiment) -> Setting:
    [one] = settings(made)
    return one


def smoked(testbed: PaperTestbed) -> SmokeRecord:
    return smoke_acts.Smoke(cast("Testbed", testbed), setting(testbed.made)).run()[0]


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperTestbed:
    """Of three regions, on which nothing waits."""
    monkeypatch.setattr(smoke, "PAUSE_S", 0.001)
    monkeypatch.setattr(smoke, "SETTLE_S", 0.0)
    monkeypatch.setattr(smoke, "BASE_LIMIT_S", 0.05)
    monkeypatch.setattr(smoke, "CUT_LIMIT_S", 0.05)
    monkeypatch.setattr(smoke, "ROUND_TRIPS", 0)
    return PaperTestbed(REGIONS, tmp_path)


def test_every_kind_at_every_site_then_all_sites_then_the_cut(bed: PaperTestbed) -> None:
    found = smoked(bed)
    assert [one.level for one in found.checks] == ["L1"] * 6 + ["L2.1", "L3.2", "L3.2", "L1"]
    assert all(one.passed for one in found.checks)
    several = next(asked for _, asked, _ in bed.asked if len(asked["places"]) == 3)
    assert [place["region"] for place in several["places"]] == ["nantes", "rennes", "lyon"]
    during = {host: asked["places"][0]["site"] for host, asked, cut in bed.asked if cut == "rennes"}
    assert during == {"rennes-1": "rennes", "nantes-1": "nantes"}
    assert bed.workspace.load(f"smoke/{found.deployed}.json", SmokeRecord) == found


def test_clusters_have_time_to_notice_the_cut_before_anything_is_asked(
    bed: PaperTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[tuple[float, str, int]] = []
    monkeypatch.setattr(smoke, "SETTLE_S", 75.0)
    monkeypatch.setattr(
        "time.sleep", lambda seconds: slept.append((seconds, bed.cut, sum(bool(cut) for _, _, cut in bed.asked)))
    )
    smoked(bed)
    assert not [seconds for seconds, cut, _ in slept if cut and seconds], "one database has nothing to notice"
    bed.made, bed.lease = SHARED, lease(SHARED)
    bed.asked.clear()
    smoked(bed)
    assert (75.0, "lyon", 0) in slept


def test_what_the_cut_site_cannot_do_is_said_and_cleaned_up_after_the_wan_has_healed(bed: PaperTestbed) -> None:
    bed.fails_when_cut = {"rennes-1"}
    found = smoked(bed)
    isolated = [one for one in found.checks if one.level == "L3.2"]
    assert [(one.site, one.passed, one.reason) for one in isolated] == [
        ("rennes", False, "no answer"), ("nantes", True, ""),
    ]  # fmt: skip
    attempts = [asked for host, asked, cut in bed.asked if cut and host == "rennes-1"]
    assert len(attempts) > 1
    assert not any(asked["remove_after_failure"] for asked in attempts)
    cleaned = [(host, cut) for host, asked, cut in bed.asked if asked["task"] == "clean"]
    assert cleaned == [("rennes-1", ""), ("nantes-1", "")]
    assert found.problems == ()


def test_a_host_that_does_not_answer_is_an_answer(bed: PaperTestbed) -> None:
    bed.fails = {"nantes-1": 1}
    found = smoked(bed)
    assert [one.reason for one in found.checks if not one.passed] == ["nantes-1: not reachable by ssh"]
    assert found.problems


def test_what_does_not_heal_stops_the_experiment(bed: PaperTestbed) -> None:
    bed.problems = ("rennes -> lyon: everything is lost",)
    with pytest.raises(MeasurementError, match="after smoke, the WAN is not the one asked for: rennes -> lyon"):
        smoked(bed)


def test_one_site_is_asked_for_itself_alone(bed: PaperTestbed) -> None:
    bed.made = experiment({"type": "regions"}, ["paris"])
    bed.lease = lease(bed.made)
    found = smoked(bed)
    assert [one.level for one in found.checks] == ["L1", "L1"]


def test_computes_at_a_remote_site_alone_are_cut_off_from_their_control_plane(bed: PaperTestbed) -> None:
    sites = [
        {"name": "paris", "hosts": [{"name": "paris-1", "roles": ["control", "database", "bench"]}]},
        {"name": "remote", "hosts": [{"name": "remote-1", "roles": ["compute"]}]},
    ]
    deployment = CENTRAL.deployment.model_dump() | {
        "topology": {"type": "centralized", "site": "paris"},
        "backend": {"type": "mariadb", "site": "paris"},
    }
    made = Experiment.model_validate({"name": "e", "sites": sites, "deployment": deployment})
    bed.made, bed.lease = made, lease(made)
    found = smoked(bed)
    assert [(one.level, one.site) for one in found.checks] == [("L1", "remote")] * 2 + [
        ("L3.2", "remote"), ("L1", "remote"),
    ]  # fmt: skip
