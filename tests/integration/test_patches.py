"""Patched projects on real hosts: what runs is what was asked for, and whatever is not so stops the run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import DEPLOYMENT, Tool, pytestmark

__all__ = ["pytestmark"]

MARK = "patched-by-a-test"
HOSTS = ("nantes-1", "rennes-1")
MODULE = "lib/python3.11/site-packages/oslo_db/api.py"


def experiment(**deployment: Any) -> dict[str, Any]:
    return {
        "name": "patches",
        "sites": [{"name": "nantes"}, {"name": "rennes"}],
        "network": {"verify": {"rtt_tolerance": "3 ms"}},
        "deployment": {**DEPLOYMENT, **deployment},
        "campaign": {"scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 2}]},
    }


class Patched(Tool):
    """The command line in a folder that holds a checkout of Keystone and a series for oslo.db."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, experiment())

    def deploys(self, **deployment: Any) -> None:
        self.write(experiment(**deployment))

    def git(self, directory: str, *words: str) -> None:
        identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", "-C", str(self.folder / directory), *identity, *words], check=True)

    def on(self, host: str, command: str) -> str:
        return self("ssh", "-e", "patches", host, command).stdout

    def phases_since(self, count: int) -> list[str]:
        return [entry["phase"] for entry in self.journal()[count:] if entry["event"] == "phase started"]

    def answer(self, host: str) -> str:
        """What Keystone at a host says of itself."""
        lease = json.loads((self.workspace / "lease.json").read_text())
        site = next(one["site_address"] for one in lease["hosts"] if one["name"] == host)
        return self.on(host, f"curl -s http://{site}:5000/v3")

    def edit(self, old: str, new: str) -> None:
        """Change the one line of Keystone's source that says what its answer holds."""
        path = self.folder / "keystone" / "keystone" / "api" / "discovery.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


PATCHED = {"sources": {"keystone": {"checkout": "keystone"}}, "patches": {"oslo.db": "series"}}


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patched]:
    made = Patched(tmp_path_factory.mktemp("patched"))
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "patches")
    assert left_behind(made.folder / "state", before) == []


def test_a_patch_is_made_saved_and_checked_before_there_is_any_host(tool: Patched) -> None:
    tool("patch", "new", "keystone")
    tool.edit("'2020-04-07T00:00:00Z'", f"'{MARK}'")
    tool("patch", "new", "oslo.db")
    module = tool.folder / "oslo.db/oslo_db/api.py"
    module.write_text(module.read_text() + f'\nMARK = "{MARK}"\n')
    tool.git("oslo.db", "commit", "--quiet", "--all", "-m", "Leave a mark")
    tool("patch", "save", "oslo.db", "--to", "series")
    assert "1 patches: tree" in tool("patch", "check", "series").stdout
    tool.deploys(**PATCHED)
    tool("check", "patches.yaml")
    assert not tool.workspace.exists()


def test_a_patch_that_does_not_apply_stops_before_anything_is_reserved(tool: Patched) -> None:
    patch = next((tool.folder / "series").glob("*.patch"))
    text = patch.read_text()
    lines = text.splitlines(keepends=True)
    context = next(number for number, line in enumerate(lines) if line.startswith("@@")) + 1
    lines[context] = " not what is there\n"
    patch.write_text("".join(lines))
    for command in ("check", "run"):
        told = tool(command, "patches.yaml", code=2).stderr
        assert (
            f"deployment.patches.oslo.db: series/{patch.name}:{context + 1}: oslo-db: oslo_db/api.py: the hunk" in told
        )
    series = tool.folder / "series" / "series"
    patch.write_text(text)
    stated = series.read_text()
    series.write_text(stated.replace("# base: oslo.db ", "# base: oslo.db 1"))
    assert "series/series:1: oslo-db: is made for oslo.db 1" in tool("run", "patches.yaml", code=2).stderr
    series.write_text(stated)
    patch.write_text(text.replace("b/oslo_db/api.py", "b/../api.py"))
    assert "leads outside the project" in tool("run", "patches.yaml", code=2).stderr
    patch.write_text(text)
    assert not (tool.workspace / "lease.json").exists()


