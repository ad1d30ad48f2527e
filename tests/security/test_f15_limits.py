"""F15: what a file unfolds to has a limit, and so has the time of what is waited for."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery_deploy.experiment import documents
from discovery_deploy.software import contents
from discovery_deploy.software.patches import git_trees, sdists, trees
from discovery_deploy.software.patches.git_trees import GitError, git, tree_of_checkout, tree_of_commit
from discovery_deploy.system import files, programs
from discovery_deploy.system.errors import TestbedError


class _Zeros(io.RawIOBase):
    """As many zeros as are asked for."""

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        into[:] = bytes(len(into))
        return len(into)


# what unfolds


@pytest.mark.timeout(60)
def test_merge_keys_do_not_unfold_without_limit() -> None:
    """Ten lines, nine levels: a thousand million keys."""
    levels = (f"a{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
    with pytest.raises(documents.NotYamlError, match="more than 100000 values"):
        documents.Document("a0: &m0 {k: 1}\n" + "".join(levels))


def test_merge_keys_still_merge() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\n"
    assert documents.Document(text).data["c"] == {"x": 5, "y": 2, "z": 4}


def sdist(path: Path, *sizes: int, pax: int = 0) -> Path:
    """An archive of files of zeros."""
    headers = {"comment": "x" * pax} if pax else {}
    with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT, pax_headers=headers) as target:
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"p-1/{number}")
            member.size = size
            target.addfile(member, io.BufferedReader(_Zeros()))
    return path


def test_an_archive_that_unfolds_to_more_than_200_mb_is_refused(tmp_path: Path) -> None:
    file = sdist(tmp_path / "a.tar.gz", 150_000_000, 60_000_000)
    assert file.stat().st_size < 3_000_000
    with pytest.raises(sdists.SdistError, match="more than 200 MB"):
        sdists.sdist_tree(file)


def test_headers_and_numbers_of_files_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdists._Limited, "left", 1_000_000)
    with pytest.raises(sdists.SdistError, match="unfolds to more than"):
        sdists.sdist_tree(sdist(tmp_path / "a.tar.gz", 1, pax=2_000_000))
    monkeypatch.setattr(trees, "MOST_FILES", 10)
    with pytest.raises(sdists.SdistError, match="more than 10 files"):
        sdists.sdist_tree(sdist(tmp_path / "b.tar.gz", *[0] * 11))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "repository"
    directory.mkdir()
    git(directory, "init", "--quiet")
    (directory / "large").write_bytes(bytes(5_000))
    git(directory, "add", "large")
    who = {f"GIT_{one}_{what}": "x@y.org" for one in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    git(directory, "commit", "--quiet", "-m", "x", environment=who)
    return directory


def test_git_s_files_are_counted_before_they_are_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST_BYTES", 4_000)
    with pytest.raises(GitError, match="holds more than"):
        tree_of_commit(repository, "HEAD")
    with pytest.raises(GitError, match="holds more than"):
        tree_of_checkout(repository)


def test_git_does_not_answer_without_end(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of ten times the same tree, six levels deep: a million files of some hundred bytes."""
    tree = git(repository, "rev-parse", "HEAD^{tree}").decode().strip()
    for _ in range(6):
        entries = "".join(f"040000 tree {tree}\td{number}\n" for number in range(10))
        tree = git(repository, "mktree", stdin=entries.encode()).decode().strip()
    monkeypatch.setattr(git_trees, "MOST_OUTPUT", 1_000_000)
    with pytest.raises(GitError, match="answers with more than 1 MB"):
        tree_of_commit(repository, tree)


# what takes its time


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """What is limited to a second ends then, on a busy machine too: not after the limit of the kind, or never."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < limit_s


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_git_server_that_says_nothing_is_not_waited_for(
    tmp_path: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_trees, "LIMIT_S", 1.0)
    with within(15), pytest.raises(GitError, match="timed out after 1 s"):
        git_trees.mirror(f"git://127.0.0.1:{silent_server}/x", tmp_path / "mirror")


def test_a_build_that_hangs_ends_and_gives_the_lock_back(tmp_path: Path) -> None:
    """Also one whose child lives in a session of its own and holds its output."""
    command = programs.contained(["sh", "-c", "echo waiting for a proxy; setsid sleep 600 & sleep 600"])
    target = tmp_path / "made"

    def hang(partial: Path) -> None:
        programs.run_logged(command, tmp_path / "log", "the build", lambda line: None, limit_s=1.0)

    with within(15), pytest.raises(TestbedError, match=r"the build timed out after 1 s[^\0]*waiting for a proxy"):
        files.made_once(target, hang, "it", lambda line: None)
    made: list[Path] = []
    other = threading.Thread(
        target=lambda: made.append(files.made_once(target, lambda path: path.mkdir(), "it", lambda line: None)),
        daemon=True,
    )
    other.start()
    other.join(timeout=30)
    assert made == [target]


def test_tar_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = tmp_path / "environments" / "x"
    environment.mkdir(parents=True)
    (environment / "file").write_bytes(os.urandom(1_000_000))
    found = contents.contents(tmp_path, "x")
    monkeypatch.setattr(contents, "TAR_LIMIT_S", 1.0)
    reader, writer = os.pipe()  # nobody reads
    with (
        os.fdopen(writer, "wb") as stream,
        os.fdopen(reader, "rb"),
        within(15),
        pytest.raises(TestbedError, match="timed out"),
    ):
        contents.write_archive(tmp_path, found, range(len(found.entries)), stream)


def test_what_git_has_started_ends_with_it(tmp_path: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_trees, "LIMIT_S", 1.0)
    mark = f"GIT_TEST_MARK={os.getpid()}"
    with pytest.raises(GitError, match="timed out"):
        git(
            tmp_path, "ls-remote", f"http://127.0.0.1:{silent_server}/{mark}"
        )  # git-remote-http, a child, holds the connection
    time.sleep(0.2)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if mark in line and "ps -eo" not in line]
