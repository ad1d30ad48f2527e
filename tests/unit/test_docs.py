"""Documents that are made from the code, or speak of it, say what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from discovery_deploy.experiment.fields import objects
from discovery_deploy.experiment.schema import EXAMPLES
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import DiscoveryError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MALFORMED = ROOT / "tests" / "cases" / "malformed"
EXPERIMENTS = sorted(data_directory("experiments").glob("*.yaml"))


def generated() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[Path, str] = module.generated()
    return made


def schema() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DOCS / "experiment.schema.json").read_text(encoding="utf-8"))
    return read


def yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def problems(data: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(schema()).iter_errors(data)]


def test_documents_made_from_the_model_are_the_model_s() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/generate.py"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_of_the_package_fit_the_schema(path: Path) -> None:
    assert problems(yaml(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("unknown-key", "$.network"),
        ("no-unit", "$.network.constraints[0].delay"),
        ("missing-backend-site", "$.deployment.backend"),
        ("pair-named-twice", "$.network.constraints[0]"),
        ("name-in-capitals", "$.name"),
        ("unknown-role", "$.sites[0].hosts[0].roles[1]"),
        ("counts", "$.deployment.workers"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(case: str, place: str) -> None:
    assert place in problems(yaml((MALFORMED / f"{case}.yaml").read_text(encoding="utf-8")))


def test_defaults_in_the_schema_are_texts_with_units_as_in_files() -> None:
    verify = schema()["$defs"]["Verify"]["properties"]
    assert (verify["interval"]["default"], verify["rtt_tolerance_ratio"]["default"]) == ("10 ms", "2 %")
    assert schema()["$defs"]["DefaultShape"]["properties"]["delay"]["default"] == "0 ms"
    defaults = [
        (prop["default"], prop)
        for described in schema()["$defs"].values()
        for prop in described["properties"].values()
        if "default" in prop and "$ref" not in prop
    ]
    for default, prop in defaults:
        jsonschema.Draft202012Validator({**prop, "$defs": schema()["$defs"]}).validate(default)


def test_every_object_of_the_file_has_an_example_that_is_one() -> None:
    by_path: dict[str, Any] = {}
    for path, model in objects():
        by_path[path] = by_path[path] | model if path in by_path else model
    assert set(EXAMPLES) == set(by_path)
    for path, text in EXAMPLES.items():
        TypeAdapter(by_path[path]).validate_python(yaml(text))


def declared(section: str) -> set[str]:
    """Names of packages in a list of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(rf"^{section} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return {re.split(r"[^A-Za-z0-9._-]", line.strip(' ",'))[0] for line in match[1].splitlines()}


@pytest.mark.parametrize(
    ("section", "heading"), [("dependencies", "To run"), ("enoslib", "With EnOSlib"), ("dev", "To develop")]
)
def test_every_dependency_has_its_reason_and_no_reason_is_left_over(section: str, heading: str) -> None:
    text = (DOCS / "decisions" / "0001-dependencies.md").read_text(encoding="utf-8")
    table = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    told = set(re.findall(r"^\| ([a-z0-9.-]+) \|", table, re.MULTILINE)) - {"package"}
    assert told == declared(section)


def test_links_between_documents_lead_somewhere() -> None:
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_architecture_names_every_module_and_every_exit_code() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)/?`", text))
    package = ROOT / "discovery_deploy"
    modules = {path.stem for path in package.rglob("*.py")}
    assert modules - named - {"__init__", "__main__"} == set()
    for kind in DiscoveryError.__subclasses__():
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in text
