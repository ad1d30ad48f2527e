"""The first signal ends the driver within five seconds wherever it is, and the second at once (F9).

Each case is a process of its own that does a part of a driver's work, with real programs that would take a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 5.0
MARK = "6007"
"""Seconds that the programs sleep: by this word they are found."""
BEGIN = """
import json, subprocess, sys, time
from pathlib import Path
from discovery_deploy.system import interruption, remote
folder = Path(sys.argv[1])
class Slow(remote.Remote):
    # An ssh whose shared connection holds its streams when it has ended.
    def arguments(self, host, command):
        return ["sh", "-c", "setsid sleep 6007 & echo > " + str(folder / host) + "; wait"]
slow = Slow(folder / "ssh_config")
"""
WORK = {
    "many hosts are asked": "remote.side_by_side(lambda host: slow(host, ['x']), ['a', 'b', 'c'])",
    "hosts are asked by threads of threads": """
def one(host):
    return remote.side_by_side(lambda inner: slow(host + inner, ['x']), ['1', '2'])
remote.side_by_side(one, ['a', 'b'])""",
    "one host is asked": "slow('a', ['x'])",
    "a file is sent": """
(folder / 'file').write_bytes(bytes(10_000_000))
remote.side_by_side(lambda host: slow.send(host, ['x'], folder / 'file'), ['a', 'b'])""",
    "machines are called": """
from discovery_deploy.system.agents import Agents
agents = Agents(slow, Path("/nowhere"))
remote.side_by_side(lambda host: agents.ask(host, 'up', {}), ['a', 'b'])""",
    "the image is baked": """
import os
from discovery_deploy.system import programs
os.geteuid = lambda: 0  # what is run here needs no root
command = ['sh', '-c', 'echo > ' + str(folder / 'a') + '; setsid sleep 6007']
programs.run_logged(command, folder / 'log', 'a bake', print)""",
    "a playbook runs": """
from discovery_deploy.driver import ansible; from discovery_deploy.system import data
from discovery_deploy.cloud.variables import Variables
(folder / 'logs').mkdir()
tasks = [{'name': 'Wait', 'ansible.builtin.command': 'sh -c "echo > ' + str(folder / 'a') + '; sleep 60"'}]
(folder / 'trial.yml').write_text(json.dumps([{'hosts': 'all', 'gather_facts': False, 'tasks': tasks}]))
(folder / 'callback_plugins').symlink_to(data.data_directory('playbooks') / 'callback_plugins')
here = {'ansible_connection': 'local', 'ansible_python_interpreter': sys.executable}
hosts = {'all': {'vars': {}, 'hosts': {'here': here}}}
nothing = Variables(shared={}, hosts={})
ansible.run_playbook('trial', hosts, nothing, folder / 'logs', lambda line: None, playbooks=folder)""",
    "threads that no pool knows of": """
import threading
threading.Thread(target=lambda: slow('a', ['x'])).start()
time.sleep(3600)""",
    "an error hides the interruption": """
try:
    slow('a', ['x'])
finally:
    raise ValueError('hidden')""",
    "the interruption is lost": """
while True:
    try:
        slow('a', ['x'])
    except KeyboardInterrupt:
        time.sleep(3600)""",
}


END = """
interruption.obey_signals()
with interruption.ends_the_process():
    work()
"""
COMMAND_LINE = """
from discovery_deploy.cli import cli
cli.app = lambda **options: work()
cli.main()
"""


def start(work: str, folder: Path, end: str = END) -> subprocess.Popen[str]:
    indented = "".join(f"    {line}\n" for line in work.strip().splitlines())
    program = f"{BEGIN}\ndef work():\n{indented}\n{end}"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """The programs that stand for ssh's shared connections are nobody's children: they are ended here."""
    yield
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", MARK.encode()]:
            os.kill(int(entry.parent.name), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _hangup_counts() -> Iterator[None]:
    """Also when the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("work", WORK.values(), ids=list(WORK))
def test_the_first_signal_ends_the_driver_with_one_line(work: str, tmp_path: Path) -> None:
    running = start(work, tmp_path)
    wait_for(tmp_path / ("a1" if "'1'" in work else "a"), running)
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    out, said = running.communicate(timeout=30)
    assert time.monotonic() - began < LIMIT_S
    assert running.returncode == 130
    assert said.strip() == "interrupted; what was done is kept: run again to go on, or release"
    assert out == ""


def test_the_command_line_ends_so(tmp_path: Path) -> None:
    running = start(WORK["an error hides the interruption"], tmp_path, COMMAND_LINE)
    wait_for(tmp_path / "a", running)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said.strip().partition(";")[0]) == (130, "interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: str(number.name))
def test_every_one_of_the_three_signals_is_obeyed(number: signal.Signals, tmp_path: Path) -> None:
    running = start(WORK["many hosts are asked"], tmp_path)
    wait_for(tmp_path / "a", running)
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said.strip().partition(";")[0]) == (130, "interrupted")


def test_what_was_asked_of_hosts_is_ended_with_the_driver(tmp_path: Path) -> None:
    running = start(WORK["many hosts are asked"], tmp_path)
    for host in ("a", "b", "c"):
        wait_for(tmp_path / host, running)
    asking = [int(pid) for pid in children(running.pid)]
    assert len(asking) >= 3
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    end = time.monotonic() + 5
    while left := [pid for pid in asking if runs(pid)]:  # a killed process takes a moment on a busy machine
        assert time.monotonic() < end, left
        time.sleep(0.02)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    running = start(WORK["the interruption is lost"], tmp_path)
    wait_for(tmp_path / "a", running)
    running.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "by a second signal" in said


def test_the_same_signal_twice_at_once_is_one(tmp_path: Path) -> None:
    running = start(WORK["the interruption is lost"], tmp_path)
    wait_for(tmp_path / "a", running)
    for _ in range(2):  # as `timeout` does: to its child, and to its process group
        running.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    time.sleep(0.5)
    assert running.poll() is None
    running.communicate(timeout=30)
    assert running.returncode == 130


def test_nohup_is_obeyed(tmp_path: Path) -> None:
    program = "from discovery_deploy.system import interruption; import os, signal, time; " \
              "interruption.obey_signals(); os.kill(os.getpid(), signal.SIGHUP); " \
              "time.sleep(0.1); print('goes on')"  # fmt: skip
    words = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", program]
    assert subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout == "goes on\n"


def test_a_terminal_that_is_gone_does_not_hide_the_interruption(tmp_path: Path) -> None:
    end, terminal = os.openpty()
    program = f"""{BEGIN}
interruption.obey_signals()
with interruption.ends_the_process():
    try:
        slow('a', ['x'])
    finally:
        print('said where nobody hears it', flush=True)
        (folder / 'kept').touch()
"""
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=terminal, stdout=terminal, stderr=terminal,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    os.close(terminal)
    wait_for(tmp_path / "a", running)
    os.close(end)
    running.send_signal(signal.SIGHUP)
    assert running.wait(30) == 130
    assert (tmp_path / "kept").exists(), "what is done on the way out is done"


def runs(pid: int) -> bool:
    """Whether there is such a process, and not only what nobody has waited for."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found
