"""Which tests may run side by side: `make integration` has two processes for them."""

from __future__ import annotations

import pytest

KERNELS = (
    "test_egress",
    "test_g5k_machines",
    "test_nested",
    "test_systemd_machine",
    "test_vagrant",
    "test_vagrant_release",
    "test_wan_kernel",
    "test_wan_machines",
)
"""Files that start kernels of their own, each of which keeps a processor busy: one at a time, whoever else runs."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share their hosts: they stay together."""
    for item in items:
        group = "kernels" if item.path.stem in KERNELS else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
