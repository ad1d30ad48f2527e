"""The Python environment in which EnOSlib runs: built once from `locks/enoslib.txt` and kept in the cache.

It is apart from this tool's own, because EnOSlib's pins (rich, netaddr, ansible) are others than ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from discovery_deploy.software.stack import index_variables, lock_text, lock_versions, uv_program
from discovery_deploy.system.files import digest, made_once, private_folder
from discovery_deploy.system.programs import run_logged
from discovery_deploy.system.progress import Progress

RECIPE = 1
"""Raise it when `BUILD` changes what it makes."""

BUILD = """\
"$UV" venv --quiet --relocatable --no-python-downloads --python "$PYTHON" "$PREFIX"
"$UV" pip install --require-hashes --no-deps --no-build --link-mode copy --compile-bytecode \\
    --python "$PREFIX/bin/python" --requirement "$LOCK"
"$PREFIX/bin/python" -I -c 'import enoslib'
"""


def environment_name() -> str:
    """`enoslib-<hash>`: the hash covers the lock file, the recipe and this tool's Python."""
    return f"enoslib-{digest(RECIPE, BUILD, lock_text('enoslib'), sys.version, sys.base_prefix)}"


def enoslib_version() -> str:
    """The version of EnOSlib that the lock file names."""
    return lock_versions(lock_text("enoslib"))["enoslib"]


def enoslib_python(cache: Path, progress: Progress) -> Path:
    """The Python interpreter of the environment, which is built when the cache lacks it (about 10 s).

    Args:
        cache: directory of the cache; the environment is `tools/enoslib-<hash>` below it.
        progress: takes one short line per step.
    Raises:
        TestbedError: a package could not be had, or the build failed; the end of its output is quoted.
    """
    cache = cache.absolute()
    name = environment_name()
    lock = lock_text("enoslib")

    def build(partial: Path) -> None:
        progress(f"building EnOSlib's environment ({enoslib_version()}, once)")
        logs = private_folder(cache / "logs")
        required = logs / f"{name}.lock.txt"
        required.write_text(lock, encoding="utf-8")
        variables = {
            "UV_HTTP_RETRIES": "8",  # a name server that does not answer for some seconds is no reason to stop
            **os.environ,
            **index_variables(os.environ),
            "UV_CACHE_DIR": str(cache / "downloads"),
            "UV": str(uv_program()), "PYTHON": sys.executable, "PREFIX": str(partial), "LOCK": str(required),
        }  # fmt: skip
        variables.pop("VIRTUAL_ENV", None)
        command = ["setpriv", "--pdeathsig", "KILL", "/bin/sh", "-euc", BUILD]
        try:
            run_logged(command, logs / f"{name}.log", "the build of EnOSlib's environment", _quiet, variables)
        finally:
            required.unlink()

    made = made_once(cache / "tools" / name, build, "EnOSlib's environment", progress)
    return made / "bin" / "python"


def _quiet(line: str) -> None:
    """uv's lines go to the log alone."""
