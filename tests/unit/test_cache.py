"""What of the cache is used by whom, and what goes."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from discovery_deploy import builds, cache, derived, enoslib_environment, image, machine
from discovery_deploy.errors import TestbedError
from discovery_deploy.services import SERVICES


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with things of this version, of a running experiment, of one whose workspace is known, and of nobody."""
    state = tmp_path / "state"
    monkeypatch.setenv("DISCOVERY_DEPLOY_STATE", str(state))
    monkeypatch.setattr(machine, "claims", dict)
    monkeypatch.setattr(builds, "current", lambda: frozenset({"images/new", "environments/rally-new"}))
    found = tmp_path / "cache"
    for name in ("images/new", "images/old", "images/live", "downloads/wheels", "logs"):
        (found / name).mkdir(parents=True)
    for name, built_in in (
        *(("rally-new", "new"), ("rally-old", "old"), ("rally-live", "live"), ("rally-noted", "old")),
        *((".rally-cut.partial", "new"), (".rally-gone.removed", "old")),
    ):
        (found / "environments" / name).mkdir(parents=True)
        (found / "environments" / name / "built.json").write_text(json.dumps({"image": built_in}))
    (found / "images" / "old" / "large").write_bytes(b"x" * 2_000_000)
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / builds.NOTED).write_text(json.dumps({"rally": {"name": "rally-noted"}}))
    (state / "runs").mkdir(parents=True)
    (state / "runs" / "workspace").write_text(f"{tmp_path / 'workspace'}\n")
    plan = {"experiment": "runs", "slot": 3, "directory": str(state / "runs"), "base": str(found / "images" / "live")}
    (state / "runs" / "plan.json").write_text(json.dumps(plan))
    return found


UNUSED = {"images/old", "environments/rally-old", "environments/.rally-cut.partial", "environments/.rally-gone.removed"}


def test_everything_has_its_users(place: Path) -> None:
    users = {entry.name: entry.used_by for entry in cache.entries(place)}
    assert users["images/new"] == users["environments/rally-new"] == ("this version",)
    assert users["images/live"] == users["environments/rally-live"] == users["environments/rally-noted"]
    assert users["images/live"] == ("hosts of runs",)
    assert {name for name, by in users.items() if not by} == UNUSED
    assert users["downloads"] == ("the next build",)


def test_prune_removes_what_nobody_uses_and_nothing_else(place: Path) -> None:
    before = {str(path.relative_to(place)) for path in place.glob("[a-z]*/*") if path.is_dir()}
    assert {entry.name for entry in cache.prune(place, dry_run=True)} == UNUSED
    assert {str(path.relative_to(place)) for path in place.glob("[a-z]*/*") if path.is_dir()} == before
    assert {entry.name for entry in cache.prune(place)} == UNUSED
    assert {str(path.relative_to(place)) for path in place.glob("[a-z]*/*") if path.is_dir()} == before - UNUSED
    assert cache.prune(place) == []


def test_what_somebody_makes_or_has_mounted_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_mount_tables", lambda: "overlay rw,lowerdir=rally-old,upperdir=x")
    with (place / "environments" / ".rally-cut.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gone = {entry.name for entry in cache.prune(place)}
    assert gone == {"images/old", "environments/.rally-gone.removed"}


def test_a_pruned_thing_is_made_again(place: Path) -> None:
    cache.prune(place)
    made = image.made_once(place / "images" / "old", lambda path: path.mkdir(), "it", lambda line: None)
    assert made.is_dir()


def test_sizes_are_those_on_the_disk_and_a_second_name_costs_nothing(place: Path) -> None:
    large = place / "images" / "old" / "large"
    (place / "images" / "old" / "again").hardlink_to(large)
    octets = next(entry.octets for entry in cache.entries(place) if entry.name == "images/old")
    assert 2_000_000 <= octets < 3_000_000
    assert cache.size_text(octets) == "2 MB"
    assert "images/old\t2 MB\t-\n" in cache.table(cache.entries(place))
    assert "of which nobody uses 2 MB" in cache.size_line(place)


def test_an_empty_cache_is_no_mistake(tmp_path: Path, place: Path) -> None:
    assert cache.entries(tmp_path / "none") == []
    assert cache.size_line(tmp_path / "none").endswith(": 0 MB")


def test_this_version_s_things_are_those_that_it_would_build() -> None:
    names = builds.current()
    for services in (["keystone"], list(SERVICES)):
        inputs = builds.inputs("2025.1", services)
        openstack, database = inputs.openstack.split("-")[:2]
        assert names >= {
            *(f"images/{inputs.image}", f"environments/rally-{inputs.rally}"),
            *(f"environments/openstack-{openstack}", f"environments/database-{database}"),
            f"environments/{derived.derived_name(openstack, ())}",
        }
    assert f"tools/{enoslib_environment.environment_name()}" in names
    assert len(names) == 11  # and the guest, and the carried archives: nothing else is kept


def test_two_builds_go_side_by_side() -> None:
    meet = threading.Barrier(2, timeout=10)
    assert builds._beside(lambda: (meet.wait() >= 0, "a"), lambda: (meet.wait() >= 0, "b")) == (
        (True, "a"),
        (True, "b"),
    )


def test_of_two_builds_that_fail_both_are_told() -> None:
    def fails(what: str) -> None:
        raise TestbedError(what, f"Mend {what}.")

    with pytest.raises(TestbedError, match=r"^openstack\nrally\n  Mend openstack\.$"):
        builds._beside(lambda: fails("openstack"), lambda: fails("rally"))
    with pytest.raises(TestbedError, match=r"^openstack\n"):
        builds._beside(lambda: fails("openstack"), lambda: None)
    with pytest.raises(TestbedError, match=r"^rally\n"):
        builds._beside(lambda: None, lambda: fails("rally"))
