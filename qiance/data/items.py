"""The shop's items from a file: what the feature tables need to know of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qiance.data.convert import Column, Kind
from qiance.data.errors import DataError
from qiance.data.schema import Checked, check_table
from qiance.data.tabular import column_names, read_raw
from qiance.features.events import ItemTable

_COLUMNS = (
    Column("item_id", "item_id", Kind.STRING),
    Column("category", "category", Kind.STRING, required=False),
    Column("brand", "brand", Kind.STRING, required=False),
    Column("price", "price", Kind.MONEY, required=False, minimum=1),
    Column("unit_cost", "unit_cost", Kind.MONEY, required=False, minimum=0),
    Column("stock", "stock", Kind.NUMBER, required=False, minimum=0),
)


@dataclass(frozen=True)
class ItemsFile:
    """items: the good rows; checked: what became of each row of the file."""

    items: ItemTable
    checked: Checked


def read_items(path: Path) -> ItemsFile:
    """Items of a CSV, JSONL or Parquet file: item_id; optionally category, brand, price, unit_cost, stock.

    price and unit_cost are minor units, stock is units on hand now. Rows with a bad value or a repeated
    item_id are put aside; `DataError` if none is left.
    """
    present = column_names(path)
    columns = [column for column in _COLUMNS if column.required or column.source in present]
    checked = check_table(read_raw(path, [column.source for column in columns]), columns, ("item_id",))
    if not checked.table.num_rows:
        fault = checked.faults.slice(0, 1).to_pylist()[0]
        raise DataError(path, f"has no good item (first: {fault['field']} {fault['reason']})", "correct it")
    return ItemsFile(_items(checked.table), checked)


def _items(table: pa.Table) -> ItemTable:
    def text(name: str) -> tuple[str, ...]:
        known = name in table.column_names
        return tuple(pc.fill_null(table[name], "").to_pylist()) if known else ("",) * table.num_rows

    def number(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        if name not in table.column_names:
            return np.full(table.num_rows, np.nan)
        return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)

    price = number("price")
    margin = (price - number("unit_cost")) / price
    return ItemTable(text("item_id"), text("category"), text("brand"), price, margin, number("stock"))
