"""`qiance features build`: what it prints, leaves behind and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.data import DataError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = [
    str(EXAMPLES / "shop_events.csv"),
    "--mapping",
    str(EXAMPLES / "shop_events.map.yaml"),
    "--items",
    str(EXAMPLES / "shop_items.csv"),
    "--workers",
    "0",
]


def test_the_example_becomes_tables(tmp_path: Path) -> None:
    command = ["features", "build", *FILES, "--out", str(tmp_path), "--every", "7"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "58 rows read, 58 accepted, 0 quarantined" in done.output
    profile = pq.read_table(tmp_path / "data" / "user_profile.parquet").to_pylist()
    last = max(row["event_timestamp"] for row in profile)
    # C104 bought twice: a mug, then green tea with three mugs.
    found = next(row for row in profile if row["user_id"] == "C104" and row["event_timestamp"] == last)
    assert (found["baskets_90d"], found["spend_90d"], found["categories_90d"]) == (2, 5_490, 2)
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "nothing changed" in again.output


def test_the_report_is_json_on_demand(tmp_path: Path) -> None:
    command = ["features", "build", *FILES, "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["files"][0]["accepted"] == 58
    assert set(report["rows"]) == {path.stem for path in (tmp_path / "data").iterdir()}


def test_a_refused_file_says_what_to_do(tmp_path: Path) -> None:
    files = [str(tmp_path / "none.csv"), *FILES[1:]]
    with pytest.raises(DataError, match=r"none.csv: does not exist; pass a CSV, JSONL or Parquet file"):
        CliRunner().invoke(app, ["features", "build", *files, "--out", str(tmp_path)], catch_exceptions=False)
