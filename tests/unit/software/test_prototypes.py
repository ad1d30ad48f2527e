"""The prototypes that ship: each series is whole, stands on what the lock pins, and says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from discovery_deploy.software.stack import lock_text, lock_versions
from discovery_deploy.system.data import data_directory

EXPERIMENTS = data_directory("experiments")
SERIES = sorted((EXPERIMENTS / "prototypes").glob("*/*/series"))
DOCUMENTS = Path(__file__).resolve().parents[3] / "docs/prototypes"


def patches(series: Path) -> list[Path]:
    lines = series.read_text(encoding="utf-8").splitlines()
    return [series.parent / line for line in lines if line and not line.startswith("#")]


def named(series: Path) -> str:
    return "/".join(series.parts[-3:-1])


def test_both_prototypes_are_there() -> None:
    assert {series.parts[-3] for series in SERIES} == {"rpc-reply", "db-roundtrips"}


@pytest.mark.parametrize("series", SERIES, ids=named)
def test_a_series_lists_all_its_patches_on_the_version_that_the_lock_pins(series: Path) -> None:
    base = series.read_text(encoding="utf-8").splitlines()[0]
    project = series.parent.name
    pinned = lock_versions(lock_text("openstack-2025.1"))[project.replace(".", "-")]
    assert base == f"# base: {project} {pinned}"
    assert patches(series) == sorted(series.parent.glob("*.patch"))


@pytest.mark.parametrize(
    "patch", [patch for series in SERIES for patch in patches(series)], ids=lambda patch: patch.name
)
def test_a_patch_says_why_and_stays_in_its_package(patch: Path) -> None:
    reason, _, diff = patch.read_text(encoding="utf-8").partition("diff --git ")
    assert reason.startswith("Subject: ")
    assert len(reason.split()) > 50
    package = patch.parent.name.replace(".", "_")
    changed = re.findall(r"^(?:---|\+\+\+) (\S+)", diff, re.MULTILINE)
    assert changed
    assert all(re.match(rf"(/dev/null|[ab]/{package}/[\w/]+\.py)$", path) for path in changed), changed


@pytest.mark.parametrize("series", SERIES, ids=named)
def test_each_series_is_measured_by_an_experiment_and_told_in_a_document(series: Path) -> None:
    prototype = series.parts[-3]
    text = (EXPERIMENTS / f"{prototype}.yaml").read_text(encoding="utf-8")
    experiment = YAML(typ="safe").load(text)
    (factor,) = (each for each in experiment["campaign"]["factors"] if each["path"] == "deployment.patches")
    before, after = factor["levels"]
    assert before == {}
    assert after[series.parent.name] == f"prototypes/{named(series)}"
    assert series.parent.name in (DOCUMENTS / f"{prototype}.md").read_text(encoding="utf-8").lower()
