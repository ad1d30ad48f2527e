"""The prototypes' patches, under the release's own Python, inside the base image, against a real MariaDB.

Each series is applied to a copy of the installed package that stands first on Python's path; the programs in
`tests/prototypes/` then see the patched code. `pytest -s` shows what they measured.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery_deploy.software import stack
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.programs import contained

pytestmark = pytest.mark.integration

PROGRAMS = Path(__file__).resolve().parents[1] / "prototypes"
PROTOTYPES = data_directory("experiments") / "prototypes"
INSIDE = Path("/run/prototypes")
Run = Callable[..., str]
MEASUREMENTS = 3
"""A busy machine adds a little to each round trip, and not each time; the release waits for twice as many."""


@pytest.fixture(scope="module")
def openstack(image: Path) -> stack.Environment:
    return stack.openstack_environment(stack.cache_directory(), image, "2025.1", print)


@pytest.fixture(scope="module")
def patched(openstack: stack.Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the packages that the series change, with the series applied: every prototype at once."""
    where = tmp_path_factory.mktemp("patched")
    (packages,) = (stack.cache_directory() / "environments" / openstack.name / "lib").glob("python3.*/site-packages")
    for series in sorted(PROTOTYPES.glob("*/*/series")):
        for name in series.read_text(encoding="utf-8").splitlines():
            if name.startswith("#"):
                continue
            patch = series.parent / name
            for package in set(re.findall(r"^\+\+\+ b/(\w+)/", patch.read_text(encoding="utf-8"), re.MULTILINE)):
                if not (where / package).exists():
                    # without compiled files: those of the environment are never compared with their source
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(packages / package, where / package, ignore=ignored)
            subprocess.run(["git", "apply", "-p1", patch], cwd=where, check=True)
    return where


@pytest.fixture
def run(image: Path, openstack: stack.Environment, patched: Path) -> Run:
    """Runs a program of tests/prototypes in a throw-away layer over the image; returns what it printed."""

    def run(program: str, *arguments: str, release: bool = False) -> str:
        environment = stack.cache_directory() / "environments" / openstack.name
        binds = {environment: Path(openstack.path), PROGRAMS: INSIDE / "programs", patched: INSIDE / "patched"}
        path = f"{INSIDE}/programs" if release else f"{INSIDE}/patched:{INSIDE}/programs"
        command = f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} exec {openstack.path}/bin/python"
        command += f" {INSIDE}/programs/{program} {' '.join(arguments)}"
        work = image.parent / ".prototypes.work"
        work.mkdir(exist_ok=True)
        script = stack.sandbox_script(image, work.name, binds, None, command)
        try:
            # a network of its own: nothing outside can reach what listens here
            wrapped = contained(["unshare", "--net", "/bin/sh", "-c", script])
            clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
            done = subprocess.run(wrapped, capture_output=True, text=True, timeout=600, env=clean)
        finally:
            work.rmdir()
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    return run


@pytest.mark.parametrize("model", ["threads", "eventlet"])
def test_a_call_ends_when_its_reply_comes(run: Run, model: str) -> None:
    seen = json.loads(run("rpc_reply.py", model).splitlines()[-1])["seen"]
    print("patched", model, seen)
    assert seen["wait_s"] < 0.05
    assert seen["call_s"] < 0.2
    before = json.loads(run("rpc_reply.py", model, "polls", release=True).splitlines()[-1])["seen"]
    print("release", model, before)
    assert 0.4 < before["call_s"] < 0.8


@pytest.mark.parametrize("model", [(), ("eventlet",)], ids=["threads", "eventlet"])
def test_a_dead_connection_is_replaced_between_transactions_and_an_error_within(run: Run, model: tuple[str]) -> None:
    lines = run("connection_killed.py", *model).splitlines()
    assert len(lines) >= 14
    assert all(line.startswith("ok: ") for line in lines), lines


@pytest.mark.parametrize(
    ("cache", "waits"), [("none", {"token": 50, "validation": 40, "user": 43}), ("memcached", {"token": 5, "user": 5})]
)
def test_keystone_waits_for_statements_only(run: Run, cache: str, waits: dict[str, int]) -> None:
    delay_ms, wrong = 25, {}
    for _ in range(MEASUREMENTS):
        steps = json.loads(run("keystone_requests.py", cache, "0", str(delay_ms)).splitlines()[-1])["steps"]
        for step, expected in waits.items():
            kinds = steps[step]["kinds"]
            print(cache, step, kinds)
            assert "PING" not in kinds
            assert sum(kinds.values()) - kinds["ROLLBACK"] == expected
        seconds = {step: steps[step]["seconds"] for step in waits}
        times = {step: (took[str(delay_ms)] - took["0"]) / (2 * delay_ms / 1000) for step, took in seconds.items()}
        wrong = {step: times[step] for step, n in waits.items() if not n * 0.9 <= times[step] < n * 1.4 + 1}
        if not wrong:
            return
    assert wrong == {}  # round trips


@pytest.mark.skipif("PROTOTYPES_MEASURE" not in os.environ, reason="minutes of waiting; PROTOTYPES_MEASURE=1 runs it")
@pytest.mark.parametrize("cache", ["none", "memcached"])
def test_before_and_after(run: Run, cache: str) -> None:
    """The table of docs/prototypes/db-roundtrips.md: seconds at 0, 25 and 50 ms one way, and the slope over the RTT."""
    slopes: dict[str, list[float]] = {}
    for release in (True, False):
        steps = json.loads(run("keystone_requests.py", cache, "0", "25", "50", release=release).splitlines()[-1])[
            "steps"
        ]
        for name, step in steps.items():
            seconds = [step["seconds"][delay] for delay in ("0", "25", "50")]
            # least squares over three equally spaced RTTs: the middle one has no weight
            slopes.setdefault(name, []).append((seconds[2] - seconds[0]) / 0.1)
            print(
                cache, name, "release" if release else "patched", step["kinds"], seconds, f"n = {slopes[name][-1]:.1f}"
            )
    assert all(after < 0.6 * before for before, after in slopes.values()), slopes
