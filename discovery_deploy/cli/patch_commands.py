"""The commands `patch new`, `patch save` and `patch check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from discovery_deploy.driver import opening
from discovery_deploy.experiment.model import Deployment
from discovery_deploy.software import stack
from discovery_deploy.software.patches import sources, working_copy
from discovery_deploy.software.patches.patch_series import (
    Base,
    Series,
    SeriesError,
    apply_series,
    base_problem,
    canonical,
    tree_hash,
)
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.system.progress import Progress

RELEASE = str(Deployment.model_fields["release"].default)

app = typer.Typer(
    no_args_is_help=True,
    help="Patches on OpenStack projects: edit a pinned source under git, save its commits as a series, check a series.",
)

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="A project of the release, such as oslo.messaging.")]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--experiment",
        "-e",
        metavar="FILE",
        show_default=False,
        help="Take the project's source from this file, with the patches that it names as commits.",
    ),
]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@app.command()
def new(
    project: Project,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where.  [default: ./PROJECT]", show_default=False)
    ] = None,
    experiment: FromFile = None,
) -> None:
    """Make a working copy of a project's pinned source, under git; the tag `base` is the source as it was pinned."""
    where = directory or Path(project)
    deployment, folder = _deployment(experiment)
    pinned, series, patches = _source(project, deployment, folder, _say)
    try:
        count = working_copy.make(
            where, Base(project, pinned.base), pinned.tree, series, patches, of_sdist=pinned.of_sdist, note=_say
        )
    except SeriesError as error:
        raise ExperimentError("\n".join(problem.told("the series") for problem in error.problems)) from error
    _say(f"{where}: {project} {pinned.base}, {count} patches; commit your changes there, then")
    _say(f"  discovery-deploy patch save {where} --to DIR")
    sys.stdout.write(f"{where}\n")


@app.command()
def save(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A working copy of `patch new`.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Directory of the series; made when missing.")],
) -> None:
    """Write the commits after `base` as a series of patches; an earlier series there is replaced."""
    series = working_copy.save(directory, to)
    for name, _ in series.patches:
        sys.stdout.write(f"{to / name}\n")


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a series.")],
    experiment: FromFile = None,
) -> None:
    """Apply a series to its base, without keeping anything; the hash of the result goes to standard output."""
    try:
        series, patches = sources.read_series("?", directory)
        project = series.base.project
        deployment, folder = _deployment(experiment)
        unpatched = deployment.model_copy(update={"patches": {}})
        pinned, _, _ = _source(project, unpatched, folder, _say)
        problem = base_problem(series, project, pinned.base)
        if problem:
            raise SeriesError([problem])
        made = apply_series(project, pinned.tree, series, patches, of_sdist=pinned.of_sdist, note=_say, compiled=True)
    except sources.RefusedError as error:
        raise ExperimentError("\n".join(error.messages)) from error
    except SeriesError as error:
        raise ExperimentError("\n".join(problem.told(str(directory)) for problem in error.problems)) from error
    sys.stdout.write(f"{project} {pinned.base}, {len(series.patches)} patches: tree {tree_hash(made)}\n")


def _deployment(experiment: Path | None) -> tuple[Deployment, Path]:
    """Sources and patches that hold, and where relative paths begin. Raises ExperimentError."""
    if experiment is None:
        return Deployment.model_validate({"release": RELEASE, "backend": {"type": "galera"}}), Path()
    return opening.open_experiment(experiment).experiment.deployment, experiment.parent


def _source(
    project: str, deployment: Deployment, folder: Path, progress: Progress
) -> tuple[sources.Pinned, Series | None, dict[str, bytes]]:
    """A project's source before patches, and its series. Raises ExperimentError."""
    lock = sources.lock_entries(stack.lock_text(f"openstack-{deployment.release}"))
    name = canonical(project)
    if name not in lock:
        raise ExperimentError(
            f'the release {deployment.release} has no project "{project}"', "Look into its lock file."
        )
    given = {canonical(key): source for key, source in deployment.sources.items()}
    directories = {canonical(key): folder / where for key, where in deployment.patches.items()}
    try:
        pinned = sources.pin(project, given.get(name), lock[name], folder, stack.cache_directory(), progress)
    except sources.RefusedError as error:
        raise ExperimentError("\n".join(f"{project}: {message}" for message in error.messages)) from error
    try:
        if not pinned.base:
            raise sources.RefusedError(f"the source of {project} is a checkout: it is a working copy already")
        if name not in directories:
            return pinned, None, {}
        series, patches = sources.read_series(name, directories[name])
        problem = base_problem(series, name, pinned.base)
        if problem:
            raise sources.RefusedError(problem.told(str(directories[name])))
    except sources.RefusedError as error:
        raise ExperimentError("\n".join(error.messages)) from error
    return pinned, series, patches