def test_every_host_runs_the_patched_code_and_proves_it(tool: Patched) -> None:
    tool("run", "patches.yaml")
    (record,) = [json.loads(path.read_text()) for path in tool.workspace.glob("runs/*/record.json")]
    assert record["problems"] == []
    assert set(record["code"]) == set(HOSTS)
    for host in HOSTS:
        assert MARK in tool.answer(host)
        proved = record["code"][host]
        assert set(proved["projects"]) == {"keystone.service keystone", "keystone.service oslo-db"}
        assert proved["modules"] > 1000
        assert proved["files"] > 2000
        assert proved["processes"] >= 2
    assert len({json.dumps(record["code"][host]["projects"]) for host in HOSTS}) == 1
    report = (tool.workspace / "report" / "report.md").read_text()
    assert record["code"][HOSTS[0]]["projects"]["keystone.service oslo-db"] in report


def test_an_edit_is_deployed_over_what_is_there(tool: Patched) -> None:
    seen = len(tool.journal())
    since = tool.on("rennes-1", "systemctl show -p ActiveEnterTimestampMonotonic memcached.service")
    tool.edit(MARK, MARK + "-again")
    tool("verify", "patches.yaml")
    assert tool.phases_since(seen) == ["deploy", "constrain", "verify"]
    for host in HOSTS:
        assert MARK + "-again" in tool.answer(host)
    assert tool.on("rennes-1", "systemctl show -p ActiveEnterTimestampMonotonic memcached.service") == since
    seen = len(tool.journal())
    tool("verify", "patches.yaml")
    assert tool.phases_since(seen) == []


def environment(tool: Patched) -> str:
    """Path of Keystone's environment on hosts."""
    unit = tool.on("nantes-1", "cat /etc/systemd/system/keystone.service")
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    return line.removeprefix("ExecStart=").partition("/bin/")[0]


def test_a_file_changed_by_hand_on_one_host_stops_the_run(tool: Patched) -> None:
    place = f"{environment(tool)}/{MODULE}"
    tool.on("rennes-1", f"(cat {place}; echo 'MARK = 2') > /run/other.py && mount --bind /run/other.py {place}")
    told = tool("verify", "patches.yaml", code=3).stderr
    assert f"rennes-1: {environment(tool)}: changed after it was made: {MODULE}" in told
    assert "nantes-1" not in told
    tool.on("rennes-1", f"umount {place}")
    seen = len(tool.journal())
    tool("verify", "patches.yaml")
    assert tool.phases_since(seen)[0] == "deploy"


def test_a_module_from_another_path_stops_the_run(tool: Patched) -> None:
    site = f"{environment(tool)}/lib/python3.11/site-packages"
    drop_in = "/run/systemd/system/keystone.service.d"
    tool.on(
        "nantes-1",
        f"mkdir -p /run/mine {drop_in} && cp -r {site}/oslo_db /run/mine/ && "
        f"printf '[Service]\\nEnvironment=PYTHONPATH=/run/mine\\n' > {drop_in}/mine.conf && "
        "systemctl daemon-reload && systemctl restart keystone && sleep 8",
    )
    told = tool("verify", "patches.yaml", code=3).stderr
    assert "nantes-1: keystone.service: process " in told
    assert "from /run/mine/oslo_db/" in told
    tool.on("nantes-1", f"rm -r {drop_in} /run/mine && systemctl daemon-reload")
    tool("verify", "patches.yaml")


def test_a_service_that_runs_from_another_environment_stops_the_run(tool: Patched) -> None:
    path = environment(tool)
    manifest = json.loads(tool.on("nantes-1", f"cat {path}/manifest.json"))
    release = f"/opt/discovery-deploy/{manifest['base']}"
    tool.on(
        "nantes-1",
        f"sed -i s,{path},{release}, /etc/systemd/system/keystone.service /etc/keystone/uwsgi.ini && "
        "systemctl daemon-reload && systemctl restart keystone && sleep 8",
    )
    told = tool("verify", "patches.yaml", code=3).stderr
    assert f"runs code of {release}, not of {path}" in told
    assert "it reports nothing" in told


def test_before_and_after_are_two_settings_of_one_campaign(tool: Patched) -> None:
    asked = experiment()
    asked["campaign"]["factors"] = [{"path": "deployment.patches", "levels": [{}, {"oslo.db": "series"}]}]
    (tool.folder / "patches.yaml").write_text(json.dumps(asked, indent=1))
    tool("run", "patches.yaml")
    records = [json.loads(path.read_text()) for path in tool.workspace.glob("runs/*/record.json")]
    found = {record["setting"]["label"]: record["code"]["nantes-1"]["projects"] for record in records}
    assert found["no patches"] == {}
    assert set(found["oslo.db series"]) == {"keystone.service oslo-db"}
