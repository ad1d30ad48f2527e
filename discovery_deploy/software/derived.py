"""The environments that services run in: derived from the release's in seconds, with other projects or without.

A derived environment shares the files of the release's (hard links; what differs has files of its own), holds the
given projects in place of its own, compiled, a recorder that tells what processes load, and a manifest of all files
with hashes, so that hosts can prove what their services run. It is named by the hash of all that went into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from discovery_deploy.agent import code_recorder
from discovery_deploy.software import installed_code, stack
from discovery_deploy.software.patches.patch_series import REGULAR, SourceFile, Tree, canonical
from discovery_deploy.software.patches.sources import ProjectCode
from discovery_deploy.software.patches.trees import TreeError, write_tree
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.software.stack import HOST_DIRECTORY, HOST_PYTHON, Environment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import digest, made_once, write_file
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict

RECIPE = 1
"""Raise it when what is built from the same input changes."""
SITE = "lib/python3.11/site-packages"
MANIFEST = "manifest.json"
RECORDER = "discovery_deploy_recorder.py"
START = "discovery-deploy.pth"
_OWN = frozenset({"built.json", MANIFEST, "installed.json"})
"""Files at the top of an environment that are never shared with another."""
_PLAIN_BUILD = frozenset({"setuptools", "pbr", "wheel"})
"""Build requirements that the release's environment has (wheel is part of its setuptools)."""

BUILD_WHEEL = """\
cd "$PREFIX/source"
uv build --quiet --wheel $MODE --python "$OPENSTACK/bin/python" --out-dir "$PREFIX/wheel" .
rm -rf "$PREFIX/source"
"""
BUILD_ENVIRONMENT = f"""\
test -z "$WHEELS" || uv pip install --quiet --no-config --offline --no-index --no-deps --reinstall --link-mode copy \
    --python "$PREFIX/bin/python" $WHEELS
{HOST_PYTHON} -I /run/installed_code.py "$ASKED"
"""


class Manifest(Strict):
    """What a derived environment holds of its projects."""

    environment: str
    base: str
    projects: tuple[ProjectRecord, ...]
    packages: dict[str, tuple[str, ...]]
    """Project -> its top-level packages and modules."""
    files: dict[str, str]
    """Path relative to the environment -> SHA-256, of every file of the projects, compiled ones too."""
    rest: dict[str, str]
    """The same of every other file."""


def derived_name(base_hash: str, projects: Iterable[ProjectRecord]) -> str:
    """Name of the environment with these projects, known without building it."""
    kept = sorted((project.project, project.version, project.tree) for project in projects)
    recorder = hashlib.sha256(Path(code_recorder.__file__).read_bytes()).hexdigest()
    return f"openstack-{digest(RECIPE, base_hash, recorder, kept)}"


def wheel_name(base_hash: str, project: ProjectRecord) -> str:
    """Name of a project's wheel, built by the tools of a release's environment."""
    return f"{project.project}-{digest(RECIPE, base_hash, project.project, project.version, project.tree)}"


def hashes_name(environment: Path) -> str:
    """Name of the file with the hashes of a release's environment, as it is there now."""
    made = environment.stat()
    return f"{environment.name}-{made.st_ino:x}-{made.st_mtime_ns:x}.json"


def manifest_path(cache: Path, name: str) -> Path:
    """Where the manifest of an environment is in the cache."""
    return cache / "environments" / name / MANIFEST


def derived_environment(
    cache: Path, image: Path, base: Environment, projects: Sequence[ProjectCode], progress: Progress
) -> Environment:
    """The environment with these projects in place of the release's, built if not cached.

    Raises:
        TestbedError: a project cannot be built or compiled, or what is installed is not its code.
    """
    cache, image = cache.absolute(), image.absolute()
    records = [project.record for project in projects]
    name = derived_name(base.hash, records)
    target = cache / "environments" / name
    what = f"the environment with {', '.join(record.project for record in records) or 'the release'}"

    def build(partial: Path) -> None:
        wheels = [_wheel(cache, image, base, project, progress) for project in projects]
        progress(f"making {what}")
        source = cache / "environments" / base.name
        copy_shared(source, partial)
        move_scripts(partial, base.name, name)
        shutil.copyfile(code_recorder.__file__, partial / SITE / RECORDER)
        (partial / SITE / START).write_text(f"import {RECORDER.removesuffix('.py')}\n", encoding="utf-8")
        asked = {
            "prefix": str(HOST_DIRECTORY / name), "base": base.path, "site": SITE, "recorder": RECORDER, "start": START,
            "projects": [record.project for record in records],
        }  # fmt: skip
        inside = {wheel: Path("/run") / wheel.name for wheel in wheels}
        binds = {stack.uv_program(): Path("/usr/local/bin/uv"), source: Path(base.path), **inside}
        binds[Path(installed_code.__file__)] = Path("/run/installed_code.py")
        words = {"WHEELS": " ".join(map(str, inside.values())), "ASKED": json.dumps(asked), "UV_CACHE_DIR": "/run/uv"}
        stack.build_inside(cache, image, partial, name, BUILD_ENVIRONMENT, words, binds, progress)
        _write_manifest(cache, partial, name, base.name, projects)

    made_once(target, build, what, progress)
    versions = {**base.versions, **{record.project: record.version for record in records}}
    return Environment(name=name, hash=name.removeprefix("openstack-"), versions=versions)


