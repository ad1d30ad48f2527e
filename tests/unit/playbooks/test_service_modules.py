"""What the modules and filters of brokers, Glance and the services' health check decide."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from discovery_deploy.system.data import data_directory
from tests.unit.playbooks.test_role_modules import database_program, load

discovery = load("filter_plugins/discovery.py")
api_check = load("library/api_check.py")
nova_cells = load("library/nova_cells.py")
keystone_state = load("library/keystone_state.py")
rabbitmq_check = load("library/rabbitmq_check.py")
rabbitmq_state = load("library/rabbitmq_state.py")

CONFIGURATION = """\
# Written by us.
[DEFAULT]
use_stderr = true
log_file =

[api]
auth_strategy = keystone
# three of them
pools = a
 b
pools = c

[last]
one = 1
"""


class TestOverrides:
    """Options put over a configuration."""

    def test_without_any_the_text_is_the_same(self) -> None:
        assert discovery.with_overrides(CONFIGURATION, {}) == CONFIGURATION

    def test_an_option_is_replaced_where_it_is(self) -> None:
        assert discovery.with_overrides(CONFIGURATION, {"DEFAULT": {"use_stderr": False}}) == CONFIGURATION.replace(
            "use_stderr = true", "use_stderr = false"
        )

    def test_an_option_that_is_set_to_nothing_is_found_too(self) -> None:
        text = discovery.with_overrides(CONFIGURATION, {"DEFAULT": {"log_file": "/var/log/x"}})
        assert "use_stderr = true\nlog_file = /var/log/x\n\n[api]" in text

    def test_a_new_option_stands_at_the_end_of_its_section(self) -> None:
        text = discovery.with_overrides(CONFIGURATION, {"DEFAULT": {"debug": True}, "last": {"two": 2}})
        assert "log_file =\ndebug = true\n\n[api]" in text
        assert text.endswith("[last]\none = 1\ntwo = 2\n")

    def test_a_new_section_stands_at_the_end(self) -> None:
        text = discovery.with_overrides(CONFIGURATION, {"workarounds": {"a": "x"}, "further": {"b": 0.5}})
        assert text == CONFIGURATION + "\n[workarounds]\na = x\n\n[further]\nb = 0.5\n"

    def test_an_option_of_several_lines_and_times_is_replaced_whole(self) -> None:
        text = discovery.with_overrides(CONFIGURATION, {"api": {"pools": ["x", "y"]}})
        assert "# three of them\npools = x,y\n\n[last]" in text

    def test_an_option_is_not_taken_for_another_that_begins_alike(self) -> None:
        text = discovery.with_overrides("[a]\nmax_retries_total = 1\n", {"a": {"max_retries": 2}})
        assert text == "[a]\nmax_retries_total = 1\nmax_retries = 2\n"

    def test_values_are_as_oslo_reads_them(self) -> None:
        text = discovery.with_overrides("", {"s": {"a": True, "b": None, "c": [1, False], "d": 1.5, "e": "x y"}})
        parser = configparser.ConfigParser()
        parser.read_string(text)
        assert dict(parser["s"]) == {"a": "true", "b": "", "c": "1,false", "d": "1.5", "e": "x y"}

    @pytest.mark.parametrize("path", sorted((data_directory("playbooks") / "roles").glob("*/templates/*.conf.j2")))
    def test_every_configuration_survives_an_override(self, path: Path) -> None:
        text = re.sub(r"{[{%].*?[%}]}", "x", path.read_text())
        changed = discovery.with_overrides(text, {"DEFAULT": {"debug": True}})
        assert set(text.splitlines()) <= set(changed.splitlines())
        assert changed.count("debug = true") == 1


class TestRabbitmqDefinitions:
    """Accounts as RabbitMQ reads them at its start."""

    ACCOUNTS = (
        {"vhost": "/", "user": "openstack", "password": "secret-1"},
        {"vhost": "cell-oslo", "user": "cell-oslo", "password": "secret-2"},
        {"vhost": "cell-oslo", "user": "openstack", "password": "secret-1"},
    )

    def test_each_user_once_with_rights_where_it_has_an_account(self) -> None:
        said = json.loads(discovery.rabbitmq_definitions(list(self.ACCOUNTS)))
        assert said["vhosts"] == [{"name": "/"}, {"name": "cell-oslo"}]
        assert [user["name"] for user in said["users"]] == ["cell-oslo", "openstack"]
        assert [(one["vhost"], one["user"]) for one in said["permissions"]] == [
            ("/", "openstack"),
            ("cell-oslo", "cell-oslo"),
            ("cell-oslo", "openstack"),
        ]

    def test_passwords_are_hashed_with_a_salt_and_equal_accounts_give_an_equal_text(self) -> None:
        text = discovery.rabbitmq_definitions(list(self.ACCOUNTS))
        assert "secret" not in text
        assert text == discovery.rabbitmq_definitions(list(reversed(self.ACCOUNTS)))
        hashed = base64.b64decode(json.loads(text)["users"][1]["password_hash"])
        assert hashed[4:] == hashlib.sha256(hashed[:4] + b"secret-1").digest()


MEMBERS = [{"host": "a", "address": "10.0.0.1"}, {"host": "b", "address": "10.0.1.1"}]
WHOLE = {
    "running": True,
    "members": ["rabbit@10.0.1.1", "rabbit@10.0.0.1"],
    "known": ["rabbit@10.0.1.1", "rabbit@10.0.0.1"],
    "partitions": [],
    "alarms": [],
    "vhosts": ["/"],
    "users": ["openstack"],
}


class TestRabbitmqCheck:
    """What a broker still lacks."""

    def lacking(self, **changed: Any) -> str:
        said: str = rabbitmq_check.lacking({**WHOLE, **changed}, MEMBERS, ["openstack"], ["/"])
        return said

    def test_nothing(self) -> None:
        assert self.lacking() == ""

    def test_a_broker_that_is_silent_or_starting(self) -> None:
        assert rabbitmq_check.lacking(None, MEMBERS, [], []) == "the broker does not answer yet"
        assert rabbitmq_check.lacking({"running": False}, MEMBERS, [], []) == "the broker is still starting"

    def test_members_that_are_away_are_named_by_their_hosts(self) -> None:
        assert self.lacking(members=["rabbit@10.0.0.1"]) == "1 of 2 members are together; away: b"

    def test_members_that_nobody_asked_for(self) -> None:
        known = [*WHOLE["known"], "rabbit@10.0.9.9"]  # type: ignore[misc]
        assert self.lacking(known=known) == "members that nobody asked for: rabbit@10.0.9.9"

    def test_accounts_partitions_alarms(self) -> None:
        assert self.lacking(users=[]) == "users are missing: openstack"
        assert self.lacking(vhosts=["x"]) == "vhosts are missing: /"
        assert "parted; not seen: rabbit@10.0.1.1" in self.lacking(partitions=["rabbit@10.0.1.1"])
        assert self.lacking(alarms=["disk"]) == "alarms: disk"

    def test_the_answer_is_found_in_what_erl_call_prints(self) -> None:
        text = base64.b64encode(json.dumps(WHOLE).encode()).decode()
        assert rabbitmq_check.answer_of(f'{{ok, "{text}"}}') == WHOLE
        assert rabbitmq_check.answer_of("{error, {badrpc, nodedown}}") is None

    def test_both_modules_mean_the_same_file(self) -> None:
        assert rabbitmq_check.WHOLE == rabbitmq_state.WHOLE


@pytest.mark.parametrize("module", [keystone_state, nova_cells], ids=["keystone_state", "nova_cells"])
def test_programs_for_another_python_are_programs(module: ModuleType) -> None:
    compile(database_program.BEGIN + module.PROGRAM, "program", "exec")


class Cloud(BaseHTTPRequestHandler):
    """A Keystone and a Placement in one, which answer what `answers` says."""

    answers: dict[str, tuple[int, object]]

    def log_message(self, *_words: object) -> None:
        pass

    def answer(self) -> None:
        code, content = self.answers.get(self.path, (404, {}))
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("X-Subject-Token", "token")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()


@pytest.fixture
def cloud() -> Iterator[dict[str, Any]]:
    """Values for a check of a cloud that is well; tests change `Cloud.answers`."""
    server = HTTPServer(("127.0.0.1", 0), Cloud)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    placement = {"region": "oslo", "service": "placement", "type": "placement", "url": url}
    elsewhere = {"region": "rennes", "service": "placement", "type": "placement", "url": "http://192.0.2.1"}
    known = {"region_id": "oslo", "interface": "public", "url": url}
    Cloud.answers = {
        "/v3/auth/tokens": (201, {"token": {"catalog": [{"type": "placement", "endpoints": [known]}]}}),
        "/resource_providers": (200, {"resource_providers": []}),
    }
    yield {
        "site": "oslo",
        "address": "192.0.2.7",
        "region": "oslo",
        "keystone_url": f"{url}/v3",
        "admin_password": "x",
        "endpoints": [placement, elsewhere],
        "limit_s": 0,
    }
    server.shutdown()
    thread.join()
    server.server_close()


class TestApiCheck:
    """Services of one region, asked through the catalogue."""

    def test_services_of_the_region_are_asked_and_no_others(self, cloud: dict[str, Any]) -> None:
        assert api_check.check(cloud, 0.0) == []

    def test_what_runs_here_is_asked_here_when_the_catalogue_names_another_host(
        self, cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "placement").touch()
        monkeypatch.setattr(api_check, "statistics", lambda service: tmp_path / service)
        counted: list[str] = []

        def worker_requests(socket: str) -> list[int]:
            counted.append(socket)
            return [1, 1]

        monkeypatch.setattr(api_check, "worker_requests", worker_requests)
        there = "http://127.0.0.2:8778/placement"
        endpoint = {"region": "oslo", "service": "placement", "type": "placement", "url": there}
        own = {**endpoint, "url": "http://127.0.0.1:8778/placement"}
        assert api_check.with_own([endpoint, {**endpoint, "service": "nova"}], "127.0.0.1")[2:] == [own]
        assert api_check.with_own([own], "127.0.0.1") == [own]
        assert api_check.silent_workers(endpoint, "127.0.0.1") == 0
        assert not counted
        cloud["address"] = "127.0.0.1"
        watched: list[list[str]] = []

        class Watch:
            def __init__(self, units: list[str]) -> None:
                watched.append(units)

            def look(self) -> None:
                raise api_check.UnitError("placement.service has failed")

        monkeypatch.setattr(api_check, "Watch", Watch)
        assert api_check.check(cloud, 0.0) == []
        assert watched == [["placement*.service"]]
        Cloud.answers["/resource_providers"] = (503, {})
        (said,) = api_check.check(cloud, api_check.time.monotonic() + 300)
        assert "placement.service has failed (GET http://127.0.0.1" in said
        Cloud.answers["/resource_providers"] = (200, {"resource_providers": []})
        assert counted[:1] == [str(tmp_path / "placement")]

    def test_an_error_names_service_region_and_url(self, cloud: dict[str, Any]) -> None:
        Cloud.answers["/resource_providers"] = (500, {"message": "no database"})
        (said,) = api_check.check(cloud, 0.0)
        assert said.startswith("placement of region oslo: GET http://127.0.0.1:")
        assert "HTTP 500" in said
        assert "no database" in said

    def test_an_answer_to_another_question_is_none(self, cloud: dict[str, Any]) -> None:
        Cloud.answers["/resource_providers"] = (200, {"versions": []})
        (said,) = api_check.check(cloud, 0.0)
        assert "the answer has no resource_providers" in said

    def test_an_endpoint_that_the_catalogue_lacks_is_named(self, cloud: dict[str, Any]) -> None:
        Cloud.answers["/v3/auth/tokens"] = (201, {"token": {"catalog": []}})
        with pytest.raises(api_check.CloudError, match=r"the catalogue has not: placement oslo http://127\.0\.0\.1"):
            api_check.check(cloud, 0.0)

    def test_a_keystone_that_refuses_is_named(self, cloud: dict[str, Any]) -> None:
        Cloud.answers["/v3/auth/tokens"] = (401, {"error": {"message": "wrong"}})
        with pytest.raises(api_check.CloudError, match=r"POST http://127\.0\.0\.1:\d+/v3/auth/tokens: HTTP 401"):
            api_check.check(cloud, 0.0)

    def test_a_service_that_comes_up_in_time_is_waited_for(
        self, cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Cloud.answers["/resource_providers"] = (503, {})

        def come_up(_seconds: float) -> None:
            Cloud.answers["/resource_providers"] = (200, {"resource_providers": []})

        monkeypatch.setattr(api_check.time, "sleep", come_up)
        assert api_check.check(cloud, api_check.time.monotonic() + 30) == []
