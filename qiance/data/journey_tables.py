"""The Complete Journey's source tables as users, items, events and contacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.data.convert import mask
from qiance.data.ingest import Ingested
from qiance.data.mapped import EVENT_SCHEMA
from qiance.data.schema import Checked, join_key
from qiance.data.titles import Titles, readable, titles_of

USER_ATTRIBUTES = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
DAY_S = 86_400


def build_tables(checked: Mapping[str, Checked], fractions: Mapping[str, float]) -> Ingested:
    """users, items, events and contacts from the checked source tables (see docs/data.md)."""
    tables = {name: part.table for name, part in checked.items()}
    events = _events(tables["transactions"])
    items, left_out = _items(tables["products"], events, fractions)
    contacts = _contacts(tables, events)
    users = _users(tables["demographics"], events, contacts)
    return Ingested(
        "complete-journey", {"users": users, "items": items, "events": events, "contacts": contacts}, left_out
    )


def _events(lines: pa.Table) -> pa.Table:
    columns = {
        "event_id": join_key(lines, ("basket_id", "item_id")),
        "user_id": lines["user_id"],
        "item_id": lines["item_id"],
        "type": pa.repeat("purchase", lines.num_rows),
        "quantity": lines["quantity"],
        "value": lines["sales_value"],
        "discount": pc.add(lines["retail_disc"], lines["coupon_match_disc"]),
        "coupon": pc.add(lines["coupon_disc"], lines["coupon_match_disc"]),
        "occurred_at": lines["occurred_at"],
        "basket_id": lines["basket_id"],
    }
    return pa.table(columns).cast(EVENT_SCHEMA)


def _users(demographics: pa.Table, events: pa.Table, contacts: pa.Table) -> pa.Table:
    """Every household that bought, was contacted or is described, by id."""
    ids = [table["user_id"].unique() for table in (events, contacts, demographics)]
    everybody = pc.unique(pa.concat_arrays(ids)).to_pylist()
    users = pa.array(sorted(everybody, key=lambda user: (len(user), user)), pa.string())
    row = pc.index_in(users, value_set=demographics["user_id"].combine_chunks())
    attributes = {name: demographics[name].combine_chunks().take(row) for name in USER_ATTRIBUTES}
    return pa.table({"user_id": users, **attributes})


def _items(
    products: pa.Table, events: pa.Table, fractions: Mapping[str, float]
) -> tuple[pa.Table, dict[str, int]]:
    """Items that have a name, a price and a buyer; and how many were left out for want of each."""
    sold = _prices(events)
    row = pc.index_in(products["item_id"], value_set=sold["item_id"].combine_chunks()).combine_chunks()
    titles, chinese = _titles(products)
    named = mask(pc.not_equal(titles, ""))
    bought = mask(pc.is_valid(row))
    price = pc.take(sold["price"].combine_chunks(), row)
    dear = mask(pc.greater_equal(price, 1))
    brand = products["brand"].combine_chunks()
    known = mask(pc.is_in(brand, value_set=pa.array(list(fractions), pa.string())))
    if not known.all():
        names = pc.unique(brand.filter(pa.array(~known))).to_pylist()
        raise ValueError(f"cost_fraction: no fraction for brand {names[0]!r}; have {sorted(fractions)}")
    index = pc.index_in(brand, value_set=pa.array(list(fractions), pa.string()))
    fraction = pc.take(pa.array(list(fractions.values()), pa.float64()), index)
    category = pc.coalesce(products["category"], products["department"]).combine_chunks()
    table = pa.table(
        {
            "item_id": products["item_id"],
            "title": titles,
            "title_zh": chinese,
            "category": _per_value(category, readable),
            "department": _per_value(products["department"].combine_chunks(), readable),
            "brand": brand,
            "price": price,
            "unit_cost": _unit_cost(price, fraction),
            "n_sold": pc.take(sold["n_sold"].combine_chunks(), row),
        }
    )
    left_out = {
        "items without a name": int((~named).sum()),
        "items never sold": int((named & ~bought).sum()),
        "items under one cent a unit": int((named & bought & ~dear).sum()),
        "sold items absent from products": sold.num_rows - int(bought.sum()),
    }
    return table.filter(pa.array(named & bought & dear)), left_out


def _unit_cost(price: Any, fraction: Any) -> Any:
    """Fraction of the price in whole minor units, always below the price."""
    cost = pc.round(pc.multiply(price.cast(pa.float64()), fraction)).cast(pa.int64())
    return pc.min_element_wise(cost, pc.subtract(price, 1), skip_nulls=False)


def _prices(events: pa.Table) -> pa.Table:
    """item_id, price (median over lines of the shelf price of a unit, minor units), n_sold (units)."""
    shelf = pc.add(events["value"], events["discount"]).to_numpy()
    quantity = events["quantity"].to_numpy()
    ids = events["item_id"].combine_chunks().dictionary_encode()
    item = ids.indices.to_numpy(zero_copy_only=False)
    unit = shelf / quantity
    order = np.lexsort((unit, item))
    counts = np.bincount(item, minlength=len(ids.dictionary))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranked = unit[order]
    median = (ranked[first + (counts - 1) // 2] + ranked[first + counts // 2]) / 2
    units = np.bincount(item, quantity, len(counts)).astype(np.int64)
    return pa.table(
        {"item_id": ids.dictionary, "price": pa.array(np.rint(median).astype(np.int64)), "n_sold": units}
    )


def _titles(products: pa.Table) -> tuple[Any, Any]:
    """`[items]` English and Chinese names, empty where the product has no type or no such name.

    Each is worked out once per distinct product.
    """
    joined = products.select(["department", "category", "kind", "size"]).to_pydict()
    rows = list(zip(*joined.values(), strict=True))
    names = {
        row: titles_of(row[0], row[1] or "", row[2], row[3]) if row[2] else Titles("", "")
        for row in dict.fromkeys(rows)
    }
    return tuple(
        pa.array([getattr(names[row], name) for row in rows], pa.string()) for name in Titles._fields
    )


def _per_value(column: Any, change: Any) -> Any:
    encoded = column.dictionary_encode()
    changed = pa.array([change(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return changed.take(encoded.indices)


def _contacts(tables: Mapping[str, pa.Table], events: pa.Table) -> pa.Table:
    """One row per household and campaign, from the campaign's first day to the end of its last."""
    contacts, campaigns = tables["campaigns"], tables["campaign_descriptions"]
    row = pc.index_in(contacts["campaign_id"], value_set=campaigns["campaign_id"].combine_chunks())
    start = campaigns["start"].combine_chunks().take(row.combine_chunks())
    end = campaigns["end"].combine_chunks().take(row.combine_chunks())
    pair = join_key(contacts, ("campaign_id", "user_id"))
    redeemed = pc.is_in(pair, value_set=join_key(tables["coupon_redemptions"], ("campaign_id", "user_id")))
    per_campaign = tables["coupons"].group_by("campaign_id").aggregate([("coupon_id", "count_distinct")])
    place = pc.index_in(contacts["campaign_id"], value_set=per_campaign["campaign_id"].combine_chunks())
    coupons = per_campaign["coupon_id_count_distinct"].combine_chunks().take(place.combine_chunks())
    return pa.table(
        {
            "contact_id": pair,
            "user_id": contacts["user_id"],
            "campaign_id": contacts["campaign_id"],
            "campaign_kind": campaigns["campaign_kind"].combine_chunks().take(row.combine_chunks()),
            "contacted_at": start,
            "ended_at": end,
            "conversion": redeemed.cast(pa.int8()),
            "sales": _spent(contacts["user_id"], start, end, events),
            "n_coupons": pc.fill_null(coupons, 0),
        }
    )


def _spent(users: Any, start: Any, end: Any, events: pa.Table) -> Any:
    """`[contacts]` minor units that each user spent in [start, end + 1 day)."""
    buyers = events["user_id"].combine_chunks().dictionary_encode()
    owner = buyers.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    keys = _sortable(owner, events["occurred_at"].combine_chunks())
    order = np.argsort(keys, kind="stable")
    total = np.concatenate([[0], np.cumsum(events["value"].to_numpy()[order])])
    code = pc.index_in(users, value_set=buyers.dictionary).fill_null(-1).to_numpy().astype(np.int64)
    low = np.searchsorted(keys[order], _sortable(code, start))
    high = np.searchsorted(keys[order], _sortable(code, end) + DAY_S)
    return pa.array(np.where(code >= 0, total[high] - total[low], 0))


def _sortable(owner: NDArray[np.int64], when: Any) -> NDArray[np.int64]:
    """One number per row that sorts by owner (fewer than 2^27), then by second."""
    seconds = when.cast(pa.int64()).to_numpy(zero_copy_only=False) // 1_000_000
    keys: NDArray[np.int64] = owner * (np.int64(1) << 36) + (np.int64(1) << 35) + seconds
    return keys
