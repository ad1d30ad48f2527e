"""How fast it is: measures, and writes docs/benchmarks.json and of it docs/benchmarks.md. Run by `make bench` as root.

Each measurement is one run of the real thing, with the machine and its load beside it. What a row said before stays
beside what it says now; parts that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from discovery_deploy.driver.provenance import machine_facts, tool_commit  # noqa: E402
from discovery_deploy.software import image  # noqa: E402

TARGET = ROOT / "docs" / "benchmarks.json"
COMMIT = tool_commit() or "not known"
"""Of what is measured: before its results are written."""
SITES = ("nantes", "rennes", "lyon", "lille", "nancy", "sophia", "grenoble", "luxembourg", "toulouse", "bordeaux",
         "reims", "orsay", "strasbourg", "brest", "limoges", "dijon")  # fmt: skip


def experiment(name: str, sites: int, backend: dict[str, Any], delays: tuple[str, ...] = ()) -> dict[str, Any]:
    """A small experiment: `sites` sites with one host each, and a run of token requests per delay."""
    factors = [{"path": "network.default.delay", "levels": list(delays)}] if delays else []
    return {
        "name": name,
        "sites": [{"name": site} for site in SITES[:sites]],
        "network": {"default": {"delay": "10 ms"}, "verify": {"rtt_tolerance": "3 ms"}},
        "deployment": {"backend": backend, "workers": 1},
        "campaign": {
            "bench_site": SITES[1],
            "factors": factors,
            "scenarios": [{"task": "keystone/authenticate_user_and_validate_token", "times": 5}] if delays else [],
        },
    }


class Bench:
    """Runs the command line in a folder of its own and keeps what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.part = ""
        self.rows: list[dict[str, Any]] = []
        self.environment = {**os.environ, "DISCOVERY_DEPLOY_STATE": str(folder / "state")}

    def row(self, what: str, value: str, where: str = "") -> None:
        """One line of the table; also shown at once."""
        self.rows.append({"part": self.part, "what": what, "measured": value, "details": where, **circumstances()})
        print(f"{what}: {value}  {where}", flush=True)

    def tool(self, *words: str, **environment: str) -> float:
        """Run the command; its seconds."""
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "discovery_deploy", *words], cwd=self.folder,
                              env={**self.environment, "PYTHONPATH": str(ROOT), **environment},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return time.monotonic() - started

    def write(self, content: dict[str, Any]) -> str:
        """Write an experiment file; its name."""
        path = self.folder / f"{content['name']}.yaml"
        path.write_text(json.dumps(content, indent=1))
        return path.name

    def phases(self, name: str) -> dict[str, float]:
        """Phase -> seconds of its last execution."""
        state = json.loads((self.folder / "results" / name / "state.json").read_text())
        return {phase: record["seconds"] for phase, record in state["phases"].items()}

    @contextmanager
    def released(self, name: str) -> Iterator[None]:
        """Release an experiment whatever happens."""
        try:
            yield
        finally:
            self.row(f"release {name}", f"{self.tool('release', name):.1f} s")


def _split(phases: dict[str, float]) -> str:
    return ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())


def memory_mb(plan: Path) -> float:
    """Proportional memory of all processes in an experiment's hosts, in MB."""
    shown = subprocess.run([sys.executable, "-m", "discovery_deploy.agent.containers", "status", str(plan)],
                           capture_output=True, text=True, check=True, cwd=ROOT)  # fmt: skip
    total_kb = 0
    pids = {pid for host in json.loads(shown.stdout).values() for pid in host["pids"].values() if pid}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    todo = list(pids)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in pids:
                pids.add(child)
                todo.append(child)
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
        except OSError:
            continue
    return total_kb / 1024


