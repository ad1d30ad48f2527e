"""Whatever roles make on a host, provider `static` knows to remove: nothing is forgotten when a role changes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from discovery_deploy.agent import host_environments
from discovery_deploy.bench import bench
from discovery_deploy.cloud import variables
from discovery_deploy.software import stack
from discovery_deploy.software.traces import Traces, is_below, traces
from discovery_deploy.system import agents
from discovery_deploy.system.data import data_directory

PLAYBOOKS = data_directory("playbooks")
ROLES = sorted((PLAYBOOKS / "roles").iterdir())
KNOWN = traces(PLAYBOOKS)
PLACES = (*KNOWN.paths, *KNOWN.contents)


def text_of(role: Path) -> str:
    """What a role does to a host and undoes, with the variables in it that matter here."""
    text = "\n".join((role / "tasks" / f"{verb}.yml").read_text() for verb in ("install", "deploy", "destroy"))
    return text.replace("{{ rally_directory }}", variables.RALLY_DIRECTORY).replace("{{ inventory_hostname }}", "*")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_path_that_a_role_writes_or_removes_is_known(role: Path) -> None:
    named = set(re.findall(r"^ *- path: \"?([^\"\n]+)", text_of(role), re.MULTILINE))
    for line in re.findall(r"^ +(?:paths|contents): \[(.*)\]", text_of(role), re.MULTILINE):
        named |= {word.strip(' "') for word in line.split(",")}
    named |= set(re.findall(r"^ +- \"?(/[^\"\n]+)", text_of(role), re.MULTILINE))
    assert [path for path in sorted(named) if not is_below(path, PLACES)] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_unit_that_a_role_writes_starts_or_stops_is_known(role: Path) -> None:
    named = set(re.findall(r"([\w-]+@?\*?\.(?:service|socket))\b(?!\.j2|\.d)", text_of(role)))
    named = {name.replace("@.", "@*.") for name in named}
    assert named - set(KNOWN.units) == set()


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_directory_that_systemd_makes_for_a_unit_is_known(role: Path) -> None:
    for template in (role / "templates").glob("*.service.j2"):
        text = template.read_text()
        for line in re.findall(r"^StateDirectory=(.*)", text, re.MULTILINE):
            for name in line.split():
                assert is_below(f"/var/lib/{name}", PLACES), f"{template.name}: {name}"
        if "RuntimeDirectoryPreserve=yes" in text:
            for name in re.findall(r"^RuntimeDirectory=(.*)", text, re.MULTILINE):
                assert f"/run/{name}" in KNOWN.contents, f"{template.name}: {name}"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_user_under_whom_a_unit_runs_is_a_role_s_or_a_package_s(role: Path) -> None:
    texts = [path.read_text() for path in (role / "templates").glob("*.service.j2")]
    users = set(re.findall(r"^(?:User|Group)=(\w+)", "\n".join(texts), re.MULTILINE))
    assert users <= {*KNOWN.users, "mysql", "rabbitmq"}


def test_users_are_those_of_the_roles() -> None:
    users = set()
    for role in ROLES:
        for task in yaml.safe_load((role / "tasks/install.yml").read_text()) or []:
            users |= {task["ansible.builtin.user"]["name"]} if "ansible.builtin.user" in task else set()
    assert set(KNOWN.users) == users >= {"keystone", "nova"}


def test_what_a_switch_leaves_is_what_its_role_removes() -> None:
    module = ast.parse((PLAYBOOKS / "library/open_vswitch_state.py").read_text())
    removes = next(part for part in module.body if isinstance(part, ast.FunctionDef) and part.name == "remove")
    texts = {part.value for part in ast.walk(removes) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    bridges = next(
        part.value
        for part in module.body
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) and part.targets[0].id == "BRIDGES"
    )
    named = {*ast.literal_eval(bridges), *(text for text in texts if re.fullmatch(r"(br|ovs|tunnel)-\w+", text))}
    assert set(KNOWN.interfaces) == named
    assert {f"/run/netns/{name}" for name in KNOWN.namespaces} <= texts
    assert all(any(f"table ip {table}" in text for text in texts) for table in KNOWN.tables)


def test_what_the_driver_itself_puts_on_hosts_is_known() -> None:
    assert is_below(bench.REMOTE_RUNS, PLACES)
    assert is_below(str(agents.HOSTS_HOME), PLACES)
    assert is_below(str(stack.HOST_DIRECTORY), PLACES)
    assert {str(host_environments.ENVIRONMENTS), str(host_environments.LISTS)} <= set(KNOWN.paths)
    assert KNOWN.programs == (str(stack.HOST_DIRECTORY),)


def made_role(folder: Path, **verbs: str) -> Path:
    for verb in ("install", "deploy", "destroy"):
        path = folder / "roles/one/tasks" / f"{verb}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(verbs.get(verb, "---\n"))
    return folder


def test_a_file_that_a_role_writes_and_never_removes_is_a_trace_too(tmp_path: Path) -> None:
    text = "- write_files:\n    files:\n      - {path: /etc/one/a.conf, content: x}\n"
    text += "      - {path: /etc/two, content: x}\n"
    text += '      - {path: "/etc/systemd/system/x@{{ inventory_hostname }}.service.d/more.conf", content: x}\n'
    found: Traces = traces(made_role(tmp_path, deploy=text, destroy="- gone:\n    paths: [/etc/one]\n"))
    assert {"/etc/one", "/etc/two", "/etc/systemd/system/x@*.service.d"} <= set(found.paths)
    assert "/etc/one/a.conf" not in found.paths


def test_a_path_by_a_variable_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing says what secret_directory is on hosts"):
        traces(made_role(tmp_path, destroy='- gone:\n    paths: ["{{ secret_directory }}/x"]\n'))
