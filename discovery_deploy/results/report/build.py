"""From records and iterations to the files of a report. `build` is pure; `write` puts them into a directory."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from discovery_deploy.bench.rally import TaskTemplate
from discovery_deploy.bench.records import Provenance, RunRecord
from discovery_deploy.bench.request_counts import CountRecord
from discovery_deploy.bench.smoke import SmokeRecord
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.results import stats
from discovery_deploy.results.report import text
from discovery_deploy.results.report.content import Numbers, view
from discovery_deploy.results.report.counts_view import each_once
from discovery_deploy.results.report.wan_view import wan_table
from discovery_deploy.system.files import write_file

PAGE = "report.html"


def build(
    experiment: Experiment,
    runs: Sequence[RunRecord],
    iterations: pa.Table,
    provenance: Provenance,
    tasks: Mapping[str, TaskTemplate],
    source: str = "",
    smoke: Sequence[SmokeRecord] = (),
    counts: Mapping[str, CountRecord] | None = None,
    unread: Sequence[str] = (),
) -> dict[str, bytes]:
    """All files of a report, by name; equal inputs give equal bytes.

    Args:
        experiment: the file as written (factors not substituted).
        runs: every record, in the order of the campaign; earlier attempts that were not valid may follow.
        iterations: as from `rally.table`.
        provenance: what it takes to believe and to repeat.
        tasks: templates of the scenarios, for questions and what steps consist of; may lack some.
        source: text of the experiment file; empty when not at hand.
        smoke: what smoke found, one record per deployment.
        counts: label of a setting -> the database requests that were counted in its deployment; may lack some.
        unread: names of records in the workspace that could not be read, and are left out.
    Returns:
        report.html (self-contained), report.md, iterations.parquet and .csv, summary.csv, regression.csv, wan.csv,
        records.json, and experiment.yaml when `source` is given.
    """
    frame = stats.with_other(iterations.to_pandas())
    fits, refused = stats.regressions(frame, runs)
    numbers = Numbers(frame, stats.summarise(frame), fits, refused, wan_table(runs))
    data = data_files(iterations, numbers, runs, provenance, source, smoke, counts)
    content = view(experiment, runs, numbers, provenance, tasks, smoke, counts)
    content["unread"] = list(unread)
    content["files"] = [_file_row(name, octets) for name, octets in data.items()]
    content["source"] = source
    environment = _environment()
    pages = {name: environment.get_template(f"{name}.j2").render(content).encode() for name in (PAGE, "report.md")}
    return {**pages, **data}


_WHAT = {
    "iterations.parquet": "every iteration and atomic action, typed; also of runs that do not count",
    "iterations.csv": "the same as text",
    "summary.csv": "medians, spread and failure rates per scenario, setting, site and atomic action",
    "regression.csv": "the fits of durations against round-trip times",
    "wan.csv": "every verification of every ordered pair: asked, measured, problems",
    "records.json": "every run's record, what smoke found, database requests that were counted, and the provenance",
    "experiment.yaml": "the experiment file",
}


def _file_row(name: str, octets: bytes) -> dict[str, str]:
    digest = hashlib.sha256(octets).hexdigest()
    return {"name": name, "size": text.size(len(octets)), "sha256": digest, "what": _WHAT[name]}


def data_files(
    iterations: pa.Table,
    numbers: Numbers,
    runs: Sequence[RunRecord],
    provenance: Provenance,
    source: str,
    smoke: Sequence[SmokeRecord] = (),
    counts: Mapping[str, CountRecord] | None = None,
) -> dict[str, bytes]:
    """The data behind the report, in the order of `_WHAT`."""
    parquet, csv = io.BytesIO(), io.BytesIO()
    pa_parquet.write_table(iterations, parquet)
    pa_csv.write_csv(iterations, csv)
    records = {
        "provenance": provenance.model_dump(mode="json"),
        "smoke": [record.model_dump(mode="json") for record in smoke],
        "counts": [record.model_dump(mode="json", by_alias=True) for record in each_once(counts or {})],
        "runs": [run.model_dump(mode="json") for run in runs],
        "not_fitted": [refused.model_dump(mode="json") for refused in numbers.refused],
    }
    files = {
        "iterations.parquet": parquet.getvalue(),
        "iterations.csv": csv.getvalue(),
        "summary.csv": _csv(numbers.summary),
        "regression.csv": _csv(fits_table(numbers.fits)),
        "wan.csv": _csv(numbers.wan),
        "records.json": (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    return {**files, "experiment.yaml": source.encode()} if source else files


def fits_table(fits: Sequence[stats.Fit]) -> pd.DataFrame:
    """One row per fit; its levels as "RTT in s:median in s:count", joined by spaces."""
    rows: list[dict[str, Any]] = []
    for fit in fits:
        levels = " ".join(f"{level.rtt_s:.6f}:{level.median_s:.6f}:{level.count}" for level in fit.levels)
        rows.append({**fit.model_dump(exclude={"levels"}), "levels": levels})
    return pd.DataFrame(rows, columns=list(stats.Fit.model_fields))


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("discovery_deploy.results.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup
    environment.filters["cell"] = _markdown_cell
    return environment


def _markdown_cell(value: object) -> str:
    """Text that stays in its cell of a Markdown table and brings no markup of its own."""
    escaped = str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return escaped.replace("`", "\\`").replace("*", "\\*").replace("_", "\\_")


def write(files: Mapping[str, bytes], directory: Path) -> Path:
    """Put the files of a report into a directory, each replaced at once. Returns the path of the HTML file.

    Raises:
        StateError: the disk is full or the directory not writable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, octets in files.items():
        write_file(directory / name, octets)
    return directory / PAGE
