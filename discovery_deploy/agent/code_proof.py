"""Which code do the services of this host run? A verb of the agent. Standard library only.

The request: {"environments": {path: SHA-256 of its manifest}, "services": {name: path of its
environment}}; the result: {"problems": [text...], "projects", "processes", "modules", "files"}.

What is compared, for each unit whose name begins with a service's name (`nova` for `nova-conductor.service`):

* processes (all in the unit's control group): libraries that they have mapped lie in the service's environment and in
  no other, as the kernel tells it;
* what they loaded: each has reported its environment and, by path and hash, every file of Python code that it read
  (`code_recorder`); outside Python's own library that is what the manifest says;
* files on the host against the manifest: those of the projects (nothing may be added there), the environment's
  programs, and whatever was loaded or mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from discovery_deploy.agent.conversation import Conversation

RECORDER = "/memfd:discovery-deploy-code"
"""What the files lead to in which processes report (`code_recorder.NAME`)."""
ENVIRONMENTS = "/opt/discovery-deploy/openstack-"
"""How the paths of all OpenStack environments begin."""
STARTING = ("bin/", "pyvenv.cfg")
"""How the paths of files begin that are compared although no import reads them, as are `.pth` files."""
MOST_TOLD = 5
"""Files that are named of those that are not as they should be."""


def sha256_of(path: str) -> str:
    """Hash of a file; "missing" when it is not there."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
    return ", ".join(names[:MOST_TOLD]) + more


class Environment:
    """An environment on the host, and its manifest."""

    def __init__(self, path: str, manifest_sha256: str) -> None:
        self.path, self.sha256 = path, manifest_sha256
        self.manifest: dict[str, Any] | None = None
        self.files: dict[str, str] = {}
        """Path relative to the environment -> SHA-256."""
        self.compared: set[str] = set()

    def problems(self) -> list[str]:
        """Compare the manifest with its hash, and the files that count whatever is loaded with the manifest."""
        file = f"{self.path}/manifest.json"
        if sha256_of(file) != self.sha256:
            return [f"{file}: is not the manifest of this environment"]
        self.manifest = manifest = json.loads(Path(file).read_text(encoding="utf-8"))
        self.files = {**manifest["rest"], **manifest["files"]}
        wanted = set(manifest["files"])
        wanted |= {name for name in manifest["rest"] if name.startswith(STARTING) or name.endswith(".pth")}
        found = self.changed(wanted)
        added = sorted(name for name in self.present() if name not in self.files)
        if added:
            found.append(f"{self.path}: added after it was made: {some(added)}")
        return found

    def changed(self, names: set[str]) -> list[str]:
        """Compare files with the manifest that were not compared before."""
        todo = sorted(name for name in names - self.compared if name in self.files)
        self.compared.update(todo)
        changed = [name for name in todo if sha256_of(f"{self.path}/{name}") != self.files[name]]
        return [f"{self.path}: changed after it was made: {some(changed)}"] if changed else []

    def present(self) -> Iterator[str]:
        """Every file in the projects' packages, relative to the environment."""
        assert self.manifest is not None
        tops = {top for names in self.manifest["packages"].values() for top in names}
        sites = {name.split("/site-packages/")[0] for name in self.manifest["files"] if "/site-packages/" in name}
        for site in sites:
            for top in tops:
                for folder, _, names in os.walk(f"{self.path}/{site}/site-packages/{top}"):
                    start = folder[len(self.path) + 1 :]
                    yield from (f"{start}/{name}" for name in names)


