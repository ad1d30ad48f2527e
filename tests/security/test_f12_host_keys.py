"""Hosts are known by their keys (F12): what ssh and Ansible are told. Real hosts: integration/test_experiment.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from discovery_deploy.driver.ansible import ansible_environment
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.provider_models import Machine
from discovery_deploy.system.remote import ssh_config_text, write_ssh_config
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds import static_ssh

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIbjYDpSgvlVmlKLM1JmrUYn6lFR5ZBqeTgpjIbAP5ux"


def settings(config: Path, host: str) -> dict[str, str]:
    """What ssh makes of an ssh_config for a host."""
    shown = subprocess.run(["ssh", "-G", "-F", str(config), host], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


def lease(provider: str, identity: str = "i", **details: object) -> Lease:
    host = LeasedHost(
        name="lyon-1", site="lyon", roles=("control",), management_address="127.0.0.1", site_address="10.0.0.1",
        ssh={"Port": "1", "ConnectTimeout": "1"},
    )  # fmt: skip
    return Lease(
        provider=provider, experiment="e", hosts=(host,), site_subnets={}, site_devices={}, site_gateways={},
        identities={"lyon-1": identity}, router="hosts", details=dict(details),
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "work space %h")
    made.public_key()
    return made


def write(workspace: Workspace, now: Lease, before: Lease | None) -> None:
    write_ssh_config(workspace, now.ways, now.host_keys, others=now.has_other_hosts(before))


def test_keys_that_the_lease_knows_are_the_only_ones(workspace: Workspace) -> None:
    write(workspace, lease("local", host_keys={"lyon-1": KEY}), None)
    known = workspace.path / "known_hosts"
    assert known.read_text() == f"lyon-1 {KEY}\n"
    found = settings(workspace.ssh_config, "lyon-1")
    assert found["stricthostkeychecking"] == "true"
    assert found["hostkeyalias"] == "lyon-1"
    assert found["userknownhostsfile"] == f'"{known}"'.replace("%", "%%") or found["userknownhostsfile"] == str(known)
    assert found["globalknownhostsfile"] == "/dev/null"


def test_other_hosts_keep_the_key_that_they_showed_first(workspace: Workspace) -> None:
    known = workspace.path / "known_hosts"
    first = lease("vagrant")
    write(workspace, first, None)
    assert settings(workspace.ssh_config, "lyon-1")["stricthostkeychecking"] == "accept-new"
    known.write_text("lyon-1 seen\n")
    write(workspace, first, first)
    assert known.read_text() == "lyon-1 seen\n"
    write(workspace, lease("vagrant", "made anew"), first)
    assert known.read_text() == ""


def test_given_machines_are_those_that_were_held(tmp_path: Path) -> None:
    machine = Machine(host="lyon-1", address="192.0.2.7", port=2222)
    options = static_ssh.driver_options(machine, tmp_path / "given")
    text = ssh_config_text(
        {"lyon-1": ("192.0.2.7", options)}, tmp_path / "id", tmp_path, tmp_path / "k", all_known=False
    )
    (tmp_path / "config").write_text(text)
    found = settings(tmp_path / "config", "lyon-1")
    assert found["stricthostkeychecking"] == "true"
    assert str(tmp_path / "given") in found["userknownhostsfile"]
    assert "hostkeyalias" not in found


def test_ansible_does_not_tell_ssh_otherwise(tmp_path: Path) -> None:
    assert ansible_environment(tmp_path, tmp_path, tmp_path / "e", 3)["ANSIBLE_HOST_KEY_CHECKING"] == "True"
