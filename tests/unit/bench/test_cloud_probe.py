"""The client of smoke against invented APIs: what it asks, what it leaves, and how it gives up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from discovery_deploy.bench import cloud_probe
from tests.fake_cloud import Answer, FakeCloud, served


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with served(FakeCloud()) as running:
        yield running


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_probe, "POLL_S", 0.02)
    monkeypatch.setattr(cloud_probe, "CLEAN_LIMIT_S", 1.0)


def place(site: str, kind: str = "fake") -> dict[str, Any]:
    return {
        "name": f"{kind}-{site}",
        "site": site,
        "region": site,
        "computes": [f"{site}-1-fake-1"],
        "kind": kind,
        "flavor": "m1.tiny",
    }


def specification(cloud: FakeCloud, *places: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {
        "task": "operate",
        "auth_url": f"{cloud.url}/identity/v3",
        "password": "good",
        "places": list(places) or [place("nantes")],
        "limit_s": 5.0,
    }
    return {**asked, **more}


def outcome(specification: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    cloud_probe.main(json.dumps(specification))
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_server_comes_at_the_site_and_nothing_is_left(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    answer = outcome(specification(cloud), capsys)
    assert answer["error"] == ""
    assert [step["name"] for step in answer["steps"]] == [
        "sign in", "network for smoke-fake-nantes", "ask for smoke-fake-nantes", "boot smoke-fake-nantes",
        "list smoke-fake-nantes", "delete smoke-fake-nantes",
    ]  # fmt: skip
    assert (cloud.servers, cloud.networks) == ({}, {})


def test_several_sites_are_asked_in_one_session_and_at_the_same_time(
    cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = outcome(specification(cloud, place("nantes"), place("lyon")), capsys)
    assert answer["error"] == ""
    assert cloud.requests.count(("POST", "/identity/v3/auth/tokens")) == 1
    names = [step["name"].split()[0] for step in answer["steps"]]
    assert names == ["sign", "network", "ask", "network", "ask", "boot", "boot", "list", "list", "delete", "delete"]


@pytest.mark.parametrize(("kind", "image"), [("fake", "noise"), ("libvirt", "guest")])
def test_real_machines_get_an_image_that_boots(
    kind: str, image: str, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.status = "BUILD"
    answer = outcome(specification(cloud, place("nantes", kind), limit_s=0.3, remove_after_failure=False), capsys)
    assert "smoke-" in answer["error"]
    assert [server["imageRef"] for server in cloud.servers.values()] == [image]


def test_the_host_is_asked_for_by_name_and_looked_at(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.lands_on = "lyon-1-fake-1"
    answer = outcome(specification(cloud), capsys)
    assert answer["error"] == (
        "boot smoke-fake-nantes: server smoke-fake-nantes runs on lyon-1-fake-1, which is not at nantes"
    )
    assert (cloud.servers, cloud.networks) == ({}, {})


def test_a_server_in_error_tells_its_fault(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.status = "ERROR"
    assert "ERROR: No valid host was found." in outcome(specification(cloud), capsys)["error"]


def test_what_never_comes_is_named_within_the_limit(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.status = "BUILD"
    began = time.monotonic()
    answer = outcome(specification(cloud, limit_s=1.0), capsys)
    assert time.monotonic() - began < 3
    assert answer["error"].startswith(
        "boot smoke-fake-nantes: server smoke-fake-nantes at nantes: ACTIVE: not within 1 s"
    )
    assert (cloud.servers, cloud.networks) == ({}, {})


def test_a_compute_that_is_down_is_named(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.hosts["nantes-1-fake-1"] = "down"
    answer = outcome(specification(cloud, limit_s=1.0), capsys)
    assert "a compute of nantes-1-fake-1 that Nova counts as up: not within 1 s" in answer["error"]


def test_silence_ends(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.silent = "/identity"
    began = time.monotonic()
    answer = outcome(specification(cloud, limit_s=1.0), capsys)
    assert time.monotonic() - began < 2
    assert "sign in: POST " in answer["error"]
    assert re.search(r"no answer within (1|0\.99\d) s", answer["error"])


def test_an_errors_text_is_told_and_removal_that_fails_too(
    cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.broken["/network"] = Answer(503, {"message": "no database"})
    answer = outcome(specification(cloud), capsys)
    assert 'v2.0/networks: 503 {"message": "no database"}; then, removing what was made: ' in answer["error"]


def test_a_wrong_password_and_a_missing_region_are_told(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert "401" in outcome(specification(cloud, password="bad"), capsys)["error"]
    assert 'no network in region "rennes"' in outcome(specification(cloud, place("rennes")), capsys)["error"]


@pytest.mark.parametrize(("emptied", "told"), [("images", "no active image"), ("flavors", "no flavor m1.tiny")])
def test_what_deploy_should_have_made_is_named(
    emptied: str, told: str, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    setattr(cloud, emptied, [])
    assert told in outcome(specification(cloud), capsys)["error"]


def test_clean_removes_what_an_interrupted_call_left(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.status = "BUILD"
    outcome(specification(cloud, limit_s=0.5, remove_after_failure=False), capsys)
    assert cloud.servers
    assert cloud.networks
    assert outcome(specification(cloud, task="clean"), capsys)["error"] == ""
    assert (cloud.servers, cloud.networks) == ({}, {})


def test_it_runs_where_there_is_nothing_but_python_and_its_secret_is_in_no_command_line(cloud: FakeCloud) -> None:
    program = cloud_probe.call(specification(cloud, limit_s=20.0))
    command = [sys.executable, "-I", "-S", "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["error"] == ""
