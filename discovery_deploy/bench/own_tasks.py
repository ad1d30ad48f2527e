"""Rally tasks that lie beside an experiment file: `task: ./tasks/create_user.yaml`, in the format of `rally_tasks/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from discovery_deploy.bench.rally import TaskTemplate
from discovery_deploy.experiment.documents import Document, NotYamlError
from discovery_deploy.experiment.fields import format_path

PREFIX = "./"
"""Begins the name of a task that is a file beside the experiment file."""
MOST_BYTES = 200_000


def names(data: Any) -> tuple[str, ...]:
    """Tasks of an experiment's plain data (which may be wrong elsewhere) that are files of its own."""
    asked = data.get("campaign") if isinstance(data, Mapping) else None
    scenarios = asked.get("scenarios") if isinstance(asked, Mapping) else None
    tasks = [one.get("task") for one in scenarios if isinstance(one, Mapping)] if isinstance(scenarios, list) else []
    return tuple(dict.fromkeys(task for task in tasks if isinstance(task, str) and task.startswith(PREFIX)))


def read(asked: Iterable[str], folder: Path) -> tuple[dict[str, TaskTemplate], dict[str, tuple[str, ...]]]:
    """Read tasks from files.

    Args:
        asked: as the experiment file names them.
        folder: of the experiment file.
    Returns:
        Name -> task, and name -> what is wrong with its file.
    """
    found: dict[str, TaskTemplate] = {}
    wrong: dict[str, tuple[str, ...]] = {}
    for name in asked:
        problems = _place_problem(name) or _content(name, folder, found)
        if problems:
            wrong[name] = problems
    return found, wrong


def _place_problem(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if ".." in path.parts or path.suffix != ".yaml" or any(not part.isprintable() for part in path.parts):
        return ('names no file beside this one; write for example "./tasks/create_user.yaml"',)
    return ()


def _content(name: str, folder: Path, found: dict[str, TaskTemplate]) -> tuple[str, ...]:
    """Put the task of a file into `found`; what is wrong with it, each with its place in that file."""
    file = folder / name
    try:
        if not file.is_file():
            return (f"{file}: no such file",)
        octets = file.read_bytes()
        if len(octets) > MOST_BYTES:
            return (f"{file}: is larger than {MOST_BYTES // 1000} kB",)
        document = Document(octets.decode("utf-8-sig"))
    except OSError as error:
        return (f"{file}: cannot be read: {(error.strerror or str(error)).lower()}",)
    except UnicodeDecodeError:
        return (f"{file}: is not UTF-8",)
    except NotYamlError as error:
        return tuple(f"{file}:{at.line}:{at.column}: {message}" for at, message in error.mistakes)
    told = [(at, f"{format_path(mistake.path)}: {mistake.message}") for at, mistake in document.placed_mistakes]
    data = document.data
    if isinstance(data, dict):
        data = {"name": name, **data}
    place = str(PurePosixPath(name).with_suffix(""))
    if isinstance(data, dict) and data["name"] not in (name, place):
        told.append((document.position(("name",)), f'name: is the file\'s place here, "{place}"'))
    try:
        found[name] = TaskTemplate.model_validate(data).model_copy(update={"name": name})
    except ValidationError as error:
        told += [(document.position(one["loc"]), f"{format_path(one['loc'])}: {one['msg']}") for one in error.errors()]
    if told:
        found.pop(name, None)
    return tuple(
        f"{file}:{line}:{column}: {message.removeprefix(': ')}" for (line, column), message in sorted(set(told))
    )
