"""A whole small experiment on real hosts, through the command line, with its failures."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from discovery_deploy.agent import machine_plans
from tests.integration.leftovers import Snapshot, left_behind

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "discovery_deploy"]
CHEAP_HASHES: dict[str, Any] = {"identity": {"password_hash_rounds": 4}}
"""Keystone's options for passwords that are no secret: by default a hash takes a quarter of a second of a processor."""
DEPLOYMENT: dict[str, Any] = {
    "backend": {"type": "mariadb", "site": "nantes"},
    "workers": 1,
    "overrides": {"keystone": CHEAP_HASHES},
}
EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "question": "Does all of it work?",
    "sites": [{"name": "nantes"}, {"name": "rennes"}],
    "network": {"verify": {"rtt_tolerance": "3 ms"}},
    "deployment": DEPLOYMENT,
    "campaign": {
        "bench_site": "rennes",
        "factors": [{"path": "network.default.delay", "levels": ["0 ms", "10 ms"]}],
        "scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 6}],
    },
}


class Tool:
    """The command line in a folder of its own."""

    def __init__(self, folder: Path, experiment: dict[str, Any] = EXPERIMENT, limit_s: float = 800) -> None:
        self.folder = folder
        self.limit_s = limit_s
        self.environment = {
            **os.environ,
            "DISCOVERY_DEPLOY_STATE": str(folder / "state"),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "COLUMNS": "200",
        }
        self.workspace = folder / "results" / experiment["name"]
        self.file = folder / f"{experiment['name']}.yaml"
        self.write(experiment)

    def write(self, experiment: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(experiment, indent=1))  # JSON is YAML

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *words], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=self.limit_s, check=False,
        )  # fmt: skip

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.run(*words)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def journal(self) -> list[dict[str, Any]]:
        path = self.workspace / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, running: subprocess.Popen[str], event: str, seen: int, **details: Any) -> None:
        """Until the journal holds an event after the `seen` first ones; fails when the program ends first."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            for entry in self.journal()[seen:]:
                if entry["event"] == event and all(entry.get(key) == value for key, value in details.items()):
                    return
            if running.poll() is not None:
                out, err = running.communicate()
                pytest.fail(f"ended before {event} {details}: {out}\n{err}")
            time.sleep(0.02)
        pytest.fail(f"no {event} {details} within 300 s")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.workspace.glob("runs/*/record.json"))]


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    made = Tool(tmp_path_factory.mktemp("experiment"))
    before = Snapshot.take(made.folder / "state")
    yield made
    made("release", "small")
    assert left_behind(made.folder / "state", before) == []
    assert not list((made.folder / "state").glob("small*"))


def test_one_command_gives_a_report(tool: Tool) -> None:
    done = tool("run", "small.yaml")
    index = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    assert index.is_file()
    assert "Does all of it work?" in index.read_text()
    assert len(tool.records()) == 2
    for record in tool.records():
        assert record["status"] == "done"
        assert record["problems"] == []
        assert {pair["asked_rtt_s"] for pair in record["wan_before"]["pairs"]} <= {0.0, 0.02}


def test_again_does_nothing_but_the_report(tool: Tool) -> None:
    seen = len(tool.journal())
    tool("run", "small.yaml")
    assert not [entry for entry in tool.journal()[seen:] if entry["event"] in ("run started", "phase started")]


def test_dry_run_says_what_a_change_would_cost(tool: Tool) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["factors"][0]["levels"] = ["0 ms", "10 ms", "20 ms"]
    tool.write(changed)
    seen = len(tool.journal())
    text = tool("run", "small.yaml", "--dry-run").stdout
    tool.write(EXPERIMENT)
    assert "constrain, verify" in text
    assert "deploy" not in text
    assert "netem delay 20ms" in text
    assert "runs to do: 1" in text
    assert not [entry for entry in tool.journal()[seen:] if entry["event"] == "phase started"]


def test_openstack_speaks_to_each_site(tool: Tool) -> None:
    for site in ("nantes", "rennes"):
        shown = tool("openstack", site, "endpoint", "list", "-f", "json").stdout
        assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"nantes", "rennes"}
        clouds = {**tool.environment, "OS_CLIENT_CONFIG_FILE": str(tool.workspace / "clouds.yaml")}
        client = str(Path(sys.executable).parent / "openstack")
        token = subprocess.run([client, "--os-cloud", site, "token", "issue", "-f", "value", "-c", "id"],
                               env=clouds, capture_output=True, text=True, check=True)  # fmt: skip
        assert len(token.stdout.strip()) > 50


def test_openstack_goes_by_way_of_a_host_where_there_is_no_route(tool: Tool) -> None:
    clouds = json.loads((tool.workspace / "clouds.yaml").read_text())["clouds"]
    keystone = urlsplit(clouds["rennes"]["auth"]["auth_url"])
    rule = ["iif", "lo", "to", str(keystone.hostname), "pref", "100", "prohibit"]
    subprocess.run(["ip", "rule", "add", *rule], check=True)
    try:
        with pytest.raises(OSError, match="Permission denied"):
            socket.create_connection((keystone.hostname, keystone.port), timeout=5)
        shown = tool("openstack", "rennes", "endpoint", "list", "-f", "json").stdout
        assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"nantes", "rennes"}
        assert "nothing-such" in tool("openstack", "rennes", "user", "show", "nothing-such", code=1).stderr
    finally:
        subprocess.run(["ip", "rule", "del", *rule], check=True)


def test_ssh_runs_a_command_on_a_host(tool: Tool) -> None:
    assert tool("ssh", "rennes-1", "hostname").stdout == "rennes-1\n"
    assert "no host" in tool("ssh", "lyon-1", "hostname", code=6).stderr


def test_a_host_with_another_key_is_refused(tool: Tool) -> None:
    known = tool.workspace / "known_hosts"
    right = known.read_text()
    lines = dict(line.split(" ", 1) for line in right.splitlines())
    known.write_text(f"nantes-1 {lines['nantes-1']}\nrennes-1 {lines['nantes-1']}\n")  # rennes-1's is another one
    ssh = ["ssh", "-F", str(tool.workspace / "ssh_config"), "-o", "ControlPath=none"]
    try:
        assert subprocess.run([*ssh, "nantes-1", "true"], capture_output=True, check=False).returncode == 0
        refused = subprocess.run([*ssh, "rennes-1", "true"], capture_output=True, text=True, check=False)
    finally:
        known.write_text(right)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_status_tells_hosts_phases_and_runs(tool: Tool) -> None:
    text = tool("status").stdout
    assert "nantes-1" in text
    assert "running" in text
    assert "runs with a record: 2, of which valid: 2" in text


def test_no_secret_is_anywhere_but_in_private_files(tool: Tool) -> None:
    secrets = json.loads((tool.workspace / "secrets.json").read_text())

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from texts(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from texts(inner)
        elif isinstance(value, str):
            yield value

    wanted = [text.encode() for text in texts(secrets) if len(text) >= 8]
    assert wanted
    for path in tool.workspace.rglob("*"):
        if path.is_file() and any(text in path.read_bytes() for text in wanted):
            assert path.stat().st_mode & 0o077 == 0, f"{path} holds a secret and can be read by others"
            assert path.name in {"secrets.json", "clouds.yaml", "openrc-nantes", "openrc-rennes"}, path
    for host in ("nantes-1", "rennes-1"):
        journal = tool("ssh", host, "journalctl", "--no-pager", "-o", "cat").stdout.encode()
        assert len(journal) > 100
        assert not any(text in journal for text in wanted)
        names = tool("ssh", host, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").stdout.encode()
        assert not any(text in names for text in wanted)
        grep = "grep -rlF -f - /etc /var/log /var/lib /root /tmp --exclude-dir=mysql -s; test $? -le 2"
        found = subprocess.run(
            [*COMMAND, "ssh", host, grep], cwd=tool.folder, env=tool.environment,
            input="\n".join(text.decode() for text in wanted), text=True, capture_output=True, check=True,
        ).stdout.split()  # fmt: skip
        for name in found:
            mode = tool("ssh", host, "stat", "-c", "%a", name).stdout.strip()
            assert mode in {"600", "400", "640"}, f"{host}: {name} has mode {mode}"


def test_nothing_listens_on_the_machine(tool: Tool) -> None:
    def listening(*prefix: str) -> set[str]:
        shown = subprocess.run([*prefix, "ss", "-Hltnup"], capture_output=True, text=True, check=True).stdout
        return {line.split()[4] for line in shown.splitlines()}

    for address in listening():
        assert not address.startswith(("10.", "[fd")), f"{address} is open on the machine itself"
    plan = machine_plans.read_plan(tool.folder / "state" / "small")
    assert plan is not None
    for host in plan.hosts:
        own = {host.site_address, host.management_address, "127.0.0.1", "[::1]"}
        for address in listening("ip", "netns", "exec", host.namespace):
            where, _, port = address.rpartition(":")
            if port != "22":
                assert where.split("%")[0] in own, f"{host.name} listens on {address}"


def test_a_second_run_at_the_same_time_is_refused(tool: Tool) -> None:
    import fcntl

    with (tool.workspace / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = tool("run", "small.yaml", code=6).stderr
    assert "another discovery-deploy works on this experiment" in message


def test_a_wan_changed_by_hand_makes_the_run_invalid_and_says_so(tool: Tool) -> None:
    """The constraint is changed behind the tool's back between two runs: kept, marked, exit code 5."""
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["scenarios"][0]["times"] = 5
    changed["campaign"]["factors"][0]["levels"] = ["10 ms"]
    tool.write(changed)
    tool("verify", "small.yaml")
    plan = tool.folder / "state" / "small" / "plan.json"
    shift = "for c in $(tc qdisc show dev vec1 | grep -o 'parent [0-9:a-f]*' | cut -d' ' -f2); do " \
            "tc qdisc change dev vec1 parent $c netem delay 30ms limit 100000; done"  # fmt: skip
    subprocess.run([sys.executable, "-m", "discovery_deploy.agent.wan_router", "run", str(plan), shift], check=True)
    done = tool("run", "small.yaml", code=5)
    assert "asked" in done.stderr
    record = next(record for record in tool.records() if record["scenario"]["times"] == 5)
    assert record["status"] == "done"
    assert any("WAN" in problem for problem in record["problems"])
    report = (tool.workspace / "report" / "report.html").read_text()
    assert "not valid" in report.lower() or "invalid" in report.lower()
    tool("constrain", "small.yaml", "--setting", "10 ms")
    tool.write(EXPERIMENT)


