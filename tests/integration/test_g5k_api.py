"""What goes wrong between the provider `g5k` and Grid'5000's API leaves no job behind; the API is the fake's.

EnOSlib itself speaks; no machine is behind the API, so what needs one is in test_g5k_provider.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import g5k
from tests.integration.g5k_api_bed import USER, ApiBed, fake_api
from tests.integration.g5k_bed import experiment

pytestmark = pytest.mark.integration
RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "g5k-reservation.json"
POST_JOBS = {"method": "POST", "path": "/jobs$"}
NAME = "g5k-api"


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[ApiBed]:
    with fake_api(tmp_path) as bed:
        yield bed


def reserve(bed: ApiBed, **provider: object) -> Lease:
    asked = experiment(NAME, **provider)  # type: ignore[arg-type]
    return bed.provider.reserve(asked, bed.public_key, Path("/"), bed.told.append, bed.work)


def assert_nothing_is_left(bed: ApiBed) -> None:
    assert bed.alive() == []
    assert not (bed.work / "state").exists()


def test_the_request_tells_core_hours_and_books_nothing(bed: ApiBed) -> None:
    text = bed.provider.request_text(experiment(NAME))
    assert "nancy: 2 machines of grisou: 2 x 20 cores x 2 h = 80 core-hours (nantes-1, nantes-2)" in text
    assert text.endswith("in all: 3 machines, 112 core-hours\n")
    assert {call["method"] for call in bed.calls()} == {"GET"}
    assert_nothing_is_left(bed)


def test_a_cluster_that_is_not_there_is_told_with_those_that_are(bed: ApiBed) -> None:
    with pytest.raises(TestbedError, match='rennes has no cluster "parapluie"; its clusters are parasilo, paravance'):
        reserve(bed, default={"g5k_site": "rennes", "cluster": "parapluie"})
    assert_nothing_is_left(bed)


def test_a_refused_job(bed: ApiBed) -> None:
    bed.faults(refuse="no more than 10 machines, says an admission rule")
    with pytest.raises(TestbedError, match="refused the job: 400: no more than 10 machines"):
        reserve(bed)
    assert_nothing_is_left(bed)


def test_a_moment_without_room_is_told_with_one_that_has_some(bed: ApiBed) -> None:
    bed.faults(refuse="Reservation not valid --> KO (This reservation could run at 2026-12-24 19:00:00)")
    with pytest.raises(TestbedError, match="there is some at 2026-12-24 19:00:00"):
        reserve(
            bed, reservation="2026-12-01 19:00:00", sites={}, default={"g5k_site": "rennes", "cluster": "paravance"}
        )
    assert_nothing_is_left(bed)


def test_machines_that_do_not_answer_are_given_back(bed: ApiBed) -> None:
    with pytest.raises(TestbedError, match=r"paravance-1\.rennes\.grid5000\.fr.*: ssh does not get in"):
        reserve(bed)
    assert {call["status"] for call in bed.calls() if call["method"] == "DELETE"} == {202}
    assert_nothing_is_left(bed)


def test_a_walltime_of_days_is_asked_for_at_several_sites(bed: ApiBed) -> None:
    with pytest.raises(TestbedError, match="ssh does not get in"):
        reserve(bed, walltime="30:00:00")
    sent = [call["body"]["resources"].partition(",walltime=")[2] for call in bed.calls() if call["method"] == "POST"]
    assert sent == ["30:00:00"] * 2
    assert_nothing_is_left(bed)


def test_an_api_that_is_busy_three_times_is_asked_again(bed: ApiBed) -> None:
    bed.faults(
        errors=[{**POST_JOBS, "status": 500, "times": 3}, {"method": "GET", "path": ".", "status": 502, "times": 3}]
    )
    with pytest.raises(TestbedError, match="ssh does not get in"):  # so the jobs were made
        reserve(bed)
    posted = [call["status"] for call in bed.calls() if call["method"] == "POST"]
    assert (posted.count(500), posted.count(201)) == (3, 2)
    assert_nothing_is_left(bed)


def test_an_api_that_stays_broken_is_told(bed: ApiBed) -> None:
    bed.faults(errors=[{**POST_JOBS, "status": 500, "times": 99}])
    with pytest.raises(TestbedError, match="refused the job: 500") as caught:
        reserve(bed)
    assert caught.value.advice == "Run again later."
    assert_nothing_is_left(bed)


def test_wrong_credentials_are_told_and_the_password_is_not(bed: ApiBed) -> None:
    bed.write_account(USER, "a-wrong-secret")
    for act in (lambda: reserve(bed), lambda: bed.provider.release(NAME, bed.told.append)):
        with pytest.raises(TestbedError, match=r"refuses the credentials \(401\)") as caught:
            act()
        assert "python-grid5000.yaml" in caught.value.advice
        assert "a-wrong-secret" not in str(caught.value)
    assert "a-wrong-secret" not in "".join(path.read_text() for path in (bed.work / "logs").iterdir())
    assert_nothing_is_left(bed)


def test_an_account_file_that_is_no_yaml_is_told(bed: ApiBed) -> None:
    (bed.work / "home" / ".python-grid5000.yaml").write_text("username: [a-secret")
    with pytest.raises(TestbedError, match=r"python-grid5000\.yaml: cannot be read") as caught:
        reserve(bed)
    assert "a-secret" not in str(caught.value)


def test_a_job_that_was_there_before_survives_a_failure(bed: ApiBed) -> None:
    job = bed.submit(NAME)
    with pytest.raises(TestbedError, match="ssh does not get in"):
        reserve(bed)
    assert job["uid"] in {alive["uid"] for alive in bed.alive()}
    bed.provider.release(NAME, bed.told.append)
    assert_nothing_is_left(bed)


def test_jobs_of_another_request_are_given_back_first(bed: ApiBed) -> None:
    with bed.server.grid.lock:
        body = {"name": f"discovery-deploy-{NAME}", "resources": "{cluster='parasilo'}/nodes=1,walltime=1:0:0"}
        old = bed.server.grid.submit("rennes", USER, {**body, "command": "sleep"})
    while bed.server.grid.jobs[old["uid"]]["state"] != "running":
        time.sleep(0.05)
    with pytest.raises(TestbedError, match="ssh does not get in"):
        reserve(bed)
    assert any("of another request (rennes: 0 machines of paravance, 1 are asked for)" in line for line in bed.told)
    assert_nothing_is_left(bed)


def test_release_finds_jobs_by_name_at_all_sites_and_can_be_repeated(bed: ApiBed) -> None:
    for site in ("rennes", "nancy", "rennes"):  # twice at one site: EnOSlib itself would stop here
        bed.submit(NAME, site)
    foreign = bed.submit("g5k-other")
    assert bed.provider.experiments() == [NAME, "g5k-other"]
    bed.provider.release(NAME, bed.told.append)
    assert [job["uid"] for job in bed.alive()] == [foreign["uid"]]
    bed.provider.release(NAME, bed.told.append)
    assert bed.told[-1] == "gone: there was no job"


def test_a_site_that_must_answer_and_does_not_makes_release_fail(bed: ApiBed) -> None:
    bed.submit(NAME)
    bed.faults(hang={"method": "POST", "path": "/jobs$", "seconds": 0})
    record = bed.work / "state" / "g5k" / NAME / "request.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"pools": [{"g5k_site": "rennes", "cluster": "paravance", "hosts": ["a-1"]}]}')
    bed.faults(errors=[{"method": "GET", "path": "/sites/rennes/jobs", "status": 503, "times": 99}])
    with pytest.raises(TestbedError, match="rennes does not answer"):
        bed.provider.release(NAME, bed.told.append)
    assert bed.provider.experiments() == [NAME]  # it is still known here
    bed.faults()
    bed.provider.release(NAME, bed.told.append)
    assert_nothing_is_left(bed)


def test_a_driver_that_dies_while_it_submits_leaves_a_job_that_is_found(bed: ApiBed) -> None:
    bed.faults(hang={**POST_JOBS, "seconds": 20})  # done at once, answered late
    driver = f"""
        from pathlib import Path
        from discovery_deploy.testbeds.g5k import G5kProvider
        from tests.integration.g5k_bed import experiment
        work, cache = Path({str(bed.work)!r}), Path({str(bed.provider.cache)!r})
        asked = experiment({NAME!r}, {{"rennes": 1}})
        G5kProvider(cache, work / "state", work / "home").reserve(asked, {bed.public_key!r}, Path("/"), print, work)
    """
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(driver)], cwd=root) as process:
        end = time.monotonic() + 60
        while not bed.alive() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert len(bed.alive()) == 1
    assert bed.provider.experiments() == [NAME]
    assert bed.provider.holder(NAME) == bed.work
    bed.faults()
    bed.provider.release(NAME, bed.told.append)
    assert_nothing_is_left(bed)


def test_a_driver_that_dies_takes_its_worker_along(bed: ApiBed) -> None:
    bed.faults(waiting=["rennes"])  # the worker waits for a job that does not start
    driver = f"""
        from pathlib import Path
        from discovery_deploy.testbeds.g5k import G5kProvider
        from tests.integration.g5k_bed import experiment
        work, cache = Path({str(bed.work)!r}), Path({str(bed.provider.cache)!r})
        asked = experiment({NAME!r}, {{"rennes": 1}})
        G5kProvider(cache, work / "state", work / "home").reserve(asked, {bed.public_key!r}, Path("/"), print, work)
    """
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("is waiting, expected to start" in line for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(2.0)
    asked = len(bed.calls())
    time.sleep(4.0)
    assert len(bed.calls()) == asked  # nobody asks any more
    bed.provider.release(NAME, bed.told.append)
    assert_nothing_is_left(bed)


def test_a_job_that_ends_instead_of_starting_is_told(bed: ApiBed) -> None:
    bed.faults(waiting=["rennes"])

    def ended(line: str) -> None:
        bed.told.append(line)
        if "is waiting" in line:
            with bed.server.grid.lock:
                next(job for job in bed.server.grid.jobs.values() if job["site"] == "rennes").update(state="error")

    with pytest.raises(TestbedError, match=r"job 100[12] at rennes is error and never ran"):
        bed.provider.reserve(experiment(NAME), bed.public_key, Path("/"), ended, bed.work)
    assert_nothing_is_left(bed)


def test_more_walltime_is_asked_for_and_read_back(bed: ApiBed) -> None:
    bed.submit(NAME)
    bed.submit(NAME, "nancy")
    while any(job["state"] != "running" for job in bed.alive()):
        time.sleep(0.05)
    text = bed.provider.extend(NAME, 1800, bed.told.append)
    assert "rennes: job 1001 got 00:30:00 more, ends at " in text
    assert "nancy: job 1002 got 00:30:00 more" in text
    assert [job["walltime"] for job in bed.alive()] == [9000, 9000]
    sent = [call["body"] for call in bed.calls() if call["path"].endswith("/walltime")]
    assert sent == [{"walltime": "+00:30:00"}] * 2


def test_walltime_that_is_not_granted_is_no_success(bed: ApiBed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TestbedError, match="g5k-api has no running job"):
        bed.provider.extend(NAME, 1800, bed.told.append)
    bed.submit(NAME)
    while any(job["state"] != "running" for job in bed.alive()):
        time.sleep(0.05)
    bed.faults(grant_s=600)
    monkeypatch.setattr(g5k, "GRANTED_S", 2.0)
    with pytest.raises(TestbedError, match=r"of 00:30:00, .* not granted all:\n  rennes: job 1001 got 00:10:00 more"):
        bed.provider.extend(NAME, 1800, bed.told.append)


def test_hosts_whose_job_is_over_are_dead(bed: ApiBed) -> None:
    job = bed.submit(NAME)
    lease = Lease(
        provider="g5k", experiment=NAME, hosts=(), site_subnets={}, site_devices={}, site_gateways={}, identities={},
        router="hosts", details={"jobs": {"a-1": job["uid"]}},
    )  # fmt: skip
    host = {"name": "a-1", "site": "a", "roles": ["bench"], "management_address": "a", "site_address": "10.0.0.1"}
    lease = Lease.model_validate({**lease.model_dump(), "hosts": [host]})
    while bed.server.grid.jobs[job["uid"]]["state"] != "running":
        time.sleep(0.05)
    assert bed.provider.dead_hosts(lease) == []
    bed.server.grid.jobs[job["uid"]]["walltime"] = -1  # it is over
    assert bed.provider.dead_hosts(lease) == ["a-1"]


def recorded(calls: list[dict[str, Any]]) -> list[str]:
    """Calls without what differs from day to day: sorted, each once (how often is asked depends on time)."""
    lines = set()
    for call in calls:
        text = json.dumps([call["method"], call["path"], call["query"], call["body"]])
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "MOMENT", text)
        lines.add(re.sub(r"(?<=/jobs/)\d+|(?<=/deployments/)D-\d+", "NUMBER", text))
    return sorted(lines)


def test_enoslib_calls_the_api_as_it_did_when_this_was_written(
    bed: ApiBed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(g5k, "BOOT_S", 0.0)  # no machine is behind the API
    made: dict[str, list[str]] = {}
    for kind, provider, problem in (
        ("plain", {}, "ssh does not get in"),
        ("deployed in vlans", {"environment": "debian12-min", "network": "kavlan"}, "not all of them answered"),
    ):
        before = len(bed.calls()) if bed.server.log.exists() else 0
        with pytest.raises(TestbedError, match=problem):
            reserve(bed, **provider)
        made[kind] = recorded(bed.calls()[before:])
        assert_nothing_is_left(bed)
    (tmp_path / RECORDED.name).write_text(json.dumps(made, indent=1) + "\n")
    known = json.loads(RECORDED.read_text())
    news = {kind: [line for line in lines if line not in known[kind]] for kind, lines in made.items()}
    gone = {kind: [line for line in lines if line not in made[kind]] for kind, lines in known.items()}
    assert (news, gone) == ({kind: [] for kind in made}, {kind: [] for kind in made}), (
        f"EnOSlib speaks to the API otherwise than in {RECORDED}: read what has changed, compare with Grid'5000's "
        f"documents, change the fake, then copy {tmp_path / RECORDED.name} there"
    )


def test_what_is_missing_is_told_with_the_command_that_mends_it(bed: ApiBed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bed.provider.lacks() == []
    account = bed.work / "home" / ".python-grid5000.yaml"
    account.chmod(0o644)
    assert [lack.command for lack in bed.provider.lacks()] == [f"chmod 600 {account}"]
    account.unlink()
    (bed.work / "home" / ".ssh" / "id_ed25519.pub").unlink()
    monkeypatch.setenv("PATH", str(bed.work))
    commands = [lack.command for lack in bed.provider.lacks()]
    assert "apt-get install -y openssh-client" in commands
    assert any("username: LOGIN" in command for command in commands)
    assert any(command.startswith("ssh-keygen") for command in commands)
