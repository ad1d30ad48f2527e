"""What the roles' own modules and filters decide; what they do is seen in real deployments."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from discovery_deploy.system.data import data_directory

PLAYBOOKS = data_directory("playbooks")


def load(path: str) -> ModuleType:
    """A Python file of the playbooks, as a module; those for hosts find ours where Ansible puts them."""
    name = "ansible.module_utils." + Path(path).stem if path.startswith("module_utils") else Path(path).stem
    specification = importlib.util.spec_from_file_location(name, PLAYBOOKS / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    if path.startswith("module_utils"):
        import ansible.module_utils

        setattr(ansible.module_utils, Path(path).stem, module)
    specification.loader.exec_module(module)
    return module


cloud = load("module_utils/cloud.py")
database_program = load("module_utils/database_program.py")
mariadb = load("module_utils/mariadb.py")
watched_units = load("module_utils/watched_units.py")
discovery = load("filter_plugins/discovery.py")
galera_member = load("library/galera_member.py")
galera_wait = load("library/galera_wait.py")
gone = load("library/gone.py")
host_check = load("library/host_check.py")
host_facts = load("library/host_facts.py")
keystone_check = load("library/keystone_check.py")
mariadb_databases = load("library/mariadb_databases.py")
rally_state = load("library/rally_state.py")
write_files = load("library/write_files.py")


def member(whole: bool = False, primary: bool = False, seqno: int = -1) -> dict[str, Any]:
    return {"whole": whole, "primary": primary, "seqno": seqno}


class TestGaleraPlan:
    """What each member does, from what all are."""

    def test_with_nothing_anywhere_all_form_the_cluster(self) -> None:
        assert discovery.galera_plan({"a": member(), "b": member()}) == {"a": "form", "b": "form"}

    def test_a_formation_that_was_interrupted_starts_again_everywhere(self) -> None:
        states = {"a": member(seqno=1), "b": member()}
        assert discovery.galera_plan(states) == {"a": "form", "b": "form"}

    def test_a_running_cluster_is_left_alone(self) -> None:
        states = {name: member(whole=True, primary=True, seqno=9) for name in "abc"}
        assert discovery.galera_plan(states) == {"a": "keep", "b": "keep", "c": "keep"}

    def test_a_member_that_was_away_joins_the_others(self) -> None:
        running = member(whole=True, primary=True, seqno=9)
        states = {"a": running, "b": member(whole=True, seqno=4), "c": running}
        assert discovery.galera_plan(states) == {"a": "keep", "b": "join", "c": "keep"}

    def test_a_member_that_lost_everything_joins_empty(self) -> None:
        states = {"a": member(), "b": member(whole=True, primary=True, seqno=9)}
        assert discovery.galera_plan(states) == {"a": "join empty", "b": "keep"}

    def test_a_cluster_that_is_down_starts_with_its_most_advanced_member(self) -> None:
        states = {"a": member(whole=True, seqno=7), "b": member(whole=True, seqno=9), "c": member()}
        assert discovery.galera_plan(states) == {"a": "join", "b": "bootstrap", "c": "join empty"}

    def test_of_equals_always_the_same_goes_first(self) -> None:
        states = {"b": member(whole=True, seqno=9), "a": member(whole=True, seqno=9)}
        assert discovery.galera_plan(states) == {"a": "bootstrap", "b": "join"}

    def test_running_members_without_a_primary_component_start_again(self) -> None:
        states = {"a": member(whole=True, seqno=9), "b": member(whole=True, seqno=8)}
        assert discovery.galera_plan(states) == {"a": "bootstrap", "b": "join"}


def test_members_have_different_identities_in_one_and_the_same_view() -> None:
    members = [{"host": "a-1", "segment": 0}, {"host": "b-1", "segment": 1}]
    views = {host: discovery.primary_view(members, "x", host).splitlines() for host in ("a-1", "b-1")}
    assert views["a-1"][0] != views["b-1"][0]
    assert views["a-1"][1:] == views["b-1"][1:]
    own = [lines[0].split()[1] for lines in views.values()]
    assert views["a-1"][1:] == [
        "#vwbeg",
        f"view_id: 3 {min(own)} 1",
        "bootstrap: 0",
        f"member: {own[0]} 0",
        f"member: {own[1]} 1",
        "#vwend",
    ]


def test_each_site_asks_for_the_user_of_the_next() -> None:
    sites = {"lyon": "u", "brest": "u", "metz": "u"}
    assert [discovery.next_after(sites, site) for site in ("brest", "lyon", "metz")] == ["lyon", "metz", "brest"]
    assert discovery.next_after({"brest": "u"}, "brest") == "brest"


def test_keys_become_numbered_files() -> None:
    assert discovery.key_files({"token-keys": ["x", "y"]}, "/etc/keystone") == [
        {"path": "/etc/keystone/token-keys/0", "content": "x"},
        {"path": "/etc/keystone/token-keys/1", "content": "y"},
    ]


@pytest.mark.parametrize(("may", "flag"), [(True, 1), (False, 0)])
def test_who_may_start_a_cluster_is_written_into_the_saved_position(may: bool, flag: int) -> None:
    text = "# GALERA saved state\nversion: 2.1\nuuid:    e3e5\nseqno:   1\nsafe_to_bootstrap: 1\n"
    expected = text.replace("safe_to_bootstrap: 1", f"safe_to_bootstrap: {flag}")
    assert galera_member.may_bootstrap(text, may) == expected


MEMBERS = [
    {"host": "a-1", "site": "a", "address": "10.0.0.1"},
    {"host": "b-1", "site": "b", "address": "10.0.1.1"},
]
WELL = {
    "wsrep_cluster_status": "Primary",
    "wsrep_cluster_size": "2",
    "wsrep_local_state_comment": "Synced",
    "wsrep_incoming_addresses": "10.0.0.1:3306,10.0.1.1:3306",
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"wsrep_local_state_comment": "Joiner"}, "it is not synced yet (Joiner)"),
        (
            {"wsrep_cluster_size": "1", "wsrep_incoming_addresses": "10.0.0.1:3306"},
            "the cluster has 1 of 2 members; away: b-1 at b",
        ),
        (
            {"wsrep_cluster_status": "non-Primary", "wsrep_local_state_comment": "Initialized"},
            "it belongs to no primary component (Initialized)",
        ),
    ],
)
def test_what_a_member_lacks_is_said_with_the_site(change: dict[str, str], expected: str) -> None:
    assert galera_wait.lacking({**WELL, **change}, MEMBERS) == expected


def test_a_server_that_does_not_answer_lacks_everything() -> None:
    assert galera_wait.lacking({}, MEMBERS) == "the server does not answer yet"


def test_data_are_laid_out_with_further_files_and_a_mark_and_replace_what_was_there(tmp_path: Path) -> None:
    seed, data = tmp_path / "seed", tmp_path / "mysql"
    (seed / "keystone").mkdir(parents=True)
    (seed / "ibdata1").write_bytes(b"\0" * 8192)
    (seed / "grastate.dat").write_text("safe_to_bootstrap: 1\n")
    data.mkdir()
    (data / "old").write_text("")
    mariadb.lay_out(seed, {"grastate.dat": "safe_to_bootstrap: 0\n"}, data=data, user="root")
    found = {path.name for path in data.iterdir()}
    assert found == {"keystone", "ibdata1", "grastate.dat", "discovery-deploy.seed"}
    assert (data / "grastate.dat").read_text() == "safe_to_bootstrap: 0\n"
    assert mariadb.seed_of(data) == str(seed)
    assert (seed / "grastate.dat").read_text() == "safe_to_bootstrap: 1\n"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_data_without_the_mark_are_not_ours(tmp_path: Path) -> None:
    assert mariadb.seed_of(tmp_path) == ""
    assert mariadb.seed_of(tmp_path / "missing") == ""


def test_passwords_cannot_leave_their_quotes() -> None:
    database = {"name": "keystone", "user": "keystone", "password": "it's\\"}
    assert r"IDENTIFIED BY 'it\'s\\'" in mariadb_databases.statements([database])


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(mariadb.ServerError, match="sh: no room"):
        mariadb.run("sh", "-c", "echo no room >&2; exit 1")


def test_a_program_that_does_not_end_is_not_waited_for() -> None:
    with pytest.raises(mariadb.ServerError, match=r"sleep has not ended after 0\.1 s"):
        mariadb.run("sleep", "60", limit_s=0.1)


@pytest.mark.parametrize(
    ("shown", "condition"),
    [
        ("ActiveState=failed\n", "stopped"),
        ("ActiveState=inactive\nJob=\n", "stopped"),
        ("ActiveState=failed\nJob=112\n", "ordered"),  # systemd has not begun it yet
        ("ActiveState=activating\nJob=112\n", "ordered"),
        ("ActiveState=activating\n", "running"),  # until it is started again
        ("ActiveState=active\n", "running"),
    ],
)
def test_a_server_has_stopped_only_when_no_start_is_ordered(
    shown: str, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mariadb, "run", lambda *command: shown)
    assert mariadb.condition() == condition


def test_a_server_that_is_to_be_restarted_is_not_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = iter(["ordered", "ordered", "running"])
    asked: list[str] = []
    monkeypatch.setattr(mariadb, "condition", lambda server: next(conditions))
    monkeypatch.setattr(mariadb, "sql", lambda statements, server: asked.append(statements))
    monkeypatch.setattr(mariadb_databases.time, "sleep", lambda seconds: asked.append("pause"))
    mariadb_databases.wait(mariadb.SERVERS["mariadb"], "lyon", "lyon-1", 60)
    assert asked == ["pause", "pause", "DO 0"]


@pytest.mark.parametrize(
    ("state", "limit_s", "reason"),
    [("failed", 600, "has stopped"), ("activating", 0, "does not answer after 0 s (nobody listens)")],
)
def test_a_server_that_does_not_come_up_is_named_with_its_site_and_log_and_left_at_rest(
    state: str, limit_s: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def run(*command: str, stdin: str = "", limit_s: float = 0.0) -> str:
        asked.append(command)
        if command[0] == "mariadb":
            raise mariadb.ServerError("nobody listens")
        if "--value" in command:
            return state
        return f"ActiveState={state}\n" if "show" in command else "no room\n"

    monkeypatch.setattr(mariadb, "run", run)
    server = mariadb.SERVERS["site-mariadb"]
    with pytest.raises(mariadb.ServerError) as caught:
        mariadb_databases.wait(server, "lyon", "lyon-1", limit_s)
    assert str(caught.value) == (
        f"the database of site lyon does not come up: site-mariadb.service {reason}; "
        "`journalctl -u site-mariadb.service` on lyon-1 ends:\nno room"
    )
    assert ("systemctl", "stop", "site-mariadb.service") in asked


def test_units_are_chosen_by_their_state() -> None:
    shown = (
        "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n\nId=c.service\nActiveState=failed\n"
    )
    assert gone.units_in(gone.NOT_AT_REST, shown) == ["a.service", "c.service"]
    assert gone.units_in(("failed",), shown) == ["c.service"]


def test_removal_takes_files_trees_and_links_but_not_what_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert gone.remove(tmp_path / "tree")
    assert gone.remove(tmp_path / "link")
    assert not gone.remove(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_all_lacks_of_a_host_are_named_at_once(tmp_path: Path) -> None:
    found = host_check.lacks([str(tmp_path), "/no/such/file"], {str(tmp_path / "new"): 10**9}, 10**9)
    assert found[0] == "/no/such/file is not there"
    assert found[1].startswith(f"{tmp_path / 'new'} needs 1000000000 MB of disk, ")
    assert found[2].startswith("1000000000 MB of memory are needed, ")
    assert len(found) == 3


def test_versions_are_read_from_an_environment(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    for name in ("SQLAlchemy-2.0.41", "dogpile.cache-1.4.0", "oslo_db-17.2.1", "other-1.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    wanted = ["SQLAlchemy", "dogpile.cache", "oslo.db", "missing"]
    assert host_facts.python_versions(str(tmp_path), wanted) == {
        "SQLAlchemy": "2.0.41",
        "dogpile.cache": "1.4.0",
        "oslo.db": "17.2.1",
    }


def test_only_installed_debian_packages_count() -> None:
    listed = "mariadb-server ii  1:10.11.11-0+deb12u1\ngalera-4 un  \nold rc  1.0\n"
    assert host_facts.debian_versions(listed) == {"mariadb-server": "1:10.11.11-0+deb12u1"}


def test_the_system_is_named() -> None:
    facts = host_facts.system_facts('PRETTY_NAME="Debian 12"\n', "processor : 0\nmodel name\t: A CPU @ 3 GHz\n")
    assert facts == {"os": "Debian 12", "kernel": os.uname().release, "cpu": "A CPU @ 3 GHz"}


def test_files_are_written_once_with_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "etc/new/file"
    uid, gid = os.getuid(), os.getgid()
    write_files.make_directory(path.parent, uid, gid)
    assert not write_files.is_as_wanted(path, b"text", 0o600, uid, gid)
    write_files.write(path, b"text", 0o600, uid, gid)
    assert write_files.is_as_wanted(path, b"text", 0o600, uid, gid)
    assert not write_files.is_as_wanted(path, b"text", 0o640, uid, gid)
    assert not write_files.is_as_wanted(path, b"other", 0o600, uid, gid)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_catalogue_without_a_site_is_noticed() -> None:
    endpoint = {"region_id": "lyon", "interface": "public", "url": "http://10.0.0.1:5000/v3"}
    catalogue = [{"type": "identity", "endpoints": [endpoint]}]
    urls = {"lyon": "http://10.0.0.1:5000/v3", "metz": "http://10.0.1.1:5000/v3"}
    assert keystone_check.catalogue_lacks(catalogue, urls) == ["metz"]


def test_what_keeps_failing_is_raised_when_the_time_is_over() -> None:
    tried: list[int] = []

    def fail() -> None:
        tried.append(1)
        raise keystone_check.CloudError("HTTP 500")

    with pytest.raises(keystone_check.CloudError, match="HTTP 500"):
        keystone_check.keep_trying(fail, 0.0)
    assert tried == [1]


@pytest.fixture
def rally_database(tmp_path: Path) -> Path:
    """A database with the columns that hold marks."""
    path = tmp_path / "rally.db"
    spec = json.dumps({"existing@openstack": {"auth_url": "@auth_url@", "admin": {"password": "@password@"}, "n": 1}})
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE envs (id INTEGER, uuid TEXT, spec TEXT)")
        connection.execute("CREATE TABLE platforms (id INTEGER, plugin_spec TEXT, platform_data TEXT)")
        connection.execute("INSERT INTO envs VALUES (1, 'e-1', ?)", (spec,))
        connection.execute("INSERT INTO platforms VALUES (1, ?, ?)", (spec, '{"users": ["@region_name@"]}'))
    connection.close()
    return path


def test_marks_in_rallys_database_become_the_sites_own(rally_database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(rally_database, copy)
    marks = {"@auth_url@": "http://a:5000/v3", "@password@": 'quote"d', "@region_name@": "lyon"}
    rally_state.fill(copy, marks)
    filled = {"existing@openstack": {"auth_url": "http://a:5000/v3", "admin": {"password": 'quote"d'}, "n": 1}}
    assert rally_state.content(copy) == [filled, filled, {"users": ["lyon"]}]
    assert rally_state.content(copy) != rally_state.content(rally_database)
    assert rally_state.environment_uuid(copy) == "e-1"


def test_a_database_that_is_none_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "rally.db").write_text("not a database")
    assert rally_state.content(tmp_path / "rally.db") is None
    assert rally_state.content(tmp_path / "none.db") is None
