"""With warm caches an experiment needs no network but its own."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from tests.integration.leftovers import Snapshot, left_behind
from tests.integration.test_experiment import COMMAND, EXPERIMENT, Tool, pytestmark

__all__ = ["pytestmark"]


def test_a_whole_run_without_any_network(tmp_path: Path) -> None:
    """In a network namespace that has nothing but the loopback device and what the experiment makes."""
    tool = Tool(tmp_path)
    before = Snapshot.take(tmp_path / "state")
    campaign = {**EXPERIMENT["campaign"], "factors": []}
    campaign["scenarios"] = [{**campaign["scenarios"][0], "times": 1}]
    tool.write({**EXPERIMENT, "campaign": campaign})
    command = shlex.join(COMMAND)
    script = f"ip link set lo up; {command} run small.yaml; code=$?; {command} release small && exit $code"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], cwd=tmp_path, env=tool.environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = tool.records()
    assert record["problems"] == []
    assert json.loads((tool.workspace / "router.json").read_text())["text"]
    assert left_behind(tmp_path / "state", before) == []
