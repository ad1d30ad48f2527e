"""Writes the documents that are made from the code: `python docs/generate.py`."""

from __future__ import annotations

import json
from pathlib import Path

from discovery_deploy import schema

DOCS = Path(__file__).resolve().parent


def generated() -> dict[Path, str]:
    """File -> what must stand in it."""
    return {
        DOCS / "experiment.schema.json": json.dumps(schema.schema(), indent=2, ensure_ascii=False) + "\n",
        DOCS / "experiment.md": schema.reference(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