class Process:
    """A process of a unit."""

    def __init__(self, pid: int, unit: str) -> None:
        self.pid, self.unit = pid, unit

    def link(self, name: str) -> str:
        """Where one of its links in /proc leads; "" when it is gone."""
        try:
            return str(Path(f"/proc/{self.pid}/{name}").readlink())
        except OSError:
            return ""

    @property
    def is_python(self) -> bool:
        """Whether it is a Python program; others (programs such as a shell) load no modules."""
        return Path(self.link("exe")).name.startswith(("python", "uwsgi"))

    def mapped(self) -> set[str]:
        """Files of OpenStack environments that it has mapped: compiled libraries."""
        found = set()
        try:
            with Path(f"/proc/{self.pid}/maps").open(encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    place = line.find(ENVIRONMENTS)
                    if place >= 0:
                        found.add(line[place:].rstrip("\n"))
        except OSError:
            pass
        return found

    def reports(self) -> list[dict[str, Any]]:
        """What it, and those that it was forked from, have reported."""
        found: list[dict[str, Any]] = []
        try:
            names = [path.name for path in Path(f"/proc/{self.pid}/fd").iterdir()]
        except OSError:
            return []
        for name in names:
            if self.link(f"fd/{name}").startswith(RECORDER):
                try:
                    text = Path(f"/proc/{self.pid}/fd/{name}").read_text(encoding="utf-8")
                    found += [json.loads(line) for line in text.splitlines()]
                except (OSError, ValueError) as error:
                    found.append({"damaged": str(error)})
        return found


def unit_of(pid: int) -> str:
    """The systemd service that a process belongs to, by its control group; "" for none."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    parts = [part for line in lines for part in line.split(":", 2)[2].split("/")]
    return next((part for part in parts if part.endswith(".service")), "")


def processes() -> Iterator[Process]:
    """Every process of the host, with its unit."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            yield Process(int(path.name), unit_of(int(path.name)))


def service_of(unit: str, services: list[str]) -> str:
    """The service that a unit belongs to: the longest that its name begins with; "" for none."""
    stem = unit[: -len(".service")]
    fitting = [name for name in services if stem == name or stem.startswith((f"{name}-", f"{name}@", f"{name}_"))]
    return max(fitting, key=len, default="")


def loaded_problems(process: Process, environment: Environment) -> tuple[list[str], set[str]]:
    """What is wrong with what a process reported, and the files that it loaded."""
    who = f"{process.unit}: process {process.pid}"
    reports = process.reports()
    homes = {report["environment"] for report in reports if "environment" in report}
    if not homes:
        return [f"{who}: was not started from {environment.path}: it reports nothing"], set()
    if homes != {environment.path}:
        others = ", ".join(sorted(homes - {environment.path}))
        return [f"{who}: was started from {others}, not from {environment.path}"], set()
    problems = []
    if any("damaged" in report for report in reports):
        problems.append(f"{who}: its report cannot be read")
    wrong: set[str] = set()
    loaded = set()
    for report in reports:
        if "module" not in report:
            continue
        path = report["path"]
        name = path[len(environment.path) + 1 :] if path.startswith(environment.path + "/") else ""
        if environment.files.get(name) == report["sha256"]:
            loaded.add(name)
        elif name not in environment.files:
            wrong.add(f"{report['module']} from {path}")
        else:
            wrong.add(f"{report['module']} from a {path} with another content")
    if wrong:
        problems.append(f"{who}: loaded {some(sorted(wrong))}")
    return problems, loaded


def prove(asked: dict[str, Any]) -> dict[str, Any]:
    """Look at everything."""
    environments = {path: Environment(path, sha256) for path, sha256 in asked["environments"].items()}
    problems = [problem for environment in environments.values() for problem in environment.problems()]
    services: dict[str, str] = asked["services"]
    seen: dict[str, int] = dict.fromkeys(services, 0)
    projects: dict[str, str] = {}
    modules: set[tuple[str, str]] = set()
    for process in processes():
        service = service_of(process.unit, list(services))
        if not service or not process.is_python:
            continue
        environment = environments[services[service]]
        if environment.manifest is None:  # told already
            seen[service] += 1
            continue
        mapped = process.mapped()
        found, loaded = loaded_problems(process, environment)
        if not process.link("exe"):  # it has ended meanwhile
            continue
        seen[service] += 1
        homes = {"/".join(path.split("/")[:4]) for path in mapped}
        problems += [
            f"{process.unit}: process {process.pid}: runs code of {other}, not of {environment.path}"
            for other in sorted(homes - {environment.path})
        ]
        problems += found
        own = {path[len(environment.path) + 1 :] for path in mapped if path.startswith(environment.path + "/")}
        problems += environment.changed(loaded | own)
        modules |= {(service, name) for name in loaded}
        for project in environment.manifest["projects"]:
            projects[f"{process.unit} {project['project']}"] = project["tree"]
    problems += [f"{service}: no process of it runs" for service, count in seen.items() if not count]
    files = sum(len(one.compared) for one in environments.values())
    return {
        "problems": problems,
        "projects": projects,
        "processes": sum(seen.values()),
        "modules": len(modules),
        "files": files,
    }


def code(request: dict[str, Any], talk: Conversation) -> dict[str, Any]:
    """Verb of the agent: as `prove`."""
    return prove(request)
