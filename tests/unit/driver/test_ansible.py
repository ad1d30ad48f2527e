"""Running playbooks: what is reported when tasks fail, hosts are lost or nothing happens any more.

Small real playbooks run on this machine by a local connection.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.cloud.variables import Variables
from discovery_deploy.driver import ansible
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import PlaybookError

NOTHING = Variables(shared={}, hosts={})
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@pytest.fixture(params=["plain", "mitogen"])
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DISCOVERY_DEPLOY_ANSIBLE", str(request.param))
    return str(request.param)


class Book:
    """A playbook in a folder of its own, with our plugins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "playbooks"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.folder.mkdir()
        for name in ("callback_plugins", "library", "module_utils", "filter_plugins"):
            (self.folder / name).symlink_to(data_directory("playbooks") / name)
        self.lines: list[str] = []

    def run(self, tasks: str, hosts: dict[str, Any] | None = None, **limits: float) -> ansible.PlaybookResult:
        """Run a play of these tasks on hosts (default: `here`)."""
        indented = "".join(f"    {line}\n" for line in tasks.strip("\n").splitlines())
        play = f"- name: A play\n  hosts: all\n  gather_facts: false\n  tasks:\n{indented}"
        (self.folder / "trial.yml").write_text(play)
        inventory = {"all": {"vars": LOCAL, "hosts": hosts or {"here": {}}, "children": {}}}
        variables = Variables(shared={"word": "hidden-word"}, hosts={})
        return ansible.run_playbook(
            "trial", inventory, variables, self.logs, self.lines.append, playbooks=self.folder, **limits
        )


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


@pytest.fixture(scope="module")
def ran_twice(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """Two runs, in a directory and with variables that would break them."""
    folder = tmp_path_factory.mktemp("hostile")
    book = Book(folder)
    for name in ("ansible", "queue", "yaml"):
        (folder / f"{name}.py").write_text(f"open('{folder}/RAN', 'w')\n")
    (folder / "ansible.cfg").write_text("[defaults]\nroles_path = /nowhere\nstdout_callback = no_such_callback\n")
    with pytest.MonkeyPatch.context() as patch:
        if sys.version_info >= (3, 11):  # an older Python always imports from the working directory
            patch.chdir(folder)
        patch.setenv("ANSIBLE_STRATEGY", "no_such_strategy")
        patch.setenv("ANSIBLE_CONFIG", str(folder / "ansible.cfg"))
        for word in ("first", "second"):
            book.run(f"- name: Say {word}\n  ansible.builtin.command: 'true'")
    return book


def test_neither_the_working_directory_nor_the_users_ansible_settings_count(ran_twice: Book) -> None:
    assert ran_twice.lines == ["Say first", "Say second"]
    assert not (ran_twice.folder.parent / "RAN").exists()


def test_logs_and_events_are_private_and_the_inventory_is_gone(ran_twice: Book) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in ran_twice.logs.iterdir()}
    assert modes == {"trial.log": 0o600, "trial.events.jsonl": 0o600}


def test_a_second_run_adds_to_the_log(ran_twice: Book) -> None:
    log = (ran_twice.logs / "trial.log").read_text()
    assert log.count("# trial, ") == 2
    assert "Say first" in log
    assert "Say second" in log


def test_a_playbook_that_succeeds_says_its_tasks_times_and_reports(book: Book, strategy: str) -> None:
    result = book.run(
        """
- name: Ask the host
  host_facts:
    packages: []
- name: Go on
  ansible.builtin.command: "true"
"""
    )
    assert book.lines == ["Ask the host", "Go on"]
    assert set(result.task_seconds) == {"Ask the host", "Go on"}
    [report] = result.reports["here"]
    assert set(report) == {"os", "kernel", "cpu", "packages"}
    assert report["kernel"] == os.uname().release


def test_a_task_that_fails_is_named_with_its_host_and_what_it_said(book: Book, strategy: str) -> None:
    with pytest.raises(PlaybookError) as caught:
        book.run(
            """
- name: Mend the roof
  ansible.builtin.command: sh -c 'echo no ladder >&2; exit 3'
- name: Never reached
  ansible.builtin.command: "true"
""",
            hosts={"a-1": {}, "b-1": {}},
        )
    lines = caught.value.what.splitlines()
    assert [line for line in lines if line.startswith(("a-1: ", "b-1: "))] == [
        "a-1: Mend the roof: non-zero return code",
        "b-1: Mend the roof: non-zero return code",
    ]
    assert "no ladder" in caught.value.what
    assert str(book.logs / "trial.log") in caught.value.what
    assert book.lines == ["Mend the roof"]
    assert "no ladder" in (book.logs / "trial.log").read_text()


def test_a_failing_item_of_a_loop_is_quoted(book: Book) -> None:
    with pytest.raises(PlaybookError, match="item two is wrong"):
        book.run(
            """
- name: Each
  ansible.builtin.fail:
    msg: "item {{ item }} is wrong"
  when: item == 'two'
  loop: [one, two]
"""
        )


