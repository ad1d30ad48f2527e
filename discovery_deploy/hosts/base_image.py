"""The base image on its way to machines."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from discovery_deploy.system import interruption
from discovery_deploy.system.errors import TestbedError

PACK_LIMIT_S = 1200.0
BLOCK_BYTES = 1 << 20


def tree_name(tree: Path) -> str:
    """Name of a base image on machines: its own, and a hash of names, sizes and times of its files."""
    seen = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        seen.update(f"{path.relative_to(tree)}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return f"{tree.name}-{seen.hexdigest()[:12]}"


@contextmanager
def packed_tree(tree: Path) -> Iterator[tuple[Path, str]]:
    """A compressed archive of a base image, for as long as the block lasts, and its SHA-256. Raises TestbedError."""
    with tempfile.TemporaryDirectory(prefix="discovery-deploy-", dir="/var/tmp") as folder:
        archive = Path(folder) / "tree.tar.gz"
        pack = ["tar", "--create", f"--file={archive}", "--use-compress-program=gzip -1", "--numeric-owner", "--xattrs",
                "--xattrs-include=*", f"--directory={tree}", "."]  # fmt: skip
        try:
            done = interruption.run(pack, None, PACK_LIMIT_S)
        except subprocess.TimeoutExpired:
            what = f"{tree}: packing it for machines timed out after {PACK_LIMIT_S:g} s"
            raise TestbedError(what, "Look at the disks of the cache and of /var/tmp, then run again.") from None
        if done.returncode:
            raise TestbedError(f"{tree}: cannot be packed for machines", "See `df -h /var/tmp`; free space there.")
        seen = hashlib.sha256()
        with archive.open("rb") as source:
            while block := source.read(BLOCK_BYTES):
                seen.update(block)
        yield archive, seen.hexdigest()
