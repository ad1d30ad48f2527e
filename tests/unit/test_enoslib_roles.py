"""A running experiment as EnOSlib sees it: hosts, devices, networks; and what is said when there is nothing to see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import discovery_deploy
from discovery_deploy import enoslib_roles
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.system.errors import StateError, TestbedError
from discovery_deploy.system.workspace import Workspace
from tests import leased

ROOT = Path(__file__).resolve().parents[2]


def answer(**links: list[str]) -> str:
    """What `ip -json -4 address` prints: link -> its addresses with prefix lengths."""
    found: list[dict[str, Any]] = [
        {"ifname": name, "addr_info": [_printed(address) for address in addresses]} for name, addresses in links.items()
    ]
    return json.dumps([{"ifname": "lo", "addr_info": [_printed("127.0.0.1/8")]}, *found, {}])


def _printed(address: str) -> dict[str, Any]:
    local, length = address.split("/")
    return {"family": "inet", "local": local, "prefixlen": int(length), "label": "x"}


def routed() -> tuple[Lease, dict[str, str]]:
    """Six hosts at three sites, each site with a network of its own beside the one for ssh."""
    lease = leased.lease(leased.experiment(leased.MARIADB))
    answers = {
        host.name: answer(eth0=[f"{host.site_address}/24"], mgmt0=[f"{host.management_address}/16"])
        for host in lease.hosts
    }
    return lease, answers


def flat(*ways: tuple[str, dict[str, str]]) -> Lease:
    """Hosts of two sites on one network, which is also the one they are reached on: (address, ssh's options)."""
    hosts = tuple(
        LeasedHost(
            name=f"host-{number}", site=f"site-{number % 2}", roles=("control",), management_address=address,
            site_address=f"192.0.2.{number}", site_device="ens3", ssh=ssh,
        )
        for number, (address, ssh) in enumerate(ways)
    )  # fmt: skip
    return Lease(
        provider="static", experiment="flat", hosts=hosts, site_subnets={}, site_devices={}, site_gateways={},
        identities={host.name: host.name for host in hosts}, router="hosts", shaped="hosts", software="shipped",
    )  # fmt: skip


def test_hosts_are_in_their_roles_their_site_and_its_ansible_group() -> None:
    views = {view.name: view for view in enoslib_roles.host_views(*routed())}
    assert views["ny-bench"].roles == ("bench", "new-york", "site_new_york")
    assert views["rennes-1"].roles == ("control", "database", "bench", "compute", "rennes", "site_rennes")
    assert views["ny-bench"].address == "10.64.1.12"


def test_devices_are_those_with_addresses_without_the_loopback() -> None:
    views = {view.name: view for view in enoslib_roles.host_views(*routed())}
    devices = {device.name: [str(address) for address in device.addresses] for device in views["oslo-1"].devices}
    assert devices == {"eth0": ["10.128.2.10/24"], "mgmt0": ["10.64.2.10/16"]}


def test_each_site_has_its_network_and_management_is_apart() -> None:
    lease, answers = routed()
    assert enoslib_roles.network_cidrs(lease, enoslib_roles.host_views(lease, answers)) == {
        "rennes": ["10.128.0.0/24"],
        "new-york": ["10.128.1.0/24"],
        "oslo": ["10.128.2.0/24"],
        "sites": ["10.128.0.0/24", "10.128.1.0/24", "10.128.2.0/24"],
        "management": ["10.64.0.0/16"],
    }


def test_sites_on_one_flat_network_share_it_and_there_is_no_other_for_management() -> None:
    lease = flat(("192.0.2.0", {}), ("192.0.2.1", {}))
    answers = {host.name: answer(ens3=[f"{host.site_address}/24", "198.51.100.7/30"]) for host in lease.hosts}
    assert enoslib_roles.network_cidrs(lease, enoslib_roles.host_views(lease, answers)) == {
        "site-0": ["192.0.2.0/24"],
        "site-1": ["192.0.2.0/24"],
        "sites": ["192.0.2.0/24"],
    }


def test_a_management_address_that_is_none_of_the_hosts_has_no_network() -> None:
    lease = flat(("203.0.113.9", {"Port": "2201"}), ("gate.example.org", {}))
    answers = {host.name: answer(ens3=[f"{host.site_address}/24"]) for host in lease.hosts}
    views = enoslib_roles.host_views(lease, answers)
    assert [view.port for view in views] == [2201, None]
    assert set(enoslib_roles.network_cidrs(lease, views)) == {"site-0", "site-1", "sites"}


def test_hosts_behind_one_address_are_reached_by_their_names_in_the_ssh_config() -> None:
    lease = flat(("203.0.113.9", {"Port": "2201"}), ("203.0.113.9", {"Port": "2202"}))
    answers = {host.name: answer(ens3=[f"{host.site_address}/24"]) for host in lease.hosts}
    assert [view.address for view in enoslib_roles.host_views(lease, answers)] == ["host-0", "host-1"]


def test_a_host_without_its_site_address_is_named() -> None:
    lease, answers = routed()
    answers["oslo-1"] = answer(mgmt0=["10.64.2.10/16"])
    with pytest.raises(TestbedError, match=r"oslo-1: no interface has its site address 10\.128\.2\.10"):
        enoslib_roles.host_views(lease, answers)


@pytest.mark.parametrize("printed", ["", "no JSON", '[{"ifname": "eth0", "addr_info": [{}]}]', "[7]"])
def test_what_cannot_be_read_is_an_error_that_names_the_host(printed: str) -> None:
    lease, answers = routed()
    with pytest.raises(TestbedError, match="rennes-1: what `ip address` printed cannot be read"):
        enoslib_roles.host_views(lease, {**answers, "rennes-1": printed})


def test_without_hosts_the_error_says_how_to_get_some(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "mine")
    (workspace.path / "name").write_text("mine\n")
    with pytest.raises(StateError, match="no hosts are reserved") as error:
        discovery_deploy.roles(workspace.path)
    assert "discovery-deploy reserve" in error.value.advice


def test_an_experiment_is_found_by_name_folder_file_or_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCOVERY_DEPLOY_RESULTS", str(tmp_path / "results"))
    folder = tmp_path / "results" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "name").write_text("quickstart\n")
    for named in (None, "quickstart", folder, str(folder), ROOT / "experiments" / "quickstart.yaml"):
        assert enoslib_roles.find(named).path == folder
    with pytest.raises(StateError, match="neither an experiment file, nor a workspace"):
        enoslib_roles.find("other")


