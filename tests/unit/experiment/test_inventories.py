"""The examples in `inventories/` are experiments that `check` accepts, one for each way in which machines lie."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from discovery_deploy.bench import rally
from discovery_deploy.experiment import config
from discovery_deploy.experiment.model import Static

FOLDER = Path(__file__).resolve().parents[3] / "inventories"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_an_experiment_with_machines_for_all_its_hosts(path: Path) -> None:
    experiment = config.load(path, rally.load_tasks())
    assert experiment.name == path.stem
    assert isinstance(experiment.provider, Static)
    hosts = {host.name for site in experiment.sites for host in site.hosts}
    assert {machine.host for machine in experiment.provider.machines} == hosts


def test_the_examples_show_every_way_to_a_machine() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    assert {"user:", "port:", "key:", "jump:", "become:", "site_address:"} <= set(re.findall(r"\w+:", text))


def test_no_example_names_a_machine_that_there_may_be() -> None:
    for path in FILES:
        found = re.findall(r"address: ([^,}\s]+)|@([\w.-]+)", path.read_text(encoding="utf-8"))
        for name in (first or second for first, second in found):
            assert re.match(r"192\.0\.2\.|10\.|.*\.example\.org$", name), f"{path.name}: {name}"


def test_the_list_of_examples_is_whole() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+\.yaml)`", text, re.MULTILINE)) == {path.name for path in FILES}
