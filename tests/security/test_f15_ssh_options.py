"""No name of an experiment file is an option of ssh (F15)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from discovery_deploy.experiment.config import load
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.testbeds.first_login import way_in
from discovery_deploy.testbeds.vagrant_plan import Way


@pytest.mark.parametrize("user", ["-oProxyCommand=touch ran", "-oProxyCommand=touch\tran", "a b", "--"])
def test_a_user_of_vagrant_s_machines_that_ssh_would_take_for_an_option_is_refused(tmp_path: Path, user: str) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        f"name: x\nprovider: {{type: vagrant, user: {user!r}}}\nsites: [{{name: a}}, {{name: b}}]\n"
        "deployment: {backend: {type: mariadb, site: a}}\n"
    )
    with pytest.raises(ExperimentError, match=r"e\.yaml:2:\d+: provider\.user: "):
        load(file)


@pytest.mark.parametrize(
    ("user", "address"), [("-oProxyCommand=touch ran", "127.0.0.1"), ("a", "-oProxyCommand=touch ran")]
)
def test_the_first_login_passes_names_as_names(tmp_path: Path, user: str, address: str) -> None:
    words = way_in(Way(name="a", address=address, port=1, user=user, key="/nowhere"), tmp_path / "known_hosts")
    words[-1] = "localhost"  # were one of them an option, this would be the host, and the option obeyed
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 255
    assert not list(tmp_path.glob("ran*"))