def bare_to_report(bench: Bench) -> None:
    """The quickstart from empty caches, then with warm ones."""
    quickstart = ROOT / "experiments" / "quickstart.yaml"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as cache, bench.released("quickstart"):
        seconds = bench.tool("run", str(quickstart), DISCOVERY_DEPLOY_CACHE=cache)
        bench.row("quickstart, empty caches, to the report", f"{seconds:.0f} s", _split(bench.phases("quickstart")))
    subprocess.run(["rm", "-rf", str(bench.folder / "results" / "quickstart")], check=True)
    with bench.released("quickstart"):
        seconds = bench.tool("run", str(quickstart))
        bench.row("quickstart, warm caches, to the report", f"{seconds:.0f} s", "8 runs of Rally included")


def warm_deployments(bench: Bench) -> None:
    """Reserve to verify with warm caches, and what one more site costs."""
    cost: dict[tuple[str, int], tuple[float, float]] = {}
    for label, backend in (("mariadb", {"type": "mariadb", "site": SITES[0]}), ("galera", {"type": "galera"})):
        for sites in (3, 4):
            name = f"warm-{label}-{sites}"
            file = bench.write(experiment(name, sites, backend))
            with bench.released(name):
                seconds = bench.tool("verify", file)
                used_mb = memory_mb(bench.folder / "state" / name / "plan.json")
                cost[label, sites] = (seconds, used_mb)
                bench.row(f"{sites} Keystone sites, {label}, warm: the command `verify`, whole", f"{seconds:.1f} s",
                          f"{_split(bench.phases(name))}; {used_mb / sites:.0f} MB a site")  # fmt: skip
        more_s, more_mb = (cost[label, 4][index] - cost[label, 3][index] for index in (0, 1))
        bench.row(f"one more Keystone site, {label}", f"{more_s:.1f} s", f"{more_mb:.0f} MB")


def full_sites(bench: Bench) -> None:
    """Three sites with all services (topology regions), two fake computes at each, with warm caches."""
    content = experiment("full-3", 3, {"type": "mariadb", "site": SITES[0]})
    content["deployment"] |= {
        "services": ["keystone", "placement", "glance", "neutron", "nova"],
        "workers": 1,
        "computes": {"fake": 2},
    }
    file = bench.write(content)
    with bench.released("full-3"):
        seconds = bench.tool("verify", file)
        used_mb = memory_mb(bench.folder / "state" / "full-3" / "plan.json")
        bench.row("3 full sites, regions, 2 fake computes each, warm: the command `verify`, whole", f"{seconds:.1f} s",
                  f"{_split(bench.phases('full-3'))}; {used_mb / 3:.0f} MB a site")  # fmt: skip


def edited_checkout(bench: Bench) -> None:
    """One line of a local checkout of Keystone edited: built, deployed over what is there, proved on three sites."""
    bench.tool("patch", "new", "keystone")
    content = experiment("edit", 3, {"type": "mariadb", "site": SITES[0]})
    content["deployment"]["sources"] = {"keystone": {"checkout": "keystone"}}
    file = bench.write(content)
    with bench.released("edit"):
        bench.tool("verify", file)
        module = bench.folder / "keystone" / "keystone" / "__init__.py"
        module.write_text(module.read_text() + "EDITED = True\n")
        seconds = bench.tool("verify", file)
        bench.row("a line of a checkout of Keystone edited, until proved on 3 sites", f"{seconds:.1f} s",
                  _split(bench.phases("edit")))  # fmt: skip


def reserved_hosts(bench: Bench) -> None:
    """3 and 16 hosts reserved, image cached."""
    for sites in (3, 16):
        name = f"reserve-{sites}"
        file = bench.write(experiment(name, sites, {"type": "mariadb", "site": SITES[0]}))
        with bench.released(name):
            bench.tool("reserve", file)
            bench.row(f"{sites} hosts reserved", f"{bench.phases(name)['reserve']:.1f} s", "image cached")


