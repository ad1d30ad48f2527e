"""How a User-Mode-Linux kernel is started: with its shim where the processor has AMX."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.agent import containers, machine, machine_verbs, uml_kernel, wan_router
from discovery_deploy.agent.conversation import Conversation
from discovery_deploy.agent.machine import MachineError

OLDER = "processor\t: 0\nflags\t\t: fpu xsave avx512f amx\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu xsave avx512f amx_bf16 avx512_fp16 amx_tile amx_int8\n"
with_tcc = pytest.mark.skipif(shutil.which("tcc") is None, reason="tcc is not installed; the Makefile installs it")


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(uml_kernel.SHIM_VARIABLE, raising=False)
    monkeypatch.setattr(uml_kernel, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(OLDER)
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "environment", "needed"),
    [
        (OLDER, {}, False),
        (SAPPHIRE_RAPIDS, {}, True),
        (OLDER, {uml_kernel.SHIM_VARIABLE: "1"}, True),
        (OLDER, {uml_kernel.SHIM_VARIABLE: "0"}, False),
        (SAPPHIRE_RAPIDS, {uml_kernel.SHIM_VARIABLE: ""}, True),
        ("", {}, False),
        ("model name\t: amx_tile\n", {}, False),
    ],
)
def test_the_processor_or_a_variable_asks_for_the_shim(text: str, environment: dict[str, str], needed: bool) -> None:
    assert uml_kernel.shim_needed(text, environment) is needed


def test_without_need_the_kernel_is_started_as_it_is(cpuinfo: Path, tmp_path: Path) -> None:
    assert uml_kernel.command(["mem=64M"], tmp_path) == ["linux.uml", "mem=64M"]
    assert list(tmp_path.iterdir()) == [cpuinfo]


@with_tcc
def test_only_the_kernel_has_it_preloaded(cpuinfo: Path, tmp_path: Path) -> None:
    cpuinfo.write_text(SAPPHIRE_RAPIDS)
    command = uml_kernel.command(["mem=64M"], tmp_path)
    shim = uml_kernel.shim(tmp_path)
    assert command == ["env", f"LD_PRELOAD={shim}", "linux.uml", "mem=64M"]
    assert shim.stat().st_mode & 0o777 == 0o755
    assert sorted(tmp_path.iterdir()) == [cpuinfo, shim]


@with_tcc
def test_it_is_compiled_once_and_anew_when_its_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = uml_kernel.shim(tmp_path)
    made = first.stat().st_mtime_ns
    assert (uml_kernel.shim(tmp_path), first.stat().st_mtime_ns) == (first, made)
    changed = uml_kernel.shim_source() + b"\n"
    monkeypatch.setattr(uml_kernel, "shim_source", lambda: changed)
    assert uml_kernel.shim(tmp_path) != first


@with_tcc
def test_a_source_that_does_not_compile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml_kernel, "shim_source", lambda: b"int f( {\n")
    with pytest.raises(MachineError, match=r"tcc(?s:.*)uml_xstate\.c:1"):
        uml_kernel.shim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_compiler_is_asked_for_where_it_is_needed(
    cpuinfo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert uml_kernel.missing_commands() == {"linux.uml": "user-mode-linux", "modprobe": "kmod"}
    cpuinfo.write_text(SAPPHIRE_RAPIDS)
    assert uml_kernel.missing_commands() == {"linux.uml": "user-mode-linux", "modprobe": "kmod", "tcc": "tcc"}
    with pytest.raises(MachineError, match="the compiler tcc is absent") as error:
        uml_kernel.command([], tmp_path)
    assert error.value.advice == "Run: apt-get install -y tcc"


@pytest.mark.parametrize("netem", [True, False])
def test_a_machine_lacks_user_mode_linux_only_where_its_kernel_has_no_netem(
    netem: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "missing_commands", dict)
    monkeypatch.setattr(machine, "missing_commands", lambda wanted: wanted if "tcc" in wanted else {})
    monkeypatch.setattr(wan_router, "kernel_has_netem", lambda: netem)
    monkeypatch.setenv(uml_kernel.SHIM_VARIABLE, "1")
    seen = machine_verbs.look({"directory": "/nowhere"}, Conversation())
    lacking = {} if netem else {"linux.uml": "user-mode-linux", "modprobe": "kmod", "tcc": "tcc"}
    assert (seen["missing"], seen["netem"]) == (lacking, netem)


PROGRAM = """
import ctypes, os, signal, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.restype, ptrace.argtypes = ctypes.c_long, [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
TRACEME, PEEKDATA, POKEDATA, CONT, GETREGSET, SETREGSET, XSTATE = 0, 2, 5, 7, 0x4204, 0x4205, 0x202

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

word = ctypes.c_long(-1)
child = os.fork()
if not child:
    ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7 if word.value == 42 else 1)
os.waitpid(child, 0)

def regset(request, size, mark=None):
    buffer = ctypes.create_string_buffer(size)
    vector = Vector(ctypes.addressof(buffer), size)
    if request == SETREGSET:
        assert ptrace(GETREGSET, child, XSTATE, ctypes.addressof(vector)) == 0
        buffer[160:176] = mark
        vector = Vector(ctypes.addressof(buffer), size)
    return ptrace(request, child, XSTATE, ctypes.addressof(vector)), buffer.raw, vector.length

print(ptrace(PEEKDATA, child, ctypes.addressof(word), None), ctypes.get_errno())
assert ptrace(POKEDATA, child, ctypes.addressof(word), 42) == 0
assert ptrace(PEEKDATA, child, ctypes.addressof(word), None) == 42
print(ptrace(PEEKDATA, child, 8, None), ctypes.get_errno())
whole = regset(GETREGSET, 65536)
small = regset(GETREGSET, 832)
assert small[0] == whole[0] == 0
assert whole[2] >= 832 == small[2]
assert small[1] == whole[1][:832]
mark = bytes(range(16))
assert regset(SETREGSET, 832, mark)[0] == 0
after = regset(GETREGSET, 65536)[1]
assert after[160:176] == mark
assert after[832:] == whole[1][832:]
ptrace(CONT, child, None, None)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@with_tcc
def test_ptrace_of_the_shim_is_ptrace_but_for_short_register_areas(tmp_path: Path) -> None:
    """A traced process read and written: also words of -1, an address that is not there, a part of the registers."""
    shim = uml_kernel.shim(tmp_path)
    done = subprocess.run(
        ["python3", "-c", PROGRAM], env={**os.environ, "LD_PRELOAD": str(shim)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["-1", "0", "-1", "5", "7"]), done.stderr


def test_a_process_without_it_has_none() -> None:
    assert uml_kernel.has_shim(os.getpid()) is False