def test_without_enoslib_the_error_holds_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "mine")
    (workspace.path / "name").write_text("mine\n")
    workspace.save("lease.json", routed()[0])
    monkeypatch.setitem(sys.modules, "enoslib", None)
    with pytest.raises(TestbedError, match="EnOSlib is not installed") as error:
        discovery_deploy.roles(workspace.path)
    assert f"{sys.executable} -m pip install '{enoslib_roles.ENOSLIB}'" in error.value.advice


def test_the_package_is_light_and_has_nothing_else_to_give() -> None:
    code = "import discovery_deploy, sys; print(sorted({name.split('.')[0] for name in sys.modules} & {%s}))"
    heavy = ", ".join(repr(name) for name in ("pydantic", "ruamel", "enoslib", "ansible", "pandas", "typer"))
    done = subprocess.run([sys.executable, "-c", code % heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        discovery_deploy.nothing  # noqa: B018


def test_roles_needs_no_more_than_pydantic_and_ruamel() -> None:
    """EnOSlib's own environment has none of the driver's other packages."""
    code = (
        "import sys, discovery_deploy; discovery_deploy.roles\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {%s}))"
    )
    driver = ("ansible", "execo", "jinja2", "matplotlib", "mitogen", "numpy", "pandas", "pyarrow", "rich", "scipy")
    names = ", ".join(repr(name) for name in (*driver, "typer", "uv"))
    done = subprocess.run([sys.executable, "-c", code % names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
