"""Where the code of projects comes from: locked, of git, of a checkout, of an archive; and back from commits."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.experiment.model import Deployment
from discovery_deploy.software import builds, derived, stack
from discovery_deploy.software.patches import package_index, sources, working_copy
from discovery_deploy.software.patches.git_trees import tree_of_checkout, tree_of_commit
from discovery_deploy.software.patches.patch_series import (
    LINK,
    REGULAR,
    Base,
    SourceFile,
    Tree,
    parse_series,
    tree_hash,
)
from discovery_deploy.software.patches.sources import ProjectCode, SourcesError
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.system.errors import StateError
from tests.index_bed import served

LOCKED = sources.lock_entries(stack.lock_text("openstack-2025.1"))["oslo-db"]
FILES: Tree = {
    "oslo_db/api.py": SourceFile(REGULAR, b"first\nsecond\nthird\n"),
    "setup.cfg": SourceFile(REGULAR, b"[metadata]\nname = oslo.db\n"),
    "README": SourceFile(REGULAR, b"text\n"),
}
PATCH = "--- a/oslo_db/api.py\n+++ b/oslo_db/api.py\n@@ -1,3 +1,3 @@\n first\n-second\n+SECOND\n third\n"


def run_git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", "-C", str(directory), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(directory: Path, message: str) -> str:
    run_git(directory, "add", "--all")
    run_git(directory, "commit", "--quiet", "-m", message)
    return run_git(directory, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the project's files in one commit."""
    directory = tmp_path / "repository"
    (directory / "oslo_db").mkdir(parents=True)
    run_git(directory, "init", "--quiet", "--initial-branch=main")
    for name, file in FILES.items():
        (directory / name).write_bytes(file.content)
    commit(directory, "first")
    return directory


def series(folder: Path, base: str, patch: str = PATCH) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "series").write_text(f"# base: oslo.db {base}\np.patch\n")
    (folder / "p.patch").write_text(patch)


def resolve(folder: Path, **deployment: Any) -> tuple[ProjectCode, ...]:
    asked = Deployment.model_validate({"backend": {"type": "galera"}, **deployment})
    return sources.resolve(asked, folder, folder / "cache", lambda line: None)


def mistakes(folder: Path, **deployment: Any) -> list[str]:
    with pytest.raises(SourcesError) as caught:
        resolve(folder, **deployment)
    return [f"{'.'.join(map(str, mistake.path))}: {mistake.message}" for mistake in caught.value.mistakes]


def test_locks_are_read_with_all_hashes() -> None:
    assert LOCKED.version == "17.2.1"
    assert len(LOCKED.hashes) == 2
    assert all(len(sha256) == 64 for sha256 in LOCKED.hashes)


def test_a_checkout_is_what_it_is_now(tmp_path: Path, repository: Path) -> None:
    (found,) = resolve(tmp_path, sources={"oslo.db": {"checkout": "repository"}})
    assert dict(found.tree) == dict(FILES)
    assert (found.record.project, found.record.version) == ("oslo-db", LOCKED.version)
    (repository / "README").unlink()
    (repository / "oslo_db/new.py").write_text("x = 1\n")
    (repository / ".gitignore").write_text("*.log\n")
    (repository / "a.log").write_text("")
    (again,) = resolve(tmp_path, sources={"oslo.db": {"checkout": "repository"}})
    assert set(again.tree) == {"oslo_db/api.py", "oslo_db/new.py", "setup.cfg", ".gitignore"}
    assert again.record.tree != found.record.tree


def test_a_branch_is_followed_and_its_commit_written_down(tmp_path: Path, repository: Path) -> None:
    asked = {"oslo.db": {"git": f"file://{repository}", "ref": "main"}}
    first = run_git(repository, "rev-parse", "HEAD")
    assert first in resolve(tmp_path, sources=asked)[0].record.source
    (repository / "README").write_text("other\n")
    second = commit(repository, "second")
    (found,) = resolve(tmp_path, sources=asked)
    assert second in found.record.source
    assert found.tree["README"].content == b"other\n"
    # a commit is a commit, whatever became of the branch and of the repository
    repository.rename(tmp_path / "gone")
    (old,) = resolve(tmp_path, sources={"oslo.db": {"git": f"file://{repository}", "ref": first}})
    assert dict(old.tree) == dict(FILES)
    assert resolve(tmp_path, sources=asked)[0].record.source == found.record.source