def campaign_point(bench: Bench) -> None:
    """What a point that changes only the delay costs besides Rally."""
    name = "points"
    file = bench.write(experiment(name, 3, {"type": "mariadb", "site": SITES[0]}, ("0 ms", "5 ms", "10 ms")))
    with bench.released(name):
        bench.tool("run", file)
    journal = [
        json.loads(line) for line in (bench.folder / "results" / name / "journal.jsonl").read_text().splitlines()
    ]
    at = [(datetime.fromisoformat(entry["at"]), entry["event"]) for entry in journal]
    ends = [moment for moment, event in at if event == "run ended"]
    starts = [moment for moment, event in at if event == "run started"]
    rally_s = [entry["seconds"] for entry in journal if entry["event"] == "rally ended"]
    load_s = []
    for path in sorted((bench.folder / "results" / name / "runs").glob("*/*/rally.json")):
        workload = json.loads(path.read_text())["tasks"][0]["subtasks"][0]["workloads"][0]
        load_s.append(float(workload["full_duration"]))
    points = len(ends) - 1
    besides = ((ends[-1] - ends[0]).total_seconds() - sum(rally_s[1:])) / points
    programs = sum(rally_s[1:]) / points - sum(load_s[1:]) / points
    gaps = [(start - end).total_seconds() for end, start in zip(ends, starts[1:], strict=False)]
    bench.row("a campaign point that changes only the delay, besides Rally", f"{besides:.1f} s",
              f"of which {sum(gaps) / len(gaps):.1f} s between two runs (constrain, verify)")  # fmt: skip
    bench.row("Rally's start, validation and two reports, per run", f"{programs:.1f} s",
              "beside contexts, iterations and clean-up")  # fmt: skip


def wan_alone(bench: Bench) -> None:
    """A latency change with verification on 3, 16 and 64 sites without hosts."""
    shown = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "wan.py")], stdout=subprocess.PIPE, text=True,
                           check=True, env={**bench.environment, "PYTHONPATH": str(ROOT)})  # fmt: skip
    for line in shown.stdout.splitlines():
        entry = json.loads(line)
        bench.row(f"WAN alone: {entry['name']}", f"{entry['seconds']:.2f} s")


BARE = ("make", "git", "ca-certificates")
"""Packages beside a Debian's least, for README's commands."""
TAKEN = ("etc/apt/sources.list", "etc/apt/sources.list.d", "etc/apt/apt.conf.d", "etc/apt/keyrings", "etc/pip.conf",
         "etc/xdg/pip", "etc/ssl/certs", "usr/local/share/ca-certificates", "etc/resolv.conf", "etc/hosts")  # fmt: skip
"""What tells apt and pip of this machine where packages are."""
INSIDE = """\
mount --make-rprivate /
mount --bind "$TREE" "$TREE"
mount -t proc proc "$TREE/proc"
mount --rbind /sys "$TREE/sys"
mount --rbind /dev "$TREE/dev"
mount -t tmpfs tmpfs "$TREE/run"
mount -t tmpfs tmpfs "$TREE/tmp"
cd "$TREE"
mkdir -p tmp/outside
pivot_root . tmp/outside
umount -l /tmp/outside
exec sh -euc "$1"
"""
"""The tree becomes the root of a mount namespace, as on a machine: from a chroot one enters no container's tree."""
DEMO = """\
cd /root/discovery-deploy
begin=$(date +%s)
released() { status=$?; .venv/bin/discovery-deploy release quickstart; exit "$status"; }
trap released EXIT
make demo
echo "SECONDS $(($(date +%s) - begin))"
cp results/quickstart/state.json /root/state.json
"""