def test_a_rally_that_fails_is_recorded_and_done_again_later(tool: Tool) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["factors"] = []
    changed["campaign"]["scenarios"] = [{"task": "keystone/create_and_list_users", "times": 3}]
    tool.write(changed)
    tool("verify", "small.yaml")
    config = tool("ssh", "rennes-1", "ls", "-d", "/var/lib/discovery-deploy/rally").stdout.strip()
    tool("ssh", "rennes-1", "mv", config, config + ".away")
    done = tool("run", "small.yaml", code=5)
    assert "Rally at rennes failed" in done.stderr
    failed = [record for record in tool.records() if record["status"] == "failed"]
    assert len(failed) == 1
    tool("ssh", "rennes-1", "mv", config + ".away", config)
    tool("run", "small.yaml")
    again = json.loads((tool.workspace / "runs" / failed[0]["id"] / "record.json").read_text())
    assert again["status"] == "done"
    assert list(tool.workspace.glob("runs/*~1/record.json")), "the failed attempt is kept"
    tool.write(EXPERIMENT)


def test_two_keystones_of_one_region_serve_each_its_site(tool: Tool) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["deployment"] |= {
        "topology": {"type": "centralized", "site": "nantes"},
        "placement": {"keystone": ["nantes", "rennes"]},
    }
    tool.write(changed)
    tool("verify", "small.yaml", "--setting", "0 ms")
    clouds = json.loads((tool.workspace / "clouds.yaml").read_text())["clouds"]
    assert {clouds[site]["region_name"] for site in ("nantes", "rennes")} == {"nantes"}
    assert clouds["nantes"]["auth"]["auth_url"] != clouds["rennes"]["auth"]["auth_url"]
    for site in ("nantes", "rennes"):
        listed = json.loads(tool("openstack", site, "endpoint", "list", "--interface", "public", "-f", "json").stdout)
        assert [(endpoint["Region"], endpoint["URL"]) for endpoint in listed] == [
            ("nantes", clouds["nantes"]["auth"]["auth_url"])
        ]
    tool.write(EXPERIMENT)


