"""discovery-deploy: experiments on distributed OpenStack, from a file to a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery_deploy.enoslib_roles import roles as roles

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """`roles` alone: only who asks for it loads what it needs, EnOSlib above all."""
    if name == "roles":
        return importlib.import_module("discovery_deploy.enoslib_roles").roles
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
