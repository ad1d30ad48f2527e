"""From a file to a report on machines that are emulated on this one, which may be busy with something else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from discovery_deploy.system.errors import EXIT_NOT_VALID

RUNS = 4


def until_valid(tool: Callable[..., subprocess.CompletedProcess[str]], file: str, rtt_s: float) -> str:
    """Run an experiment; what the driver calls not valid (the WAN was not as asked meanwhile) is run again, as it says.

    Args:
        tool: runs `discovery-deploy` with some words; may fail.
        file: of an experiment with one run.
        rtt_s: asked between all of its sites.
    Returns:
        The page of the report.
    Raises:
        AssertionError: with all that was said, when it fails, is never valid, or the record is not that of a good run.
    """
    for number in range(RUNS):
        done = tool("run", *(["--retry-invalid"] if number else []), file)
        if done.returncode != EXIT_NOT_VALID:
            break
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    index = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    records = [path for path in index.parents[1].glob("runs/*/record.json") if "~" not in path.parent.name]
    [record] = [json.loads(path.read_text()) for path in records]  # (RUN~1 is one that was run again)
    assert (record["status"], record["problems"]) == ("done", [])
    assert {pair["asked_rtt_s"] for pair in record["wan_before"]["pairs"]} == {rtt_s}
    return index.read_text()
