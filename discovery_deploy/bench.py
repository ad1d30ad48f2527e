"""Rally on the bench hosts: started together, watched, and its results brought home as they are."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from discovery_deploy.errors import DiscoveryError
from discovery_deploy.model import Strict
from discovery_deploy.providers.base import LeasedHost
from discovery_deploy.remote import Remote, side_by_side

UNIT = "discovery-rally"
REMOTE_RUNS = "/var/lib/discovery-deploy/runs"
START_IN_S = 3.0
"""With several bench hosts: how long after the order they begin, so that all have the order."""
RESULTS = ("rally.json", "rally.html", "rally.log")

# Exit codes of `rally task start`: 0 well, 2 an SLA was not met (iterations failed, which is a result).
SCRIPT = """\
set -u
umask 077
cd {folder}
left=$(( {start_ms} - $(date +%s%3N) ))
if [ "$left" -gt 0 ]; then sleep "$(printf '%d.%03d' $((left / 1000)) $((left % 1000)))"; fi
{rally} task start --task task.json > rally.log 2>&1
code=$?
if [ "$code" != 0 ] && [ "$code" != 2 ]; then exit "$code"; fi
set -e
{rally} task report --json --out rally.json > json.log 2>&1 &
json=$!
{rally} task report --html-static --out rally.html >> rally.log 2>&1
wait "$json" || {{ cat json.log >> rally.log; exit 1; }}
"""


class SiteResult(Strict):
    """What Rally gave at one site."""

    site: str
    problem: str = ""
    """Why there is no complete result; empty when there is one."""


def limit_s(times: int) -> float:
    """Seconds after which a Rally run counts as hung: 30 minutes, and 3 minutes per iteration.

    Without a cache and 50 ms from its database, Keystone takes 15 minutes and more around its iterations.
    """
    return 1800.0 + 180.0 * times


def stop_old_run(remote: Remote, host: str) -> None:
    """End a Rally that an earlier driver started and left: it would load the services beside ours."""
    state = remote(host, ["systemctl", "show", "--property=LoadState", "--value", f"{UNIT}.service"])
    if state.strip() == "loaded":
        remote(host, ["systemctl", "stop", f"{UNIT}.service"], timeout_s=60.0)


def stop(remote: Remote, hosts: Sequence[LeasedHost]) -> None:
    """End Rally on hosts, after an interruption: a host that does not answer is left to the next run."""

    def one(host: LeasedHost) -> None:
        with suppress(DiscoveryError):
            stop_old_run(remote, host.name)

    side_by_side(one, hosts)


def _run_at(
    remote: Remote, host: LeasedHost, run_id: str, task: dict[str, Any], rally: str, start_ms: int, limit: float
) -> str:
    """Rally at one site, to its end. Returns "" or why it failed."""
    folder = f"{REMOTE_RUNS}/{run_id}"
    script = SCRIPT.format(folder=folder, start_ms=start_ms, rally=rally)
    remote(host.name, ["sh", "-c", f"rm -rf {folder} && mkdir -p -m 700 {folder} && cat > {folder}/task.json"],
           stdin=json.dumps(task, indent=1))  # fmt: skip
    remote(host.name, ["sh", "-c", f"cat > {folder}/run.sh"], stdin=script)
    command = ["systemd-run", f"--unit={UNIT}", "--collect", "--wait", "--quiet",
               f"--property=RuntimeMaxSec={limit:.0f}", "bash", f"{folder}/run.sh"]  # fmt: skip
    try:
        remote(host.name, command, timeout_s=limit + 60)
    except DiscoveryError as error:
        return f"Rally at {host.site} failed: {error.what.splitlines()[0]}"
    return ""


def load(
    remote: Remote, hosts: Sequence[LeasedHost], run_id: str, task: dict[str, Any], rally: str, times: int, to: Path
) -> list[SiteResult]:
    """Run one Rally task on every given host at the same time; fetch rally.json, rally.html and rally.log.

    Args:
        hosts: bench hosts, one per loading site.
        task: a Rally task (version 2).
        rally: the command line of Rally on hosts, up to its subcommand.
        times: iterations at each site, for the time limit.
        to: local folder; each site's files go to `to/<site>/`.
    Returns:
        One result per host. A Rally that fails is a result with a problem, not an exception.
    """
    side_by_side(lambda host: stop_old_run(remote, host.name), hosts)
    wait_s = START_IN_S if len(hosts) > 1 else 0.0
    start_ms = int((time.time() + wait_s) * 1000)

    def one(host: LeasedHost) -> SiteResult:
        problem = _run_at(remote, host, run_id, task, rally, start_ms, limit_s(times))
        local = to / host.site
        local.mkdir(parents=True, exist_ok=True)
        folder = f"{REMOTE_RUNS}/{run_id}"
        present = remote(host.name, ["ls", folder]).split()
        for name in RESULTS:
            if name in present:
                remote.fetch(host.name, f"{folder}/{name}", local / name)
            elif not problem:
                problem = f"Rally at {host.site} left no {name}"
        if problem and (local / "rally.log").exists():
            tail = (local / "rally.log").read_text(errors="replace").strip().splitlines()[-3:]
            problem += " (" + " | ".join(line.strip() for line in tail) + ")"
        return SiteResult(site=host.site, problem=problem)

    try:
        return side_by_side(one, hosts)
    except KeyboardInterrupt:
        stop(remote, hosts)
        raise
