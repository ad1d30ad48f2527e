"""The code of projects that are not simply the release's: fetched, verified, patched; as files and hashes.

Nothing is built here and no host is needed: `check` does all of it. What is fetched stays in `sources/` of the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from discovery_deploy.agent.host_environments import sha256_of
from discovery_deploy.experiment.model import Deployment
from discovery_deploy.experiment.source_model import Source
from discovery_deploy.software import stack
from discovery_deploy.software.patches.git_trees import GitError, commit_of, mirror, tree_of_checkout, tree_of_commit
from discovery_deploy.software.patches.patch_series import (
    SERIES,
    Series,
    SeriesError,
    SourceFile,
    Tree,
    apply_series,
    base_problem,
    canonical,
    parse_series,
    tree_hash,
)
from discovery_deploy.software.patches.sdists import VERSION, SdistError, sdist_tree, sdist_version
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.system.files import digest, made_once
from discovery_deploy.system.mistake import Mistake
from discovery_deploy.system.progress import Progress

SCHEMA = re.compile(r"(^|/)(alembic\w*|migrations?|\w+_migrations)/|/cmd/bootstrap\.py$|(^|/)cli/bootstrap\.py$")
"""Paths of what makes the databases' first content: tables, and what a new Keystone holds."""


class Locked(NamedTuple):
    """What a lock says of a project."""

    version: str
    hashes: tuple[str, ...]
    """SHA-256 of each of its files, in hexadecimal."""


@dataclass(frozen=True)
class ProjectCode:
    """The files of a project, and how they came to be."""

    record: ProjectRecord
    tree: Tree


class SourcesError(Exception):
    """Sources or patches that cannot be used: all mistakes, at their places in the experiment."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(mistake.message for mistake in mistakes))
        self.mistakes = mistakes


class RefusedError(Exception):
    """Why a source or a series of one project cannot be used; one or more messages."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


class Pinned(NamedTuple):
    """A source before it is patched."""

    version: str
    """What the project is called in the environment."""
    base: str
    """What a series must state as its base: the version, or the commit; "" for what cannot be patched."""
    text: str
    """The source for a person, with what pins it."""
    tree: Tree
    of_sdist: bool = True
    """Whether the files are a source archive's, which lacks some of git's."""


def lock_entries(text: str) -> dict[str, Locked]:
    """Canonical name -> what a lock file's text says of it. Pure."""
    found = {}
    for name, version, hashes in re.findall(
        r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(.*(?:\n +--hash=.*)*)", text, re.MULTILINE
    ):
        found[canonical(name)] = Locked(version, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))
    return found


def resolve(deployment: Deployment, folder: Path, cache: Path, progress: Progress) -> tuple[ProjectCode, ...]:
    """The code of every project that `sources` or `patches` name, patched; sorted by name.

    Args:
        deployment: of a setting.
        folder: where relative paths begin: that of the experiment file.
        cache: directory of the cache; what is fetched stays there.
        progress: takes one short line per step.
    Raises:
        SourcesError: every mistake, with its place in the experiment; for a patch also file and line in it.
        TestbedError: the cache cannot be written, or git is missing.
    """
    lock = lock_entries(stack.lock_text(f"openstack-{deployment.release}"))
    named: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for key, projects in (("sources", deployment.sources), ("patches", deployment.patches)):
        seen: set[str] = set()
        for project in projects:
            place = ("deployment", key, project)
            if canonical(project) not in lock:
                mistakes.append(Mistake(place, f'the release {deployment.release} has no project "{project}"'))
            elif canonical(project) in seen:
                mistakes.append(Mistake(place, "the same project under another spelling"))
            else:
                named.setdefault(canonical(project), project)
            seen.add(canonical(project))
    sources = {canonical(project): (project, source) for project, source in deployment.sources.items()}
    patches = {canonical(project): (project, directory) for project, directory in deployment.patches.items()}
    found = []
    for name in sorted(named):
        key, written = ("sources", sources[name][0]) if name in sources else ("patches", patches[name][0])
        try:
            source = sources[name][1] if name in sources else None
            pinned = pin(written, source, lock[name], folder, cache, progress)
            if name in patches:
                key, written = "patches", patches[name][0]
            series = folder / patches[name][1] if name in patches else None
            found.append(_patched(name, pinned, series, lock[name], cache, progress))
        except RefusedError as error:
            mistakes += [Mistake(("deployment", key, written), message) for message in error.messages]
    if mistakes:
        raise SourcesError(mistakes)
    return tuple(found)


