"""Python and Ansible speak of the same variables: each is declared by a role, and each that a role needs is given."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from discovery_deploy.cloud import inventory, variables
from discovery_deploy.system.data import data_directory
from tests.leased import ALL, ENVIRONMENTS, GALERA, MARIADB, SECRETS, TOPOLOGIES, experiment, lease

ROLES = data_directory("playbooks") / "roles"
FILTERS = ROLES.parent / "filter_plugins/discovery.py"
NAMES = sorted(path.name for path in ROLES.iterdir())
VERBS = ("precheck", "install", "deploy", "collect", "destroy")
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "mariadb": {"backend": MARIADB},
    "galera": {"backend": GALERA},
    **{
        f"{name}-{backend['type']}": {
            "backend": backend,
            "services": ALL,
            "topology": topology,
            "computes": {"fake": 2, "libvirt": 1},
        }
        for name, topology in TOPOLOGIES.items()
        for backend in (MARIADB, GALERA)
    },
}
every_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
TYPES: dict[str, type] = {"str": str, "path": str, "int": int, "list": list, "dict": dict, "bool": bool}


@functools.cache
def specification(role: str) -> dict[str, Any]:
    """Verb -> its variables' specifications."""
    document = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())
    return {verb: entry["options"] for verb, entry in document["argument_specs"].items()}


def role_of(variable: str) -> str | None:
    """The role whose variable it is by its name."""
    return max((name for name in NAMES if variable.startswith(f"{name}_")), key=len, default=None)


def host_variables(deployment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Host -> every variable that it sees."""
    asked = experiment(**deployment)
    told = variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS)
    return {host: {**told.shared, **own} for host, own in told.hosts.items()}


def plays(deployment: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(role, verb, hosts) of everything that the playbooks do in one experiment."""
    asked = experiment(**deployment)
    groups = inventory.inventory(asked, lease(asked), Path("c"), Path("k"))["all"]["children"]
    members = {name: list(group["hosts"]) for name, group in groups.items()}
    members["all"] = [host.name for host in lease(asked).hosts]
    found = []
    for play in written_plays():
        pattern, _, place = play["hosts"].partition("[")
        hosts = members.get(pattern, [])
        hosts = hosts[int(place[:-1]) : int(place[:-1]) + 1] if place else hosts
        for task in play["tasks"]:
            role = task["ansible.builtin.import_role"]
            found.append((role["name"], role["tasks_from"], hosts))
    return found


@functools.cache
def written_plays() -> list[dict[str, Any]]:
    """The plays of all playbooks, in the order of the files' names."""
    return [play for path in sorted(ROLES.parent.glob("*.yml")) for play in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("role", NAMES)
def test_a_role_has_every_verb_and_declares_each(role: str) -> None:
    files = {path.stem for path in (ROLES / role / "tasks").iterdir()}
    assert set(VERBS) <= files
    assert files == set(specification(role))


@every_deployment
def test_every_variable_that_is_given_is_declared(deployment: dict[str, Any]) -> None:
    declared = {name for role in NAMES for options in specification(role).values() for name in options}
    given = {name for known in host_variables(deployment).values() for name in known}
    assert sorted(name for name in given - declared if role_of(name)) == []


@every_deployment
def test_every_variable_that_a_verb_needs_is_given_where_it_runs_with_its_type(deployment: dict[str, Any]) -> None:
    known = host_variables(deployment)
    wrong = []
    for role, verb, hosts in plays(deployment):
        for name, option in specification(role)[verb].items():
            for host in hosts:
                value = known[host].get(name)
                kind = TYPES[option["type"]]
                if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                    wrong.append(f"{role} {verb} on {host}: {name} is {value!r}, not {option['type']}")
    assert wrong == []


@every_deployment
def test_parts_of_list_entries_are_declared(deployment: dict[str, Any]) -> None:
    known = host_variables(deployment)
    for role, verb, hosts in plays(deployment):
        for name, option in specification(role)[verb].items():
            if option["type"] == "list" and option["elements"] == "dict":
                for host in hosts:
                    for entry in known[host][name]:
                        assert set(entry) == set(option["options"])


@pytest.mark.parametrize("role", NAMES)
def test_a_role_reads_no_variable_that_it_does_not_declare(role: str) -> None:
    options = specification(role)
    prefixes = "|".join(NAMES)
    for path in sorted((ROLES / role / "tasks").iterdir()):
        text = path.read_text()
        templates = re.findall(r"'([^']+\.j2)'", text)
        for template in templates:
            place = path.parent / template if "/" in template else ROLES / role / "templates" / template
            place = ROLES / "mariadb/templates" / Path(template).name if "/" in template else place
            text += " ".join(re.findall(r"{[{%].*?[%}]}", place.read_text(), re.DOTALL))
        local = set(re.findall(r"^\s+(?:register: )?(\w+?)(?::|$)", text, re.MULTILINE))
        local |= set(re.findall(r"register: (\w+)", text))
        used = set(re.findall(rf"\b(?:{prefixes})_[a-z_]+\b", re.sub(r"^\s*[\w-]+:$", "", text, flags=re.MULTILINE)))
        modules = {module.stem for module in (ROLES.parent / "library").glob("*.py")}
        filters = set(re.findall(r'^ +"(\w+)": \w+,$', FILTERS.read_text(), re.MULTILINE))
        assert used - local - modules - filters - set(options[path.stem]) == set(), path


def test_secrets_are_declared_as_such() -> None:
    for role in NAMES:
        for options in specification(role).values():
            for name, option in options.items():
                if re.search(r"password|_keys$|_database$|_broker$|_cookie$|_accounts$|_cells$", name):
                    assert option.get("no_log") is True, name


def test_every_role_and_verb_is_used_by_some_playbook() -> None:
    used = {(role, verb) for deployment in DEPLOYMENTS.values() for role, verb, _ in plays(deployment)}
    declared = {(role, verb) for role in NAMES for verb in specification(role)}
    # destroying Galera's member removes MariaDB's data and configuration too
    assert declared - used == {("mariadb", "destroy")}
