"""What every provider promises, on real hosts: one suite, for each testbed in `providers_bed`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.hosts.registry import PROVIDERS, provider_named
from discovery_deploy.system.errors import TestbedError
from tests.providers_bed import BEDS, SITES, Bed, bed_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
HOSTS = [f"{site}-1" for site in SITES]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=BEDS[name].marks) for name in BEDS])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A testbed of each provider; every test leaves nothing of the experiment on it."""
    with bed_of(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made
        made.release()
        assert made.left() == []


@pytest.fixture
def free(bed: Bed) -> Iterator[Bed]:
    """The testbed with nothing reserved, before and after."""
    bed.release()
    bed.said.clear()
    yield bed
    bed.release()


def hook(found: Any, bed: Bed) -> Any:
    if found is None:
        pytest.skip(f"cannot go wrong with provider {bed.type}")
    return found


def test_every_provider_is_in_this_suite() -> None:
    assert set(BEDS) == set(PROVIDERS)


def test_hosts_are_those_of_the_file_and_root_logs_in(free: Bed) -> None:
    lease = free.reserve()
    assert [(host.name, host.site) for host in lease.hosts] == list(zip(HOSTS, SITES, strict=True))
    assert (lease.provider, lease.experiment) == (free.type, "pair")
    assert [free.login(lease, host, "id -un; python3 -c 'print(1)'").split() for host in HOSTS] == [["root", "1"]] * 2
    assert len(set(lease.identities.values())) == len(HOSTS)
    assert free.provider().dead_hosts(lease) == []
    assert free.provider().holder("pair") == free.workspace
    assert free.provider().experiments() == ["pair"]


def test_a_lease_says_which_device_has_the_site_address_where_hosts_shape(free: Bed) -> None:
    lease = free.reserve()
    if lease.shaped == "router":
        assert set(lease.site_devices) == set(SITES)
        return
    for host in lease.hosts:
        shown = free.login(lease, host.name, f"ip -o -4 address show dev {host.site_device}")
        assert f" {host.site_address}/" in shown
    assert (lease.router, lease.site_subnets, lease.software) == ("hosts", {}, "shipped")


def test_reserving_twice_keeps_what_is_there(free: Bed) -> None:
    lease = free.reserve()
    free.login(lease, HOSTS[0], "echo kept > /root/file")
    assert free.reserve() == lease
    assert free.login(lease, HOSTS[0], "cat /root/file; rm /root/file") == "kept"


def test_after_a_crash_a_new_driver_finds_the_hosts_by_the_experiment_s_name(free: Bed) -> None:
    first = free.reserve()
    provider = free.provider()  # remembers nothing, and has no lease
    assert provider.experiments() == ["pair"]
    assert provider.holder("pair") == free.workspace
    assert free.reserve().identities == first.identities


RESERVE = """
import sys
from pathlib import Path
from discovery_deploy.experiment.model import Experiment
from tests.providers_bed import BEDS
bed = BEDS[sys.argv[1]].__new__(BEDS[sys.argv[1]])
bed.folder = bed.state = Path(sys.argv[2])
bed.state = bed.folder / "state"
asked = Experiment.model_validate_json(sys.argv[3])
bed.provider().reserve(asked, sys.argv[4], Path(sys.argv[5]), print, bed.folder / "workspace")
"""


def killed_while_reserving(bed: Bed, sign: str, later_s: float) -> None:
    """A driver that reserves and is killed a moment after a file has appeared."""
    asked = bed.experiment().model_dump_json()
    words = [sys.executable, "-c", RESERVE, bed.type, str(bed.folder), asked, bed.public_key, str(bed.image)]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    end = time.monotonic() + 120
    while not any(bed.folder.glob(sign)) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(later_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("later_s", [0.0, 0.2])
@pytest.mark.parametrize("place", [0, 1])
def test_a_driver_killed_while_it_reserves_is_followed_by_one_that_goes_on(
    free: Bed, place: int, later_s: float
) -> None:
    if place >= len(free.dies_in):
        pytest.skip(f"reserving with provider {free.type} has no such moment: it writes fewer records")
    killed_while_reserving(free, free.dies_in[place], later_s)
    lease = free.reserve()
    assert free.provider().dead_hosts(lease) == []
    assert [free.login(lease, host, "id -un") for host in HOSTS] == ["root", "root"]
    free.release()
    assert free.left() == []


@pytest.mark.parametrize("later_s", [0.0, 0.2])
@pytest.mark.parametrize("place", [0, 1])
def test_release_after_a_driver_was_killed_while_it_reserved_leaves_nothing(
    free: Bed, place: int, later_s: float
) -> None:
    if place >= len(free.dies_in):
        pytest.skip(f"reserving with provider {free.type} has no such moment: it writes fewer records")
    killed_while_reserving(free, free.dies_in[place], later_s)
    free.release()
    assert free.left() == []


def test_release_leaves_nothing_and_once_more_is_no_mistake(free: Bed) -> None:
    free.reserve()
    free.release()
    assert free.left() == []
    assert free.provider().experiments() == []
    assert free.provider().holder("pair") is None
    free.release()


def test_release_of_what_was_never_reserved_is_no_mistake(free: Bed) -> None:
    free.provider().release("never", free.said.append)
    assert free.left() == []


def test_a_host_that_dies_is_named_and_reserve_mends_it(free: Bed) -> None:
    lease = free.reserve()
    free.kill(lease, "lyon-1")
    assert free.provider().dead_hosts(lease) == ["lyon-1"]
    free.revive(lease, "lyon-1")
    lease = free.reserve()
    assert free.provider().dead_hosts(lease) == []
    assert free.login(lease, "lyon-1", "id -un") == "root"


def test_release_with_a_dead_host_gives_all_back(free: Bed) -> None:
    lease = free.reserve()
    free.kill(lease, "lyon-1")
    if free.needs_hosts_to_release:
        with pytest.raises(TestbedError, match="lyon-1"):
            free.release()
        assert free.provider().experiments() == ["pair"]  # it can be done again
        free.revive(lease, "lyon-1")
    free.release()
    assert free.left() == []


def test_wrong_credentials_are_said_with_the_host(free: Bed) -> None:
    section, message = hook(free.wrong_credentials(), free)
    with pytest.raises(TestbedError, match=message) as caught:
        free.reserve(section)
    assert caught.value.advice
    assert free.provider().experiments() == []


def test_a_request_that_is_refused_is_said_with_the_reason(free: Bed) -> None:
    section, message = hook(free.refused(), free)
    with pytest.raises(TestbedError, match=message) as caught:
        free.reserve(section)
    assert caught.value.advice
    free.release()
    assert free.left() == []


def test_a_host_that_never_comes_up_is_named_in_time_and_nothing_is_left(free: Bed) -> None:
    section, image, message = hook(free.never_up(), free)
    started = time.monotonic()
    with pytest.raises(TestbedError, match=message) as caught:
        free.reserve(section, image)
    assert time.monotonic() - started < free.gives_up_s
    assert caught.value.advice
    free.release()
    assert free.left() == []


@pytest.mark.parametrize("name", BEDS)
def test_a_missing_tool_is_said_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool, package = BEDS[name].tool
    monkeypatch.setenv("HOME", str(tmp_path))
    BEDS[name].furnish(tmp_path)
    provider = provider_named(name)
    if BEDS[name].complete:
        assert provider.lacks() == []
    monkeypatch.setenv("PATH", "/nowhere")
    lacks = {lack.what: lack.command for lack in provider.lacks()}
    assert lacks[f"the command {tool}"] == f"apt-get install -y {package}"