def test_a_host_that_cannot_be_reached_is_named(book: Book, strategy: str) -> None:
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    with pytest.raises(PlaybookError, match=r"lost-1: lost during Hello: ") as caught:
        book.run("- name: Hello\n  ansible.builtin.ping:", hosts={"here": {}, "lost-1": lost})
    assert "here:" not in caught.value.what
    assert "dead hosts" in caught.value.advice


def test_a_task_without_an_answer_is_stopped_and_its_hosts_are_named(book: Book, strategy: str) -> None:
    started = time.monotonic()
    with pytest.raises(PlaybookError, match=r"stopped after 6 s without a result in `Wait`, waiting for slow-1 "):
        book.run(
            """
- name: Hello
  ansible.builtin.command: "true"
- name: Wait
  ansible.builtin.command: sleep {{ pause }}
""",
            hosts={"quick-1": {"pause": 0}, "slow-1": {"pause": 60}},
            silence_s=6.0,
        )
    assert time.monotonic() - started < 30


def test_hosts_that_wait_for_one_that_failed_are_not_waited_for(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible, "FAILED_GRACE_S", 1.0)
    # mitogen would run both in one process of this machine, one after the other
    monkeypatch.setenv("DISCOVERY_DEPLOY_ANSIBLE", "plain")
    started = time.monotonic()
    with pytest.raises(PlaybookError, match=r"bad-1: Work: [^\0]*\nnot waited for any longer: slow-1\n"):
        book.run(
            "- name: Work\n  ansible.builtin.command: sh -c '{{ act }}'",
            hosts={"bad-1": {"act": "exit 1"}, "slow-1": {"act": "sleep 60"}},
        )
    assert time.monotonic() - started < 30


def test_a_host_that_mitogen_lost_counts_as_lost(tmp_path: Path) -> None:
    watch = ansible.Watch()
    watch.take({"event": "play", "hosts": ["a-1"]})
    watch.take({"event": "task", "at": 1.0, "name": "keystone: Start"})
    message = "Unexpected failure during module execution: the respondent Context has disconnected"
    watch.take({"event": "result", "host": "a-1", "status": "failed", "message": message})
    what, advice = ansible.failure_text("deploy", watch, tmp_path / "deploy.log", 2, "")
    assert what.startswith("a-1: lost during keystone: Start: ")
    assert "starts dead hosts anew" in advice


def test_a_playbook_that_takes_too_long_is_stopped(book: Book) -> None:
    with pytest.raises(PlaybookError, match=r"stopped after 1 s in "):
        book.run("- name: Wait\n  ansible.builtin.command: sleep 60", limit_s=1.0)


def test_a_playbook_that_is_no_playbook_shows_what_ansible_says(book: Book) -> None:
    with pytest.raises(PlaybookError, match=r"trial: Ansible ended with code \d+[^\0]*no_such_module"):
        book.run("- name: What\n  no_such_module:")


def test_secrets_stay_out_of_logs_events_and_errors(book: Book) -> None:
    with pytest.raises(PlaybookError, match="Write") as caught:
        book.run(
            """
- name: Say
  ansible.builtin.command: "true"
- name: Hide
  ansible.builtin.command: echo {{ word }}
  no_log: true
- name: Write
  write_files:
    files: [{path: /proc/nowhere/file, content: "{{ word }}"}]
"""
        )
    kept = "".join(path.read_text() for path in book.logs.iterdir())
    assert "hidden-word" not in kept + caught.value.what
    assert "/proc/nowhere" in caught.value.what


def test_a_hidden_task_that_fails_says_that_it_is_hidden(book: Book) -> None:
    with pytest.raises(PlaybookError, match="Hide: the task handles secrets"):
        book.run("- name: Hide\n  ansible.builtin.command: sh -c 'echo {{ word }}; exit 1'\n  no_log: true")


def test_without_mitogen_it_is_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISCOVERY_DEPLOY_ANSIBLE", "plain")
    assert ansible.mitogen_strategies() is None
    assert "ANSIBLE_STRATEGY" not in ansible.ansible_environment(tmp_path, tmp_path, tmp_path / "e", 3)
    monkeypatch.delenv("DISCOVERY_DEPLOY_ANSIBLE")
    environment = ansible.ansible_environment(tmp_path, tmp_path, tmp_path / "e", 40)
    assert environment["ANSIBLE_STRATEGY"] == "mitogen_linear"
    assert environment["ANSIBLE_FORKS"] == "40"


def test_a_playbook_ends_with_a_driver_that_is_killed(book: Book, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    (book.folder / "trial.yml").write_text("")
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom tests.unit.driver.test_ansible import Book\n"
        "book = Book(Path(sys.argv[2]))\n"
        "book.run('- name: Wait\\n  ansible.builtin.shell: echo $PPID > ' + sys.argv[3] + '; sleep 60')\n"
    )
    (tmp_path / "second").mkdir()
    root = Path(__file__).parents[3]
    driver = subprocess.Popen([sys.executable, "-c", program, str(root), str(tmp_path / "second"), str(mark)])
    try:
        wait_for(lambda: mark.exists() and mark.read_text().strip() != "")
        [playbook] = playbooks_of(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not Path(f"/proc/{playbook}").exists() or is_zombie(playbook))


def wait_for(happened: Any, limit_s: float = 30.0) -> None:
    until = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def playbooks_of(pid: int) -> list[int]:
    """Direct children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
