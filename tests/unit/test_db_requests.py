"""The counts of requests per iteration (benchmarks/db_requests.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.db_requests import DELAY, NAMES, per_iteration, without_delay

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def counters(seconds: int, **growth: float) -> pd.DataFrame:
    """Counters from 1000 s on, each growing by so much per second (others stand still)."""
    return pd.DataFrame(
        [{"at": 1000.0 + at, **{name: 50 + at * growth.get(name, 0) for name in NAMES}} for at in range(seconds)]
    )


def iterations(*starts_s: float, run: str = "a", duration_s: float = 10.0, failed: bool = False) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "run_id": run,
            "scenario": "nova/boot",
            "setting": run,
            "started_at": pd.Timestamp(start_s, unit="s", tz="UTC"),
            "duration_s": duration_s,
            "failed": failed,
        }
        for start_s in starts_s
    ]
    return pd.DataFrame(rows)


def test_requests_are_those_between_the_first_start_and_the_last_end() -> None:
    table = per_iteration(
        counters(100, Com_select=3, Com_insert=1, Com_update=1, Com_rollback=2, Com_admin_commands=1, Questions=7),
        pd.concat([iterations(1060.5, 1070.5, run="late"), iterations(1010, 1020, 1030, run="early")]),
    )
    assert list(table.index) == ["nova/boot, early", "nova/boot, late"]
    for _, row in table.iterrows():
        assert dict(row.round(6)) == {
            "SELECT": 30,
            "INSERT, UPDATE, DELETE": 20,
            "COMMIT": 0,
            "ROLLBACK": 20,
            "PING": 10,
            "all": 80,  # MariaDB's Questions are without PINGs
            "iterations": 3 if row.name == "nova/boot, early" else 2,
        }


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (iterations(1010, 1095), "were not read during all of it"),
        (iterations(990), "were not read during all of it"),
        (iterations(1010, failed=True), "an iteration failed"),
    ],
)
def test_what_was_not_seen_whole_is_not_counted(runs: pd.DataFrame, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        per_iteration(counters(100), runs)


def test_an_experiment_without_its_delays_keeps_its_prototypes() -> None:
    content = without_delay(EXPERIMENTS / "db-roundtrips-server.yaml")
    assert content["name"] == "count-db-roundtrips"
    (factor,) = content["campaign"]["factors"]
    assert factor["path"] != DELAY
    assert content["network"]["default"]["delay"] == "0 ms"
    assert [Path(folder).is_dir() for folder in factor["levels"][1].values()] == [True, True]
