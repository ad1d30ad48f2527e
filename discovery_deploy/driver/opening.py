"""From what a person names (a file, a name, or nothing) to an experiment and its workspace."""

from __future__ import annotations

from pathlib import Path

from discovery_deploy.agent.names import is_name
from discovery_deploy.bench import campaign, own_tasks, rally
from discovery_deploy.experiment import config
from discovery_deploy.experiment.documents import Document
from discovery_deploy.experiment.fields import parse_path
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import stack
from discovery_deploy.software.patches import sources
from discovery_deploy.software.patches.sources import Resolver, SourcesError
from discovery_deploy.system import workspace as workspaces
from discovery_deploy.system.errors import ExperimentError, StateError
from discovery_deploy.system.files import write_file
from discovery_deploy.system.mistake import Mistake, Place
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict
from discovery_deploy.system.workspace import Workspace, is_workspace, refuse_path, results_directory

COPY = "experiment.yaml"
"""The workspace keeps the experiment file as it was at the last run."""
OWN_TASKS = "own-tasks"
"""Folder of a workspace with the Rally tasks that lay beside the experiment file."""


class Opened(Strict):
    """An experiment that passed `check`, with its text."""

    experiment: Experiment
    source: str
    path: Path
    tasks: dict[str, rally.TaskTemplate] = {}
    """Rally tasks there are, by name: the package's, and those that lie beside the file."""


def open_experiment(path: Path) -> Opened:
    """Read and check an experiment file. Raises ExperimentError with all mistakes."""
    source = config.read_text(path)
    own, wrong = own_tasks.read(own_tasks.names(config.composed(source, str(path)).data), path.parent)
    tasks = {**rally.load_tasks(), **own}
    return Opened(experiment=config.parse(source, str(path), tasks, wrong), source=source, path=path, tasks=tasks)


def check_code(opened: Opened, resolver: Resolver) -> None:
    """Fetch and patch the projects of every setting, so that what is wrong with them is told before anything is done.

    Raises:
        ExperimentError: every mistake, at its place in the experiment file; those of patches also at theirs.
    """
    found: dict[Mistake, None] = {}
    for setting in campaign.settings(opened.experiment):
        try:
            resolver(setting.experiment.deployment)
        except SourcesError as error:
            for mistake in error.mistakes:
                found[Mistake(_written_at(opened.experiment, setting, mistake.path), mistake.message)] = None
    if found:
        position = Document(opened.source).position
        raise config.refusal(str(opened.path), [(position(mistake.path), mistake) for mistake in found])


def _written_at(experiment: Experiment, setting: campaign.Setting, place: Place) -> Place:
    """Where the file says what a setting has at a place: in the level of a factor, or there."""
    for index, factor in enumerate(experiment.campaign.factors):
        varied = parse_path(factor.path)
        if place[: len(varied)] == varied:
            level = factor.levels.index(setting.record.values[factor.path])
            return ("campaign", "factors", index, "levels", level, *place[len(varied) :])
    return place


def code_resolver(opened: Opened, progress: Progress) -> Resolver:
    """Finds the code of a deployment's projects; relative paths begin at the experiment file."""
    return sources.remembered(opened.path.parent, stack.cache_directory(), progress)


def size(experiment: Experiment) -> tuple[int, int]:
    """Number of settings and of runs."""
    settings = campaign.settings(experiment)
    return len(settings), len(settings) * len(experiment.campaign.scenarios) * experiment.campaign.repetitions


def workspace_of(opened: Opened, chosen: Path | None) -> Workspace:
    """The workspace of an experiment, made when missing.

    Raises:
        StateError: the folder belongs to an experiment of another name, or Ansible and ssh could not be told its path.
    """
    folder = (chosen or results_directory() / opened.experiment.name).absolute()
    refuse_path(folder)
    workspace = Workspace(folder)
    marker = workspace.path / "name"
    if marker.exists() and (name := workspace.name) != opened.experiment.name:
        raise StateError(
            f"{workspace.path}: is the workspace of experiment {name!r}, not {opened.experiment.name!r}",
            "Choose another folder with --workspace.",
        )
    write_file(marker, opened.experiment.name + "\n")
    return workspace


def keep_source(workspace: Workspace, opened: Opened) -> None:
    """Put the experiment file, and the tasks of its own that it names, beside its results."""
    write_file(workspace.path / COPY, opened.source)
    for name in own_tasks.names(Document(opened.source).data):
        copy = workspace.path / OWN_TASKS / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_file(copy, (opened.path.parent / name).read_text(encoding="utf-8-sig"))


def find_workspace(named: str | None) -> Workspace:
    """The workspace that a person means: an experiment file, a workspace folder, a name, or the only one here.

    Raises:
        StateError: there is none, or more than one.
    """
    if named is not None and is_file(named):
        return workspace_of(open_experiment(Path(named)), None)
    return workspaces.find_workspace(named)


def is_file(named: str) -> bool:
    """Whether what a person names is an experiment file; an experiment of that name in ./results comes first."""
    return Path(named).is_file() and not (is_name(named) and is_workspace(results_directory() / named))


def experiment_of_workspace(workspace: Workspace) -> Opened:
    """The experiment as it was last run in a workspace. Raises StateError when nothing was run there."""
    path = workspace.path / COPY
    if not path.exists():
        raise StateError(f"{workspace.path}: nothing was run here yet", "Use `discovery-deploy run FILE`.")
    try:
        return open_experiment(path)
    except ExperimentError as error:
        raise StateError(f"{path}: {error.what}", "The file was made by another version; run again.") from error
