"""An image has two names: its recipe's and its content's; what follows when the same recipe gives other packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.bench.campaign import settings
from discovery_deploy.bench.records import RunRecord
from discovery_deploy.driver import image_content
from discovery_deploy.driver.driver import Driver
from discovery_deploy.driver.phases import PHASES
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.results.report.origin import images_view
from discovery_deploy.software import builds, image
from discovery_deploy.software.records import ImageRecord, Images, changes
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.workspace import Workspace
from tests.unit.driver.test_testbed import Machines, Silence, experiment, workspace

STATUS = """\
Package: curl
Status: install ok installed
Architecture: amd64
Version: {curl}
Description: a tool
 Version: of no package

Package: gone
Status: deinstall ok config-files
Version: 1

Package: less
Status: install ok installed
Version: 590-2
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("discovery_deploy.system.remote.CONTROL_SOCKETS", tmp_path / "sockets")
    monkeypatch.setattr(
        image, "base_image", lambda cache, progress, variant="base": cache / "images" / image.image_hash(variant)
    )
    return tmp_path / "cache"


def bake(cache: Path, curl: str) -> Path:
    tree = cache / "images" / image.image_hash()
    (tree / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
    (tree / "var/lib/dpkg/status").write_text(STATUS.format(curl=curl))
    return tree


def test_what_is_installed_is_what_dpkg_says() -> None:
    assert image_content.packages(STATUS.format(curl="7.88")) == {"curl": "7.88", "less": "590-2"}


def test_the_content_s_name_is_that_of_packages_and_versions(cache: Path) -> None:
    first = image_content.image_record(bake(cache, "1"))
    assert first.recipe == image.image_hash()
    assert image_content.image_record(bake(cache, "2")).content != first.content
    assert image_content.image_record(bake(cache, "1")).content == first.content


def test_changes_are_named() -> None:
    assert changes({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == [
        "b 1 -> 2",
        "c 1 is gone",
        "d 1 is new",
    ]


def bed_of(asked: Experiment, at: Workspace) -> tuple[Testbed, Silence, Machines]:
    told, machines = Silence(), Machines()
    return Testbed(asked, at, machines, told), told, machines


def finished(bed: Testbed, asked: Experiment) -> None:
    state, wanted = bed.state, bed.wanted(asked)
    for phase in PHASES:
        state = state.started(phase, wanted[phase], "t").done(phase, "t", 1.0)
    bed._keep(state)


def test_another_bake_of_the_same_recipe_is_told_and_makes_deploy_stale(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, at = experiment(), workspace(tmp_path / "w")
    (setting,) = settings(asked)
    given_back: list[str] = []
    monkeypatch.setattr(Machines, "release", lambda self, name, progress: given_back.append(name))
    monkeypatch.setattr("discovery_deploy.driver.testbed.provider_named", lambda name: Machines())
    bake(cache, "7.88.1-10")
    bed, told, _ = bed_of(asked, at)
    bed.bring_to(setting, "reserve")
    finished(bed, asked)
    assert bed.stale(setting, "deploy") == ()
    assert bed.state.image == image_content.image_record(bake(cache, "7.88.1-10")).content
    bake(cache, "7.88.1-11")
    assert bed.stale(setting, "deploy") == ("reserve", "prepare", "deploy")
    bed, told, machines = bed_of(asked, at)
    bed.bring_to(setting, "reserve")
    assert "the image was baked anew, with other packages: curl 7.88.1-10 -> 7.88.1-11" in told.said
    assert given_back == ["mine"], "containers of the image as it was do not stay"
    assert machines.made == 1
    finished(bed, asked)
    assert bed.stale(setting, "deploy") == ()
    assert [one.packages["curl"] for one in image_content.kept_images(at)] == ["7.88.1-10", "7.88.1-11"]
    # hosts that are no containers stay; what is built for them, and deployed, does not
    monkeypatch.setattr("discovery_deploy.hosts.nesting.hosts_are_containers", lambda experiment: False)
    bake(cache, "7.88.1-12")
    assert bed.stale(setting, "deploy") == ("deploy",)


def test_another_recipe_is_no_other_bake(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, at = experiment(), workspace(tmp_path / "w")
    bake(cache, "1")
    bed, told, _ = bed_of(asked, at)
    bed.bring_to(settings(asked)[0], "reserve")
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "etcd-server"))
    bake(cache, "2")
    bed, told, _ = bed_of(asked, at)
    bed.bring_to(settings(asked)[0], "reserve")
    assert not [line for line in told.said if "anew" in line]


def record(driver: Driver, **values: Any) -> None:
    """A result of the campaign's only run."""
    (run,) = driver.planned()
    made = RunRecord(
        id=run.id, scenario=run.scenario, setting=run.setting.record, repetition=1, load="light", placements=(),
        status="done", started_at="t", finished_at="t", wan_before=None, wan_after=None, **values,
    )  # fmt: skip
    driver.workspace.save(f"runs/{run.id}/record.json", made)


def test_done_runs_stay_done_with_their_own_image(tmp_path: Path, cache: Path) -> None:
    asked, at = experiment(), workspace(tmp_path / "w")
    (setting,) = settings(asked)
    bake(cache, "1")
    bed, *_ = bed_of(asked, at)
    bed.bring_to(setting, "reserve")
    driver = Driver(bed, "")
    (run,) = driver.planned()
    record(driver, fingerprint="of it and the image", asked=run.fingerprint, image=bed.state.image)
    bake(cache, "2")
    bed, *_ = bed_of(asked, at)
    driver = Driver(bed, "")
    assert driver.pending() == [], "before the new image is known to the workspace"
    bed.bring_to(setting, "reserve")
    assert driver.pending() == [], "and after"
    first, second = driver.provenance().images
    (found,) = driver.records()
    assert (found.image, bed.state.image) == (first.content, second.content)
    rows = images_view(driver.provenance(), [found])
    assert [row["runs"] for row in rows] == ["all runs", "none"]
    assert [row["changes"] for row in rows] == ["", "curl 1 -> 2"]
    record(driver, fingerprint=run.fingerprint)
    assert driver.pending() == [], "of an older version, which knew no image"
    record(driver, fingerprint=run.fingerprint, asked="something else")
    assert len(driver.pending()) == 1


def test_a_damaged_list_of_images_costs_no_run(tmp_path: Path, cache: Path) -> None:
    at = workspace(tmp_path / "w")
    (at.path / image_content.KEPT).write_text("{")
    content = image_content.keep_image(at, bake(cache, "1"), print)
    assert at.load(image_content.KEPT, Images) == Images(
        images=(ImageRecord(recipe=image.image_hash(), content=content, packages={"curl": "1", "less": "590-2"}),)
    )


def test_what_cannot_be_built_is_told_while_what_stands_still_stands(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, at = experiment({"path": "deployment.workers", "levels": [1, 2]}), workspace(tmp_path / "w")
    one, two = settings(asked)
    bake(cache, "1")
    bed, *_ = bed_of(asked, at)
    bed.bring_to(one, "reserve")
    finished(bed, one.experiment)
    before = bed.state
    assert before.deployed == bed.wanted(one.experiment)["deploy"]

    def fail(*words: Any) -> builds.Environments:
        raise TestbedError("line 3: '(' was never closed", "Mend it.")

    def act(*words: Any, **more: Any) -> None:
        raise AssertionError("nothing is removed")

    monkeypatch.setattr(builds, "environments", fail)
    monkeypatch.setattr("discovery_deploy.driver.ansible.run_playbook", act)
    monkeypatch.setattr("discovery_deploy.driver.wan_acts.Wan.flatten", act)
    with pytest.raises(TestbedError, match="was never closed"):
        bed.bring_to(two, "deploy")
    assert bed.state == before
