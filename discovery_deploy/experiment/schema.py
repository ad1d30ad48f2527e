"""The experiment file described from its model: a JSON Schema for editors, and every key for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from discovery_deploy.experiment import units
from discovery_deploy.experiment.fields import factor_paths, keys_of, objects
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.strict import Strict

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

EXAMPLES = {
    "": """\
name: quickstart
question: What does a token cost when the database is 25 ms away?
sites: [{name: nantes}, {name: lyon}]
network: {default: {delay: 25 ms}}
deployment: {backend: {type: mariadb, site: lyon}}
campaign:
  bench_site: nantes
  scenarios:
    - task: keystone/authenticate_user_and_validate_token
""",
    "provider": """\
type: g5k
default: {g5k_site: rennes, cluster: paravance}
sites: {lyon: {g5k_site: lyon, cluster: nova}}
walltime: "03:00:00"
""",
    "provider.default": "g5k_site: rennes\ncluster: paravance\n",
    "provider.sites[]": "g5k_site: lyon\nservers: [nova-1.lyon.grid5000.fr]\n",
    "provider.machines[]": "host: lyon-1\naddress: 192.0.2.7\nuser: debian\nbecome: true\njump: me@gate.example.org\n",
    "sites[]": """\
name: lyon
hosts:
  - name: lyon-1
    roles: [control, database]
  - name: lyon-2
    roles: [bench]
""",
    "sites[].hosts[]": "name: lyon-2\nroles: [bench]\n",
    "network": """\
default: {delay: 10 ms}
constraints:
  - {between: [nantes, lyon], delay: 37.5 ms}
  - {from: rennes, to: lyon, delay: 5 ms, rate: 20 Mbit/s}
verify: {measure: [rtt, rate]}
""",
    "network.default": "delay: 10 ms\nloss: 0.1 %\n",
    "network.constraints[]": "from: nantes\nto: lyon\ndelay: 40 ms\njitter: 2 ms\nrate: 20 Mbit/s\n",
    "network.verify": "measure: [rtt, loss]\nprobes: 100\nrtt_tolerance: 0.5 ms\n",
    "deployment": """\
release: "2025.1"
services: [keystone, placement, glance, neutron, nova]
topology: {type: centralized, site: lyon}
backend: {type: mariadb, site: lyon}
computes: {fake: 4}
placement: {glance: [rennes]}
overrides: {nova: {DEFAULT: {rpc_response_timeout: 120}}}
site_overrides: {rennes: {glance: {DEFAULT: {debug: true}}}}
sources: {oslo.db: {checkout: ../oslo.db}}
patches: {oslo.messaging: prototypes/rpc-reply}
""",
    "deployment.topology": "type: cells\nsite: lyon\n",
    "deployment.computes": "fake: 10\nlibvirt: 1\n",
    "deployment.backend": "type: mariadb\nsite: lyon\n",
    "deployment.sources[]": "git: https://opendev.org/openstack/oslo.db\nref: stable/2025.1\n",
    "campaign": """\
load: light
bench_site: nantes
repetitions: 3
factors:
  - path: network.default.delay
    levels: [0 ms, 25 ms, 150 ms]
scenarios:
  - task: keystone/create_and_list_users
    times: 25
""",
    "campaign.factors[]": "path: deployment.backend\nlevels: [{type: mariadb, site: lyon}, {type: galera}]\n",
    "campaign.scenarios[]": "task: keystone/create_and_list_users\ntimes: 100\nconcurrency: 4\n",
}
"""Path of an object -> an example of it in YAML."""

_INTRODUCTION = """\
# The experiment file

<!-- Made by docs/generate.py from discovery_deploy/experiment/model.py and schema.py; a test compares. -->

