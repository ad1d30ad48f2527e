"""F15: passwords of proxies and indexes stand in no command line and no log, and builds offline are not told them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from discovery_deploy.software import derived, image
from discovery_deploy.software.records import ProjectRecord
from discovery_deploy.system import programs

SECRET = "hunter2"
MMDEBSTRAP = """\
#!/bin/sh
# notes how it was called, and makes the tree
tr '\\0' ' ' < /proc/$$/cmdline > "$SEEN/cmdline"
ps -eo args >> "$SEEN/cmdline"
cat > "$SEEN/sources"
echo "E: Failed to fetch $(sed -n 's/^deb //;s/ .*//;1p' "$SEEN/sources")/dists/x"
for word; do
    case "$word" in
        --aptopt=/*) cp "${word#--aptopt=}" "$SEEN/options"; stat --format=%a "${word#--aptopt=}" > "$SEEN/mode" ;;
        */.*.partial) mkdir -p "$word" ;;
    esac
done
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt has a proxy and an archive with passwords, and an mmdebstrap that notes how it is called."""
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("mmdebstrap", MMDEBSTRAP),
        ("apt-get", f"#!/bin/sh\necho 'http://joe:{SECRET}@archive.example.org/debian bookworm main'\n"),
        ("apt-config", f"#!/bin/sh\necho 'Acquire::http::Proxy \"http://joe:{SECRET}@proxy:3128\";'\n"),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    monkeypatch.setenv("SEEN", str(tmp_path))
    return tmp_path


def test_a_bake_gets_the_proxys_password_in_a_file_that_goes(machine: Path) -> None:
    told: list[str] = []
    image.base_image(machine / "cache", told.append, "base")
    assert SECRET in (machine / "options").read_text()
    assert (machine / "mode").read_text() == "600\n"
    (log,) = (machine / "cache" / "logs").iterdir()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    for seen in ((machine / "cmdline").read_text(), log.read_text(), *told):
        assert SECRET not in seen
    (option,) = [word for word in (machine / "cmdline").read_text().split() if word.startswith("--aptopt=/")][:1]
    assert not Path(option.removeprefix("--aptopt=")).exists()


def test_a_bake_gets_the_passwords_of_archives_by_standard_input(machine: Path) -> None:
    told: list[str] = []
    image.base_image(machine / "cache", told.append, "base")
    first = f"deb http://joe:{SECRET}@archive.example.org/debian bookworm main"
    assert (machine / "sources").read_text().splitlines()[0] == first
    (log,) = (machine / "cache" / "logs").iterdir()
    assert "Failed to fetch http://archive.example.org/debian/dists/x" in log.read_text()
    for seen in ((machine / "cmdline").read_text(), log.read_text(), *told):
        assert SECRET not in seen


def test_only_builds_that_are_online_are_told_the_index() -> None:
    project = ProjectRecord(project="p", version="1", source="s", tree="t")
    environment = {
        "UV_INDEX_OURS_PASSWORD": SECRET, "UV_DEFAULT_INDEX": f"https://joe:{SECRET}@index.example.org/simple",
        "PIP_INDEX_URL": f"https://joe:{SECRET}@index.example.org/simple", "https_proxy": f"http://joe:{SECRET}@p:1",
    }  # fmt: skip
    offline = derived.build_variables(project, "/tools", True, environment)
    assert not [name for name, value in offline.items() if SECRET in value or name.upper().startswith("UV_INDEX")]
    assert "--offline" in offline["MODE"]
    assert SECRET in derived.build_variables(project, "/tools", False, environment)["UV_DEFAULT_INDEX"]


@pytest.mark.parametrize("password", ["plain", "p@ss@word", "per%40cent"])
def test_no_part_of_a_password_is_left_in_what_is_said(password: str) -> None:
    said = f"E: http://joe:{password}@archive.example.org/debian of ftp://other.example.org/x"
    assert programs.without_passwords(said) == "E: http://archive.example.org/debian of ftp://other.example.org/x"
