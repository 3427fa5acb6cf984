"""The peer of `benchmarks.ingest`: the same checks and the same features with pandas, in one process."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.ingest_shop import COLUMNS, Shop

TYPES = {"SALE": "purchase", "RET": "refund", "SEEN": "view"}
DAY = pd.Timedelta(days=1)
Faults = list[pd.DataFrame]


def run(shop: Shop, out: Path, every: int = 28) -> None:
    """Quarantine and feature tables under `out`."""
    (out / "data").mkdir(parents=True)
    events = check(shop.log, out / "quarantine.csv")
    items = pd.read_parquet(shop.items)
    purchases = events[events["kind"] == "purchase"].sort_values("booked_at", kind="stable")
    purchases = purchases.join(items.set_index("item_id")[["category", "brand"]], on="sku")
    for name in ("customer", "sku", "order", "category", "brand"):
        purchases[name] = purchases[name].astype("category")
    end = purchases["booked_at"].iloc[-1].floor("D") + DAY
    begin = purchases["booked_at"].iloc[0].floor("D") + every * DAY
    instants = sorted({end, *pd.date_range(end, begin + DAY / 86_400, freq=-every * DAY)})
    parts: dict[str, list[pd.DataFrame]] = {}
    for instant, before in zip(instants, [instants[0], *instants[:-1]], strict=True):
        for name, table in features(purchases, items, instant, before, instant == end).items():
            parts.setdefault(name, []).append(table.assign(event_timestamp=instant, created=instant))
    for name, tables in parts.items():
        pd.concat(tables, ignore_index=True).to_parquet(out / "data" / f"{name}.parquet")


def check(path: Path, quarantine: Path) -> pd.DataFrame:
    """Good rows, typed; a fault for every bad value to `quarantine`."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = pd.Series(text.split("\n")[1:], dtype="string[pyarrow]")
    lines.index += 1
    lines = lines[lines != ""]
    faults: Faults = []
    foreign = lines.str.contains("\ufffd", regex=False)
    open_quote = lines.str.count('"') % 2 == 1
    uneven = lines.str.count(",") != len(COLUMNS) - 1
    _note(faults, lines, foreign, "(line)", "not_utf8")
    _note(faults, lines, ~foreign & (open_quote | uneven), "(line)", "broken_line")
    kept = lines[~(foreign | open_quote | uneven)]
    frame = pd.read_csv(
        io.StringIO("\n".join(kept)),
        names=COLUMNS,
        dtype="string[pyarrow]",
        keep_default_na=False,
        engine="pyarrow",
    ).set_index(kept.index)
    good = pd.Series(True, index=frame.index)
    for name in COLUMNS:
        frame[name], bad = _column(name, frame[name], faults)
        good &= ~bad
    frame = frame[good]
    repeated = frame.duplicated("line")
    _note(faults, frame["line"], repeated, "line", "duplicate_key")
    pd.concat(faults).sort_values("row", kind="stable").to_csv(quarantine, index=False)
    return frame[~repeated]


def _note(faults: Faults, values: pd.Series, bad: pd.Series, field: str, reason: str) -> None:
    if bad.any():
        rows = values.index[bad]
        found = {"row": rows, "field": field, "value": values[bad].astype(str).str[:200], "reason": reason}
        faults.append(pd.DataFrame(found))


