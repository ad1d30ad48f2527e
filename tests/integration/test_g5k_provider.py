"""The provider `g5k` with EnOSlib against the fake Grid'5000, whose machines are network namespaces with an sshd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.system.errors import TestbedError
from tests.integration.g5k_bed import G5kBed, experiment, fake_grid5000

pytestmark = pytest.mark.integration
NAME = "g5k-bed"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[G5kBed]:
    work = tmp_path_factory.mktemp("g5k")
    with pytest.MonkeyPatch.context() as monkeypatch, fake_grid5000(work, image, monkeypatch) as bed:
        yield bed


@pytest.fixture
def bed(world: G5kBed) -> Iterator[G5kBed]:
    world.faults()
    world.told.clear()
    yield world
    world.faults()
    world.release(NAME)


def assert_nothing_is_left(bed: G5kBed) -> None:
    assert bed.jobs() == []
    assert bed.machines() == set()
    assert not (bed.work / "state").exists()


def test_two_sites_are_reserved_reached_as_root_and_given_back(bed: G5kBed) -> None:
    lease = bed.reserve(experiment(NAME))
    assert [(host.name, host.site, host.site_device) for host in lease.hosts] == [
        ("rennes-1", "rennes", "eth0"), ("nantes-1", "nantes", "eth0"), ("nantes-2", "nantes", "eth0"),
    ]  # fmt: skip
    assert [host.site_address for host in lease.hosts] == ["10.103.65.1", "10.103.66.1", "10.103.66.2"]
    assert (lease.shaped, lease.software, lease.router) == ("hosts", "shipped", "hosts")
    remote = bed.remote(lease)
    names = [remote(host.name, ["hostname"]).strip() for host in lease.hosts]
    assert names == [lease.details["machines"][host.name] for host in lease.hosts]
    assert {remote(host.name, ["id", "-un"]).strip() for host in lease.hosts} == {"root"}
    assert bed.provider.dead_hosts(lease) == []
    assert bed.provider.holder(NAME) == bed.work

    again = bed.reserve(experiment(NAME))
    assert again == lease  # the same machines, and known as such
    assert len(bed.jobs()) == 2

    bed.release(NAME)
    assert_nothing_is_left(bed)
    assert bed.provider.dead_hosts(lease) == [host.name for host in lease.hosts]
    bed.release(NAME)
    assert bed.told[-1] == "gone: there was no job"


def test_without_any_record_the_job_is_found_by_name(bed: G5kBed) -> None:
    lease = bed.reserve(experiment(NAME, {"rennes": 1}))
    for file in (bed.work / "state" / "g5k" / NAME).iterdir():
        file.unlink()
    again = bed.reserve(experiment(NAME, {"rennes": 1}))
    assert again.identities == lease.identities
    for file in (bed.work / "state" / "g5k" / NAME).iterdir():
        file.unlink()
    (bed.work / "state" / "g5k" / NAME).rmdir()
    bed.release(NAME)
    assert_nothing_is_left(bed)


def test_more_hosts_than_before_are_another_reservation(bed: G5kBed) -> None:
    before = bed.reserve(experiment(NAME, {"rennes": 1}))
    lease = bed.reserve(experiment(NAME, {"rennes": 2}))
    assert any("of another request" in line for line in bed.told)
    assert not set(before.identities.values()) & set(lease.identities.values())
    fewer = bed.reserve(experiment(NAME, {"rennes": 1}))  # what is there holds it
    assert fewer.identities["rennes-1"] == lease.identities["rennes-1"]


def test_a_deployment_in_a_kavlan_is_reached_under_its_names(bed: G5kBed) -> None:
    asked = experiment(NAME, {"rennes": 1}, environment="debian12-min", network="kavlan")
    lease = bed.reserve(asked)
    host = lease.hosts[0]
    assert host.management_address == "paravance-1-kavlan-4.rennes.grid5000.fr"
    assert host.site_address == "10.103.81.1"
    assert bed.remote(lease)("rennes-1", ["cat", "/etc/grid5000/release"]).startswith("debian12-min")
    assert bed.reserve(asked).identities == lease.identities  # not deployed again
    other = bed.reserve(experiment(NAME, {"rennes": 1}, environment="debian12-std", network="kavlan"))
    assert other.identities != lease.identities
    bed.release(NAME)
    assert_nothing_is_left(bed)


def test_a_global_kavlan_spans_the_sites(bed: G5kBed) -> None:
    lease = bed.reserve(
        experiment(NAME, {"rennes": 1, "nantes": 1}, environment="debian12-min", network="kavlan-global")
    )
    assert [host.site_address for host in lease.hosts] == ["10.103.129.1", "10.103.130.1"]
    assert len(bed.jobs()) == 2
    bed.release(NAME)
    assert_nothing_is_left(bed)


@pytest.mark.parametrize("deployed", [False, True])
def test_a_machine_that_never_comes_up_is_named_and_all_is_given_back(bed: G5kBed, deployed: bool) -> None:
    bed.faults(dead=["grisou-2.nancy.grid5000.fr"])
    asked = experiment(NAME, environment="debian12-min" if deployed else None)
    with pytest.raises(TestbedError, match=r"grisou-2\.nancy\.grid5000\.fr"):
        bed.reserve(asked)
    assert_nothing_is_left(bed)


def test_servers_by_name_and_no_jump(bed: G5kBed) -> None:
    servers = {"g5k_site": "rennes", "servers": ["parasilo-2", "paravance-3"]}
    lease = bed.reserve(experiment(NAME, {"rennes": 2}, default=servers, jump=False))
    assert lease.details["machines"] == {
        "rennes-1": "parasilo-2.rennes.grid5000.fr", "rennes-2": "paravance-3.rennes.grid5000.fr",
    }  # fmt: skip
    assert {len(host.ssh) for host in lease.hosts} == {0}
    assert bed.remote(lease)("rennes-2", ["hostname"]).startswith("paravance-3")
