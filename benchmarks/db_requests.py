"""How many requests an experiment's database gets per iteration of Rally, without any delay. As root, provider local:

    python benchmarks/db_requests.py experiments/db-roundtrips-server.yaml

Runs a copy of the experiment with a delay of 0 alone (factor `network.default.delay`), reads the counters of its
MariaDB (SHOW GLOBAL STATUS) every second meanwhile, and prints a Markdown table: for each run the difference of the
counters between the start of its first iteration and the end of its last, by the number of iterations. Whatever else
the services ask in that time is in it. Releases what it reserved.

MariaDB counts statements in `Questions`, and a PING not among them but in `Com_admin_commands`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    "SELECT": ("Com_select",),
    "INSERT, UPDATE, DELETE": ("Com_insert", "Com_update", "Com_delete"),
    "COMMIT": ("Com_commit",),
    "ROLLBACK": ("Com_rollback",),
    "PING": ("Com_admin_commands",),
    "all": ("Questions", "Com_admin_commands"),
}
NAMES = sorted({name for names in COLUMNS.values() for name in names})
QUERY = f"SHOW GLOBAL STATUS WHERE variable_name IN ({', '.join(repr(name) for name in NAMES)})"
# Nothing answers before the database is there: those lines are empty.
READER = f'while sleep 1; do mariadb -N --socket=/run/mysqld/mysqld.sock -e "{QUERY}" | tr "\\n\\t" "  "; echo; done'
DELAY = "network.default.delay"


class Counters:
    """Reads a database's counters by ssh until told to stop; `rows` has them with the time of their arrival."""

    def __init__(self, ssh_config: Path, host: str) -> None:
        self.ssh_config, self.host = ssh_config, host
        self.rows: list[dict[str, float]] = []
        self.done = threading.Event()
        self.reader: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self.done.wait(1):
            if not self.ssh_config.exists():
                continue
            command = ["ssh", "-F", str(self.ssh_config), self.host, READER]
            self.reader = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                           stderr=subprocess.DEVNULL, text=True)  # fmt: skip
            with self.reader as reader:
                assert reader.stdout is not None
                for line in reader.stdout:
                    words = line.split()
                    if len(words) == 2 * len(NAMES):
                        values = dict(zip(words[::2], map(float, words[1::2]), strict=True))
                        self.rows.append({"at": time.time(), **values})

    def __enter__(self) -> Counters:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        while self.thread.is_alive():
            if self.reader is not None:
                self.reader.terminate()
            self.thread.join(1)


def without_delay(file: Path) -> dict[str, Any]:
    """The experiment with a delay of 0 alone, and its prototypes found where they are."""
    content: dict[str, Any] = YAML(typ="safe").load(file)
    content["name"] = f"count-{content['name']}"[:20].rstrip("-")  # strict.Name has no more
    factors = content.get("campaign", {}).get("factors", [])
    for factor in factors:
        factor["levels"] = [_absolute(level, file.parent) for level in factor["levels"]]
    content["campaign"]["factors"] = [factor for factor in factors if factor["path"] != DELAY]
    content["network"]["default"]["delay"] = "0 ms"
    return content


def _absolute(level: Any, folder: Path) -> Any:
    if not isinstance(level, dict):
        return level
    return {key: str((folder / value).resolve()) if isinstance(value, str) else value for key, value in level.items()}


def per_iteration(counters: pd.DataFrame, iterations: pd.DataFrame) -> pd.DataFrame:
    """Requests per iteration of each run.

    Args:
        counters: column `at` (seconds since the epoch), then one per counter, which only grow.
        iterations: whole iterations (no atomic action) of all runs, as the report writes them.

    Returns:
        A row per run, in the order of their beginnings; columns as COLUMNS, and `iterations`.

    Raises:
        SystemExit: the counters do not cover a run, or one of its iterations failed.
    """
    rows = {}
    for _, run in sorted(iterations.groupby("run_id"), key=lambda named: named[1]["started_at"].min()):
        label = f"{run['scenario'].iloc[0]}, {run['setting'].iloc[0]}"
        if run["failed"].any():
            raise SystemExit(f"{label}: an iteration failed, so the counts say nothing")
        starts_s = run["started_at"].astype("datetime64[us, UTC]").astype("int64") / 1e6
        start_s, end_s = starts_s.min(), (starts_s + run["duration_s"]).max()
        if not counters["at"].min() <= start_s < end_s <= counters["at"].max():
            raise SystemExit(f"{label}: the database's counters were not read during all of it")
        grown = {
            name: np.interp(end_s, counters["at"], counters[name]) - np.interp(start_s, counters["at"], counters[name])
            for name in NAMES
        }
        per = {column: sum(grown[name] for name in names) / len(run) for column, names in COLUMNS.items()}
        rows[label] = {**per, "iterations": len(run)}
    return pd.DataFrame(rows).T


def main() -> None:
    """Run the copy, count, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--database-host", help="default: the first host of the backend's site")
    arguments = parser.parse_args()
    content = without_delay(arguments.experiment)
    host = arguments.database_host
    if host is None:
        site = next(site for site in content["sites"] if site["name"] == content["deployment"]["backend"]["site"])
        host = site["hosts"][0]["name"] if "hosts" in site else f"{site['name']}-1"
    name = content["name"]
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="discovery-count-") as temporary:
        folder = Path(temporary)
        YAML().dump(content, folder / "experiment.yaml")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISCOVERY_DEPLOY_STATE": str(folder / "state")}
        tool = [sys.executable, "-m", "discovery_deploy"]
        try:
            with Counters(folder / "results" / name / "ssh_config", host) as counters:
                subprocess.run([*tool, "run", "experiment.yaml"], cwd=folder, env=environment, check=True,
                               stdout=sys.stderr)  # fmt: skip
        finally:
            subprocess.run([*tool, "release", name], cwd=folder, env=environment, check=True, stdout=sys.stderr)
        read = pd.DataFrame(counters.rows).sort_values("at")
        table = pd.read_parquet(folder / "results" / name / "report" / "iterations.parquet")
    whole = table[(table["atomic_action"] == "") & table["valid"]]
    counted = per_iteration(read, whole).round(0).astype(int)
    print("| | " + " | ".join(counted.columns) + " |")
    print("|---" * (1 + len(counted.columns)) + "|")
    for label, row in counted.iterrows():
        print(f"| {label} | " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
