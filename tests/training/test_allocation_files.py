"""Offers in files, over Ray Data: the same limits kept as in memory, whatever the pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from offer_cases import check_choices, full_spec, make_offers, written_spec
from typer.testing import CliRunner

from qiance.allocate.ask import solve
from qiance.allocate.offers import Catalogue, batch_of, typed_rows
from qiance.allocate.spec import AllocationSpec, check_spec
from qiance.data.errors import DataError
from qiance.data.schema import RawTable
from training.allocation_files import allocate_files

pytestmark = pytest.mark.usefixtures("ray_cluster")


def in_memory(frame: pd.DataFrame, spec: AllocationSpec) -> Any:
    table = typed_rows(RawTable.of(pa.Table.from_pandas(frame)), spec, "x")
    catalogue = Catalogue.of(table, spec)
    return solve(spec, catalogue, batch_of(table, spec, catalogue))


@pytest.mark.parametrize("users", [800, pytest.param(4_000, marks=pytest.mark.slow)])
def test_a_folder_of_files_keeps_every_limit(users: int, tmp_path: Path) -> None:
    """Rows of a user lie in several files and row groups; CSV and Parquet. Few are searched in one go."""
    frame = make_offers(users, 1)
    nested = full_spec(frame)
    spec, data = check_spec(nested, "s"), tmp_path / "offers"
    data.mkdir()
    shuffled = frame.sample(frac=1, random_state=0)
    pq.write_table(
        pa.Table.from_pandas(shuffled.iloc[: 2 * users]), data / "a.parquet", row_group_size=users // 2
    )
    shuffled.iloc[2 * users :].to_csv(data / "b.csv", index=False)
    told = list[tuple[float, str]]()
    found, tally = allocate_files(
        data, spec, tmp_path / "out.parquet", bucket_rows=users, batch_rows=users // 2,
        tell=lambda share, text: told.append((share, text)),
    )  # fmt: skip
    chosen = pd.read_parquet(tmp_path / "out.parquet")
    check_choices(frame, nested, chosen)
    memory = in_memory(frame, spec)
    assert found.bound == pytest.approx(memory.bound, rel=1e-5)
    assert found.value == pytest.approx(memory.value, rel=5e-4)
    assert (tally.value, tally.rows) == (pytest.approx(found.value), frame["user"].nunique())
    assert [use.name for use in found.limits] == [use.name for use in memory.limits]
    assert sum(one["given"] for one in tally.offers.values()) == chosen["offer"].notna().sum()
    assert {path.name for path in tmp_path.iterdir()} == {"offers", "out.parquet"}, "nothing else is left"
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert {"reading", "sorting", "pass", "writing"} <= {text.split()[0].strip(":") for _, text in told}


def test_days_are_rows_of_their_own_and_the_command_is_the_same(tmp_path: Path) -> None:
    from qiance.cli.main import app

    frame = make_offers(300, 2, days=2)
    total = float(frame["cost"].sum())
    nested = {
        "columns": {"day": "day"},
        "budget": 0.3 * total,
        "daily_budgets": {"limits": {"d0": 0.05 * total, "d1": 0.1 * total}},
        "stock": {"units": {"coffee": 40}},
    }
    frame.to_csv(tmp_path / "offers.csv", index=False)
    words = ["--data", str(tmp_path / "offers.csv"), "--spec", str(written_spec(tmp_path, nested))]
    words += ["--out", str(tmp_path / "out.csv"), "--distributed"]
    done = CliRunner().invoke(app, ["allocate", *words])
    assert done.exit_code == 0, done.output
    check_choices(frame, nested, pd.read_csv(tmp_path / "out.csv"))
    report = json.loads((tmp_path / "out.json").read_text())
    memory = in_memory(frame, check_spec(nested, "s"))
    assert report["value"] == pytest.approx(memory.value, rel=1e-3)
    assert report["bound"] == pytest.approx(memory.bound, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "x"}, r"b.csv: row 3, column value: 'x': not a number"),
        ({"cost": -1.0}, r"b.csv: row 3, column cost: '-1.0': is below 0"),
        (
            {"user": "u0", "offer": "cheese"},
            r"b.csv: row 3: user 'u0' has offer 'cheese' twice, first in row",
        ),
    ],
)
def test_a_mistake_is_named_with_its_file_and_row(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    frame = make_offers(10, 3).sort_values(["user", "offer"]).reset_index(drop=True)
    bad = frame.iloc[-3:].copy().astype({"value": object, "cost": object})
    for name, value in change.items():
        bad.iloc[2, bad.columns.get_loc(name)] = value
    frame.iloc[:-3].to_csv(tmp_path / "a.csv", index=False)
    bad.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match=message):
        allocate_files(tmp_path, check_spec({"budget": 100}, "s"), tmp_path.parent / "out.csv")
    assert not (tmp_path.parent / "out.csv").exists()


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    spec = check_spec({"budget": 1}, "s")
    with pytest.raises(DataError, match="does not exist"):
        allocate_files(tmp_path / "no.csv", spec, tmp_path / "out.csv")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        allocate_files(tmp_path / "in", spec, tmp_path / "out.csv")
    (tmp_path / "in" / "a.csv").write_text("user,offer,value\n")
    with pytest.raises(DataError, match=r"column 'cost' is not there .*in the spec"):
        allocate_files(tmp_path / "in", spec, tmp_path / "out.csv")
    capped = check_spec({"budget": 1, "frequency_cap": {"most": 1, "column": "house"}}, "s")
    with pytest.raises(ValueError, match="frequency_cap: cannot be kept with --distributed"):
        allocate_files(tmp_path / "in", capped, tmp_path / "out.csv")
