"""What an experiment file says is data: it reaches configuration files and Rally as it is written (F4)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from discovery_deploy.cloud.inventory import with_variables
from discovery_deploy.cloud.variables import Variables, variables
from discovery_deploy.driver import ansible
from discovery_deploy.experiment.config import load
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import ExperimentError
from tests.leased import ALL, ENVIRONMENTS, MARIADB, SECRETS, TOPOLOGIES, experiment, lease

ROLES = ("glance", "keystone", "neutron", "nova", "nova_compute", "placement")
"""Those that put overrides into a configuration."""


def texts(ran: Path) -> dict[str, str]:
    """Option -> a value that one of the programs on the way would understand, and run or change."""
    return {
        "expression": "{{ 6 * 7 }}",
        "lookup": "{{ lookup('ansible.builtin.pipe', 'touch " + str(ran) + "; echo x') }}",
        "undefined": "{{ request_id }} {% if x %}",
        "raw": "{% raw %}{{ x }}{% endraw %}{% endraw %}",
        "comment": "%(asctime)s {# a comment? #} %(message)s",
        "interpolation": "%d %% %(here)s $here ${here} $$ $(id) `id`",
        "quotes": """'single' "double" \\' \\" \\n \\\\ \\u0041""",
        "quoted": '"in quotes"',
        "unsafe": "!unsafe &anchor *alias {'a': 1} [1, 2] ---",
        "letters": "Ünïcode \N{GRINNING FACE} \N{GREEK SMALL LETTER ALPHA}",
        "semicolon": "a ; b # c",
        "code": "{{{ 6 * 7 }}} #{1} <%= 2 %> ${{ 3 }}",
    }


@pytest.fixture(params=["plain", "mitogen"])
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DISCOVERY_DEPLOY_ANSIBLE", str(request.param))
    return str(request.param)


def play(folder: Path, to: Path) -> None:
    """A playbook that writes all that has overrides in it as the roles do, but below `to`."""
    folder.mkdir()
    for name in ("callback_plugins", "library", "module_utils", "filter_plugins"):
        (folder / name).symlink_to(data_directory("playbooks") / name)
    (folder / "templates").mkdir()
    tasks = []
    for role in ROLES:
        place = data_directory("playbooks") / "roles" / role
        for template in (place / "templates").glob("*.conf.j2"):
            (folder / "templates" / template.name).symlink_to(template)
        for task in YAML(typ="safe").load((place / "tasks" / "deploy.yml").read_text()):
            for files in (*task.get("vars", {}).values(), task.get("write_files", {}).get("files")):
                if isinstance(files, list):
                    chosen = [file for file in files if "with_overrides" in file["content"]]
                    tasks += [
                        {
                            "name": "W",
                            "write_files": {"files": [{**one, "owner": "root", "path": f"{to}{one['path']}"}]},
                        }
                        for one in chosen
                    ]
    (folder / "trial.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))


def test_overrides_are_in_every_service_s_configuration_as_they_are_written(tmp_path: Path, strategy: str) -> None:
    ran = tmp_path / "ran-on-the-driver"
    wanted = {"{{6*7}}": texts(ran), "DEFAULT": {"{{o}}": "{{ 1 }}"}}
    asked = experiment(
        MARIADB, services=ALL, topology=TOPOLOGIES["centralized"],
        overrides=dict.fromkeys(ALL, wanted),
    )  # fmt: skip
    told = variables(asked, lease(asked), SECRETS, ENVIRONMENTS)
    mine = {name: value for values in told.hosts.values() for name, value in values.items()}
    mine["nova_compute_host"] = {"virt_type": "qemu"}
    workspace = tmp_path / "{{ 6 * 7 }} %d"
    (workspace / "logs").mkdir(parents=True)
    play(tmp_path / "playbooks", tmp_path / "host")
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    ansible.run_playbook(
        "trial", {"all": {"vars": here, "hosts": {"here": {}}, "children": {}}},
        Variables(shared=told.shared, hosts={"here": mine}), workspace / "logs", lambda line: None,
        playbooks=tmp_path / "playbooks",
    )  # fmt: skip
    assert not ran.exists()
    written = sorted(path for path in (tmp_path / "host").rglob("*") if path.is_file())
    assert {path.parent.name for path in written} == {role.replace("_", "-") for role in ROLES}
    for path in written:
        lines = path.read_text().split("\n")
        section = lines[lines.index("[{{6*7}}]") + 1 :]
        for option, value in texts(ran).items():
            assert f"{option} = {value}" in section, path
        assert "{{o}} = {{ 1 }}" in lines, path


def test_no_text_of_the_inventory_is_a_template() -> None:
    told = Variables(shared={"a": ["{{ x }}", {"b": "y", "n": 1}]}, hosts={"h": {"c": ("z", None, True)}})
    bare: dict[str, Any] = {"all": {"vars": {"v": "{{ w }}"}, "hosts": {"h": {"d": "{{ e }}"}}, "children": {}}}
    whole = with_variables(bare, told)
    assert whole["all"]["vars"] == {
        "v": {"__ansible_unsafe": "{{ w }}"},
        "a": [{"__ansible_unsafe": "{{ x }}"}, {"b": {"__ansible_unsafe": "y"}, "n": 1}],
    }
    assert whole["all"]["hosts"]["h"] == {
        "d": {"__ansible_unsafe": "{{ e }}"},
        "c": [{"__ansible_unsafe": "z"}, None, True],
    }


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ('{"__ansible_vault": {"a": 1}}', "is not the name of a section"),
        ('{"a": {"__ansible_unsafe": 1}}', "is not the name of an option"),
    ],
)
def test_names_that_mean_something_to_ansible_are_refused(tmp_path: Path, where: str, problem: str) -> None:
    file = tmp_path / "e.yaml"
    sites = "sites: [{name: a}, {name: b}]"
    overrides = f"overrides: {{keystone: {where}}}"
    file.write_text(f"name: x\n{sites}\ndeployment:\n  backend: {{type: mariadb, site: a}}\n  {overrides}\n")
    with pytest.raises(ExperimentError, match=problem):
        load(file)
