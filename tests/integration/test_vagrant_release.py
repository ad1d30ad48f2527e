"""Release of Vagrant's machines by name alone, on a real libvirt, whose machines need not run for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.vagrant_bed import VagrantBed

pytestmark = [pytest.mark.integration, pytest.mark.machines, pytest.mark.timeout(1800)]

DOMAIN = """\
<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>
<devices><disk type='volume'><source pool='default' volume='{name}.img'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
"""
POOL = "<pool type='dir'><name>default</name><target><path>/var/lib/libvirt/images</path></target></pool>"
NETWORK = "<network><name>{name}</name><ip address='{address}' netmask='255.255.255.0'/></network>"


@pytest.fixture
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VagrantBed]:
    bed = VagrantBed(tmp_path_factory.mktemp("libvirt"))
    try:
        bed.wait_for_libvirt()
        yield bed
    finally:
        bed.stop()


def define(bed: VagrantBed, kind: str, text: str) -> None:
    file = bed.directory / "defined.xml"
    file.write_text(text)
    bed.virsh(kind, str(file))


def machine(bed: VagrantBed, name: str) -> None:
    bed.virsh("vol-create-as", "default", f"{name}.img", "1M")
    define(bed, "define", DOMAIN.format(name=name))


def network(bed: VagrantBed, name: str, address: str) -> None:
    define(bed, "net-define", NETWORK.format(name=name, address=address))


def there(bed: VagrantBed) -> set[str]:
    volumes = {line.split()[0] for line in bed.virsh("vol-list", "default")}
    return {*bed.virsh("list", "--all", "--name"), *bed.virsh("net-list", "--all", "--name"), *volumes} - {"default"}


def test_what_bears_the_name_goes_and_what_is_anothers_stays(bed: VagrantBed) -> None:
    define(bed, "pool-define", POOL)
    bed.virsh("pool-start", "default")
    for name in ("dd_paper_paris-1", "dd_paper-2_paris-1", "somebody"):
        machine(bed, name)
    bed.virsh("vol-create-as", "default", "dd_paper_lyon-1.img", "1M")  # its machine was not defined yet
    network(bed, "dd_paper_0", "10.192.7.1")
    bed.virsh("net-start", "dd_paper_0")
    network(bed, "dd_paper_1", "10.192.8.1")
    network(bed, "vagrant-libvirt", "192.168.121.1")
    others = {"dd_paper-2_paris-1", "dd_paper-2_paris-1.img", "somebody", "somebody.img", "vagrant-libvirt"}
    assert "experiments with hosts of vagrant: paper (workspace unknown), paper-2 (workspace unknown)" in bed.well(
        "status"
    )
    bed.well("release", "paper")
    assert there(bed) == others
    again = bed.tool("release", "paper")
    assert again.returncode == 6
    assert there(bed) == others
    bed.well("release", "paper-2")
    assert there(bed) == {"somebody", "somebody.img", "vagrant-libvirt"}


def test_doctor_says_what_is_lacking_and_the_command_that_mends_it(bed: VagrantBed) -> None:
    said = bed.tool("doctor", "--provider", "vagrant")
    assert said.returncode == 3
    assert "discovery-deploy box build\n" in said.stdout
    assert 'Vagrant has no box "discovery-deploy" of this version' in said.stderr