def bare_demo(bench: Bench) -> None:
    """`make demo` in a bare Debian 12, a tree of its own in which nothing of ours is installed or cached."""
    tree = bench.folder / "bare"
    with image.apt_options_file() as apt:
        bake = ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", f"--include={','.join(BARE)}",
                f"--aptopt={apt}", image.RELEASE, str(tree), "-"]  # fmt: skip
        subprocess.run(bake, input=image.sources_text(image.apt_sources()), text=True, check=True, capture_output=True)
    for path in TAKEN:
        if Path("/", path).exists():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-aT", f"/{path}", str(tree / path)], check=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree / "root" / "discovery-deploy")], check=True)
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", INSIDE, "sh", DEMO]
    log = bench.folder / "bare.log"
    with log.open("w") as said:
        done = subprocess.run(inside, env={**os.environ, "TREE": str(tree), "HOME": "/root"}, stdin=subprocess.DEVNULL,
                              stdout=said, stderr=subprocess.STDOUT)  # fmt: skip
    text = log.read_text(errors="replace")
    if done.returncode:
        raise SystemExit(f"make demo in a bare Debian: exit {done.returncode}\n{text[-5000:]}")
    [seconds] = [line.split()[1] for line in text.splitlines() if line.startswith("SECONDS ")]
    phases = json.loads((tree / "root/state.json").read_text())["phases"]
    split = _split({phase: record["seconds"] for phase, record in phases.items()})
    bench.row("quickstart, bare Debian 12 (no package, no cache), `make demo` to the report", f"{seconds} s",
              f"{split}; 8 runs of Rally")  # fmt: skip


PARTS = {
    "reserve": reserved_hosts,
    "deploy": warm_deployments,
    "full": full_sites,
    "edit": edited_checkout,
    "points": campaign_point,
    "wan": wan_alone,
    "quickstart": bare_to_report,
    "bare": bare_demo,
}


def circumstances() -> dict[str, str]:
    """When, where, of which commit, and beside what load something is measured."""
    return {
        "at": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}",
        "commit": COMMIT,
        "load": f"{os.getloadavg()[0]:.1f}",
        "machine": ", ".join(f"{name} {value}" for name, value in machine_facts().items()),
    }


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the parts that were measured now, each with what it said before; other parts' as they were."""
    before = {row["what"]: {name: row[name] for name in ("measured", "at", "commit", "load")} for row in old}
    told = {row["part"] for row in new}
    rows = [row for row in old if row["part"] not in told]
    rows += [{**row, "before": before.get(row["what"])} for row in new]
    return sorted(rows, key=lambda row: list(PARTS).index(row["part"]))


def page(rows: list[dict[str, Any]]) -> str:
    """Text of docs/benchmarks.md."""
    lines = [
        "# How fast it is",
        "",
        "Made by `make bench`, or `make bench PART=NAME` for one part (benchmarks/bench.py; data in benchmarks.json):",
        "one run of each. Machines are noisy, and rows of different days may be of different machines: compare ratios",
        "of one day.",
        "",
        "| part | what | measured | details | when, commit, load | before | when, commit, load |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        old = row.get("before")
        cells = [row["part"], row["what"], row["measured"], row["details"], _when(row)]
        lines.append("| " + " | ".join([*cells, *([old["measured"], _when(old)] if old else ["", ""])]) + " |")
    machines: dict[str, list[str]] = {}
    for row in rows:
        machines.setdefault(row["machine"], []).append(row["at"][:10])
    told = [f"* {', '.join(dict.fromkeys(days))}: {machine}" for machine, days in machines.items()]
    return "\n".join([*lines, "", "Machines:", "", *told]) + "\n"


def _when(row: dict[str, Any]) -> str:
    return f"{row['at']}, {row['commit'][:12]}, {row['load']}"


def main() -> None:
    """Measure the asked parts (default: all) and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which measurements; default: all")
    parser.add_argument("--data", type=Path, default=TARGET, help="JSON; the page lies beside it")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    rows = json.loads(arguments.data.read_text()) if arguments.data.exists() else []
    for name in [] if arguments.page else arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="discovery-bench-") as folder:
            bench = Bench(Path(folder))
            bench.part = name
            PARTS[name](bench)
        rows = merged(rows, bench.rows)  # written after each part: what was measured stays
        arguments.data.write_text(json.dumps(rows, indent=1) + "\n")
    written = arguments.data.with_suffix(".md")
    written.write_text(page(rows))
    print(f"written: {written}")


if __name__ == "__main__":
    main()
