"""Writes the documents that are made from the code: `python docs/generate.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from discovery_deploy.cloud.crossings import picture
from discovery_deploy.experiment import schema
from discovery_deploy.experiment.model import Experiment

DOCS = Path(__file__).resolve().parent
TOPOLOGIES = DOCS / "topologies.md"
_PICTURE = re.compile(r"(?<=<!-- picture of )(.*?)( -->\n\n```text\n).*?(?=```\n)", re.DOTALL)
"""A comment with a deployment as JSON, and the picture under it."""


def generated() -> dict[Path, str]:
    """File -> what must stand in it."""
    return {
        DOCS / "experiment.schema.json": json.dumps(schema.schema(), indent=2, ensure_ascii=False) + "\n",
        DOCS / "experiment.md": schema.reference(),
        TOPOLOGIES: _PICTURE.sub(_drawn, TOPOLOGIES.read_text(encoding="utf-8")),
    }


def _drawn(match: re.Match[str]) -> str:
    """Three sites, with Rally at the third."""
    sites = [{"name": "paris"}, {"name": "rennes"}, {"name": "lyon"}]
    services = ["keystone", "placement", "glance", "neutron", "nova"]
    asked = Experiment.model_validate(
        {
            "name": "example",
            "sites": sites,
            "deployment": {"services": services, **json.loads(match[1])},
            "campaign": {"bench_site": "lyon", "scenarios": [{"task": "nova/boot_and_delete_server"}]},
        }
    )
    return match[1] + match[2] + picture(asked)


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