def pin(project: str, source: Source | None, locked: Locked, folder: Path, cache: Path, progress: Progress) -> Pinned:
    """Fetch and verify a source; None is the release's own. Raises RefusedError."""
    if source is None or source.version == locked.version:
        file = _sdist(project, locked.version, locked.hashes, cache, progress)
        tree = _sdist_tree(file)
        return Pinned(locked.version, locked.version, f"release, sdist sha256 {sha256_of(file)}", tree)
    if source.version is not None:
        file = _sdist(project, source.version, (), cache, progress)
        version, tree = _given_sdist(project, file)  # as the archive writes it: 27.1 may be asked for and be 27.1.0
        return Pinned(version, version, f"version, sdist sha256 {sha256_of(file)}", tree)
    if source.sdist is not None:
        file = folder / source.sdist
        if not file.is_file():
            raise RefusedError(f"{file}: no such file")
        version, tree = _given_sdist(project, file)
        return Pinned(version, version, f"sdist {source.sdist}, sha256 {sha256_of(file)}", tree)
    try:
        if source.checkout is not None:
            directory = folder / source.checkout
            if not directory.is_dir():
                raise RefusedError(f"{directory}: no such directory")
            return Pinned(locked.version, "", f"checkout {source.checkout}", tree_of_checkout(directory))
        assert source.git is not None
        assert source.ref is not None
        commit, repository = _fetched(source.git, source.ref, folder, cache, progress)
        tree = tree_of_commit(repository, commit)
        return Pinned(locked.version, commit, f"git {source.git} {source.ref}, commit {commit}", tree, False)
    except GitError as error:
        raise RefusedError(f"{source.checkout or source.git}: {error}") from error


def series_directory(directory: Path) -> tuple[str, dict[str, bytes]]:
    """Text of a series and the contents of all files beside it. Raises RefusedError."""
    file = directory / SERIES
    try:
        text = file.read_text(encoding="utf-8")
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
        for path in sorted(directory.rglob("*/*")):
            if path.is_file():
                files[path.relative_to(directory).as_posix()] = path.read_bytes()
    except UnicodeDecodeError as error:
        raise RefusedError(f"{file}: is not UTF-8") from error
    except OSError as error:
        raise RefusedError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error
    return text, files


def read_series(project: str, directory: Path) -> tuple[Series, dict[str, bytes]]:
    """A series and the contents of its patches. Raises RefusedError."""
    text, files = series_directory(directory)
    try:
        return parse_series(project, text), files
    except SeriesError as error:
        raise _told(error, directory) from error


def _told(error: SeriesError, directory: Path) -> RefusedError:
    return RefusedError(*(problem.told(str(directory)) for problem in error.problems))


def _patched(
    name: str, pinned: Pinned, directory: Path | None, locked: Locked, cache: Path, progress: Progress
) -> ProjectCode:
    """A source with its series on it. Raises RefusedError."""
    tree = pinned.tree
    patches: tuple[str, ...] = ()
    if directory is not None:
        if not pinned.base:
            raise RefusedError("its source is a checkout; commit the patches there, or name another source")
        series, files = read_series(name, directory)
        problem = base_problem(series, name, pinned.base)
        try:
            if problem:
                raise SeriesError([problem])
            tree = apply_series(name, tree, series, files, of_sdist=pinned.of_sdist, note=progress, compiled=True)
        except SeriesError as error:
            raise _told(error, directory) from error
        patches = tuple(patch for patch, _ in series.patches)
    record = ProjectRecord(
        project=name,
        version=pinned.version,
        source=pinned.text,
        patches=patches,
        tree=tree_hash(tree),
        own_schema=_own_schema(name, tree, locked, cache, progress),
    )
    return ProjectCode(record, tree)


