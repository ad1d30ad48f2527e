"""The package finds its data in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery_deploy.system.data import PACKAGE, data_directory


def test_an_installed_package_has_its_data_inside(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "discovery_deploy"
    (package / "data" / "playbooks").mkdir(parents=True)
    (package.parent / "playbooks").mkdir()  # another package's, in site-packages
    assert data_directory("playbooks", package) == package / "data" / "playbooks"


def test_a_checkout_has_its_data_beside_the_package(tmp_path: Path) -> None:
    (tmp_path / "discovery_deploy").mkdir()
    (tmp_path / "rally_tasks").mkdir()
    assert data_directory("rally_tasks", tmp_path / "discovery_deploy") == tmp_path / "rally_tasks"


def test_missing_data_is_named_with_both_places(tmp_path: Path) -> None:
    package = tmp_path / "discovery_deploy"
    with pytest.raises(FileNotFoundError) as failure:
        data_directory("locks", package)
    assert str(package / "data" / "locks") in str(failure.value)
    assert str(tmp_path / "locks") in str(failure.value)


def test_this_package_finds_its_own_experiments() -> None:
    found = data_directory("experiments")
    assert found.is_absolute()
    assert found in (PACKAGE / "data" / "experiments", PACKAGE.parent / "experiments")
