"""Files and folders: written or made in one act, so that nothing half-made is ever found."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from discovery_deploy.agent import machine
from discovery_deploy.system.errors import StateError, TestbedError
from discovery_deploy.system.progress import Progress


def now() -> str:
    """The present time, ISO 8601 with milliseconds, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_file(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace a file atomically; it never exists with other permissions or with half of the content.

    Raises:
        StateError: the disk is full or the folder not writable; the old file is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        machine.replace(path, content, mode)
    except OSError as error:
        raise StateError(
            f"{path}: cannot be written: {error.strerror}", "Free space or mend the permissions, then run again."
        ) from error


def digest(*parts: object) -> str:
    """Short stable hash (16 hex digits of SHA-256) of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def private_folder(path: Path) -> Path:
    """A folder of the cache that nobody else may enter, made when missing. Raises TestbedError.

    Images have hosts' set-uid programs and users' numbers, which are other users' here.
    """
    try:
        machine.private(path)
    except OSError as error:
        raise TestbedError(
            f"{path}: {error.strerror}",
            "Become root, which images need (`sudo -i`)." if os.geteuid() else "Choose another DISCOVERY_DEPLOY_CACHE.",
        ) from error
    return path


def made_once(target: Path, make: Callable[[Path], None], what: str, progress: Progress) -> Path:
    """`target`, made by `make(temporary)` when it is not there; atomic, and by one process at a time.

    What a killed maker left is removed by the next one, which holds the same lock.

    Raises:
        TestbedError: the cache cannot be written, or `make` raised it; nothing half-made stays.
    """
    if target.is_dir():
        return target
    temporary = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            _take(lock.fileno(), what, progress)
            if not target.is_dir():
                _remove(temporary)
                try:
                    make(temporary)
                    # What is renamed must be on the disk: after a loss of power it would count as made, and be empty.
                    os.sync()
                    temporary.rename(target)
                finally:
                    _remove(temporary)
    except OSError as error:
        raise TestbedError(
            f"{what}: {error.filename or target.parent}: {error.strerror}",
            "Become root, which builds need (`sudo -i`)."
            if os.geteuid() != 0
            else "Free space or mend the permissions of the cache, or choose another with DISCOVERY_DEPLOY_CACHE.",
        ) from error
    return target


def _take(lock: int, what: str, progress: Progress) -> None:
    if not machine.lock(lock):
        progress(f"waiting for another process that makes {what}")
        machine.lock(lock, math.inf)


def _remove(tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
