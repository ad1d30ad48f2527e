"""What processes report of the code that they load, and what a host makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import code_proof, code_recorder

SITE = "lib/python3.11/site-packages"
UNIT = "demo-api.service"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment with a project `demo` of two modules, and its manifest."""
    package = tmp_path / "openstack-aa" / SITE / "demo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "api.py").write_text("VALUE = 1\n")
    root = tmp_path / "openstack-aa"
    files = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in package.glob("*.py")
    }
    projects = [{"project": "demo", "tree": "hash-of-demo"}]
    (root / "bin").mkdir()
    (root / "bin" / "demo").write_text("#!python\n")
    (package.parent / "library.py").write_text("")
    others = [root / "bin/demo", package.parent / "library.py"]
    rest = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
    manifest = {"projects": projects, "packages": {"demo": ["demo"]}, "files": files, "rest": rest}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def manifest_hash(environment: Path) -> str:
    return hashlib.sha256((environment / "manifest.json").read_bytes()).hexdigest()


def looked_at(environment: Path) -> tuple[code_proof.Environment, list[str]]:
    found = code_proof.Environment(str(environment), manifest_hash(environment))
    return found, found.problems()


PROGRAM = """
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, {recorder!r})
import code_recorder
sys.prefix = {prefix!r}
code_recorder.install({library!r})
sys.path.insert(0, {site!r})
{body}
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def running(environment: Path, body: str, site: Path | None = None, prefix: Path | None = None) -> Iterator[int]:
    """A process with the recorder; its number."""
    recorder = str(Path(code_recorder.__file__).parent)
    where = str(site or environment / SITE)
    program = PROGRAM.format(
        recorder=recorder,
        library=str(Path(os.__file__).parent),
        prefix=str(prefix or environment),
        site=where,
        body=body,
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        yield int(process.stdout.readline())
        process.stdin.close()


def loaded(environment: Path, pid: int) -> tuple[list[str], set[str]]:
    found, problems = looked_at(environment)
    assert problems == []
    told, names = code_proof.loaded_problems(code_proof.Process(pid, UNIT), found)
    return [text.replace(str(pid), "PID") for text in told], names


def test_a_process_reports_what_it_loads_of_the_projects(environment: Path) -> None:
    with running(environment, "import json.tool, demo.api") as pid:
        assert loaded(environment, pid) == ([], {f"{SITE}/demo/__init__.py", f"{SITE}/demo/api.py"})


def test_what_is_loaded_later_and_by_children_is_reported_too(environment: Path) -> None:
    body = "import demo\nif os.fork():\n    os.wait()\nelse:\n    import demo.api\n    os._exit(0)"
    with running(environment, body) as pid:
        assert f"{SITE}/demo/api.py" in loaded(environment, pid)[1]
    with running(environment, "import demo.api\npid = os.fork()\nif pid: os._exit(0)") as child:
        assert f"{SITE}/demo/api.py" in loaded(environment, child)[1], "a forked child shows what its parent loaded"


def test_a_module_from_another_path_is_found(environment: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "demo").mkdir(parents=True)
    (other / "demo" / "__init__.py").write_text("")
    with running(environment, "import demo", site=other) as pid:
        told, _ = loaded(environment, pid)
    assert told == [f"{UNIT}: process PID: loaded demo from {other}/demo/__init__.py"]


def test_a_file_that_was_changed_loaded_and_put_back_is_found(environment: Path) -> None:
    module = environment / SITE / "demo" / "api.py"
    before = module.read_text()
    module.write_text("VALUE = 2\n")
    with running(environment, "import demo.api") as pid:
        module.write_text(before)
        told, _ = loaded(environment, pid)
    assert told == [f"{UNIT}: process PID: loaded demo.api from a {module} with another content"]


def test_another_environment_and_a_process_that_reports_nothing_are_found(environment: Path, tmp_path: Path) -> None:
    with running(environment, "import demo", prefix=tmp_path / "openstack-bb") as pid:
        told, _ = loaded(environment, pid)
    assert told == [f"{UNIT}: process PID: was started from {tmp_path}/openstack-bb, not from {environment}"]
    told, _ = loaded(environment, os.getpid())
    assert told == [f"{UNIT}: process PID: was not started from {environment}: it reports nothing"]


def test_files_that_were_changed_removed_and_added_are_named(environment: Path) -> None:
    package = environment / SITE / "demo"
    (package / "api.py").write_text("VALUE = 2\n")
    (package / "__init__.py").unlink()
    (package / "more.py").write_text("")
    assert looked_at(environment)[1] == [
        f"{environment}: changed after it was made: {SITE}/demo/__init__.py, {SITE}/demo/api.py",
        f"{environment}: added after it was made: {SITE}/demo/more.py",
    ]


def test_other_files_count_when_they_start_programs_or_were_loaded(environment: Path) -> None:
    (environment / "bin/demo").write_text("#!other\n")
    library = environment / SITE / "library.py"
    with running(environment, "import library") as pid:
        library.write_text("changed = 1\n")
        found, problems = looked_at(environment)
        told, names = code_proof.loaded_problems(code_proof.Process(pid, UNIT), found)
    assert problems == [f"{environment}: changed after it was made: bin/demo"]
    assert told == []
    assert found.changed(names) == [f"{environment}: changed after it was made: {SITE}/library.py"]
    assert found.changed(names) == [], "each file is told once"


def test_a_module_of_no_environment_is_found(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    with running(environment, "import mine", site=tmp_path) as pid:
        assert loaded(environment, pid)[0] == [f"{UNIT}: process PID: loaded mine from {tmp_path}/mine.py"]


def test_a_link_to_a_file_of_the_hosts_own_python_is_that_file(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mine.py").symlink_to(Path(os.__file__).parent / "this.py")
    with running(environment, "sys.stdout, real = open(os.devnull, 'w'), sys.stdout\nimport mine\nsys.stdout = real",
                 site=tmp_path / "linked") as pid:  # fmt: skip
        assert loaded(environment, pid)[0] == []


def test_a_manifest_that_is_not_the_expected_one_is_found(environment: Path) -> None:
    expected = manifest_hash(environment)
    (environment / "manifest.json").write_text("{}")
    problems = code_proof.Environment(str(environment), expected).problems()
    assert problems == [f"{environment}/manifest.json: is not the manifest of this environment"]


@pytest.mark.parametrize(
    ("unit", "service"),
    [
        ("nova-api.service", "nova"),
        ("nova.service", "nova"),
        ("nova-compute@a-fake-1.service", "nova"),
        ("novac.service", ""),
        ("neutron.service", "neutron"),
        ("mariadb.service", ""),
    ],
)
def test_units_belong_to_services_by_name(unit: str, service: str) -> None:
    assert code_proof.service_of(unit, ["keystone", "nova", "neutron"]) == service


def test_a_service_without_a_process_is_a_problem(environment: Path) -> None:
    asked: dict[str, Any] = {
        "environments": {str(environment): manifest_hash(environment)},
        "services": {"demo-that-nobody-runs": str(environment)},
    }
    found = code_proof.prove(asked)
    assert found["problems"] == ["demo-that-nobody-runs: no process of it runs"]
    assert (found["processes"], found["files"]) == (0, 3)
