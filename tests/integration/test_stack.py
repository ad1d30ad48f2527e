"""What is built once: the base image, the environments, the databases' first content. Built here when not cached."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from discovery_deploy.software import builds, stack
from discovery_deploy.software.builds import Environments
from discovery_deploy.software.seed import DATABASES

pytestmark = pytest.mark.integration
RELEASE = "2025.1"


@pytest.fixture(scope="module")
def image() -> Path:
    return stack.base_image(stack.cache_directory(), print)


@pytest.fixture(scope="module")
def full() -> Path:
    return stack.base_image(stack.cache_directory(), print, "full")


@pytest.fixture(scope="module")
def built() -> Environments:
    return builds.environments(stack.cache_directory(), RELEASE, ("keystone",), print)


@pytest.fixture(scope="module")
def whole() -> Environments:
    return builds.environments(stack.cache_directory(), RELEASE, ("keystone", "placement"), print)


def directory(environment: stack.Environment) -> Path:
    return stack.cache_directory() / "environments" / environment.name


def test_the_image_has_no_identity_and_no_way_of_this_machine(image: Path) -> None:
    assert list((image / "etc/ssh").glob("ssh_host_*")) == []
    assert (image / "etc/machine-id").read_text() == ""
    assert not (image / "etc/hostname").exists()
    assert list((image / "var/lib/mysql").iterdir()) == []
    configuration = "".join(path.read_text() for path in (image / "etc/apt/apt.conf.d").iterdir())
    assert "Proxy" not in configuration


def test_the_image_may_reboot_and_starts_no_service_by_itself(image: Path) -> None:
    units = image / "etc/systemd/system"
    assert not (units / "systemd-logind.service").exists()
    wanted = {path.name for path in (units / "multi-user.target.wants").iterdir()}
    assert "ssh.service" in wanted
    assert not wanted & {"mariadb.service", "memcached.service"}


def test_the_full_image_is_the_base_with_more_and_starts_nothing_more(image: Path, full: Path) -> None:
    for name in (
        "rabbitmq-server",
        "ovs-vsctl",
        "ovn-northd",
        "libvirtd",
        "qemu-system-x86_64",
        "qemu-img",
        "erl_call",
    ):
        assert any((full / place / name).exists() for place in ("usr/sbin", "usr/bin")), name
    enabled = [
        sorted(str(path.relative_to(tree)) for path in (tree / "etc/systemd/system").rglob("*") if path.is_symlink())
        for tree in (image, full)
    ]
    assert enabled[0] == enabled[1]
    assert list((full / "etc/libvirt/qemu/networks/autostart").iterdir()) == []
    assert not (full / "var/lib/rabbitmq/.erlang.cookie").exists()
    test_the_image_has_no_identity_and_no_way_of_this_machine(full)


def test_environments_are_run_by_the_hosts_python_and_never_compile_again(built: Environments) -> None:
    for environment in (built.openstack, built.rally):
        place = directory(environment)
        assert str((place / "bin/python").readlink()).startswith("/usr/bin/python3")
        script = (place / "bin" / ("uwsgi" if environment is built.openstack else "rally")).read_text(errors="replace")
        assert f"{environment.path}/bin/python" in script.splitlines()[0]
        compiled = list((place / "lib").rglob("*.pyc"))
        assert len(compiled) > 1000
        # PEP 552: flags 1 is a hash that is not checked
        assert {path.read_bytes()[4:8] for path in compiled} == {b"\x01\0\0\0"}


def test_what_hosts_see_is_what_the_lock_says(built: Environments) -> None:
    installed = {
        path.name for path in (directory(built.openstack) / "lib/python3.11/site-packages").glob("*.dist-info")
    }
    assert f"keystone-{built.openstack.versions['keystone']}.dist-info" in installed
    assert len(installed) == len(built.openstack.versions)
    assert {f"{name}-{built.openstack.versions[name]}.dist-info" for name in ("nova", "ovs")} <= installed


def test_the_databases_first_content_holds_no_password_and_no_endpoint(built: Environments) -> None:
    datadir = directory(built.database) / "datadir"
    assert b"$2b$" not in (datadir / "keystone/password.ibd").read_bytes()
    assert b"http" not in (datadir / "keystone/endpoint.ibd").read_bytes()
    assert "seqno:   1" in (datadir / "grastate.dat").read_text()


def test_the_whole_first_content_has_all_tables_and_no_cell(built: Environments, whole: Environments) -> None:
    assert whole.database.name != built.database.name
    assert whole.openstack == built.openstack
    datadir = directory(whole.database) / "datadir"
    tables = {name: {path.stem for path in (datadir / name).glob("*.ibd")} for name in DATABASES["all"]}
    assert {"images", "image_locations"} <= tables["glance"]
    assert {"ports", "ovn_hash_ring", "ovn_revision_numbers"} <= tables["neutron"]
    assert {"resource_providers", "traits"} <= tables["placement"]
    assert {"cell_mappings", "host_mappings", "flavors"} <= tables["nova_api"]
    assert "instances" in tables["nova"]
    assert tables["nova"] == tables["nova_cell0"]
    assert b"HW_CPU_X86_AVX2" in (datadir / "placement/traits.ibd").read_bytes()
    assert b"mysql" not in (datadir / "nova_api/cell_mappings.ibd").read_bytes()
    test_the_databases_first_content_knows_no_host(whole)
    test_the_databases_first_content_holds_no_password_and_no_endpoint(whole)


def test_the_databases_first_content_knows_no_host(built: Environments) -> None:
    grants = directory(built.database) / "datadir/mysql"
    for table in ("global_priv", "proxies_priv", "db"):
        assert os.uname().nodename.encode() not in (grants / f"{table}.MAD").read_bytes()


def test_a_second_call_needs_no_network_and_no_time(built: Environments) -> None:
    program = (
        "from discovery_deploy.software import builds, stack\n"
        f"print(builds.environments(stack.cache_directory(), {RELEASE!r}, ('keystone',), print).database.name)\n"
    )
    command = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{built.database.name}\n"


def test_what_was_built_is_readable_by_the_services_users(built: Environments) -> None:
    for environment in (built.openstack, built.rally, built.database):
        assert stat.S_IMODE(directory(environment).stat().st_mode) & 0o055 == 0o055