def _own_schema(name: str, tree: Tree, locked: Locked, cache: Path, progress: Progress) -> str:
    """Hash of what makes the databases' first content, or "" when it is the release's."""

    def part(of: Tree) -> dict[str, SourceFile]:
        return {path: file for path, file in of.items() if SCHEMA.search(path) and "/tests/" not in path}

    own = part(tree)
    if not own:
        return ""
    released = part(_sdist_tree(_sdist(name, locked.version, locked.hashes, cache, progress)))
    return "" if own == released else tree_hash(own)


# sdists


def _sdist(project: str, version: str, hashes: tuple[str, ...], cache: Path, progress: Progress) -> Path:
    """The source archive of a version, fetched once; verified each time against the lock, or its own first fetch."""
    if not re.fullmatch(VERSION, version):
        raise RefusedError(f'"{version}" is not a version')
    target = cache.absolute() / "sources" / f"{canonical(project)}-{version}"

    def fetch(partial: Path) -> None:
        # Here, because `requests` takes long to import, and hardly any command fetches anything.
        from discovery_deploy.software.patches.package_index import FetchError, fetch_sdist

        progress(f"fetching the source of {project} {version}")
        partial.mkdir(parents=True)
        try:
            sha256 = fetch_sdist(project, version, hashes, partial / f"{target.name}.tar.gz")
        except FetchError as error:
            raise RefusedError(str(error)) from error
        (partial / "sha256").write_text(f"{sha256}\n", encoding="utf-8")

    made_once(target, fetch, f"the source of {project} {version}", progress)
    file = next(path for path in sorted(target.iterdir()) if path.name != "sha256")
    found = sha256_of(file)
    allowed = hashes or ((target / "sha256").read_text(encoding="utf-8").strip(),)
    if found not in allowed:
        raise RefusedError(
            f"{file}: its sha256 is {found}, {'which the lock does not hold' if hashes else f'not {allowed[0]}'}; "
            "remove its directory to fetch it again"
        )
    return file


def _sdist_tree(file: Path) -> Tree:
    """The files of a source archive. Raises RefusedError."""
    try:
        return sdist_tree(file)
    except SdistError as error:
        raise RefusedError(str(error)) from error


def _given_sdist(project: str, file: Path) -> tuple[str, Tree]:
    """Version and files of an archive that says itself what it is. Raises RefusedError."""
    tree = _sdist_tree(file)
    try:
        return sdist_version(project, tree, file), tree
    except SdistError as error:
        raise RefusedError(str(error)) from error


# git


def _fetched(url: str, ref: str, folder: Path, cache: Path, progress: Progress) -> tuple[str, Path]:
    """The commit that a ref names, and the copy that holds it. Raises GitError, RefusedError."""
    local = folder / url
    address = str(local.absolute()) if "://" not in url and local.exists() else url
    repository = cache.absolute() / "sources" / f"git-{digest(address)}"
    commit = commit_of(repository, ref) if (repository / "HEAD").exists() else None
    if commit is None or commit != ref:  # a whole commit cannot move
        try:
            progress(f"fetching {url}")
            mirror(address, repository)
        except GitError as error:
            if commit is None:
                raise
            progress(f"{url} cannot be reached ({error}); {ref} is taken as it was fetched last")
        commit = commit_of(repository, ref)
    if commit is None:
        raise RefusedError(f'{url}: has no "{ref}"')
    return commit, repository


Resolver = Callable[[Deployment], tuple[ProjectCode, ...]]
"""Deployment -> the code of its projects."""


def remembered(folder: Path, cache: Path, progress: Progress) -> Resolver:
    """A `resolve` that does its work once for each combination of release, sources and patches."""
    known: dict[str, tuple[ProjectCode, ...]] = {}

    def resolver(deployment: Deployment) -> tuple[ProjectCode, ...]:
        if not deployment.sources and not deployment.patches:
            return ()
        asked = deployment.model_dump(mode="json", include={"release", "sources", "patches"})
        key = digest(asked)
        if key not in known:
            known[key] = resolve(deployment, folder, cache, progress)
        return known[key]

    return resolver
