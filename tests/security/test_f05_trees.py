"""F5: sources write nothing outside the directory that they are for, and run nothing (trees.py, git_trees.py)."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from discovery_deploy.cli.cli import app
from discovery_deploy.software.patches import trees
from discovery_deploy.software.patches.patch_series import LINK, REGULAR, SourceFile
from discovery_deploy.software.patches.sdists import SdistError, sdist_tree
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.system.files import digest

EXPERIMENT = """\
name: f05
sites:
  - name: nantes
  - name: lyon
deployment:
  backend: {{type: mariadb, site: lyon}}
  sources:
    pycadf: {source}
"""
INFO = b"Metadata-Version: 2.1\nName: pycadf\nVersion: 4.0.1\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's working directory, cache and git configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))


def tool(*words: str) -> str:
    """What the command refuses; "" when it does what it was told."""
    try:
        app(words, standalone_mode=False)
    except ExperimentError as error:
        return error.what
    return ""


def run_git(directory: Path, *words: str, text: str = "") -> str:
    command = ["git", "-C", str(directory), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.strip()


def raw_tree(repository: Path, entries: list[tuple[str, str, str]]) -> str:
    """Hash of a tree object of (mode, name, hash), which git itself would not make."""
    content = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(hash_) for mode, name, hash_ in entries)
    command = ["git", "-C", str(repository), "hash-object", "-t", "tree", "--literally", "-w", "--stdin"]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose branches hold trees that lead out of the directory that they are written to."""
    directory = tmp_path / "repository"
    directory.mkdir()
    (tmp_path / "outside").mkdir()
    run_git(directory, "init", "--quiet")
    blob = run_git(directory, "hash-object", "-w", "--stdin", text="escaped\n")
    link = run_git(directory, "hash-object", "-w", "--stdin", text=str(tmp_path / "outside"))
    inner = raw_tree(directory, [("100644", "escaped", blob)])
    trees_of = {
        "dotdot": [("40000", "..", inner)],
        "link": [("120000", "link", link), ("40000", "link", inner)],
        "dotgit": [("40000", ".git", raw_tree(directory, [("100644", "config", blob)]))],
        "twice": [("100644", "a", blob), ("100644", "a", blob)],
    }
    for branch, entries in trees_of.items():
        commit = run_git(directory, "commit-tree", raw_tree(directory, entries), "-m", branch)
        run_git(directory, "update-ref", f"refs/heads/{branch}", commit)
    return directory


NAMED = {"dotdot": '"../escaped"', "link": '"link/escaped"', "dotgit": '".git/config"', "twice": '"a"'}
"""Branch -> the path that is refused."""


@pytest.mark.parametrize("branch", ["dotdot", "link", "dotgit", "twice"])
@pytest.mark.parametrize("fetched", [True, False], ids=["fsck", "no-fsck"])
def test_a_git_tree_that_leads_elsewhere_is_refused_with_project_and_path(
    tmp_path: Path, repository: Path, branch: str, fetched: bool
) -> None:
    alone = tmp_path / "alone"  # a repository with this branch alone: what is fetched is all branches
    alone.mkdir()
    run_git(alone, "init", "--quiet", "--bare")
    run_git(alone, "fetch", "--quiet", str(repository), f"{branch}:main")
    (tmp_path / "exp.yaml").write_text(EXPERIMENT.format(source=f"{{git: {alone}, ref: main}}"))
    if not fetched:  # as if git's own look had let it pass
        cache = tmp_path / "cache" / "sources"
        cache.mkdir(parents=True)
        commit = run_git(alone, "rev-parse", "main")
        alone.rename(cache / f"git-{digest(str(alone))}")
        alone.mkdir()
        (tmp_path / "exp.yaml").write_text(EXPERIMENT.format(source=f'{{git: {alone}, ref: "{commit}"}}'))
    for words in (["check", "exp.yaml"], ["patch", "new", "pycadf", "deep/er/copy", "-e", "exp.yaml"]):
        told = tool(*words)
        assert f"pycadf: {alone}: " in told
        assert fetched or NAMED[branch] in told
    found = {path.name for path in tmp_path.rglob("*escaped*")}
    assert found == set()
    assert list((tmp_path / "outside").iterdir()) == []


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, to: str = "") -> Member:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = len(content), kind, to
    return made, content


