"""Reads experiment files: all mistakes at once, each with its place in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from discovery_deploy.experiment import campaign_mistakes, mistakes
from discovery_deploy.experiment.campaign_mistakes import TaskTemplate
from discovery_deploy.experiment.documents import Document, NotYamlError, Position
from discovery_deploy.experiment.fields import format_path
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.wording import shown
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.system.mistake import Mistake

_ADVICE = "Correct it; `discovery-deploy new NAME` makes an example in which every key is explained."
_TEMPLATE_NAME = "my-experiment"


def load(path: Path, tasks: Mapping[str, TaskTemplate] | None = None) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: the file.
        tasks: the Rally tasks there are, by name ("keystone/create_and_list_users"); None leaves tasks unchecked.
    Raises:
        ExperimentError: the file cannot be read, or something in it is wrong; `what` tells every mistake, one a line.
    """
    return parse(read_text(path), str(path), tasks)


def read_text(path: Path, kind: str = "an experiment file") -> str:
    """Text of a file that a person gave.

    Args:
        path: the file.
        kind: what it should be, in messages.
    Raises:
        ExperimentError: missing, a directory, not readable, not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file", f"Give the path of {kind}.") from None
    except IsADirectoryError:
        raise ExperimentError(f"{path}: is a directory", f"Give the path of {kind}.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExperimentError(f"{path}: cannot be read: {reason}", f"Give the path of {kind}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        what = f"{path}:{line}:{column}: the byte 0x{content[error.start]:02x} is not UTF-8"
        raise ExperimentError(what, "Save the file as UTF-8.") from error


def parse(
    text: str,
    file: str,
    tasks: Mapping[str, TaskTemplate] | None = None,
    wrong_tasks: Mapping[str, Sequence[str]] | None = None,
) -> Experiment:
    """Check the text of an experiment file.

    Args:
        text: what the file holds.
        file: its name in messages.
        tasks: as for `load`.
        wrong_tasks: name of a task that is a file of its own -> what is wrong with that.
    Raises:
        ExperimentError: as for `load`.
    """
    document = composed(text, file)
    experiment, found = mistakes.find(document.data, [mistake.path for mistake in document.mistakes])
    found += campaign_mistakes.find(document.data, tasks, wrong_tasks or {})
    if experiment is not None and not found:
        found += campaign_mistakes.find_equal_levels(experiment)
    placed = document.placed_mistakes + [(document.position(mistake.path), mistake) for mistake in found]
    if placed or experiment is None:
        raise _refusal(file, [(position, _told(mistake)) for position, mistake in placed])
    return experiment


def composed(text: str, file: str, kind: str = "an experiment file", advice: str = _ADVICE) -> Document:
    """The text of a file that holds keys with values; duplicate keys and tags are not told yet.

    Args:
        text: what the file holds.
        file: its name in messages.
        kind: what it should be, in messages: "an experiment file".
        advice: what to do about mistakes.
    Raises:
        ExperimentError: not YAML (every mistake), empty, or something else than keys with values.
    """
    try:
        document = Document(text)
    except NotYamlError as error:
        raise _refusal(file, [(mistake.position, mistake.message) for mistake in error.mistakes], advice) from error
    if document.data is None:
        raise ExperimentError(f"{file}: is empty", advice)
    if not isinstance(document.data, dict):
        told = f"{kind} holds keys with values, not {shown(document.data)}"
        raise _refusal(file, [(document.position(()), told)], advice)
    return document


def refusal(file: str, placed: Iterable[tuple[Position, Mistake]], advice: str = _ADVICE) -> ExperimentError:
    """The error that tells mistakes of a file that is YAML, found after it was read, each at its place."""
    return _refusal(file, [(position, _told(mistake)) for position, mistake in placed], advice)


def _told(mistake: Mistake) -> str:
    return f"{format_path(mistake.path)}: {mistake.message}" if mistake.path else mistake.message


def _refusal(file: str, placed: list[tuple[Position, str]], advice: str = _ADVICE) -> ExperimentError:
    lines = [f"{file}:{line}:{column}: {told}" for (line, column), told in sorted(set(placed))]
    return ExperimentError("\n".join(lines), advice)


def template(name: str) -> str:
    """Text of a commented experiment file for a new experiment.

    Raises:
        ExperimentError: the name cannot be an experiment's.
    """
    text = (data_directory("experiments") / "template.yaml").read_text(encoding="utf-8")
    text = text.replace(f"name: {_TEMPLATE_NAME}\n", f"name: {name}\n", 1)
    try:
        parse(text, "experiment.yaml")
    except ExperimentError as error:
        what = error.what.split("name: ", 1)[-1]
        raise ExperimentError(f"the name of the experiment: {what}", "Choose another name.") from error
    return text
