"""The agent, brought to this machine in place of another, and asked there."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from discovery_deploy.agent import conversation
from discovery_deploy.agent.__main__ import LISTENS, MODULES, verb
from discovery_deploy.system import agents
from discovery_deploy.system.agents import Agents
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import Remote


class Here(Remote):
    """Runs on this machine what should run on another."""

    def arguments(self, host: str, command: Sequence[str]) -> list[str]:
        return list(command)


@pytest.fixture
def here(tmp_path: Path) -> Agents:
    return Agents(Here(tmp_path / "none"), tmp_path / "home")


def test_every_verb_has_its_function() -> None:
    assert all(callable(verb(name)) for name in MODULES)
    assert set(LISTENS) <= set(MODULES)


def test_the_archive_holds_all_of_the_agent_and_nothing_else() -> None:
    folder = Path(conversation.__file__).parent
    names = zipfile.ZipFile(io.BytesIO(agents.archive())).namelist()
    modules = {f"discovery_deploy/agent/{path.name}" for path in folder.glob("*.py")}
    compiled = {f"{name}c" for name in modules} - {"discovery_deploy/agent/__init__.pyc"}
    others = {"__main__.py", "discovery_deploy/__init__.py", "discovery_deploy/agent/uml_xstate.c"}
    assert set(names) == modules | compiled | others
    assert len(names) == len(set(names))


def test_the_same_code_is_the_same_archive() -> None:
    code = "from discovery_deploy.system import agents; print(hash(agents.archive()))"
    one, other = (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "0"}
        ).stdout
        for _ in "ab"
    )
    assert one == other


def test_what_is_brought_is_enough_and_answers(here: Agents) -> None:
    for _ in range(2):
        here.bring("here")
    assert [entry.name for entry in here.place.iterdir()] == ["agent.pyz"]
    seen = here.ask("here", "look", {"directory": "/nowhere"})
    assert set(seen) == {"slots", "missing", "images", "netem", "processor"}
    assert seen["processor"] == os.uname().machine


def test_it_is_brought_when_it_is_absent(here: Agents) -> None:
    assert not here.place.exists()
    assert "slots" in here.ask("here", "look", {"directory": "/nowhere"})
    assert (here.place / "agent.pyz").stat().st_mode & 0o777 == 0o600


def test_another_python_takes_the_source(here: Agents, tmp_path: Path) -> None:
    here.bring("here")
    file = here.place / "agent.pyz"
    with zipfile.ZipFile(file) as whole:
        contents = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(file, "w") as changed:
        for name, content in contents.items():
            changed.writestr(name, b"\0" * 4 + content[4:] if name.endswith(".pyc") else content)
    assert "slots" in here.ask("here", "look", {"directory": "/nowhere"})


def test_what_it_refuses_is_an_error_with_the_name(here: Agents) -> None:
    with pytest.raises(TestbedError, match=r"here: .*the WAN router is not up"):
        here.ask("here", "facts", {"plan": {"directory": "/nowhere", "slot": 77}})


def test_a_program_that_is_none_is_refused(here: Agents) -> None:
    program = {"super_packets": True, "devices": {"vec0": ["qdisc", 3]}}
    request = {"plan": {"directory": "/nowhere", "slot": 77}, "program": program}
    with pytest.raises(TestbedError, match=r"here: program\.devices\.vec0\[1\]: '3'"):
        here.ask("here", "shape", request)


def test_a_plan_that_is_none_is_refused(here: Agents) -> None:
    with pytest.raises(TestbedError, match=r"here: plan\.slot: is absent"):
        here.ask("here", "status", {"plan": {"directory": "/nowhere"}})


def test_a_program_that_ends_without_an_answer_is_an_error(here: Agents) -> None:
    with pytest.raises(TestbedError, match="here: `nonsense` ended with status 2: usage"):
        here.ask("here", "nonsense", {})


def test_it_ends_in_time(here: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "arguments", lambda self, host, command: ["sleep", "60"])
    with pytest.raises(TestbedError, match=r"here: `look` gave no answer within 0\.2 s"):
        here.ask("here", "look", {}, limit_s=0.2)


def test_a_conversation_goes_on_until_it_is_ended(here: Agents) -> None:
    with here.opened("here", "count", {"ports": [], "sockets": []}, limit_s=None) as talk:
        assert talk.hear() == {"ready": True}
        for _ in range(2):
            talk.say("clock")
            assert talk.hear()["clock_ns"] > 0
        talk.say("stop")
        assert talk.answer()["requests"] == []


def test_what_listens_ends_with_the_driver(here: Agents) -> None:
    with here.opened("here", "count", {"ports": [], "sockets": []}, limit_s=20) as talk:
        talk.hear()
        talk.close()
        assert talk.answer()["requests"] == []


def test_what_is_under_way_ends_with_the_driver(here: Agents) -> None:
    here.bring("here")
    program = (
        f"import sys, time; sys.path.insert(0, {str(here.place / 'agent.pyz')!r}); "
        "import discovery_deploy.agent.__main__ as m; m.verb = lambda name: lambda *_: time.sleep(60); "
        "m.main(['look'])"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"{}\n")
        process.stdin.close()
        process.stdin = None
        _, said = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in said
