"""Programs that are run to their end: their output, their failures, and that none outlives the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery_deploy.system import programs
from discovery_deploy.system.errors import TestbedError


def silent(_line: str) -> None:
    pass


def test_a_program_that_fails_is_quoted_and_its_output_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(TestbedError, match=r"the build failed[^\0]*second") as caught:
        programs.run_logged(
            ["sh", "-c", "echo first; echo second >&2; exit 3"], tmp_path / "log", "the build", lines.append
        )
    assert lines == ["first", "second"]
    assert "first\nsecond\n" in (tmp_path / "log").read_text()
    assert str(tmp_path / "log") in caught.value.what


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo cp: No space left on device; exit 1"]
    with pytest.raises(TestbedError, match="the disk is full"):
        programs.run_logged(command, tmp_path / "log", "the build", silent)


def test_a_missing_program_is_named_with_the_command_that_mends_it(tmp_path: Path) -> None:
    for command in (["no-such-program"], ["setpriv", "no-such-program"]):
        with pytest.raises(TestbedError, match="no-such-program is not installed") as caught:
            programs.run_logged(command, tmp_path / "log", "the build", silent)
        assert caught.value.advice == "apt-get install no-such-program"


@pytest.mark.integration
def test_what_runs_contained_ends_with_the_driver(tmp_path: Path) -> None:
    mark = tmp_path / "still"
    command = programs.contained(["sh", "-c", f"echo up; while :; do date > {mark}; sleep 0.05; done"])
    program = f"import subprocess,time\nsubprocess.Popen({command!r})\ntime.sleep(60)\n"
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up\n"
    driver.kill()
    assert driver.stdout.read() == ""  # the end of the pipe: nobody who could write is left
    driver.wait()


def test_what_a_program_prints_is_given() -> None:
    assert programs.output(["sh", "-c", "echo heard; echo said >&2; pwd"], 10, directory=Path("/")) == "heard\n/\n"


def test_a_program_that_gives_no_output_says_why() -> None:
    with pytest.raises(TestbedError, match=r"`sh -c 'echo no >&2; exit 3'` failed:\n    no\n"):
        programs.output(["sh", "-c", "echo no >&2; exit 3"], 10)
    with pytest.raises(TestbedError, match="the command no-such-program is missing") as caught:
        programs.output(["no-such-program"], 10, package="a-package")
    assert caught.value.advice == "apt-get install -y a-package"
    with pytest.raises(TestbedError, match=r"`sleep 60` timed out after 0.1 s") as caught:
        programs.output(["sleep", "60"], 0.1, when_late="Wait.")
    assert caught.value.advice == "Wait."
