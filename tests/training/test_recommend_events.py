"""Purchase sequences from a table of events."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qiance.data.errors import DataError
from training.recommend.events import is_events, read_events


def events(folder: Path, rows: list[tuple[str, str, str, str]], name: str = "events.csv") -> Path:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "occurred_at", "type"])
    frame.to_csv(folder / name, index=False)
    return folder / name


def test_an_item_counts_when_it_is_bought_first(tmp_path: Path) -> None:
    rows = [("u", item, f"2026-01-{day:02}T00:00:00Z", "purchase") for day, item in enumerate("dabca", 1)]
    rows.insert(0, ("u", "e", "2026-01-31T00:00:00Z", "purchase"))
    rows.insert(3, ("u", "x", "2026-01-01T00:00:00Z", "view"))
    rows += [("v", "a", "2026-01-01", "purchase"), ("v", "a", "2026-01-02", "purchase")]
    found, left_out = read_events(events(tmp_path, rows))
    assert found.users == ("u",)
    assert [found.items[k - 1] for k in found.rows[0]] == list("dabce")
    assert left_out == 1
    assert [is_events(Path(name)) for name in ("a.parquet", "a.csv.gz", "a.txt.gz")] == [True, True, False]


def test_what_is_wrong_with_events_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="occurred_at: 'soon' is no time"):
        read_events(events(tmp_path, [("u", "a", "soon", "purchase")]))
    with pytest.raises(DataError, match="has no user with 4 different items"):
        read_events(events(tmp_path, [("u", "a", "2026-01-01", "purchase")]))
    (tmp_path / "other.csv").write_text("user_id,item_id\nu,a\n")
    with pytest.raises(DataError, match="occurred_at"):
        read_events(tmp_path / "other.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_events(tmp_path / "none.csv")
