"""Stands in for Rally's Python on a bench host: `rally_process` with an act that a task's own keys describe.

    rally_stand_in.py PROGRAM CONFIG ROOT

Keys of a task: set_up_s, load_s (seconds), fail (text of an error while it sets up), started (file that gets the
process id of a grandchild that sleeps), mark (kept in the process: a later run must not see it); `at`: host -> keys
for that host (variable STAND_IN_HOST) alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKS: list[str] = []


def act(
    folder: Path, task: dict[str, Any], validated: bool, tell: Callable[[bytes], None], wait: Callable[[], None]
) -> None:
    """Do what the task says, and leave the three files of a run."""
    task = {**task, **task.get("at", {}).get(os.environ.get("STAND_IN_HOST"), {})}
    print("validated before" if validated else "validated now")
    if "fail" in task:
        raise RuntimeError(task["fail"])
    tell(b"v")
    if "started" in task:
        process = subprocess.Popen(["sleep", "1000"])
        written = Path("started.new")
        written.write_text(str(process.pid))
        written.replace(task["started"])
    time.sleep(task.get("set_up_s", 0))
    tell(b"r")
    wait()
    begun = time.time()
    time.sleep(task.get("load_s", 0))
    report = {"task": task, "begun": begun, "marks": list(MARKS)}
    MARKS.append(task.get("mark", ""))
    (folder / "rally.json").write_text(json.dumps(report))
    (folder / "rally.html").write_text("<html>")


def main() -> None:
    """Run the program that was sent, with `act` in place of Rally."""
    program, _, root = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("rally_process", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs = module.Runs(Path(root), act, 0, 1)
    runs.say({"loaded": "stand-in"})
    runs.serve()


if __name__ == "__main__":
    main()