def _write_manifest(cache: Path, partial: Path, name: str, base: str, projects: Sequence[ProjectCode]) -> None:
    """Turn what is installed into the manifest, if it is the projects' code. Raises TestbedError."""
    installed = json.loads((partial / "installed.json").read_text(encoding="utf-8"))
    (partial / "installed.json").unlink()
    for project in projects:
        strange = foreign_files(installed, project)
        if strange:
            raise TestbedError(
                f"{project.record.project}: what its build installs is not its source: {', '.join(strange[:5])}",
                "Projects whose build makes Python files cannot be proved; patch what they are made from, or leave it.",
            )
    manifest = Manifest(
        environment=name,
        base=base,
        projects=tuple(project.record for project in projects),
        packages=installed["packages"],
        files=installed["files"],
        rest=_hashes(partial, cache / "environments" / base, _base_hashes(cache, base), installed["files"]),
    )
    (partial / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")


def _base_hashes(cache: Path, base: str) -> dict[str, str]:
    """Hashes of all files of a release's environment, looked up or computed once."""
    known = cache / "sources" / hashes_name(cache / "environments" / base)
    try:
        found: dict[str, str] = json.loads(known.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = _hashes(cache / "environments" / base, None, {}, {})
        known.parent.mkdir(exist_ok=True)
        write_file(known, json.dumps(found))
    return found


def _hashes(
    environment: Path, base: Path | None, known: Mapping[str, str], without: Mapping[str, str]
) -> dict[str, str]:
    """Path -> SHA-256 of all files of an environment except some; that of a file shared with the base is known."""
    found = {}
    for folder, _, names in os.walk(environment):
        for name in names:
            path = Path(folder) / name
            inner = str(path.relative_to(environment))
            if path.is_symlink() or inner in without or inner in _OWN:
                continue
            if base is not None and inner in known and path.stat().st_ino == (base / inner).stat().st_ino:
                found[inner] = known[inner]
            else:
                found[inner] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def foreign_files(installed: dict[str, dict[str, object]], project: ProjectCode) -> list[str]:
    """Python files installed of a project whose content is that of no source file of that path. Pure."""
    tops = tuple(f"{SITE}/{name}" for name in _names(installed["packages"][project.record.project]))
    hashes: dict[str, set[str]] = {}
    for path, file in project.tree.items():
        if path.endswith(".py"):
            hashes.setdefault(path.rpartition("/")[2], set()).add(f"{hashlib.sha256(file.content).hexdigest()} {path}")
    strange = []
    for path, sha256 in installed["files"].items():
        if path.endswith(".py") and path.startswith(tops):
            inner = path.removeprefix(f"{SITE}/")
            known = (entry.split(" ", 1) for entry in hashes.get(inner.rpartition("/")[2], ()))
            if not any(found == sha256 and f"/{place}".endswith(f"/{inner}") for found, place in known):
                strange.append(inner)
    return strange


def _names(packages: object) -> list[str]:
    assert isinstance(packages, list)
    return [name + end for name in packages for end in ("/", ".py")]


def copy_shared(source: Path, target: Path) -> None:
    """Copy an environment: directories and links are made anew, files are shared except those in `bin`.

    Sharing is safe: nothing writes into files that are there, environments are only added to by replacing files.
    """
    for folder, folders, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir()
        for name in [*folders, *files]:
            old, new = Path(folder) / name, here / name
            if old.is_symlink():
                new.symlink_to(old.readlink())
            elif name in files and not (Path(folder) == source and name in _OWN):
                if Path(folder).name == "bin" or Path(folder) == source:
                    shutil.copy2(old, new)
                else:
                    _share(old, new)


def _share(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # another file system, or too many names
        shutil.copy2(old, new)


def move_scripts(environment: Path, old: str, new: str) -> None:
    """Let the programs of a copied environment name its own path."""
    for path in [*sorted((environment / "bin").iterdir()), environment / "pyvenv.cfg"]:
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if old.encode() in content:
                path.write_bytes(content.replace(old.encode(), new.encode()))


def _wheel(cache: Path, image: Path, base: Environment, project: ProjectCode, progress: Progress) -> Path:
    """A project's wheel, built inside the base image by the release's own tools if not cached. Raises TestbedError."""
    record = project.record
    target = cache / "wheels" / wheel_name(base.hash, record)

    def build(partial: Path) -> None:
        progress(f"building {record.project}")
        partial.mkdir()
        try:
            write_tree(with_file_list(project.tree, record.project, record.version), partial / "source")
        except TreeError as error:
            raise TestbedError(f"{record.project}: {error}", "Choose another source of it.") from error
        plain = build_requirements(project.tree) <= _PLAIN_BUILD
        downloads = cache / "downloads"
        binds = {stack.uv_program(): Path("/usr/local/bin/uv"), cache / "environments" / base.name: Path(base.path)}
        variables = build_variables(record, base.path, plain, os.environ)
        if not plain:
            downloads.mkdir(parents=True, exist_ok=True)
            binds[downloads] = Path("/run/downloads")
        stack.build_inside(cache, image, partial, target.name, BUILD_WHEEL, variables, binds, progress)

    made_once(target, build, f"the wheel of {record.project}", progress)
    return next((target / "wheel").glob("*.whl"))


def build_variables(project: ProjectRecord, tools: str, plain: bool, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment of the build of a wheel. Pure.

    Args:
        project: that is built.
        tools: path of the release's environment in the sandbox.
        plain: whether that has all that the build needs. Then the build is offline, and is not told how this machine
            reaches its package index: passwords are among that.
        environment: of this process.
    """
    return {
        **({} if plain else stack.index_variables(environment)),
        "OPENSTACK": tools,
        "MODE": "--no-build-isolation --offline --no-config" if plain else "",
        "UV_CACHE_DIR": "/run/downloads",
        "PBR_VERSION": project.version,
        "SETUPTOOLS_SCM_PRETEND_VERSION": project.version,
        "SKIP_GENERATE_AUTHORS": "1",
        "SKIP_WRITE_GIT_CHANGELOG": "1",
        "SOURCE_DATE_EPOCH": "315532800",
    }


def build_requirements(tree: Tree) -> set[str]:
    """What a project's build says it needs. Pure."""
    text = tree["pyproject.toml"].content.decode("utf-8", "replace") if "pyproject.toml" in tree else ""
    section = text.partition("[build-system]")[2].partition("\n[")[0]
    listed = re.search(r"^\s*requires\s*=\s*\[(.*?)\]", section, re.MULTILINE | re.DOTALL)
    return {name.lower() for name in re.findall(r"[\"']\s*([A-Za-z0-9._-]+)", listed[1])} if listed else set()


def with_file_list(tree: Tree, project: str, version: str) -> Tree:
    """A project's files as an sdist of pbr's has them: with metadata, and with a list that names every file.

    Without git, pbr installs the data files that the list names; that of an sdist lacks what a patch adds.
    """
    found = dict(tree)
    found.setdefault(
        "PKG-INFO",
        SourceFile(REGULAR, f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()),
    )
    if "setup.cfg" not in tree:
        return found
    listed = SourceFile(REGULAR, "".join(f"{path}\n" for path in sorted(tree)).encode())
    name = re.search(rb"^name\s*=\s*(\S+)", tree["setup.cfg"].content, re.MULTILINE)
    written = name[1].decode("utf-8", "replace") if name else project
    if canonical(written) != project:  # another distribution's, or no name at all but a path
        written = project
    spellings = {written, written.replace("-", "_"), re.sub(r"[-_.]+", "_", written), project}
    folders = {f"{spelling}.egg-info" for spelling in spellings}
    folders |= {path.split("/")[0] for path in tree if path.split("/")[0].endswith(".egg-info")}
    for folder in folders:
        found[f"{folder}/SOURCES.txt"] = listed
        found[f"{folder}/PKG-INFO"] = found["PKG-INFO"]
    return found
