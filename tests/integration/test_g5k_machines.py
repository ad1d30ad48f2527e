"""The provider `g5k` with EnOSlib against the fake Grid'5000, whose deployed machines are virtual machines.

Their kernels are their own, so the WAN is shaped by real netem; all goes through the command line.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.software import box, stack
from discovery_deploy.testbeds import acceleration
from discovery_deploy.wan.verdict import WanReport
from tests.integration.g5k_bed import ROOT, G5kBed, fake_grid5000
from tests.integration.priority import before_all_else, emulators
from tests.integration.whole_experiment import until_valid

pytestmark = [pytest.mark.integration, pytest.mark.machines, pytest.mark.timeout(1200)]
NAME = "g5k-machines"
EXPERIMENT = f"""\
name: {NAME}
provider:
  type: g5k
  default: {{g5k_site: rennes, cluster: paravance}}
  sites: {{nantes: {{g5k_site: nancy, cluster: grisou}}}}
  environment: debian12-min
sites: [{{name: rennes}}, {{name: nantes}}]
network: {{default: {{delay: 25 ms}}, compensate: true}}
deployment: {{backend: {{type: mariadb, site: rennes}}}}
"""
CARRIED = EXPERIMENT.replace(NAME, "g5k-whole").replace("  environment:", "  packages: carried\n  environment:")
WHOLE = f"""\
{CARRIED}
question: Does all of it work on machines of Grid'5000?
campaign:
  bench_site: nantes
  scenarios: [{{task: keystone/authenticate_user_and_validate_token, times: 5}}]
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[G5kBed]:
    cache = stack.cache_directory()
    built = box.build(cache, print)
    kvm = acceleration.acceleration(cache, built / "vmlinuz", print).kvm
    work = tmp_path_factory.mktemp("g5k")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        fake_grid5000(work, image, monkeypatch, str(built), "kvm" if kvm else "tcg,tb-size=256") as bed,
    ):
        (work / f"{NAME}.yaml").write_text(EXPERIMENT)
        yield bed


def run(bed: G5kBed, *words: str, limit_s: float = 900) -> subprocess.CompletedProcess[str]:
    """A Python program of ours in the fake's network, as the owner of its account; it may fail."""
    variables = {
        **os.environ, "HOME": str(bed.work / "home"), "PYTHONPATH": str(ROOT),
        "DISCOVERY_DEPLOY_STATE": str(bed.work / "state"), "DISCOVERY_DEPLOY_RESULTS": str(bed.work / "results"),
    }  # fmt: skip
    enter, *inside = bed.inside
    command = [enter, "--pid", *inside, sys.executable, "-m", *words]  # --pid: its /proc is theirs
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=limit_s, check=False)


def program(bed: G5kBed, *words: str, limit_s: float = 900) -> str:
    """What such a program printed."""
    done = run(bed, *words, limit_s=limit_s)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wan_between_reserved_machines_is_the_one_asked_for(bed: G5kBed) -> None:
    file = str(bed.work / f"{NAME}.yaml")
    assert "in all: 2 machines, 72 core-hours" in program(bed, "discovery_deploy", "check", file)
    program(bed, "discovery_deploy", "reserve", file)
    shown = program(bed, "discovery_deploy", "ssh", "--experiment", NAME, "nantes-1", "uname", "-r")
    assert shown.strip() != os.uname().release  # a kernel of its own

    with before_all_else(emulators(str(bed.work))):
        report = WanReport.model_validate_json(program(bed, "tests.integration.shape_and_measure", file))
    assert report.problems == ()
    for pair in report.pairs:
        assert pair.asked_rtt_s == 0.05
        assert pair.measured.rtt_median_s == pytest.approx(pair.asked_rtt_s, abs=0.001)

    assert "rennes: job" in program(bed, "discovery_deploy", "extend", NAME, "30 min")
    program(bed, "discovery_deploy", "release", NAME)
    assert bed.jobs() == []
    assert not (bed.work / "state").exists()


@pytest.mark.extended
@pytest.mark.timeout(5400)
def test_a_whole_experiment_from_its_file_to_its_report(bed: G5kBed) -> None:
    (bed.work / "g5k-whole.yaml").write_text(WHOLE)
    tool = functools.partial(run, bed, "discovery_deploy", limit_s=5000)
    assert "machines of Grid" in until_valid(tool, str(bed.work / "g5k-whole.yaml"), 0.05)
    shown = program(bed, "discovery_deploy", "openstack", "-e", "g5k-whole", "nantes", "endpoint", "list", "-f", "json")
    assert {endpoint["Region"] for endpoint in json.loads(shown)} == {"rennes", "nantes"}
    program(bed, "discovery_deploy", "release", "g5k-whole")
    assert bed.jobs() == []