def test_drivers_killed_in_one_phase_after_the_other_are_followed_by_one_that_ends_well(tool: Tool) -> None:
    """Each finds what the killed one before it has left, gets over that phase, and is killed in the next one."""
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["factors"] = []
    changed["campaign"]["scenarios"] = [{"task": "keystone/get_entities", "times": 2}]
    changed["network"]["default"] = {"delay": "2 ms"}
    changed["deployment"]["workers"] = 2
    tool.write(changed)
    tool("release", "small")
    later_s = {"reserve": 0.4, "prepare": 1.0, "deploy": 2.0, "constrain": 0.0, "verify": 0.0, "bench": 1.0}
    for phase, pause_s in later_s.items():
        seen = len(tool.journal())
        running = tool.start("run", "small.yaml")
        if phase == "bench":
            tool.wait_for(running, "run started", seen)
        else:
            tool.wait_for(running, "phase started", seen, phase=phase)
        time.sleep(pause_s)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        ended = [entry["phase"] for entry in tool.journal()[seen:] if entry["event"] == "phase ended"]
        assert phase == "constrain" or phase not in ended, "it was killed too late to show anything"
    tool("run", "small.yaml")
    records = [record for record in tool.records() if "get_entities" in record["id"]]
    assert records
    assert all(record["status"] == "done" and record["problems"] == [] for record in records)