def _column(name: str, raw: pd.Series, faults: Faults) -> tuple[pd.Series, pd.Series]:
    """The typed column and where it is bad."""
    value = raw.str.strip()
    tests: list[tuple[str, pd.Series]] = []
    if name in ("rebate", "coupon"):
        value = value.where(value != "", "0")
    missing = value == ""
    if name not in ("rebate", "coupon", "order"):
        tests.append(("missing", missing))
    if name == "qty":
        value, more = _quantity(value, missing)
    elif name in ("amount", "rebate", "coupon"):
        value, more = _money(value, missing, 100_000 if name == "amount" else None)
    elif name == "booked_at":
        parsed = pd.to_datetime(value, format="%Y-%m-%d %H:%M:%S", utc=True, errors="coerce")
        value, more = parsed, [("not_a_timestamp", parsed.isna() & ~missing)]
    else:
        control = value.str.contains(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", regex=True)
        more = [("too_long", value.str.len() > 1_024), ("not_text", control)]
        if name == "kind":
            value = value.replace(TYPES)
            more.append(("not_allowed", ~value.isin(list(TYPES.values())) & ~missing))
    bad = pd.Series(False, index=raw.index)
    for reason, wrong in [*tests, *more]:
        wrong = wrong.fillna(False).astype(bool)
        _note(faults, raw, wrong, name, reason)
        bad |= wrong
    return value, bad


def _quantity(value: pd.Series, missing: pd.Series) -> tuple[pd.Series, list[tuple[str, pd.Series]]]:
    whole = value.str.fullmatch(r"[+-]?\d+")
    huge = whole & (value.str.lstrip("+-0").str.len() > 18)
    number = pd.to_numeric(value.where(whole & ~huge), errors="coerce").astype("float64")
    return number, [
        ("not_an_integer", ~whole & ~missing),
        ("too_large", huge),
        ("below_minimum", number < 1),
    ]


def _money(
    value: pd.Series, missing: pd.Series, most: int | None
) -> tuple[pd.Series, list[tuple[str, pd.Series]]]:
    wild = value.str.lower().isin(["nan", "inf", "-inf", "infinity"])
    fits = value.str.fullmatch(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
    number = pd.to_numeric(value.where(fits), errors="coerce").astype("float64")
    tests = [
        ("not_finite", wild),
        ("not_a_number", ~fits & ~wild & ~missing),
        ("below_minimum", number < 0),
    ]
    if most is not None:
        tests.append(("above_maximum", number > most))
    return (number * 100).round(), tests


def features(
    purchases: pd.DataFrame, items: pd.DataFrame, as_of: pd.Timestamp, before: pd.Timestamp, last: bool
) -> dict[str, pd.DataFrame]:
    """The six tables at one instant; `before` is the instant before it."""
    past = purchases[purchases["booked_at"] < as_of]
    window = past[past["booked_at"] >= as_of - 90 * DAY]
    ending = past[past["booked_at"] >= before - 90 * DAY]
    return {
        "user_profile": _users(past, window, as_of),
        "user_category": _pairs(window, ending, "category", as_of),
        "user_brand": _pairs(window, ending, "brand", as_of),
        **_items(window, items, as_of, last),
        "market_signals": _market(window, as_of),
    }


def _users(past: pd.DataFrame, window: pd.DataFrame, as_of: pd.Timestamp) -> pd.DataFrame:
    ever = past.groupby("customer", observed=True)["booked_at"].agg(["min", "max"])
    window = window.assign(
        lowered=window["rebate"] > 0,
        depth=(window["rebate"] / (window["amount"] + window["rebate"])).where(window["rebate"] > 0),
    )
    own = window.groupby("customer", observed=True)
    sums = own[["amount", "rebate", "coupon", "lowered"]].sum().reindex(ever.index, fill_value=0)
    full = sums["amount"] + sums["rebate"]
    baskets = own["order"].nunique().reindex(ever.index, fill_value=0)
    by_coupon = window[window["coupon"] > 0].groupby("customer", observed=True)["order"].nunique()
    table = pd.DataFrame(
        {
            "recency_days": (as_of - ever["max"]) / DAY,
            "baskets_90d": baskets,
            "spend_90d": sums["amount"],
            "avg_basket": _share(sums["amount"], baskets),
            "discount_share": _share(sums["rebate"], full),
            "tenure_days": (as_of - ever["min"]) / DAY,
            "categories_90d": own["category"].nunique().reindex(ever.index, fill_value=0),
            "discounted_line_share": _share(sums["lowered"], own.size().reindex(ever.index, fill_value=0)),
            "avg_discount_depth": own["depth"].mean().reindex(ever.index).fillna(0),
            "coupon_baskets_90d": by_coupon.reindex(ever.index, fill_value=0),
            "coupon_share": _share(sums["coupon"], full),
        }
    )
    return table.astype("float64").rename_axis("user_id").reset_index()


def _pairs(window: pd.DataFrame, ending: pd.DataFrame, other: str, as_of: pd.Timestamp) -> pd.DataFrame:
    """Pairs with a purchase in the window, and those that had one when the last rows were made."""
    keys = ["customer", other]
    every = ending.groupby(keys, observed=True).size().index
    own = window.groupby(keys, observed=True)
    found = own.agg(spend=("amount", "sum"), baskets=("order", "nunique"), last=("booked_at", "max"))
    found = found.reindex(every)
    total = window.groupby("customer", observed=True)["amount"].sum()
    spent = total.reindex(every.get_level_values("customer")).fillna(0).to_numpy()
    table = pd.DataFrame(
        {
            f"{other}_share": _share(found["spend"].fillna(0), spent),
            f"{other}_baskets_90d": found["baskets"].fillna(0).astype("float64"),
            f"{other}_recency_days": (as_of - found["last"]) / DAY,
        }
    )
    return table.rename_axis(["user_id", other]).reset_index()


def _items(
    window: pd.DataFrame, items: pd.DataFrame, as_of: pd.Timestamp, last: bool
) -> dict[str, pd.DataFrame]:
    known = pd.Index(items["item_id"], name="item_id")
    recent = {days: window[window["booked_at"] >= as_of - days * DAY] for days in (1, 7, 28, 90)}
    own = {days: rows.groupby("sku", observed=True) for days, rows in recent.items()}

    def of(values: pd.Series) -> pd.Series:
        return values.astype("float64").reindex(known, fill_value=0.0)

    units = {days: of(groups["qty"].sum()) for days, groups in own.items()}
    lowered = recent[7][recent[7]["rebate"] > 0].groupby("sku", observed=True).size()
    sums = {name: of(own[28][name].sum()) for name in ("amount", "rebate")}
    price, cost = (items[name].to_numpy(dtype="float64") for name in ("price", "unit_cost"))
    state = {
        "price": price,
        "margin_rate": (price - cost) / price,
        "units_28d": units[28],
        "buyers_28d": of(own[28]["customer"].nunique()),
        "item_discount_share": _share(sums["rebate"], sums["amount"] + sums["rebate"]),
        "promoted_share_7d": _share(of(lowered), of(own[7].size())),
        "stock": items["stock"].to_numpy(dtype="float64") if last else np.nan,
    }
    popularity = {
        "units_1d": units[1],
        "units_7d": units[7],
        "units_90d": units[90],
        "buyers_7d": of(own[7]["customer"].nunique()),
        "popularity_trend": _share(units[7] / 7, units[28] / 28),
    }
    return {
        "item_state": pd.DataFrame(state, index=known).reset_index(),
        "item_popularity": pd.DataFrame(popularity, index=known).reset_index(),
    }


def _market(window: pd.DataFrame, as_of: pd.Timestamp) -> pd.DataFrame:
    week, month = (window[window["booked_at"] >= as_of - days * DAY] for days in (7, 28))
    units, of_month = week["qty"].sum(), month["qty"].sum()
    row = {
        "market_id": "default",
        "market_units_7d": float(units),
        "market_buyers_7d": float(week["customer"].nunique()),
        "market_trend": (units / 7) / (of_month / 28) if of_month else 0.0,
    }
    return pd.DataFrame([row])


def _share(part: pd.Series, whole: pd.Series | np.ndarray) -> pd.Series:
    part = part.astype("float64")
    return (part / whole).where(np.asarray(whole) > 0, 0.0)


if __name__ == "__main__":
    run(Shop(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]))
