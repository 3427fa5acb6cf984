"""`qiance features build`: what it prints, leaves behind and refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qiance.cli.loop.people import drop_erased, learnable, record_given_consent, users_for
from qiance.cli.loop.refresh import refresh_features
from qiance.cli.main import app
from qiance.data import DataError
from qiance.domain import EventType, Purpose, ShopEvent
from qiance.ledger import Ledger, load_or_create_key
from qiance.workspace import Workspace
from serve.feature_store import open_reader
from training.featurise import stage_repository

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


def ledger_of(workspace: Workspace) -> Ledger:
    return Ledger.open(workspace.ledger_url, key=load_or_create_key(workspace.key_file))


def test_an_erased_user_does_not_come_back_from_the_raw_logs(tmp_path: Path) -> None:
    run = Workspace(tmp_path / "run")
    run.root.mkdir()
    ledger = ledger_of(run)
    ledger.pseudonym("C104")
    ledger.erase("C104", "test")
    ledger.close()
    out = tmp_path / "out"
    command = ["features", "build", *FILES, "--out", str(out), "--workspace", str(run.root)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "of erased users left out" in done.output
    for table in (out / "data").iterdir():
        assert b"C104" not in table.read_bytes()
        read = pq.read_table(table)
        if "user_id" in read.column_names:
            assert read.num_rows
            assert "C104" not in read["user_id"].to_pylist()


def test_nobody_is_learned_from_who_did_not_agree(tmp_path: Path) -> None:
    ledger = ledger_of(Workspace(tmp_path))
    ledger.set_consent("no", dict.fromkeys(Purpose, False), "test")
    ledger.pseudonym("gone")
    ledger.erase("gone", "test")
    assert record_given_consent(ledger, ["yes", "no", "gone", "yes2"]) == 2
    assert record_given_consent(ledger, ["yes", "no", "gone", "yes2"]) == 0
    everybody = ["yes2", "no", "yes", "gone"]
    assert users_for(ledger, everybody, Purpose.LEARNING, frozenset()) == ["yes2", "yes"]
    now = int(datetime.now(UTC).timestamp())
    rows = pa.table({"user_id": everybody, "at": [now] * 4})
    assert learnable(ledger, rows, frozenset())["user_id"].to_pylist() == ["yes2", "yes"]
    # Who comes back and agrees is learned from, but for what was before the erasure.
    ledger.set_consent("gone", dict.fromkeys(Purpose, True), "test")
    twice = pa.table({"user_id": ["gone", "gone"], "at": [now - 3_600, now + 3_600]})
    assert learnable(ledger, twice, frozenset())["at"].to_pylist() == [now + 3_600]
    when = pa.array(
        [datetime.fromtimestamp(s, UTC) for s in twice["at"].to_pylist()], pa.timestamp("us", "UTC")
    )
    logged = twice.set_column(1, "occurred_at", when)
    assert drop_erased(ledger, logged, "occurred_at").num_rows == 1
    ledger.close()


def test_what_happened_while_serving_becomes_features(tmp_path: Path) -> None:
    run = Workspace(tmp_path)
    ledger = ledger_of(run)
    for user in ("u1", "u2"):
        ledger.set_consent(user, {Purpose.PERSONALISATION: True, Purpose.LEARNING: user == "u1"}, "test")
    at = datetime.now(UTC) - timedelta(minutes=5)
    views = [ShopEvent(f"e-{user}", user, EventType.VIEW, at, item_id="i0") for user in ("u1", "u2")]
    assert ledger.record_events(views).accepted == 2
    stage_repository(run.features)
    now = datetime.now(UTC)
    rows = refresh_features(run, ledger, ["u1", "u2", "u3"], now)
    ledger.close()
    assert rows == {"user_session": 1, "user_exposure": 0, "campaign_history": 0}
    reader = open_reader(run.features, 1.0)
    block = reader.fetch("user_id", ["u1", "u2"], int(now.timestamp() * 1e6)).block("user_session")
    assert block.lists["event_items"] == [("i0",), None]
