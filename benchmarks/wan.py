"""How fast the WAN alone is: a router and sites without hosts, 3, 16 and 64 of them. As root: python benchmarks/wan.py.

Prints one JSON object a line: {"name": what was done, "seconds": how long it took}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from discovery_deploy.agent import site_networks, wan_router
from discovery_deploy.experiment.model import Network
from discovery_deploy.wan import measure
from discovery_deploy.wan.shapes import path_shapes
from tests.integration.wan_bed import SLOT, Wan, plan_of

SIZES = (3, 16, 64)
REPETITIONS = {3: 5, 16: 3, 64: 3}


def say(name: str, seconds: float) -> None:
    """One line of the result."""
    print(json.dumps({"name": name, "seconds": round(seconds, 3)}), flush=True)


def timed(name: str, act: Callable[[], object]) -> None:
    """Do something and say how long it took."""
    started = time.monotonic()
    act()
    say(name, time.monotonic() - started)


def changes(wan: Wan, label: str, repetitions: int) -> None:
    """Change the delay of every path back and forth, verifying each time; the median counts."""
    old = wan.shape(Network.model_validate({"default": {"delay": "10 ms"}}))
    parts_s = []
    for number in range(repetitions):
        network = Network.model_validate({"default": {"delay": f"{(25, 10)[number % 2]} ms"}})
        new = path_shapes(network, wan.names)
        times = [time.monotonic()]
        wan.change(old, new)
        times.append(time.monotonic())
        problems = wan.readback(new)
        times.append(time.monotonic())
        report = measure.verify_wan(wan.run, wan.points, new, network.verify)
        times.append(time.monotonic())
        for problem in (*problems, *report.problems):
            raise SystemExit(f"{label}: not as asked: {problem}")
        parts_s.append([times[-1] - times[0], *(end - start for start, end in pairwise(times))])
        old = new
    names = (
        "a latency change of every path, with verify",
        "its tc program",
        "reading back",
        "delays of every pair",
    )
    for name, seconds in zip(names, zip(*parts_s, strict=True), strict=True):
        say(f"{label}: {name}", statistics.median(seconds))


def measured(sites: int, directory: Path) -> None:
    """Everything for one number of sites."""
    label = f"{sites} sites"
    plan = plan_of(directory, [f"s{number}" for number in range(sites)])
    try:
        timed(f"{label}: bridges and namespaces made", lambda: site_networks.up(plan))
        timed(f"{label}: router up", lambda: wan_router.up(plan))
        wan = Wan(plan)
        timed(f"{label}: whole tc program", lambda: wan.shape(Network()))
        changes(wan, label, REPETITIONS.get(sites, 1))
    finally:
        started = time.monotonic()
        wan_router.down(plan)
        site_networks.down(SLOT)
    say(f"{label}: all removed", time.monotonic() - started)


def main() -> None:
    """Measure the asked numbers of sites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sites", nargs="*", type=int, help=f"how many sites; default: {SIZES}")
    for sites in parser.parse_args().sites or SIZES:
        with tempfile.TemporaryDirectory(prefix="discovery-wan-") as directory:
            measured(sites, Path(directory))


if __name__ == "__main__":
    main()
