"""What it saves to start Rally once, and to make its user once; and that atomic actions take as long. As root:

    python benchmarks/rally_start.py experiments/quickstart.yaml --setting "mariadb@lyon, 25 ms"

Brings the experiment to the setting, then runs each of its scenarios in turn both ways, on the same deployment:

* each run alone: `rally task start`, then `rally task report` twice, in new processes; the task has Rally make a user
* kept: as a campaign does it

Prints a Markdown table: seconds per run, and the medians of the atomic actions over all iterations of a way, with the
95 % interval of their ratio by bootstrap. What was reserved stays.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from discovery_deploy.bench import bench, rally  # noqa: E402
from discovery_deploy.cli.progress import ConsoleAnnouncer  # noqa: E402
from discovery_deploy.cloud import variables  # noqa: E402
from discovery_deploy.driver import opening  # noqa: E402
from discovery_deploy.driver.driver import Driver  # noqa: E402
from discovery_deploy.driver.testbed import Testbed  # noqa: E402
from discovery_deploy.hosts.registry import provider_named  # noqa: E402

WAYS = ("alone", "kept")
ALONE = """\
umask 077; rm -rf {folder}; mkdir -p {folder}; cd {folder}; cat > task.json
rally="{python} {program} --config-file {configuration}"
$rally task start --task task.json > rally.log 2>&1
code=$?
if [ "$code" != 0 ] && [ "$code" != 2 ]; then tail -n 5 rally.log >&2; exit "$code"; fi
set -e
$rally task report --json --out rally.json > json.log 2>&1 &
json=$!
$rally task report --html-static --out rally.html >> rally.log 2>&1
wait "$json"
"""
"""Rally as before one of its processes was kept."""


def alone(driver: Driver, host: str, command: tuple[str, str], task: dict[str, Any], to: Path) -> Any:
    """A run of its own. Returns Rally's report."""
    task = copy.deepcopy(task)
    task["subtasks"][0]["contexts"]["users"] = {"tenants": 1, "users_per_tenant": 1}
    task["subtasks"][0]["contexts"].pop("admin_cleanup@openstack", None)  # hidden
    folder = f"{bench.REMOTE_RUNS}/alone"
    python, configuration = command
    script = ALONE.format(
        folder=folder, python=python, program=Path(python).with_name("rally"), configuration=configuration
    )
    driver.testbed.remote(host, ["sh", "-c", script], stdin=json.dumps(task), timeout_s=3600)
    driver.testbed.remote.fetch(host, f"{folder}/rally.json", to / "rally.json")
    return bench.rally_report(to)


def durations(report: Any) -> dict[str, list[float]]:
    """Atomic action -> seconds, of the iterations that succeeded; `(other)` for what is outside."""
    found: dict[str, list[float]] = defaultdict(list)
    for task in report["tasks"]:
        for iteration in task["subtasks"][0]["workloads"][0]["data"]:
            if iteration["error"]:
                raise SystemExit(f"an iteration failed: {iteration['error'][:2]}")
            actions = [(one["name"], one["finished_at"] - one["started_at"]) for one in iteration["atomic_actions"]]
            for name, seconds in [*actions, (rally.OTHER, iteration["duration"] - sum(took for _, took in actions))]:
                found[name].append(seconds)
    return found


def ratio(new: list[float], old: list[float]) -> str:
    """Ratio of two medians, with its 95 % interval by bootstrap (percentiles of 5000 samples)."""
    random = np.random.default_rng(1)
    medians = [np.median(random.choice(of, (5000, len(of))), axis=1) for of in (new, old)]
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return f"{np.median(new) / np.median(old):.3f} ({low:.3f} to {high:.3f})"


def compare(driver: Driver, label: str | None, rounds: int, times: int) -> None:
    """Both ways in turn, for each scenario; the table goes to standard output."""
    setting = next(one for one in driver.settings if label in (None, one.record.label))
    driver.testbed.bring_to(setting)
    experiment = setting.experiment
    command = variables.rally_command(driver.testbed.environments(experiment))
    hosts = [driver.testbed.lease.at(site, "bench") for site in experiment.bench_sites()][:1]
    print(f"| {setting.record.label} | alone, s | kept, s | kept / alone |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary, bench.Clients(driver.testbed.remote, command) as clients:
        for scenario in experiment.campaign.scenarios:
            task = rally.rally_task(driver.tasks[scenario.task], scenario.model_copy(update={"times": times}))
            took: dict[str, list[float]] = defaultdict(list)
            found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}
            for turn in range(2 * rounds):
                way = WAYS[(turn + turn // 2) % 2]  # alone, kept, kept, alone: a drift falls on both
                folder = Path(temporary)
                started = time.monotonic()
                if way == "alone":
                    report = alone(driver, hosts[0].name, command, task, folder)
                else:
                    [result] = clients.load(hosts, "kept", task, times, folder)
                    if result.problem:
                        raise SystemExit(result.problem)
                    report = bench.rally_report(folder / result.site)
                took[way].append(time.monotonic() - started)
                for name, seconds in durations(report).items():
                    found[way][name] += seconds
            runs_s = [float(np.median(took[way])) for way in WAYS]
            print(f"| **{scenario.task}**, a run | {runs_s[0]:.1f} | {runs_s[1]:.1f} | {runs_s[1] / runs_s[0]:.2f} |")
            for name in found["alone"]:
                old, new = (found[way][name] for way in WAYS)
                print(f"| {name} | {np.median(old):.3f} | {np.median(new):.3f} | {ratio(new, old)} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--setting", help="default: the first")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--times", type=int, default=10, help="iterations of a run")
    parser.add_argument("--workspace", type=Path)
    arguments = parser.parse_args()
    opened = opening.open_experiment(arguments.experiment)
    workspace = opening.workspace_of(opened, arguments.workspace)
    announce = ConsoleAnnouncer(Console(stderr=True), False)
    with workspace.lock():
        code = opening.code_resolver(opened, announce.line)
        provider = provider_named(opened.experiment.provider.type)
        driver = Driver(Testbed(opened.experiment, workspace, provider, announce, False, code), opened.source)
        try:
            compare(driver, arguments.setting, arguments.rounds, arguments.times)
        finally:
            announce.stop()


if __name__ == "__main__":
    main()
