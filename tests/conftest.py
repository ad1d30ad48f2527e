"""Which tests may run side by side: `make integration` has some processes for them (LANES)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

KERNELS = (
    "test_egress",
    "test_g5k_machines",
    "test_nested",
    "test_nested_experiment",
    "test_nested_many",
    "test_systemd_machine",
    "test_vagrant",
    "test_vagrant_release",
    "test_wan_kernel",
    "test_wan_machines",
)
"""Files that start kernels of their own, each of which keeps a processor busy: one at a time, whoever else runs."""

LONGEST = ("test_topologies", *KERNELS)
"""Files that must not be the last ones: the other processes would wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


class Lanes(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """A file's tests share their hosts, so they stay together; files that start kernels follow each other."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "kernels" if Path(file).stem in KERNELS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes | None:
    """What pytest-xdist asks for; None: what it makes itself."""
    return Lanes(config, log) if config.getvalue("dist") == "loadfile" else None