def sdist(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w:gz") as target:
        for made, content in (member("pycadf-4.0.1/PKG-INFO", INFO), *members):
            target.addfile(made, io.BytesIO(content))
    return path


TOP = "pycadf-4.0.1"
HOSTILE = {
    "below a link": (member(f"{TOP}/link", kind=tarfile.SYMTYPE, to="/tmp"), member(f"{TOP}/link/x", b"x")),
    "a link after": (member(f"{TOP}/link/x", b"x"), member(f"{TOP}/link", kind=tarfile.SYMTYPE, to="/tmp")),
    "below a file": (member(f"{TOP}/file", b""), member(f"{TOP}/file/x", b"x")),
    "dots": (member(f"{TOP}/../../x", b"x"),),
    "dots first": (member("../x", b"x"),),
    "absolute": (member("/etc/x", b"x"),),
    "absolute inside": (member(f"{TOP}//etc/x", b"x"),),
    "git's own": (member(f"{TOP}/.git/config", b"x"),),
    "git's own, spelled otherwise": (member(f"{TOP}/sub/.GIT/config", b"x"),),
    "twice": (member(f"{TOP}/x", b"x"), member(f"{TOP}/x", b"y")),
    "control character": (member(f"{TOP}/a\nb", b"x"),),
    "device": (member(f"{TOP}/null", kind=tarfile.CHRTYPE),),
    "hard link to the outside": (member(f"{TOP}/x", kind=tarfile.LNKTYPE, to="../../etc/shadow"),),
    "too long": (member(f"{TOP}/{'a' * 256}", b"x"),),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(SdistError, match=r"a\.tar\.gz: "):
        sdist_tree(sdist(tmp_path / "a.tar.gz", *HOSTILE[case]))


def test_the_command_names_project_and_path_of_a_hostile_archive(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = member(f"{TOP}/link", kind=tarfile.SYMTYPE, to=str(tmp_path / "outside"))
    sdist(tmp_path / "a.tar.gz", link, member(f"{TOP}/link/escaped", b"x"))
    (tmp_path / "exp.yaml").write_text(EXPERIMENT.format(source="{sdist: a.tar.gz}"))
    for words in (["check", "exp.yaml"], ["patch", "new", "pycadf", "copy", "-e", "exp.yaml"]):
        assert 'pycadf: a.tar.gz: "link/escaped" is below "link", which is a symbolic link' in tool(*words)
    assert list((tmp_path / "outside").iterdir()) == []


def test_no_filter_that_an_archive_names_is_run(tmp_path: Path) -> None:
    """Neither by its own .git/config, which is refused, nor by a driver of the user's own configuration."""
    mark = tmp_path / "FILTER-RAN"
    filter_ = f'[filter "x"]\n\tclean = touch {mark}; cat\n\tsmudge = cat\n'
    attributes = member(f"{TOP}/.gitattributes", b"* filter=x text eol=crlf\n")
    (tmp_path / "exp.yaml").write_text(EXPERIMENT.format(source="{sdist: a.tar.gz}"))
    sdist(tmp_path / "a.tar.gz", attributes, member(f"{TOP}/.git/config", filter_.encode()))
    assert '".git/config" is git\'s own' in tool("patch", "new", "pycadf", "copy", "-e", "exp.yaml")
    assert not mark.exists()

    sdist(tmp_path / "a.tar.gz", attributes, member(f"{TOP}/a.py", b"one\ntwo\n"))
    (tmp_path / "gitconfig").write_text(filter_)
    assert tool("patch", "new", "pycadf", "copy", "-e", "exp.yaml") == ""
    assert not mark.exists()
    (tmp_path / "copy/a.py").write_bytes(b"one\nzwei\n")
    run_git(tmp_path / "copy", "commit", "--quiet", "-a", "-m", "Change it")
    assert tool("patch", "save", "copy", "--to", "series") == ""
    assert not mark.exists()
    assert b"\n+zwei\n" in (tmp_path / "series/0001-change-it.patch").read_bytes()


def test_a_git_address_is_no_command(tmp_path: Path) -> None:
    mark = tmp_path / "RAN"
    (tmp_path / "gitconfig").write_text("[protocol]\n\tallow = always\n")
    (tmp_path / "exp.yaml").write_text(EXPERIMENT.format(source=f'{{git: "ext::touch {mark}", ref: main}}'))
    assert "pycadf: " in tool("check", "exp.yaml")
    assert not mark.exists()


def test_the_writer_follows_no_link_that_is_there_already(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "folder").symlink_to(outside)
    (target / "file").symlink_to(outside / "made")
    for path in ("folder/x", "file"):
        with pytest.raises(trees.TreeError):
            trees.write_tree({path: SourceFile(REGULAR, b"x")}, target)
    with pytest.raises(trees.TreeError):
        trees.write_tree({"a": SourceFile(LINK, b".."), "a/x": SourceFile(REGULAR, b"x")}, target)
    assert list(outside.iterdir()) == []
