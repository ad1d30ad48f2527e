"""The tutorial's commands, run as they stand there, on a smaller campaign of the quickstart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.leftovers import Snapshot, left_behind

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = re.findall(r"^ {4}\$ discovery-deploy (.+)$", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    text = (ROOT / "experiments" / "quickstart.yaml").read_text()
    smaller = re.sub(r"times: \d+", "times: 3", text).replace("levels: [0 ms, 25 ms]", "levels: [25 ms]")
    assert len(text) - len(smaller) == len("0 ms, ") + len(re.findall(r"times: \d+", text))
    # other tests run beside this one
    smaller = smaller.replace("\nnetwork:\n", "\nnetwork:\n  verify: {rtt_tolerance: 3 ms}\n")
    assert "rtt_tolerance" in smaller
    first = smaller.index("    - task: keystone/authenticate")
    smaller = smaller[:first] + smaller[smaller.index("    - task: keystone/create") :]
    (tmp_path / "quickstart.yaml").write_text(smaller)
    before = Snapshot.take(tmp_path / "state")
    yield tmp_path
    run(tmp_path, "release quickstart")
    assert left_behind(tmp_path / "state", before) == []


def run(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DISCOVERY_DEPLOY_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        f"{sys.executable} -m discovery_deploy {words}",
        shell=True, cwd=folder, env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_every_command_of_the_tutorial_works(folder: Path) -> None:
    assert len(COMMANDS) >= 10
    for words in COMMANDS:
        done = run(folder, words)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        if words.startswith("verify"):
            assert "50.00" in done.stdout, "the delay of the named setting is asked, twice"
        if words.startswith("openstack"):
            assert "keystone" in done.stdout
        if words.startswith("run quickstart.yaml") and "--dry-run" not in words:
            assert "galera" in done.stdout
            report = (folder / "results" / "quickstart" / "report" / "report.html").read_text()
            assert "galera" in report
            assert "<svg" in report
    assert (folder / "results" / "quickstart" / "report" / "report.html").exists(), "results outlive the hosts"
    assert not (folder / "results" / "quickstart" / "secrets.json").exists()
