"""The guest's recipe; that it boots is seen in real deployments."""

from __future__ import annotations

import subprocess

import pytest

from discovery_deploy.software import guest
from discovery_deploy.software.stack import CERTIFICATES


@pytest.mark.parametrize("text", [guest.INIT, guest.BUILD], ids=["init", "build"])
def test_the_scripts_can_be_read_by_a_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_hash_follows_the_image_and_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    first = guest.guest_hash("aa")
    assert first == guest.guest_hash("aa")
    assert first != guest.guest_hash("bb")
    monkeypatch.setattr(guest, "INIT", guest.INIT + "# other\n")
    assert first != guest.guest_hash("aa")


def test_certificates_are_where_a_build_sees_them() -> None:
    lines = [
        'Acquire::https::CaInfo "/etc/here.crt";', 'Acquire::https::CaPath "/etc/here";',
        'Acquire::http::Proxy "http://proxy:3142";',
    ]  # fmt: skip
    assert guest.apt_options(lines).splitlines() == [
        f'Acquire::https::CaInfo "{CERTIFICATES}";', 'Acquire::http::Proxy "http://proxy:3142";',
    ]  # fmt: skip
