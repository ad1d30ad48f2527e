"""The shape of the code: imports point down, files and functions stay small, words are ours."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "discovery_deploy"

FLOORS = (
    *("agent", "system", "experiment"),
    *("cloud wan software testbeds", "hosts bench", "results driver"),
    *("enos", "cli"),
)
"""Rooms from the ground up. A module imports its own room, and of rooms on lower floors the modules of their faces."""
KNOWN = {
    "driver/driver": "results",  # the report at the end of a run: the command line's to make
    "software/cache": "testbeds",  # who uses what of the cache
    "software/proof": "cloud",  # units and who runs them
    "software/shipping": "cloud",  # environments that were given names; with `software`: goes with direct hosts
    "software/software": "cloud",
    "software/traces": "cloud",  # goes with direct hosts
    "testbeds/enoslib_calls": "software",  # EnOSlib's environment: to be handed in
    "testbeds/g5k": "software",  # the same
    "testbeds/static": "software",  # traces: goes with direct hosts
    "testbeds/vagrant": "software",  # the box: to be handed in
}
"""Module -> rooms that it imports against that order still. None is added; who resolves one takes it out."""
MOST_FACE_LINES = 40
SHIPPED_BESIDES = frozenset({"cloud_probe", "installed_code"})
"""Modules outside of the room `agent` that are sent elsewhere too: they import nothing but the standard library."""
OUTSIDE_ENOSLIB = frozenset({"enoslib_calls", "enoslib_environment", "enoslib_roles"})
"""Modules about EnOSlib that run in this tool's own environment; all other `enoslib_*` run in EnOSlib's."""
FORBIDDEN = frozenset({"env", "conf", "lab", "node", "nodes", "sweep", "trial", "manager"})
"""Words for which we have another one (host, setting, run...), or which say nothing."""
BAGS = frozenset({"helper", "helpers", "utils", "util", "common", "misc"})
"""Words that no module and no class is called by: they are bags for anything."""
BELONGS_TO = {
    "execo_engine": "execo", "markupsafe": "jinja2", "ruamel": "ruamel.yaml",
    "grid5000": "python-grid5000", "vagrant": "python-vagrant", "yaml": "pyyaml",
}  # fmt: skip
"""Import name -> package that brings it, where they differ."""
MOST_LINES, MOST_FUNCTION_LINES = 450, 60
RUNS = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output"))
"""Calls that wait for a program; `interruption.run` takes none without a limit."""
UNLIMITED = {
    "commands": "`openstack`: the user's own command",
    "host_environments": "tar at the end of ssh, whose call the driver limits",
    "host_packages": "apt, which is not to be killed in the middle; the driver limits its wait (packages.LIMIT_S)",
    "nspawn": "setsid --fork, which starts what outlives it",
    "wan_uml": "setsid --fork, which starts what outlives it",
}
"""Module -> why a program that it runs has no limit of time there."""


class Shape(NamedTuple):
    """What the tests look at in a file."""

    lines: int
    functions: tuple[tuple[str, int], ...]
    """(name, lines)"""
    imported: frozenset[str]
    """Full names, also of imports inside functions, and for type checkers alone."""
    defined: frozenset[str]
    """Names that it gives: of functions, classes, arguments, variables and attributes; not keywords it passes."""
    classes: frozenset[str]
    waits_without_limit: bool


@functools.cache
def shape(path: Path) -> Shape:
    """Each file is parsed once for all tests."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    parts = list(ast.walk(tree))
    functions = [part for part in parts if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return Shape(
        lines=len(text.splitlines()),
        functions=tuple((part.name, part.end_lineno - part.lineno + 1) for part in functions if part.end_lineno),
        imported=frozenset(imported(parts)),
        defined=frozenset(defined_names(parts)),
        classes=frozenset(part.name for part in parts if isinstance(part, ast.ClassDef)),
        waits_without_limit=any(waits_without_limit(part) for part in parts),
    )


def sources() -> list[Path]:
    return sorted(path for folder in (PACKAGE, ROOT / "tests", ROOT / "docs") for path in folder.rglob("*.py"))


@functools.cache
def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """`system` for discovery_deploy/system/errors.py; "" for what is in no room."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    """`system/errors` for discovery_deploy/system/errors.py."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


def imported(parts: list[ast.AST]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            yield from (f"{'.' * part.level}{part.module}.{alias.name}" for alias in part.names)


def defined_names(parts: list[ast.AST]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield part.name
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr


def waits_without_limit(part: ast.AST) -> bool:
    if not isinstance(part, ast.Call) or ast.unparse(part.func) not in RUNS:
        return False
    return not any(word.arg == "timeout" for word in part.keywords)


@functools.cache
def own_imports(path: Path) -> frozenset[tuple[str, str]]:
    """Room, and module (or subpackage) in it, of what a file imports of this package; the room "" is the top."""
    names = [name.split(".") for name in shape(path).imported if name != "discovery_deploy.__version__"]
    own = [parts for parts in names if parts[0] == "discovery_deploy"]
    return frozenset((parts[1], parts[2]) if (PACKAGE / parts[1]).is_dir() else ("", parts[1]) for parts in own)


def foreign_imports(path: Path) -> set[str]:
    """Outermost names of what is neither the standard library's nor this package's."""
    return {name.split(".")[0] for name in shape(path).imported} - sys.stdlib_module_names - {"discovery_deploy"}


def floor(room: str) -> int:
    """From 0; what is in no room stands above all."""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms.split()), len(FLOORS))


def face(room: str) -> set[str]:
    """Modules that other rooms may import: a face is a docstring and this list, so that nothing is loaded for it."""
    _, listed = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(listed, ast.Assign)
    return set(ast.literal_eval(listed.value))


def test_every_folder_is_a_room() -> None:
    assert {room_of(path) for path in modules()} - {""} == set(" ".join(FLOORS).split())


def test_imports_point_down() -> None:
    found = {}
    for path in modules():
        rooms = {room for room, _ in own_imports(path)} - {room_of(path)}
        up = {room for room in rooms if floor(room) >= floor(room_of(path))}
        found.update({name_of(path): " ".join(sorted(up))} if up else {})
    assert found == KNOWN


def test_a_face_is_short_and_names_what_other_rooms_use() -> None:
    for room in " ".join(FLOORS).split():
        others = [path for path in modules() if room_of(path) != room]
        assert face(room) == {module for path in others for home, module in own_imports(path) if home == room}, room
        assert shape(PACKAGE / room / "__init__.py").lines <= MOST_FACE_LINES, room


def test_imports_name_the_whole_path() -> None:
    found = [(path.name, name) for path in modules() for name in shape(path).imported if name.startswith(".")]
    assert found == []


def shipped() -> list[Path]:
    return [path for path in modules() if room_of(path) == "agent" or path.stem in SHIPPED_BESIDES]


def test_what_is_shipped_needs_nothing_but_the_standard_library() -> None:
    found = {}
    for path in shipped():
        wrong = foreign_imports(path) | {room for room, _ in own_imports(path)} - {"agent"}
        found.update({path.stem: wrong} if wrong else {})
    assert found == {}


def test_what_is_imported_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = set(re.findall(r'^  "([A-Za-z0-9.-]+)', text, re.MULTILINE))
    foreign = {name for path in modules() if not in_enoslib(path) for name in foreign_imports(path)}
    assert {BELONGS_TO.get(name, name) for name in foreign} - declared == set()


def in_enoslib(path: Path) -> bool:
    return path.stem.startswith("enoslib_") and path.stem not in OUTSIDE_ENOSLIB


def test_what_runs_beside_enoslib_finds_there_what_it_imports() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks" / "enoslib.txt").read_text(), re.MULTILINE))
    for path in filter(in_enoslib, modules()):
        assert {BELONGS_TO.get(name, name) for name in foreign_imports(path)} - locked == set()
        assert own_imports(path) <= {(room_of(other), other.stem) for other in modules() if in_enoslib(other)}


def test_the_shipped_modules_are_found() -> None:
    assert {"containers", "wan_router", *SHIPPED_BESIDES} <= {path.stem for path in shipped()}


def test_files_and_functions_stay_small() -> None:
    found = {}
    for path in sources():
        seen = shape(path)
        long = {name: lines for name, lines in seen.functions if lines > MOST_FUNCTION_LINES}
        long |= {"the file": seen.lines} if seen.lines > MOST_LINES else {}
        found.update({str(path.relative_to(ROOT)): long} if long else {})
    assert found == {}


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_names_use_our_words() -> None:
    found = {}
    for path in modules():
        wrong = {name for name in {path.stem, *shape(path).defined} if words(name) & FORBIDDEN}
        wrong |= {name for name in {path.stem, *shape(path).classes} if words(name) & BAGS}
        found.update({str(path.relative_to(PACKAGE)): wrong} if wrong else {})
    assert found == {}


def test_words_are_found_in_names_of_both_kinds() -> None:
    assert words("SiteManager") == {"site", "manager"}
    assert words("_build_env2") == {"build", "env"}
    assert words("HTTPServer") == {"http", "server"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_the_repository_knows_no_path_of_a_machine_that_it_was_written_on() -> None:
    private = re.compile("|".join(["/" + "work/(main|shared)", "/var/tmp/" + "lab", "/home/[a-z]", "/tmp/" + "bash_"]))
    found = {}
    for path in tracked():
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "replace")
            lines = [number for number, line in enumerate(text.splitlines(), 1) if private.search(line)]
            found.update({str(path.relative_to(ROOT)): lines} if lines else {})
    assert found == {}


def test_a_program_that_is_waited_for_has_a_limit_of_time() -> None:
    assert {path.stem for path in modules() if shape(path).waits_without_limit} == set(UNLIMITED)


INTEGRATION = ROOT / "tests" / "integration"


def marked(path: Path) -> bool:
    """Whether a file of tests says, itself or by what it imports, that all of them are integration tests."""
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "pytestmark":
            return "pytest.mark.integration" in map(ast.unparse, ast.walk(part.value))
        if isinstance(part, ast.ImportFrom) and part.module and "pytestmark" in {name.name for name in part.names}:
            return marked(ROOT.joinpath(*part.module.split(".")).with_suffix(".py"))
    return False


def test_all_tests_in_the_folder_of_integration_tests_are_marked() -> None:
    """`make unit` leaves the whole folder out: a test without the mark would run nowhere."""
    files = sorted({*INTEGRATION.rglob("test_*.py"), *INTEGRATION.rglob("*_test.py")})
    assert len(files) > 1
    assert [path.name for path in files if not marked(path)] == []
