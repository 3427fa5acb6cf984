"""`qiance embeddings`, run as a user does."""

from __future__ import annotations

from pathlib import Path

import embed_cases as cases
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from qiance.cli.main import app

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    model = cases.text_model(folder / "model")
    entry = cases.spec(model).model_dump(mode="json", exclude_none=True)
    entry["roles"] = {}
    (folder / "embeddings.yaml").write_text(yaml.safe_dump({"embeddings": [entry]}))
    table = pa.table({"item_id": ["a", "b", "c"], "title": ["red shoe", "blue shirt", ""]})
    pq.write_table(table, folder / "items.parquet")
    pa.csv.write_csv(table, folder / "items.csv")
    return folder / "embeddings.yaml"


def test_the_declared_ones_are_listed() -> None:
    shown = RUNNER.invoke(app, ["embeddings", "list"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in ("item_text", "item_reviews", "user_search"))


def test_parquet_and_csv_give_the_same_table(config: Path, tmp_path: Path) -> None:
    tables = []
    for kind in ("parquet", "csv"):
        source, out = str(config.parent / f"items.{kind}"), tmp_path / kind
        asked = ["embeddings", "run", "-s", source, "-n", "item_text", "-o", str(out), "-c", str(config)]
        done = RUNNER.invoke(app, [*asked, "--as-of", "2025-01-10T00:00:00+00:00"], catch_exceptions=False)
        assert "3 rows, 1 without content, 2 different contents, 2 of them embedded now" in done.output
        tables.append(pq.read_table(out / "data" / "item_text.parquet").drop_columns("created"))
    assert tables[0] == tables[1]
    assert tables[0]["item_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-n", "other", "-s", "items.parquet"], "no embedding 'other' is declared; there are: item_text"),
        (["-n", "item_text", "-s", "none.parquet"], r"'.*none\.parquet' is not there"),
        (["-n", "item_text", "-s", "embeddings.yaml"], r"is no \.parquet, \.csv or \.jsonl"),
        (["-n", "item_text", "-s", "items.csv", "--as-of", "noon"], "'noon' is no ISO 8601 instant"),
        (
            ["-n", "item_text", "-s", "items.csv", "--as-of", "2025-01-01"],
            r"no offset; write 2025-01-01T00:00:00\+00:00",
        ),
    ],
)
def test_mistakes(
    config: Path, tmp_path: Path, more: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    with pytest.raises(ValueError, match=message):
        RUNNER.invoke(
            app, ["embeddings", "run", "-o", str(tmp_path), "-c", str(config), *more], catch_exceptions=False
        )