One YAML 1.2 file says everything about an experiment. `discovery-deploy new NAME` makes one in which every key is
explained; `discovery-deploy check FILE` tells all mistakes at once, as `file:line:column: path: what`. A key that is
not in these tables is a mistake. `docs/experiment.schema.json` is the same as a JSON Schema, for editors (with
yaml-language-server, begin the file with `# yaml-language-server: $schema=` and the schema's path).

## Quantities

A quantity is a text with a unit. A delay, a loss and a rate are **one way**; a round trip gets the delay of both ways.

| quantity | units | example |
|---|---|---|
"""

_FACTORS = """\
## What a factor may vary

`sites`, `deployment`, `network.default`, `network.constraints`, `campaign.load` and `campaign.bench_site`, whole or any
part of them (items are counted from 0). A level may be a whole object or list, such as a backend or a list of sites.

Other sites or hosts are reserved anew, which costs most, so they vary slowest; who loads it varies fastest.

Fixed are: `network.verify` and `network.compensate` (all settings are judged alike), `provider` (all run on machines
of the same kind), `name` (hosts and results are found by it), `question` (it changes nothing that is measured), the
rest of `campaign` (it says what is done in every setting), and keys alone on which others hang: a `type`, the name of
a site or host (vary the whole object).

Levels are checked at their place, and so is every combination of them: with a level of two sites, for example, no
constraint may name the third. With two sites, one constraint and MariaDB, the paths are:

"""


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an experiment file; defaults are written as in the file, with their units."""
    found = Experiment.model_json_schema(by_alias=True)
    models = {model.__name__: model for _, model in objects()}
    for name, described in [("Experiment", found), *found["$defs"].items()]:
        _complete(described, models[name])
    return {"$schema": _DIALECT, **found}


def _complete(described: dict[str, Any], model: type[Strict]) -> None:
    defaults = _defaults(model)
    fields = keys_of(model)
    for key, prop in described["properties"].items():
        prop.pop("title", None)
        prop.pop("default", None)
        prop["description"] = fields[key].description  # pydantic leaves it out when it is also the object's
        if key in defaults:
            prop["default"] = defaults[key]


def _defaults(model: type[Strict]) -> dict[str, Any]:
    """Key -> default as it would stand in a file, for keys that have one (not None, and not only nominally)."""
    written = model.model_construct().model_dump(mode="json", by_alias=True, exclude_none=True)
    written.pop("hosts", None)  # made from the site's name
    return {key: written[key] for key, field in keys_of(model).items() if key in written and not field.is_required()}


def reference() -> str:
    """Markdown that explains every key of an experiment file."""
    described = schema()
    parts = [_INTRODUCTION, *_quantities(), "\n"]
    for path, models in _by_path().items():
        parts += _object(path, models, described)
    parts += [_FACTORS, *(f"- `{path}`\n" for path in factor_paths(_SAMPLE))]
    return "".join(parts)


_SAMPLE = {
    "sites": [{"name": "nantes"}, {"name": "lyon"}],
    "network": {"constraints": [{"between": ["nantes", "lyon"]}]},
    "deployment": {"backend": {"type": "mariadb"}},
}


def _quantities() -> Iterator[str]:
    for name, known, example in units.KNOWN:
        yield f"| {name} | {', '.join(f'`{unit}`' for unit in known)} | `{example}` |\n"


def _by_path() -> dict[str, list[type[Strict]]]:
    found: dict[str, list[type[Strict]]] = {}
    for path, model in objects():
        found.setdefault(path, []).append(model)
    return found


def _object(path: str, models: list[type[Strict]], described: dict[str, Any]) -> Iterator[str]:
    yield f"## {f'`{path}`' if path else 'The whole file'}\n\n"
    for model in models:
        own = described if model is Experiment else described["$defs"][model.__name__]
        yield f"{model.__doc__}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n"
        for key, prop in own["properties"].items():
            yield _row(key, prop, key in own.get("required", ()), f"{path}.{key}" if path else key)
        yield "\n"
    yield f"Example:\n\n```yaml\n{EXAMPLES[path]}```\n\n"


def _row(key: str, prop: dict[str, Any], required: bool, path: str) -> str:
    default = prop.get("default")
    if required:
        text = "**required**"
    elif default in (None, "", {}):
        text = "-"
    elif isinstance(default, dict) and "type" in default:
        text = f"`{{type: {default['type']}}}`"
    elif isinstance(default, dict):
        text = "that of its keys"
    else:
        text = f"`{_written(default)}`"
    meaning = prop["description"].replace("|", r"\|")
    return f"| `{key}` | {_takes(prop, path)} | {text} | {meaning} |\n"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) and re.fullmatch(r"[0-9.]+", value) else str(value)


def _takes(prop: dict[str, Any], path: str) -> str:
    """What a key takes, in words."""
    choices = prop.get("anyOf") or prop.get("oneOf")
    if choices:
        return _takes(next(choice for choice in choices if choice.get("type") != "null"), path)
    if "$ref" in prop:
        return f"object, see [`{path}`](#{re.sub(r'[^a-z_]', '', path)})"
    if "enum" in prop or "const" in prop:
        return " or ".join(f"`{_written(value)}`" for value in prop.get("enum", [prop.get("const")]))
    kind = prop.get("type")
    if kind == "array":
        if "prefixItems" in prop:
            return f"list of {len(prop['prefixItems'])} names"
        return f"list of {_takes(prop['items'], f'{path}[]').replace('object,', 'objects,').replace(' or ', ', ')}"
    inner: dict[str, Any] = next(iter(prop.get("patternProperties", {}).values()), {})
    if "$ref" in inner:
        return f"keys with {_takes(inner, f'{path}[]').replace('object,', 'objects,')}"
    if kind == "integer":
        return f"whole number, {prop['minimum']} to {prop['maximum']}"
    if kind == "string":
        return _text_kind(prop)
    return {"object": "keys with values", "boolean": "`true` or `false`"}.get(str(kind), "values")


def _text_kind(prop: dict[str, Any]) -> str:
    if "examples" in prop:
        return next(name for name, _, example in units.KNOWN if example == prop["examples"][0])
    longest = re.search(r"\{0,(\d+)\}", prop.get("pattern", ""))
    return f"name, at most {int(longest[1]) + 2} characters" if longest else "text"