@pytest.mark.parametrize(
    ("number", "phase"), [(signal.SIGINT, "bench"), (signal.SIGTERM, "bench"), (signal.SIGHUP, "bench"),
                          (signal.SIGTERM, "deploy")],
)  # fmt: skip
def test_a_driver_that_is_told_to_stop_ends_in_five_seconds_and_rally_with_it(
    tool: Tool, number: signal.Signals, phase: str
) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["factors"] = []
    changed["campaign"]["scenarios"] = [{"task": "keystone/get_entities", "times": 500}]
    changed["deployment"]["workers"] = 3 if phase == "deploy" else 2
    tool.write(changed)
    seen = len(tool.journal())
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    running = tool.start("run", "small.yaml")
    signal.signal(signal.SIGHUP, ignored)
    if phase == "bench":
        tool.wait_for(running, "run started", seen)
        time.sleep(6)
        assert tool("ssh", "rennes-1", "systemctl", "is-active", "discovery-rally").stdout == "active\n"
    else:
        tool.wait_for(running, "phase started", seen, phase=phase)
        time.sleep(2)
    began = time.monotonic()
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert running.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted; what was done is kept: run again to go on, or release"
    assert "Traceback" not in said
    assert tool.journal()[-1]["event"] == "stopped"
    show = ["systemctl", "show", "--property=ActiveState", "--value", "discovery-rally.service"]
    assert tool("ssh", "rennes-1", *show).stdout == "inactive\n"
    tool.write(EXPERIMENT)


def test_rally_ends_soon_after_a_driver_that_is_killed(tool: Tool) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["campaign"]["factors"] = []
    changed["campaign"]["scenarios"] = [{"task": "keystone/get_entities", "times": 500}]
    tool.write(changed)
    seen = len(tool.journal())
    running = tool.start("run", "small.yaml")
    tool.wait_for(running, "run started", seen)
    time.sleep(6)
    assert tool("ssh", "rennes-1", "systemctl", "is-active", "discovery-rally").stdout == "active\n"
    running.send_signal(signal.SIGKILL)
    running.wait()
    show = "for i in $(seq 100); do systemctl --quiet is-active discovery-rally || break; sleep 0.1; done"
    left = tool("ssh", "rennes-1", f"{show}; systemctl show --property=ActiveState --value discovery-rally").stdout
    assert left == "inactive\n", "10 s after the driver's end"
    tool.write(EXPERIMENT)


def test_a_host_that_dies_in_deploy_is_named_and_resume_works(tool: Tool) -> None:
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["deployment"]["cache"] = "none"
    changed["campaign"]["factors"] = []
    changed["campaign"]["scenarios"] = []
    tool.write(changed)
    tool("prepare", "small.yaml")
    seen = len(tool.journal())
    running = tool.start("deploy", "small.yaml")
    tool.wait_for(running, "phase started", seen, phase="deploy")
    time.sleep(1.0)
    status = subprocess.run([sys.executable, "-m", "discovery_deploy.agent.containers", "status",
                             str(tool.folder / "state" / "small" / "plan.json")],
                            capture_output=True, text=True, check=True)  # fmt: skip
    os.kill(json.loads(status.stdout)["rennes-1"]["pids"]["init"], signal.SIGKILL)
    _, message = running.communicate(timeout=300)
    assert running.returncode in (3, 4), message
    assert "rennes-1" in message
    tool("deploy", "small.yaml")
    assert "Region" in tool("openstack", "rennes", "endpoint", "list").stdout
    tool.write(EXPERIMENT)


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(tool: Tool, tmp_path: Path) -> None:
    small = tmp_path / "full"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        (small / "filler").write_bytes(b"x" * 60 * 1024)
        message = tool("check", "small.yaml")
        assert message.returncode == 0
        done = tool("report", "small.yaml", "--workspace", str(small / "ws"), code=6)
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)
