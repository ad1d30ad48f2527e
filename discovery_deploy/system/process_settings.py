"""What this process, and all that it starts, takes from whoever started it: variables, umask, standard streams.

One place decides it, before anything else is loaded. So no program of ours meets the settings that a person made for
others: for Ansible, OpenStack clients or Python, a locale that is not there, a PATH without /usr/sbin.
"""

from __future__ import annotations

import locale
import os
import pwd
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import TextIO, cast

UMASK = 0o022
"""What is made for hosts and for others is readable; what is secret says its own mode."""
PROGRAMS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Directories that are always in PATH: a user's, or that of `su` without `-`, lacks /usr/sbin."""
INTERPRETER = frozenset(
    {
        "PYTHONCASEOK", "PYTHONDEBUG", "PYTHONDEVMODE", "PYTHONINSPECT", "PYTHONIOENCODING",
        "PYTHONLEGACYWINDOWSSTDIO", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONUTF8", "PYTHONVERBOSE", "PYTHONWARNINGS",
    }
)  # fmt: skip
"""Variables that change how every Python program behaves, ours and Ansible's; not those that say where code is."""
OTHERS = ("ANSIBLE_", "OS_")
"""Beginnings of variables that configure programs which we configure ourselves."""
REPOSITORY = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"})
"""Variables that point git at another repository than the one it is run in; set in git's hooks."""
LOCALE = "C.UTF-8"
"""There on every Debian; programs speak English, in UTF-8."""


def settled(given: Mapping[str, str], home: str, enterable: Callable[[str], bool]) -> dict[str, str]:
    """The variables that this process works with. Pure.

    Args:
        given: what it was started with.
        home: of the user, used when HOME is not set.
        enterable: whether a directory can be entered; an absent program in another one would be "permission denied".
    """
    unwanted = INTERPRETER | REPOSITORY | {"LANGUAGE"}
    kept = {name: text for name, text in given.items() if name not in unwanted and not name.startswith(OTHERS)}
    chosen = [entry for entry in kept.get("PATH", "").split(":") if entry.startswith("/") and enterable(entry)]
    kept["PATH"] = ":".join(dict.fromkeys([*chosen, *PROGRAMS]))
    kept["LC_ALL"] = LOCALE
    if not kept.get("HOME", "").startswith("/"):
        kept["HOME"] = home
    return kept


def needs_restart(given: Mapping[str, str], encoding: str) -> bool:
    """Whether the interpreter itself began with settings that we do not want: only starting again undoes them. Pure.

    Args:
        given: the variables it was started with.
        encoding: of its locale.
    """
    return bool(INTERPRETER & given.keys()) or encoding.lower().replace("-", "") != "utf8"


def apply() -> None:
    """Settle this process; may start the same command again in its place, once. Repeated, it changes nothing."""
    _open_streams()
    os.umask(UMASK)
    given = dict(os.environ)
    wanted = settled(given, _home(), lambda entry: os.access(entry, os.X_OK))
    if needs_restart(given, locale.getpreferredencoding(False)) and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
    _replace(os.environ, wanted)


def _replace(variables: MutableMapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in variables.keys() - wanted.keys():
        del variables[name]
    for name, text in wanted.items():
        if variables.get(name) != text:
            variables[name] = text


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user without an entry, as in some containers
        return "/"


def _open_streams() -> None:
    """Standard streams that were closed lead nowhere; else the next file that is opened would take their place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(nowhere, True)
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(number: int, mode: str) -> TextIO:
    return cast(TextIO, open(number, mode, encoding="utf-8", closefd=False))  # it lives as long as the process
