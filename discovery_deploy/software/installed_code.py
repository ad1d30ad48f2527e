"""Run inside the base image, after projects were installed into an environment: compiles them, says what is there.

`python3 installed_code.py SPECIFICATION`: {"prefix", "base": another environment or "", "site": site-packages relative
to both, "projects": [name...], "recorder" and "start": files in it}. Compiled files are copied from the other
environment where the source is the same there. Writes `installed.json` into the environment: {"files": {path: sha256},
"packages": {project: [top-level name...]}}; paths are relative to the environment.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import py_compile
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MANY = 100
"""Files to compile from which on all processors are used."""


def compiled_path(source: Path) -> Path:
    """Where Python looks for the compiled form of a source file."""
    return Path(importlib.util.cache_from_source(str(source)))


def compile_file(source: str) -> str | None:
    """Compile a file such that Python never looks at its source again; why it cannot be, or None."""
    target = compiled_path(Path(source))
    target.parent.mkdir(exist_ok=True)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(source, cfile=str(target), doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError as error:
        return str(error.msg).strip()
    return None


def take_from_base(source: Path, base: Path | None) -> bool:
    """Take the compiled form of an equal file of another environment, if it has one. Whether nothing is left to do."""
    if base is None or not base.is_file() or base.read_bytes() != source.read_bytes():
        return False
    compiled, target = compiled_path(base), compiled_path(source)
    target.unlink(missing_ok=True)  # it may be the base's own file, under a second name
    if compiled.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(compiled, target)
    return True  # what the base could not compile (a template, say) need not be


def project_files(site: Path, project: str) -> list[Path]:
    """Every file of an installed project, by its own record."""
    found = importlib.metadata.Distribution.discover(name=project, path=[str(site)])
    files = next(iter(found)).files or []
    return sorted({Path(os.path.normpath(site / str(file))) for file in files})


def compile_all(sources: list[Path], site: Path, base_site: Path | None) -> None:
    """The compiled form of every source file. Exits with the mistake of each that cannot be compiled."""
    todo = []
    for source in sources:
        base = base_site / source.relative_to(site) if base_site else None
        if not take_from_base(source, base):
            todo.append(str(source))
    if len(todo) < MANY:
        problems = [compile_file(source) for source in todo]
    else:
        with ProcessPoolExecutor() as pool:
            problems = list(pool.map(compile_file, todo, chunksize=20))
    told = [problem for problem in problems if problem]
    if told:
        sys.exit("\n".join(told))
    print(f"I: compiled {len(todo)} files, {len(sources) - len(todo)} were compiled already")


def remove_stale(folders: set[Path], files: set[Path]) -> None:
    """Remove what lies in the projects' packages and is not theirs: compiled forms of files that are no more."""
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file() and path not in files:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def main() -> None:
    """Compile, tidy up, and write what is there."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    prefix, site = Path(asked["prefix"]), Path(asked["prefix"]) / asked["site"]
    base_site = Path(asked["base"]) / asked["site"] if asked["base"] else None
    files: set[Path] = set()
    packages: dict[str, list[str]] = {}
    folders: set[Path] = set()
    for project in asked["projects"]:
        own = [path for path in project_files(site, project) if path.suffix != ".pyc"]
        files.update(own)
        sources = [path for path in own if path.suffix == ".py" and site in path.parents]
        compile_all(sources, site, base_site)
        files.update(path for path in map(compiled_path, sources) if path.is_file())
        tops = {path.relative_to(site).parts[0] for path in sources}
        packages[project] = sorted(top.removesuffix(".py") for top in tops)
        folders |= {site / top for top in tops if (site / top).is_dir()}
    remove_stale(folders, files)
    recorder = site / asked["recorder"]
    problem = compile_file(str(recorder))
    if problem:
        sys.exit(problem)
    files |= {recorder, compiled_path(recorder), site / asked["start"]}
    hashes = {
        str(path.relative_to(prefix)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file() and prefix in path.parents
    }
    (prefix / "installed.json").write_text(json.dumps({"files": hashes, "packages": packages}), encoding="utf-8")


if __name__ == "__main__":
    main()
