"""What a user's shell brings (variables, umask, closed streams) and what a user without root may not do.

The tool works, or refuses at once and says what to do; never a traceback, and nothing of it reaches other programs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import nspawn, wan_router
from discovery_deploy.agent.plan import Host, Plan
from discovery_deploy.cli import commands
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.process_settings import needs_restart, settled
from discovery_deploy.testbeds.local import LocalProvider

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
TOOL = [sys.executable, "-m", "discovery_deploy"]
BASE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
HOSTILE = {
    "PATH": "/usr/bin:/bin:/root/nowhere:.::relative", "LC_ALL": "xx_YY.UTF-8", "LANGUAGE": "de",
    "LANG": "ru_RU.KOI8-R", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii",
    "PYTHONDEVMODE": "1", "OS_CLOUD": "production", "OS_PASSWORD": "OS-SECRET", "ANSIBLE_STRATEGY": "free",
    "ANSIBLE_VAULT_PASSWORD": "A-SECRET", "GIT_DIR": "/nowhere/.git", "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}  # fmt: skip

SEEN = """
import json, os, subprocess, sys
from discovery_deploy.system import process_settings
process_settings.apply()
process_settings.apply()
child = subprocess.run([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
                       stdout=subprocess.PIPE, text=True).stdout
umask = os.umask(0)
file = os.open("/dev/null", os.O_RDONLY)
print("café ü", file=sys.stderr)
open(sys.argv[1], "w").write(json.dumps([json.loads(child), umask, file, sys.flags.optimize, sys.warnoptions]))
"""


def tool(*words: str, variables: dict[str, str] | None = None, before: str = "", streams: str = "") -> tuple[int, str]:
    """Exit code and all output of the command, started by a shell."""
    script = f'{before} exec "$@" {streams}'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *TOOL, *words],
        env={**BASE, **(variables or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout


class TestVariables:
    def test_what_configures_other_programs_goes_and_the_rest_stays(self) -> None:
        found = settled({**HOSTILE, "PIP_INDEX_URL": "https://index"}, "/root", lambda entry: True)
        gone = {"PYTHON", "OS_", "ANSIBLE_", "GIT_", "LANGUAGE"}
        assert [name for name in found if name.startswith(tuple(gone))] == []
        assert found["http_proxy"] == HOSTILE["http_proxy"]  # downloads go that way
        assert found["PIP_INDEX_URL"] == "https://index"
        assert found["LC_ALL"] == "C.UTF-8"

    @pytest.mark.parametrize(
        ("path", "first"),
        [
            ("/opt/x/bin:/usr/bin:/bin", "/opt/x/bin:/usr/bin:/bin"),
            (".::bin:/usr/bin", "/usr/bin"),
            ("/root/bin:/usr/bin", "/usr/bin"),
            ("", ""),
            (None, ""),
        ],
    )
    def test_path_has_what_can_be_entered_and_always_sbin(self, path: str | None, first: str) -> None:
        given = {} if path is None else {"PATH": path}
        found = settled(given, "/", lambda entry: not entry.startswith("/root"))["PATH"]
        assert found.startswith(first)
        entries = found.split(":")
        assert len(entries) == len(set(entries))
        assert {"/usr/sbin", "/sbin", "/usr/bin"} <= set(entries)
        assert all(entry.startswith("/") and entry != "/root/bin" for entry in entries)

    @pytest.mark.parametrize("home", [None, "", "relative"])
    def test_home_is_that_of_the_user_when_it_is_not_set(self, home: str | None) -> None:
        assert settled({} if home is None else {"HOME": home}, "/home-of-user", bool)["HOME"] == "/home-of-user"
        assert settled({"HOME": "/else"}, "/home-of-user", bool)["HOME"] == "/else"

    @pytest.mark.parametrize(
        ("given", "encoding", "restart"),
        [
            ({}, "UTF-8", False), ({}, "utf8", False), ({}, "ISO-8859-1", True),
            ({"PYTHONWARNINGS": ""}, "UTF-8", True), ({"PYTHONPATH": "x"}, "UTF-8", False),
        ],
    )  # fmt: skip
    def test_the_interpreter_starts_again_only_when_it_must(
        self, given: dict[str, str], encoding: str, restart: bool
    ) -> None:
        assert needs_restart(given, encoding) is restart
        assert not needs_restart(settled(given, "/", bool), "UTF-8")

    @pytest.mark.parametrize("streams", ["", "<&- >&- 2>&-"])
    def test_children_get_none_of_it_nor_a_file_for_a_stream(self, tmp_path: Path, streams: str) -> None:
        said = tmp_path / "said"
        done = subprocess.run(
            ["/bin/sh", "-c", f'umask 077; exec "$@" {streams}', "sh", sys.executable, "-c", SEEN, str(said)],
            env={**BASE, **HOSTILE}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        variables, umask, file, optimize, warnings = json.loads(said.read_text())
        assert umask == 0o022
        assert file > 2
        assert (optimize, warnings) == (0, [])
        assert not [text for text in variables.values() if "SECRET" in text]
        assert {"PYTHONWARNINGS", "OS_CLOUD", "ANSIBLE_STRATEGY", "GIT_DIR"} & set(variables) == set()
        assert variables["LC_ALL"] == "C.UTF-8"
        assert done.stderr == ("" if streams else "café ü\n")

    def test_the_openstack_client_reaches_sites_without_the_users_proxy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class TakenError(Exception):
            pass

        def taken(arguments: Any, environment: dict[str, str]) -> None:
            assert [name for name in environment if "proxy" in name.lower()] == []
            raise TakenError

        host = type("Host", (), {"site": "lyon", "ssh": {}, "name": "lyon-1"})
        lease = type("Lease", (), {"hosts": [host], "at": lambda self, site: host})()
        workspace = type("Workspace", (), {"path": tmp_path, "load": lambda self, name, kind: lease})()
        (tmp_path / "clouds.yaml").write_text('{"clouds": {"lyon": {"auth": {"auth_url": "http://10.0.0.1:5000"}}}}')
        monkeypatch.setattr(commands, "routed", lambda url: True)
        monkeypatch.setattr(commands, "_take_over", taken)
        for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with pytest.raises(TakenError):
            commands.openstack(workspace, "lyon", ["token", "issue"])


class TestCommand:
    @pytest.mark.parametrize(
        ("variables", "before", "streams"),
        [
            (HOSTILE, "umask 077;", ""),
            (HOSTILE, "umask 0; unset HOME PATH;", "<&-"),
        ],
    )
    def test_a_file_is_checked_whatever_the_shell_brings(
        self, variables: dict[str, str], before: str, streams: str
    ) -> None:
        code, said = tool("check", str(QUICKSTART), variables=variables, before=before, streams=streams)
        assert (code, len(said.splitlines())) == (0, 1), said
        assert "3 sites" in said

    def test_closed_output_is_no_failure(self) -> None:
        assert tool("check", str(QUICKSTART), streams=">&- 2>&-") == (0, "")

    def test_standard_output_that_takes_nothing_is_told(self) -> None:
        code, said = tool("--help", streams="> /dev/full")
        assert code == 6
        assert said.startswith("standard output")
        assert "No space left on device" in said
        assert "Traceback" not in said


HOST = Host("lyon-1", "lyon", "dd9-lyon-1", "10.137.0.10", "dd9e0", "10.73.0.10", "dd9n0")


@pytest.mark.parametrize("umask", [0, 0o077])
def test_files_of_hosts_have_their_modes_under_every_umask(tmp_path: Path, umask: int) -> None:
    def modes(name: str, umask: int) -> dict[str, int]:
        (tmp_path / "base/etc/ssh").mkdir(parents=True, exist_ok=True)
        plan = Plan(9, tmp_path / name, base=tmp_path / "base", hosts=(HOST,), authorized_keys=("key",))
        old = os.umask(umask)
        try:
            nspawn._prepare_files(plan, HOST, print)
        finally:
            os.umask(old)
        upper = tmp_path / name / "hosts/lyon-1/upper"
        paths = [upper, *sorted(upper.rglob("*"))]
        return {str(path.relative_to(upper)): path.lstat().st_mode & 0o7777 for path in paths}

    found = modes("odd", umask)
    assert found == modes("usual", 0o022)
    assert found["."] == 0o755
    assert found["etc/ssh/ssh_host_ed25519_key"] == 0o600


class TestStateDirectory:
    EXPERIMENT = Experiment.model_validate(
        {
            "name": "spaced",
            "sites": [{"name": "lyon"}, {"name": "nantes"}],
            "deployment": {"backend": {"type": "mariadb", "site": "lyon"}},
        }
    )

    @pytest.fixture(autouse=True)
    def _uml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wan_router, "kernel_has_netem", lambda: False)

    def test_one_with_a_space_is_refused_before_anything_is_made(self, tmp_path: Path) -> None:
        provider = LocalProvider(tmp_path / "environments", tmp_path / "my state")
        with pytest.raises(TestbedError, match="my state/spaced: a WAN router in User-Mode Linux takes only") as error:
            provider.reserve(self.EXPERIMENT, "key", tmp_path, print)
        assert "export DISCOVERY_DEPLOY_STATE=" in error.value.advice
        assert list(tmp_path.iterdir()) == []

    def test_it_is_no_obstacle_where_the_kernel_has_netem_nor_for_what_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "my state"
        plan = Plan(77, directory)
        (directory / "router").mkdir(parents=True)
        assert wan_router.alive(plan) is False
        wan_router.down(plan)
        assert not (directory / "router").exists()
        monkeypatch.setattr(wan_router, "kernel_has_netem", lambda: True)
        assert wan_router.directory_problem(directory) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
class TestWithoutRoot:
    """The user `nobody`, on a machine where root has an experiment that others may not read."""

    @pytest.fixture
    def place(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="discovery-deploy-test-"))
        folder.chmod(0o755)
        (folder / "state/secret").mkdir(parents=True)
        (folder / "state/secret/plan.json").write_text('{"experiment": "secret", "slot": 60, "base": "/base"}')
        (folder / "state/secret/workspace").write_text("/root/results\n")
        for path in (*(folder / "state/secret").iterdir(), folder / "state/secret"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        (folder / "cache/images/0123456789abcdef/private").mkdir(parents=True)
        (folder / "cache/images/0123456789abcdef/private").chmod(0o700)
        for name in ("home", "code"):
            (folder / name).mkdir()
        os.chown(folder / "home", 65534, 65534)
        yield folder
        shutil.rmtree(folder)

    @pytest.fixture
    def nobody(self, place: Path) -> Callable[..., tuple[int, str]]:
        def run(*words: str, home: str = "home") -> tuple[int, str]:
            # The checkout may lie where nobody else comes.
            script = f'mount --bind "{ROOT}" "{place}/code" && cd "{place}/home" && exec "$@"'
            user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            command = [f"{place}/code/{Path(sys.prefix).relative_to(ROOT)}/bin/python", "-m", "discovery_deploy"]
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", script, "sh", *user, *command, *words],
                env={
                    **BASE, "PYTHONPATH": f"{place}/code", "PATH": f"{place}/state/secret:/usr/bin:/bin",
                    "DISCOVERY_DEPLOY_STATE": f"{place}/state", "DISCOVERY_DEPLOY_CACHE": f"{place}/cache",
                    "HOME": f"{place}/{home}",
                },
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            )  # fmt: skip
            assert "Traceback" not in done.stdout
            assert "bug" not in done.stdout
            return done.returncode, done.stdout

        return run

    G5K = """
name: far
provider: {type: g5k, default: {g5k_site: rennes, cluster: paravance}}
sites: [{name: a}, {name: b}]
deployment: {backend: {type: galera}}
"""

    def test_check_needs_no_directory_of_the_machine(self, nobody: Callable[..., tuple[int, str]], place: Path) -> None:
        (place / "far.yaml").write_text(self.G5K)
        before = sorted(place.rglob("*"))
        code, said = nobody("check", f"{place}/far.yaml", home="nowhere")
        assert code == 0, said
        assert "2 machines of paravance" in said
        assert sorted(place.rglob("*")) == before

    def test_what_others_have_is_named_but_not_read(self, nobody: Callable[..., tuple[int, str]]) -> None:
        code, said = nobody("status")
        assert (code, said.strip()) == (0, "experiments with hosts on this machine: secret (workspace unknown)")
        code, said = nobody("cache", "list")
        assert code == 0
        assert "images/0123456789abcdef" in said
        assert "perhaps hosts of secret" in said
        assert nobody("cache", "prune", "--dry-run") == (0, "0 MB would be freed\n")

    def test_what_needs_root_says_so(self, nobody: Callable[..., tuple[int, str]], place: Path) -> None:
        for words in (["release", "secret"], ["reserve", f"{place}/code/experiments/quickstart.yaml"]):
            code, said = nobody(*words)
            assert code == 3
            assert "root" in said

    @pytest.mark.parametrize("provider", ["local", "static", "g5k"])
    def test_doctor_begins_with_it(self, nobody: Callable[..., tuple[int, str]], provider: str) -> None:
        code, said = nobody("doctor", "--provider", provider)
        assert code == 3
        assert "root" in said.splitlines()[0]
        assert "sudo -i" in said