def test_git_sources_that_cannot_be_had(tmp_path: Path, repository: Path) -> None:
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"git": str(repository), "ref": "none"}})
    assert told == f'deployment.sources.oslo.db: {repository}: has no "none"'
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"git": f"file://{tmp_path}/nothing", "ref": "main"}})
    assert told.startswith(f"deployment.sources.oslo.db: file://{tmp_path}/nothing: ")
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"checkout": "nowhere"}})
    assert told == f"deployment.sources.oslo.db: {tmp_path}/nowhere: no such directory"


def test_patches_on_a_commit_state_it(tmp_path: Path, repository: Path) -> None:
    head = run_git(repository, "rev-parse", "HEAD")
    asked = {"sources": {"oslo.db": {"git": str(repository), "ref": "main"}}, "patches": {"Oslo_DB": "series"}}
    series(tmp_path / "series", head[:12])
    (found,) = resolve(tmp_path, **asked)
    assert found.tree["oslo_db/api.py"].content == b"first\nSECOND\nthird\n"
    assert found.record.patches == ("p.patch",)
    assert found.record.tree == tree_hash(found.tree)
    series(tmp_path / "series", LOCKED.version)
    directory = tmp_path / "series"
    assert mistakes(tmp_path, **asked) == [
        f"deployment.patches.Oslo_DB: {directory}/series:1: oslo-db: is made for oslo.db {LOCKED.version}; "
        f"the source here is {head}"
    ]
    series(tmp_path / "series", head[:12], PATCH.replace("-second", "-zweite"))
    assert mistakes(tmp_path, **asked) == [
        f"deployment.patches.Oslo_DB: {directory}/p.patch:5: oslo-db: oslo_db/api.py: the hunk does not apply: "
        'line 2 should be "zweite", the file has "second"'
    ]


def test_every_mistake_is_told_at_once(tmp_path: Path, repository: Path) -> None:
    told = mistakes(
        tmp_path,
        sources={"oslo.db": {"checkout": "repository"}, "no.such": {"version": "1"}},
        patches={"oslo.db": "series", "no.other": "series"},
    )
    assert sorted(told) == [
        'deployment.patches.no.other: the release 2025.1 has no project "no.other"',
        "deployment.patches.oslo.db: its source is a checkout; commit the patches there, or name another source",
        'deployment.sources.no.such: the release 2025.1 has no project "no.such"',
    ]


def archive(path: Path, files: dict[str, bytes], top: str = "oslo_db-1.0") -> None:
    with tarfile.open(path, "w:gz") as target:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def test_an_archive_says_itself_what_it_is(tmp_path: Path) -> None:
    info = b"Metadata-Version: 2.1\nName: oslo.db\nVersion: 99.0\n\nText\n"
    archive(tmp_path / "a.tar.gz", {"PKG-INFO": info, "oslo_db/api.py": b"first\nsecond\nthird\n"})
    series(tmp_path / "series", "99.0")
    (found,) = resolve(tmp_path, sources={"oslo.db": {"sdist": "a.tar.gz"}}, patches={"oslo.db": "series"})
    assert found.record.version == "99.0"
    assert b"SECOND" in found.tree["oslo_db/api.py"].content
    archive(tmp_path / "b.tar.gz", {"PKG-INFO": info.replace(b"oslo.db", b"nova")})
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"sdist": "b.tar.gz"}})
    assert told.endswith("b.tar.gz: is nova, not oslo.db")
    archive(tmp_path / "c.tar.gz", {"../../evil": b""})
    assert '"../../evil" leads outside the project' in mistakes(tmp_path, sources={"oslo.db": {"sdist": "c.tar.gz"}})[0]
    (tmp_path / "d.tar.gz").write_bytes(b"no archive")
    assert "is not a source archive" in mistakes(tmp_path, sources={"oslo.db": {"sdist": "d.tar.gz"}})[0]


def test_a_fetched_archive_that_the_lock_does_not_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "sources" / f"oslo-db-{LOCKED.version}"
    folder.mkdir(parents=True)
    archive(folder / "oslo_db.tar.gz", {"PKG-INFO": b""})
    series(tmp_path / "series", LOCKED.version)
    (told,) = mistakes(tmp_path, patches={"oslo.db": "series"})
    assert "its sha256 is" in told
    assert "which the lock does not hold" in told


