"""The part of a retailer's assortment that campaigns are about."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qiance.domain import Catalogue, Item

# Not advertised: no shopper's product, or advertising is restricted by law in many places.
UNADVERTISED = ("COUPON", "MISC", "FUEL", "GAS", "CIGARETTE", "TOBACCO", "BEER", "WINE", "LIQUOR", "PHARMA")


def select_catalogue(
    items: pa.Table,
    num_categories: int = 24,
    items_per_category: int = 12,
    min_price: int = 200,
    unadvertised: Collection[str] = UNADVERTISED,
) -> tuple[Catalogue, tuple[str, ...]]:
    """The best-selling items of the best-selling categories, and the categories in order of sales.

    Prices are minor units; items under `min_price` cannot carry the cost of a contact.
    """
    table = items.filter(pc.greater_equal(items["price"], min_price))
    for column in ("category", "department"):
        upper = pc.utf8_upper(pc.fill_null(table[column], "MISC"))
        barred = pc.match_substring_regex(upper, "|".join(unadvertised))
        table = table.filter(pc.invert(barred))
    revenue = pc.multiply(pc.cast(table["price"], pa.int64()), table["n_sold"])
    table = table.append_column("revenue", revenue)
    sums = table.group_by("category").aggregate([("revenue", "sum")]).sort_by([("revenue_sum", "descending")])
    categories = tuple(sums["category"].to_pylist()[:num_categories])
    chosen: list[Item] = []
    for category in categories:
        rows = table.filter(pc.equal(table["category"], category)).sort_by([("revenue", "descending")])
        chosen.extend(_item(row) for row in rows.slice(0, items_per_category).to_pylist())
    if not chosen:
        raise ValueError(f"items: none of {items.num_rows} has a price of at least {min_price} minor units")
    return Catalogue(tuple(chosen)), categories


def _item(row: dict[str, Any]) -> Item:
    return Item(
        item_id=str(row["item_id"]),
        title=str(row["title"]),
        category=str(row["category"]),
        department=str(row["department"]),
        brand=str(row["brand"]),
        price=row["price"],
        unit_cost=row["unit_cost"],
        titles={"zh": row["title_zh"]} if row.get("title_zh") else {},
    )
