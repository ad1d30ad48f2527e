"""What Vagrant is asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.testbeds import vagrant_plan


def experiment(name: str = "paper", **provider: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": name,
            "provider": {"type": "vagrant", **provider},
            "sites": [{"name": "paris"}, {"name": "lyon"}],
            "deployment": {"backend": {"type": "mariadb", "site": "paris"}},
        }
    )


def request(network: str = "10.192.3.0/24", **provider: Any) -> vagrant_plan.Request:
    asked = experiment(**provider)
    assert asked.provider.type == "vagrant"
    return vagrant_plan.request(asked, asked.provider, network)


def test_every_host_is_a_machine_of_its_name_and_of_the_asked_size() -> None:
    configuration = vagrant_plan.configuration(request(memory_mb=1024, cpus=2, box="mine", user="debian"), "text\n")
    machines = configuration["resources"]["machines"]
    assert [(one["name_prefix"], one["number"]) for one in machines] == [("paris-1", 1), ("lyon-1", 1)]
    assert {one["flavour_desc"]["mem"] for one in machines} == {1024}
    assert {one["flavour_desc"]["core"] for one in machines} == {2}
    assert configuration["resources"]["networks"] == [{"cidr": "10.192.3.0/24", "roles": ["sites"]}]
    assert (configuration["box"], configuration["user"], configuration["config_extra"]) == ("mine", "debian", "text\n")


def test_addresses_are_those_that_enoslib_gives_from_the_end_of_the_network() -> None:
    assert vagrant_plan.addresses("10.192.3.0/24", ["a", "b"]) == {"a": "10.192.3.245", "b": "10.192.3.244"}


def test_a_network_holds_as_many_machines_as_it_says() -> None:
    most = vagrant_plan.most_machines("10.192.3.0/24")
    names = [f"host-{number}" for number in range(most)]
    assert len(set(vagrant_plan.addresses("10.192.3.0/24", names).values())) == most
    with pytest.raises(ValueError, match="do not fit"):
        vagrant_plan.addresses("10.192.3.0/24", [*names, "one-more"])


def test_no_experiment_gets_a_network_that_something_uses() -> None:
    taken = ["10.192.0.1/24", "10.192.1.0/255.255.255.0", "10.192.2.128/25", "10.192.3.7", "10.0.0.0/8", "0.0.0.0/0"]
    assert vagrant_plan.free_networks("libvirt", taken)[0] == "10.192.4.0/24"
    assert vagrant_plan.free_networks("libvirt", ["10.192.0.0/16"]) == []


def test_virtualbox_gets_networks_that_it_allows_and_machines_that_bear_the_experiments_name() -> None:
    free = vagrant_plan.free_networks("virtualbox", [])
    assert all(network.startswith("192.168.") for network in free)
    asked = request(free[0], backend="virtualbox", box="debian/bookworm64")
    own = [one["config_extra_vm"] for one in vagrant_plan.configuration(asked, "")["resources"]["machines"]]
    assert own[0] == "my.vm.provider(:virtualbox) { |virtualbox| virtualbox.name = 'dd_paper_paris-1' }"
    assert "libvirt" not in vagrant_plan.vagrantfile(asked, {})


def test_no_name_of_an_experiment_begins_with_anothers() -> None:
    assert not f"{vagrant_plan.prefix('paper-2')}x".startswith(vagrant_plan.prefix("paper"))


def test_the_users_text_comes_last_so_that_it_wins() -> None:
    text = vagrant_plan.vagrantfile(
        request(extra="config.vm.boot_timeout = 5\nconfig.x = 1"), {"driver": "kvm"}, "12.7"
    )
    assert text.splitlines()[-2:] == ["config.vm.boot_timeout = 5", "config.x = 1"]
    assert "config.vm.box_version = '12.7'" in text
    assert "  backend.default_prefix = 'dd_paper_'\n  backend.driver = 'kvm'\n" in text


def test_emulated_machines_have_a_processor_for_todays_wheels_and_an_emulator_of_ours() -> None:
    emulated = vagrant_plan.libvirt_settings(False, "/x/emulator", {"kernel": "/x/vmlinuz"})
    assert (emulated["driver"], emulated["emulator_path"]) == ("qemu", "/x/emulator")
    assert (emulated["cpu_model"], emulated["kernel"]) == ("Nehalem", "/x/vmlinuz")
    real = vagrant_plan.libvirt_settings(True, "/x/emulator", {})
    assert (real["driver"], real["cpu_mode"]) == ("kvm", "host-passthrough")
    assert not {"emulator_path", "cpu_model"} & set(real)


def test_a_text_is_one_text_for_ruby() -> None:
    assert vagrant_plan.quoted("it's a \\ '") == "'it\\'s a \\\\ \\''"


@pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby comes with Vagrant, which `make test` installs")
def test_the_vagrantfile_is_ruby() -> None:
    text = vagrant_plan.vagrantfile(
        request(extra="config.x = 'y'"), vagrant_plan.libvirt_settings(False, "a'b", {}), "1"
    )
    subprocess.run(["ruby", "-c"], input=f"config = nil\n{text}", text=True, check=True, capture_output=True)


def test_the_emulator_gives_qemu_less_memory_for_translated_code_and_all_else_as_it_is(tmp_path: Path) -> None:
    emulator = tmp_path / "emulator"
    emulator.write_text(vagrant_plan.emulator_text("/usr/bin/printf '%s|'"))
    emulator.chmod(0o755)
    given = ["-name", "a b", "-accel", "tcg", "-accel", "kvm", "-append", "x tcg"]
    told = subprocess.run([str(emulator), *given], capture_output=True, text=True, check=True).stdout
    assert told.split("|")[:-1] == ["-name", "a b", "-accel", "tcg,tb-size=256", "-accel", "kvm", "-append", "x tcg"]
