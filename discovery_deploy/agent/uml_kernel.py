"""How Debian's User-Mode-Linux kernel is started, and what it needs. Standard library only.

On processors with AMX it needs `uml_xstate.c` preloaded (there it says why): compiled here, once per folder.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from discovery_deploy.agent import machine
from discovery_deploy.agent.machine import MachineError

KERNEL = "linux.uml"
SHIM = "uml_xstate"
"""Name of the shim; its source is beside this module, also in the agent's archive."""
SHIM_VARIABLE = "DISCOVERY_DEPLOY_XSTATE_SHIM"
"""With the value 1 the shim is used on processors without AMX too."""
COMPILE_LIMIT_S = 60.0
_PACKAGE_OF = {KERNEL: "user-mode-linux", "modprobe": "kmod"}
_CPUINFO = Path("/proc/cpuinfo")


def shim_needed(cpuinfo: str, environment: Mapping[str, str]) -> bool:
    """Whether the kernel must have the shim: its processor has AMX, or a variable asks for it. Pure.

    Args:
        cpuinfo: text of /proc/cpuinfo.
        environment: variables.
    """
    flags = (line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags"))
    return environment.get(SHIM_VARIABLE) == "1" or "amx_tile" in next(flags, [])


def shim_needed_here() -> bool:
    """Whether a kernel that is started by this process must have the shim."""
    return shim_needed(_CPUINFO.read_text(encoding="utf-8", errors="replace"), os.environ)


def missing_commands() -> dict[str, str]:
    """Command -> Debian package, of what a kernel needs and this machine does not have."""
    return machine.missing_commands({**_PACKAGE_OF, **({"tcc": "tcc"} if shim_needed_here() else {})})


def command(arguments: Sequence[str], folder: Path) -> list[str]:
    """The command that starts a kernel. What it starts does not inherit the shim, nor does anything around it.

    Args:
        arguments: of the kernel.
        folder: where the shim is kept, when it is needed; it must be there as long as the kernel starts.
    Raises:
        MachineError: the shim cannot be compiled.
    """
    preload = ["env", f"LD_PRELOAD={shim(folder)}"] if shim_needed_here() else []
    return [*preload, KERNEL, *arguments]


def shim_source() -> bytes:
    """Source of the shim."""
    source = pkgutil.get_data(__name__, f"{SHIM}.c")
    assert source is not None
    return source


def shim(folder: Path) -> Path:
    """The compiled shim in a folder, named by the hash of its source. Raises MachineError."""
    source = shim_source()
    made = folder / f"{SHIM}-{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not made.exists():
        _compile(source, made)
    return made


def _compile(source: bytes, made: Path) -> None:
    """Compile the shim; it appears whole or not at all, and everybody may read it."""
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".uml_xstate-") as folder:
        partial, text = Path(folder) / made.name, Path(folder) / f"{SHIM}.c"
        text.write_bytes(source)
        words = ["tcc", "-shared", "-nostdlib", "-nostdinc", "-o", str(partial), str(text)]
        if shutil.which(words[0]) is None:
            what = "the compiler tcc is absent: User-Mode Linux needs a library compiled on processors with AMX"
            raise MachineError(what, "Run: apt-get install -y tcc")
        machine.run(*words, limit_s=COMPILE_LIMIT_S)
        partial.chmod(0o755)
        partial.replace(made)


def has_shim(pid: int) -> bool:
    """Whether the shim is loaded in a running process, as its memory map shows. Raises OSError."""
    return f"/{SHIM}-" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
