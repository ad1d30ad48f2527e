"""What of the cache is used by whom, and what goes."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from discovery_deploy.agent import machine
from discovery_deploy.experiment.services import SERVICES
from discovery_deploy.software import box, builds, cache, derived, enoslib_environment
from discovery_deploy.software.patches import git_trees
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.system import files
from discovery_deploy.system.errors import TestbedError


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


@pytest.fixture
def sources(place: Path, tmp_path: Path) -> dict[str, set[str]]:
    """Two environments with a Keystone of a commit, and what they are made from: "live" is used, "gone" by nobody."""
    repository = tmp_path / "keystone"
    repository.mkdir()
    git_trees.git(repository, "init", "--quiet")
    found: dict[str, set[str]] = {}
    for name, image_hash in (("gone", "old"), ("live", "live")):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        git_trees.git(repository, *who, "commit", "--quiet", "--allow-empty", "-m", name)
        commit = git_trees.git(repository, "rev-parse", "HEAD").decode().strip()
        git_trees.mirror(str(repository), place / "sources" / f"git-{name}")  # that of "gone" has only its own commit
        source = f"git {repository} main, commit {commit}"
        record = ProjectRecord(project="keystone", version=f"27.{name}", source=source, tree=name)
        other = ProjectRecord(project="nova", version="31", source=f"version, sdist sha256 {commit}", tree=name)
        environment = place / "environments" / f"openstack-{name}"
        environment.mkdir()
        (environment / "built.json").write_text(json.dumps({"image": image_hash}))
        manifest = {"base": "openstack-new", "projects": [record.model_dump(), other.model_dump()]}
        (environment / derived.MANIFEST).write_text(json.dumps(manifest))
        wheel, sdist = f"wheels/{derived.wheel_name('new', record)}", f"sources/nova-31.{name}"
        hashes = f"sources/{derived.hashes_name(environment)}"
        for made in (wheel, sdist):
            (place / made).mkdir(parents=True)
        (place / hashes).write_text("{}")
        (place / sdist / "sha256").write_text(f"{commit}\n")
        found[name] = {f"environments/openstack-{name}", wheel, sdist, hashes, f"sources/git-{name}"}
    (place / "sources" / "openstack-live-0-0.json").write_text("{}")  # of one that was made anew since
    for made in ("pymysql-0.1", "pymysql-1.1.1"):
        (place / "sources" / made).mkdir()
    (place / "sources" / ".pymysql-0.1.lock").touch()
    found["gone"] |= {"sources/openstack-live-0-0.json", "sources/pymysql-0.1"}
    return found


def test_what_environments_are_built_from_goes_with_the_last_that_is_used(
    place: Path, sources: dict[str, set[str]]
) -> None:
    users = {entry.name: entry.used_by for entry in cache.entries(place)}
    assert {users[name] for name in sources["live"]} == {("hosts of runs",)}
    assert users["sources/pymysql-1.1.1"] == ("this version",)
    assert {name for name, by in users.items() if not by} == UNUSED | sources["gone"]
    assert {entry.name for entry in cache.prune(place)} == UNUSED | sources["gone"]
    assert all((place / name).exists() for name in sources["live"])
    assert not any((place / name).exists() for name in sources["gone"])
    assert cache.prune(place) == []


def test_a_copy_of_a_repository_that_is_being_fetched_stays(place: Path, sources: dict[str, set[str]]) -> None:
    with (place / "sources" / ".git-gone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gone = {entry.name for entry in cache.prune(place)}
    assert gone == UNUSED | sources["gone"] - {"sources/git-gone"}


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
    made = files.made_once(place / "images" / "old", lambda path: path.mkdir(), "it", lambda line: None)
    assert made.is_dir()


def test_sizes_are_those_on_the_disk_and_a_second_name_costs_nothing(place: Path) -> None:
    large = place / "images" / "old" / "large"
    (place / "images" / "old" / "again").hardlink_to(large)
    octets = next(entry.octets for entry in cache.entries(place) if entry.name == "images/old")
    assert 2_000_000 <= octets < 3_000_000
    assert cache.size_text(octets) == "2 MB"
    assert "images/old\t2 MB\t-\n" in cache.table(cache.entries(place))
    assert "nobody uses 2 MB of it" in cache.size_line(place)


def test_an_empty_cache_is_no_mistake(tmp_path: Path, place: Path) -> None:
    assert cache.entries(tmp_path / "none") == []
    assert cache.size_line(tmp_path / "none") == f"cache {tmp_path / 'none'}"


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
    assert f"boxes/{box.box_hash()}" in names
    assert len(names) == 12  # and the guest, and the carried archives: nothing else is kept


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
