"""Hashes of what is built, by which phases know it. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from discovery_deploy.system.strict import Strict


class Inputs(Strict):
    """Hashes of what phases use besides the experiment file."""

    image: str
    openstack: str
    rally: str
    playbooks: str
    code: str = ""
    """Of the environments that the services run in."""


def digest(*parts: Any) -> str:
    """Short stable hash (16 hex digits of SHA-256) of JSON-able values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
