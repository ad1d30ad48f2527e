"""A worker beside the driver: its answers, its failures, and its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from discovery_deploy.software import enoslib_environment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import enoslib_calls, enoslib_worker
from discovery_deploy.testbeds.enoslib_calls import Enoslib

FAMILY = """
import os, signal, subprocess, sys, time
from discovery_deploy.testbeds.enoslib_worker import WorkerError

def well(arguments, progress):
    print("for the log")
    subprocess.run(["echo", "of a program"], check=True)
    progress("first"); progress("second")
    return {**arguments, "home": os.environ["HOME"], "cwd": os.getcwd(), "stdin": sys.stdin.read()}

def refused(arguments, progress):
    raise WorkerError("the job was refused", "Ask for less.", "rennes")

def surprise(arguments, progress):
    raise ValueError("a\\nb")

def sudden(arguments, progress):
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)

def slow(arguments, progress):
    child = subprocess.Popen(["sleep", "600"])
    progress(f"{os.getpid()} {child.pid}")
    time.sleep(600)

def forked(arguments, progress):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1])

def ours(arguments, progress):
    return sorted(name for name in ("base", "vagrant", "testbeds") if any(
        os.path.exists(os.path.join(place, name + end)) for end in (".py", "") for place in sys.path))

VERBS = {name: globals()[name] for name in ("well", "refused", "surprise", "sudden", "slow", "forked", "ours")}
"""


@pytest.fixture
def enoslib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enoslib:
    package = tmp_path / "package" / "testbeds"
    package.mkdir(parents=True)
    shutil.copy(Path(enoslib_worker.__file__).parents[1] / "__init__.py", package.parent)
    for name in ("__init__.py", "enoslib_worker.py", "base.py", "vagrant.py"):
        shutil.copy(Path(enoslib_worker.__file__).with_name(name), package)
    (package / "enoslib_test.py").write_text(FAMILY)
    monkeypatch.setattr(enoslib_calls, "WORKER", package / "enoslib_worker.py")
    monkeypatch.setattr(enoslib_environment, "enoslib_python", lambda cache, progress: Path(sys.executable))
    return Enoslib(tmp_path, tmp_path / "record", {"HOME": str(tmp_path)})


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 20
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(runs, pids))


def test_an_answer_comes_back_and_the_rest_goes_to_the_log(enoslib: Enoslib, tmp_path: Path) -> None:
    told: list[str] = []
    answer = enoslib("test.well", {"a": [1]}, told.append)
    assert answer == {"a": [1], "home": str(tmp_path), "cwd": str(tmp_path / "record"), "stdin": ""}
    assert told == ["first", "second"]
    assert {"for the log", "of a program"} <= set(enoslib.log.read_text().splitlines())
    assert enoslib.log.stat().st_mode & 0o777 == 0o600


def test_our_modules_do_not_hide_theirs(enoslib: Enoslib) -> None:
    assert enoslib("test.ours", {}, print) == []


def test_what_ansible_forks_and_ends_does_not_end_the_worker(enoslib: Enoslib) -> None:
    assert enoslib("test.forked", {}, print) == 128 + signal.SIGTERM


def test_a_failure_keeps_its_words_and_its_host(enoslib: Enoslib) -> None:
    with pytest.raises(TestbedError) as caught:
        enoslib("test.refused", {}, print)
    assert (caught.value.what, caught.value.advice) == ("rennes: the job was refused", "Ask for less.")


def test_what_the_library_raises_is_told_in_one_line(enoslib: Enoslib) -> None:
    with pytest.raises(TestbedError, match=r"^EnOSlib, in test\.surprise: ValueError: a b\n") as caught:
        enoslib("test.surprise", {}, print)
    assert str(enoslib.log) in caught.value.advice
    assert "Traceback" in enoslib.log.read_text()


def test_a_worker_that_ends_without_an_answer_is_quoted(enoslib: Enoslib) -> None:
    with pytest.raises(TestbedError, match=r"(?s)test\.sudden ended with status 3.*last words"):
        enoslib("test.sudden", {}, print)


def test_what_takes_too_long_is_ended_with_all_that_it_started(enoslib: Enoslib) -> None:
    told: list[str] = []
    with pytest.raises(TestbedError, match=r"test\.slow timed out after 1 s"):
        enoslib("test.slow", {}, told.append, limit_s=1)
    assert gone([int(pid) for pid in told[0].split()])


def test_an_interrupt_ends_the_worker(enoslib: Enoslib) -> None:
    told: list[str] = []

    def interrupted(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enoslib("test.slow", {}, interrupted)
    assert gone([int(pid) for pid in told[0].split()])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_takes_its_worker_along(enoslib: Enoslib, tmp_path: Path, number: int) -> None:
    driver = f"""
        import sys
        from pathlib import Path
        from discovery_deploy.testbeds import enoslib_calls; from discovery_deploy.software import enoslib_environment
        enoslib_calls.WORKER = Path({str(enoslib_calls.WORKER)!r})
        enoslib_environment.enoslib_python = lambda cache, progress: Path(sys.executable)
        calls = enoslib_calls.Enoslib(Path({str(tmp_path)!r}), Path({str(tmp_path / "record")!r}))
        calls("test.slow", {{}}, lambda text: print(text, flush=True))
    """
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(map(runs, pids))
        os.kill(process.pid, number)
    assert gone(pids)


def test_the_environment_has_the_lock_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enoslib_environment.enoslib_version().startswith("10.9.")
    before = enoslib_environment.environment_name()
    monkeypatch.setattr(enoslib_environment, "lock_text", lambda name: f"of {name}")
    assert enoslib_environment.environment_name() != before
