"""What tests on real hosts share: the base image, a key, and a provider whose state is thrown away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery_deploy.software import stack
from tests.integration.local_bed import LocalBed


@pytest.fixture(scope="session")
def image() -> Path:
    """The base image of this machine's cache, baked when it is not there."""
    return stack.base_image(stack.cache_directory(), print)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ssh key; its public part is beside it."""
    file = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return file


@pytest.fixture
def bed(image: Path, key: Path, tmp_path: Path) -> Iterator[LocalBed]:
    """The provider `local` with a state directory of its own; everything in it is released at the end."""
    bed = LocalBed(image, key, tmp_path)
    yield bed
    bed.release_all()


@pytest.fixture(scope="module")
def shared_bed(image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBed]:
    """As `bed`, for all tests of a module."""
    bed = LocalBed(image, key, tmp_path_factory.mktemp("shared"))
    yield bed
    bed.release_all()