Asked = list[tuple[str, str]]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A package index with oslo.db 18.0.0 alone; what was asked of it."""
    info = b"Metadata-Version: 2.1\nName: oslo.db\nVersion: 18.0.0\n"
    files = {"PKG-INFO": info, "oslo_db/api.py": b"first\nsecond\nthird\n"}
    archive(tmp_path / "sdist", files, top="oslo_db-18.0.0")
    with served({"oslo_db-18.0.0.tar.gz": (tmp_path / "sdist").read_bytes()}, "oslo-db") as found:
        monkeypatch.setattr(package_index, "pip_settings", lambda: package_index.Settings((found.url,)))
        yield found.asked


def test_another_version_is_fetched_once_and_called_as_its_archive_says(
    tmp_path: Path, index: list[tuple[str, str]]
) -> None:
    asked = {"sources": {"oslo.db": {"version": "18.0"}}, "patches": {"oslo.db": "series"}}
    series(tmp_path / "series", "18.0.0")
    (found,) = resolve(tmp_path, **asked)
    assert resolve(tmp_path, **asked) == (found,)
    assert [path for path, _ in index] == ["/simple/oslo-db/", "/files/oslo_db-18.0.0.tar.gz"]
    assert (found.record.version, found.record.patches) == ("18.0.0", ("p.patch",))
    assert found.record.source.startswith("version, sdist sha256 ")
    series(tmp_path / "series", LOCKED.version)
    (told,) = mistakes(tmp_path, **asked)
    assert told.endswith(f"is made for oslo.db {LOCKED.version}; the source here is 18.0.0")


def test_a_version_that_is_not_there_or_not_what_was_fetched_first(
    tmp_path: Path, index: list[tuple[str, str]]
) -> None:
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"version": "99.0"}})
    assert told == "deployment.sources.oslo.db: oslo.db==99.0: no source archive (.tar.gz) on the index"
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"version": "-r /etc/passwd"}})
    assert told == 'deployment.sources.oslo.db: "-r /etc/passwd" is not a version'
    assert len(index) == 1
    resolve(tmp_path, sources={"oslo.db": {"version": "18.0"}})
    (file,) = (tmp_path / "cache/sources/oslo-db-18.0").glob("*.tar.gz")
    file.write_bytes(file.read_bytes() + b"\0")
    (told,) = mistakes(tmp_path, sources={"oslo.db": {"version": "18.0"}})
    assert "its sha256 is" in told
    assert "remove its directory to fetch it again" in told


# working copies


def test_commits_become_a_series_that_makes_what_they_are(tmp_path: Path) -> None:
    tree = {**FILES, ".gitignore": SourceFile(REGULAR, b"README\n"), "link": SourceFile(LINK, b"README")}
    copy, target = tmp_path / "copy", tmp_path / "series"
    assert working_copy.make(copy, Base("oslo.db", "17.2.1"), tree, None, {}) == 0
    assert dict(tree_of_commit(copy, "base")) == tree
    assert dict(tree_of_checkout(copy)) == tree
    (copy / "oslo_db/api.py").write_text("first\nother\nthird\n")
    (copy / "oslo_db/new.py").write_text("x = 1")
    commit(copy, "Do it: a thing!\n\nBecause of why.")
    (copy / "README").unlink()
    (copy / "setup.cfg").chmod(0o755)
    commit(copy, "Remove what is not read")
    found = working_copy.save(copy, target)
    assert [name for name, _ in found.patches] == ["0001-do-it-a-thing.patch", "0002-remove-what-is-not-read.patch"]
    assert (target / "series").read_text().startswith("# base: oslo.db 17.2.1\n")
    first = {path.name: path.read_bytes() for path in target.iterdir()}
    assert first["0001-do-it-a-thing.patch"].startswith(b"Do it: a thing!\n\nBecause of why.\n\ndiff --git a/oslo_db")
    working_copy.save(copy, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == first, "the same commits give the same bytes"

    again = tmp_path / "again"
    patches = {name: content for name, content in first.items() if name != "series"}
    assert working_copy.make(again, Base("oslo.db", "17.2.1"), tree, found, patches) == 2
    assert dict(tree_of_commit(again, "HEAD")) == dict(tree_of_commit(copy, "HEAD"))
    assert run_git(again, "log", "--format=%B", "-1", "HEAD~1") == "Do it: a thing!\n\nBecause of why."
    working_copy.save(again, tmp_path / "series2")
    assert {path.name: path.read_bytes() for path in (tmp_path / "series2").iterdir()} == first

    run_git(again, "reset", "--quiet", "--hard", "HEAD~1")
    working_copy.save(again, target)
    assert sorted(path.name for path in target.iterdir()) == ["0001-do-it-a-thing.patch", "series"]


def test_a_persons_git_configuration_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures, hooks, line ends, templates: a working copy is made, saved and read as if there were none."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "post-commit", "post-checkout", "commit-msg"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "attributes").write_text("* text eol=crlf filter=x\n")
    (tmp_path / "gitconfig").write_text(
        "[user]\n\tsigningKey = nobody\n[tag]\n\tgpgSign = true\n\tforceSignAnnotated = true\n"
        "[commit]\n\tgpgSign = true\n[gpg]\n\tprogram = /bin/false\n[log]\n\tshowSignature = true\n"
        f"[core]\n\thooksPath = {hooks}\n\tautocrlf = true\n\tattributesFile = {tmp_path}/attributes\n"
        '[filter "x"]\n\tclean = sed s/second/zweite/\n\trequired = true\n[diff]\n\tnoprefix = true\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    copy, target = tmp_path / "copy", tmp_path / "series"
    assert working_copy.make(copy, Base("oslo.db", "17.2.1"), FILES, None, {}) == 0
    (copy / "oslo_db/api.py").write_text("first\nSECOND\nthird\n")
    run_git(copy, "-c", "core.hooksPath=/dev/null", "commit", "--quiet", "--no-gpg-sign", "-a", "-m", "Change it")
    working_copy.save(copy, target)
    assert PATCH.encode() in (target / "0001-change-it.patch").read_bytes()


def test_a_series_of_windows_is_a_series(tmp_path: Path, repository: Path) -> None:
    head = run_git(repository, "rev-parse", "HEAD")
    series(tmp_path / "series", head)
    for file in (tmp_path / "series").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    asked = {"sources": {"oslo.db": {"git": str(repository), "ref": "main"}}, "patches": {"oslo.db": "series"}}
    assert resolve(tmp_path, **asked)[0].tree["oslo_db/api.py"].content == b"first\nSECOND\nthird\n"


def test_a_patch_of_which_nothing_is_left_is_no_commit(tmp_path: Path) -> None:
    ignored = b"--- a/.gitignore\n+++ b/.gitignore\n@@ -1 +1 @@\n-x\n+y\n"
    given = parse_series("oslo.db", "# base: oslo.db 17.2.1\n1.patch\n2.patch\n")
    patches = {"1.patch": ignored, "2.patch": PATCH.encode()}
    notes: list[str] = []
    copy = tmp_path / "copy"
    count = working_copy.make(copy, Base("oslo.db", "17.2.1"), FILES, given, patches, of_sdist=True, note=notes.append)
    assert (count, len(notes)) == (1, 1)
    assert working_copy.save(copy, tmp_path / "series").patches == (("0001-2.patch", 2),)


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    working_copy.make(copy, Base("oslo.db", "17.2.1"), FILES, None, {})
    with pytest.raises(StateError, match="no commit follows"):
        working_copy.save(copy, tmp_path / "series")
    (copy / "README").write_text("changed\n")
    with pytest.raises(StateError, match="not committed"):
        working_copy.save(copy, tmp_path / "series")
    (copy / "README").write_bytes(b"\0\1")
    commit(copy, "Make it binary")
    with pytest.raises(StateError, match="README: a binary change"):
        working_copy.save(copy, tmp_path / "series")
    assert not (tmp_path / "series").exists()
    with pytest.raises(StateError, match="is there already"):
        working_copy.make(copy, Base("oslo.db", "17.2.1"), FILES, None, {})
    with pytest.raises(StateError, match=r"is no working copy|has no tag"):
        working_copy.save(tmp_path, tmp_path / "series")


# what is built of it


def code(project: str, tree: str = "t", own_schema: str = "") -> ProjectCode:
    record = ProjectRecord(project=project, version="1", source="s", tree=tree, own_schema=own_schema)
    return ProjectCode(record, {})


def test_each_service_has_the_libraries_and_its_own_project() -> None:
    projects = [code("nova"), code("oslo-db"), code("keystone"), code("openstack-placement")]

    def names(service: str) -> list[str]:
        return [one.record.project for one in builds.code_of_service(service, projects)]

    assert names("nova") == ["nova", "oslo-db"]
    assert names("keystone") == ["oslo-db", "keystone"]
    assert names("placement") == ["oslo-db", "openstack-placement"]
    assert names("neutron") == ["oslo-db"]


def test_inputs_tell_code_from_schema() -> None:
    services = ("keystone",)
    plain = builds.inputs("2025.1", services)
    edited = [builds.inputs("2025.1", services, False, [code("keystone", tree)]) for tree in "ab"]
    assert edited[0].code != edited[1].code
    assert edited[0].openstack == edited[1].openstack == plain.openstack
    assert builds.inputs("2025.1", services, False, [code("nova")]).code == plain.code, (
        "no service that is deployed loads it"
    )
    assert builds.inputs("2025.1", services, False, [code("keystone", "a", "schema")]).openstack != plain.openstack


def test_the_name_of_an_environment_covers_all_that_is_in_it() -> None:
    one, other = code("oslo-db", "a").record, code("nova", "b").record
    assert derived.derived_name("aa", []) != derived.derived_name("bb", [])
    assert derived.derived_name("aa", [one, other]) == derived.derived_name("aa", [other, one])
    names = [
        derived.derived_name(*each) for each in (("aa", [one]), ("bb", [one]), ("aa", [other]), ("aa", [one, other]))
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("path", "is_schema"),
    [
        ("keystone/common/sql/migrations/versions/x.py", True),
        ("nova/db/main/migrations/x.py", True),
        ("glance/db/sqlalchemy/alembic_migrations/x.py", True),
        ("neutron/db/migration/alembic_migrations/x.py", True),
        ("placement/db/sqlalchemy/alembic/versions/x.py", True),
        ("keystone/cmd/bootstrap.py", True),
        ("nova/compute/manager.py", False),
        ("oslo_db/sqlalchemy/enginefacade.py", False),
    ],
)
def test_what_makes_the_first_content_of_databases(path: str, is_schema: bool) -> None:
    assert bool(sources.SCHEMA.search(path)) == is_schema


def test_a_build_without_git_is_told_every_file() -> None:
    tree = {**FILES, "oslo_db/data.json": SourceFile(REGULAR, b"{}")}
    made = derived.with_file_list(tree, "oslo-db", "1.0")
    for folder in ("oslo.db.egg-info", "oslo_db.egg-info"):
        assert b"oslo_db/data.json\n" in made[f"{folder}/SOURCES.txt"].content
    assert b"Version: 1.0" in made["PKG-INFO"].content


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set()),
        ('[build-system]\nrequires = ["pbr>=6.1.1"]\n', {"pbr"}),
        ('[build-system]\nrequires = [\n  "setuptools>=64",\n  "wheel",\n]\n', {"setuptools", "wheel"}),
        ('[build-system]\nrequires = ["hatchling"]\n', {"hatchling"}),
    ],
)  # fmt: skip
def test_build_requirements(text: str, names: set[str]) -> None:
    assert derived.build_requirements({"pyproject.toml": SourceFile(REGULAR, text.encode())}) == names


def test_python_files_that_are_not_the_source_s_are_found() -> None:
    files = {f"{derived.SITE}/oslo_db/api.py": "0" * 64, f"{derived.SITE}/oslo_db/x.pyc": "1", "bin/tool": "2"}
    installed: dict[str, Any] = {"packages": {"oslo-db": ["oslo_db"]}, "files": files}
    project = ProjectCode(code("oslo-db").record, FILES)
    assert derived.foreign_files(installed, project) == ["oslo_db/api.py"]


def test_a_shared_copy_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "openstack-old", tmp_path / "openstack-new"
    (old / "bin").mkdir(parents=True)
    (old / "lib").mkdir()
    (old / "bin/tool").write_text("#!/opt/discovery-deploy/openstack-old/bin/python\n")
    (old / "bin/python").symlink_to("/usr/bin/python3")
    (old / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (old / "built.json").write_text("{}")
    (old / "lib/a.py").write_text("a")
    derived.copy_shared(old, new)
    derived.move_scripts(new, "openstack-old", "openstack-new")
    assert (new / "bin/tool").read_text() == "#!/opt/discovery-deploy/openstack-new/bin/python\n"
    assert (old / "bin/tool").read_text() == "#!/opt/discovery-deploy/openstack-old/bin/python\n"
    assert (new / "lib/a.py").stat().st_ino == (old / "lib/a.py").stat().st_ino
    assert (new / "pyvenv.cfg").stat().st_ino != (old / "pyvenv.cfg").stat().st_ino
    assert not (new / "built.json").exists()
