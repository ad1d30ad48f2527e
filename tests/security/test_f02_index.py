"""F2: nothing that a package index serves is executed on the driver, and what the lock does not hold is not kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from discovery_deploy.cli.cli import app
from discovery_deploy.software import stack
from discovery_deploy.software.patches.sources import lock_entries
from discovery_deploy.system.errors import DiscoveryError
from tests.index_bed import hostile_sdist, served

LOCKED = lock_entries(stack.lock_text("openstack-2025.1"))["pycadf"].version
EXPERIMENT = """\
name: f02
sites:
  - name: nantes
  - name: lyon
deployment:
  backend: {{type: mariadb, site: lyon}}
  {asked}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, and no index but the test's."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def check(folder: Path, index: str, asked: str) -> tuple[int, str]:
    """Exit code of `check`, and what it says, of an experiment whose package index is `index`."""
    (folder / "exp.yaml").write_text(EXPERIMENT.format(asked=asked))
    os.environ["PIP_INDEX_URL"] = index
    try:
        app(["check", str(folder / "exp.yaml")], standalone_mode=False)
    except DiscoveryError as error:
        return error.exit_code, error.what
    finally:
        del os.environ["PIP_INDEX_URL"]
    return 0, ""


@pytest.mark.parametrize("kind", ["json", "html"])
@pytest.mark.parametrize("states", [True, False])
def test_an_archive_that_the_lock_does_not_hold_is_refused_and_not_run(tmp_path: Path, kind: str, states: bool) -> None:
    mark = tmp_path / "ran"
    content = hostile_sdist(tmp_path, "pycadf", LOCKED, mark)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "series").write_text(f"# base: pycadf {LOCKED}\np.patch\n")
    (tmp_path / "series" / "p.patch").write_text("--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+new\n")
    with served({f"pycadf-{LOCKED}.tar.gz": content}, "pycadf", kind, states) as index:
        done = check(tmp_path, index.url, "patches: {pycadf: series}")
    assert not mark.exists()
    assert done[0] == 2
    assert f"its sha256 is {hashlib.sha256(content).hexdigest()}, which the lock does not hold" in done[1]
    assert not (tmp_path / "cache" / "sources" / f"pycadf-{LOCKED}").exists(), "nothing of it is kept"


def test_another_version_is_fetched_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = hostile_sdist(tmp_path, "pycadf", "9.9.9", mark)
    with served({"pycadf-9.9.9.tar.gz": content}, "pycadf") as index:
        done = check(tmp_path, index.url, "sources: {pycadf: {version: 9.9.9}}")
        again = check(tmp_path, index.url, "sources: {pycadf: {version: 9.9.9}}")
    assert not mark.exists()
    assert (done, again) == ((0, ""), (0, ""))
    assert [path for path, _ in index.asked] == ["/simple/pycadf/", "/files/pycadf-9.9.9.tar.gz"], "fetched once"


def test_an_index_that_states_another_hash_than_it_serves_is_refused(tmp_path: Path) -> None:
    content = hostile_sdist(tmp_path, "pycadf", "9.9.9", tmp_path / "ran")

    class Changing(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return super().__getitem__(name) + b"\0"

    with served(Changing({"pycadf-9.9.9.tar.gz": content}), "pycadf") as index:
        done = check(tmp_path, index.url, "sources: {pycadf: {version: 9.9.9}}")
    assert done[0] == 2
    assert "and the index says" in done[1]
