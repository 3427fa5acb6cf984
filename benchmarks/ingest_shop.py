"""The raw log of a made-up shop: order lines as CSV, late ones among them, with known bad rows planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS = ("line", "customer", "sku", "kind", "qty", "amount", "rebate", "coupon", "booked_at", "order")
MAPPING = """kind: events
columns:
  event_id: line
  user_id: customer
  item_id: sku
  type: {column: kind, values: {SALE: purchase, RET: refund, SEEN: view}}
  quantity: qty
  value: {column: amount, unit: major, max: 100000}
  discount: {column: rebate, unit: major}
  coupon: {column: coupon, unit: major}
  occurred_at: booked_at
  basket_id: order
"""
CHUNK = 250_000
ITEMS, CATEGORIES, BRANDS = 5_000, 60, 200
LINES_PER_USER = 50
DAYS = 365
START_S = 1_735_689_600  # 2025-01-01
BAD_SHARE = 0.01
_PLACE = {name: place for place, name in enumerate(COLUMNS)}
# What is done to a cell, and the field and reason that must come of it.
SPOILT: tuple[tuple[str, bytes, str], ...] = (
    ("customer", b"", "missing"),
    ("sku", b"", "missing"),
    ("sku", b"A\x07B", "not_text"),
    ("sku", b"x" * 1_100, "too_long"),
    ("kind", b"GIFT", "not_allowed"),
    ("qty", b"two", "not_an_integer"),
    ("qty", b"0", "below_minimum"),
    ("qty", b"99999999999999999999", "too_large"),
    ("amount", b"abc", "not_a_number"),
    ("amount", b"-1.00", "below_minimum"),
    ("amount", b"NaN", "not_finite"),
    ("amount", b"100000.01", "above_maximum"),
    ("coupon", b"1,5.0", "broken_line"),
    ("coupon", b"none", "not_a_number"),
    ("booked_at", b"2025-02-30 10:00:00", "not_a_timestamp"),
    ("booked_at", b"", "missing"),
    ("sku", b'"open', "broken_line"),
    ("customer", b"caf\xe9", "not_utf8"),
    ("event_id", b"", "duplicate_key"),  # the role: a repeat is told by its key, not by a cell
)


@dataclass(frozen=True)
class Shop:
    """Files of the shop: the log, its mapping, the items, and what was planted (row, field, reason)."""

    folder: Path
    rows: int

    @property
    def log(self) -> Path:
        return self.folder / "lines.csv"

    @property
    def mapping(self) -> Path:
        return self.folder / "lines.map.yaml"

    @property
    def items(self) -> Path:
        return self.folder / "items.parquet"

    @property
    def planted(self) -> Path:
        return self.folder / "planted.parquet"


def make_shop(folder: Path, rows: int, seed: int) -> Shop:
    """Write the files; the same arguments give the same bytes."""
    shop = Shop(folder, rows)
    folder.mkdir(parents=True)
    shop.mapping.write_text(MAPPING)
    rng = np.random.default_rng(seed)
    _write_items(shop.items, rng)
    planted: dict[str, list[int | str]] = {"row": [], "field": [], "reason": []}
    with shop.log.open("wb") as out:
        out.write(",".join(COLUMNS).encode() + b"\n")
        for start in range(0, rows, CHUNK):
            lines = _lines(start, min(CHUNK, rows - start), rows, rng)
            for row, name, reason in _spoil(lines, rng):
                planted["row"].append(start + row + 1)
                planted["field"].append(name)
                planted["reason"].append(reason)
            out.write(b"\n".join(lines) + b"\n")
    pq.write_table(pa.table(planted), shop.planted)
    return shop


def _write_items(path: Path, rng: np.random.Generator) -> None:
    price = rng.integers(100, 5_000, ITEMS)
    table = {
        "item_id": [f"SKU{n:05d}" for n in range(ITEMS)],
        "category": [f"category {n}" for n in rng.integers(0, CATEGORIES, ITEMS)],
        "brand": [f"brand {n}" for n in rng.integers(0, BRANDS, ITEMS)],
        "price": price,
        "unit_cost": (price * 0.7).astype(np.int64),
        "stock": rng.integers(0, 500, ITEMS),
    }
    pq.write_table(pa.table(table), path)


def _lines(start: int, size: int, rows: int, rng: np.random.Generator) -> list[bytes]:
    """`size` sound lines from row `start` on; time goes on with the rows, 2 % come days late."""
    when = (start + np.arange(size)) / rows * (DAYS - 10) + rng.random(size) * 0.1
    late = rng.random(size) < 0.02
    when = np.where(late, np.maximum(when - rng.random(size) * 10, 0), when)
    seconds = pa.array((START_S + when * 86_400).astype(np.int64)).cast(pa.timestamp("s"))
    amount = rng.integers(100, 20_000, size)
    lowered = rng.random(size) < 0.3
    rebate = np.where(lowered, amount // 10, 0)
    coupon = np.where(lowered & (rng.random(size) < 0.3), rebate // 2, 0)
    number = pa.array(start + np.arange(size))
    columns = [
        number.cast(pa.string()),
        _named("U", rng.integers(0, max(rows // LINES_PER_USER, 1), size)),
        _named("SKU", np.minimum(rng.zipf(1.2, size) - 1, ITEMS - 1), 5),
        pa.array(np.array(["SALE", "RET", "SEEN"])[rng.choice(3, size, p=(0.92, 0.03, 0.05))]),
        pa.array(rng.integers(1, 6, size)).cast(pa.string()),
        *(_major(part) for part in (amount, rebate, coupon)),
        pc.strftime(seconds, "%Y-%m-%d %H:%M:%S"),
        pa.array((start + np.arange(size)) // 3).cast(pa.string()),
    ]
    return pc.binary_join_element_wise(*columns, ",").cast(pa.binary()).to_pylist()


def _named(prefix: str, codes: np.ndarray, width: int = 0) -> pa.Array:
    text = pa.array(codes.astype(np.int64)).cast(pa.string())
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(text, width, "0") if width else text, "")


def _major(minor: np.ndarray) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(minor).cast(pa.string()), 3, "0")
    return pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(digits, 0, -2), pc.utf8_slice_codeunits(digits, -2), "."
    )


def _spoil(lines: list[bytes], rng: np.random.Generator) -> Iterator[tuple[int, str, str]]:
    """Plant bad rows, the kinds in turn; (row from 0, field, reason) of each."""
    size = len(lines)
    rows = np.sort(rng.choice(np.arange(1, size), max(int(size * BAD_SHARE), 1), replace=False))
    bad = set(rows.tolist())
    for turn, row in enumerate(rows.tolist()):
        name, text, reason = SPOILT[turn % len(SPOILT)]
        if reason == "duplicate_key":
            origin = int(rng.integers(0, row))
            while origin in bad:
                origin -= 1  # the first row is sound
            lines[row] = lines[origin]
        else:
            cells = lines[row].split(b",")
            cells[_PLACE[name]] = text
            lines[row] = b",".join(cells)
        whole = reason in ("broken_line", "not_utf8")
        yield row, "(line)" if whole else name, reason
