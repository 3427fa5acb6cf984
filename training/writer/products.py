"""Products that a writer practises on, from a table of items."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qiance.data.errors import DataError
from qiance.data.tabular import column_names, read_raw, require_columns
from qiance.domain import Channel, Item, Offer, OfferKind
from qiance.strategy.content_ports import ContentRequest
from qiance.strategy.wording import is_named, plain_name

TITLES = {"en": "title", "zh": "title_zh"}
PRICE = 1_000  # minor units: texts name prices by slots, so that any one does
_OPTIONAL = ("category", "department", "brand", "n_sold")
# Texts must fit wherever they are shown, with and without the sentence that states an offer.
CHANNELS = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
OFFERS = (Offer(), Offer(OfferKind.PERCENT, 0.2), Offer(OfferKind.PERCENT, 0.1, threshold=3_000))


def read_products(path: Path, language: str, most: int) -> list[ContentRequest]:
    """One request for each different name, the best-selling first; channels and offers by turns.

    path: CSV, JSON lines or Parquet with `item_id` and the title in `language`; category, department, brand
    and `n_sold` are used where they are there. DataError where a column is missing or nothing has a name.
    """
    if not path.is_file():
        raise DataError(path, "does not exist", "pass the path of your items with --items")
    present = column_names(path)
    require_columns(path, present, ("item_id", TITLES[language]))
    names = ["item_id", *TITLES.values(), *_OPTIONAL]
    raw = read_raw(path, [name for name in names if name in present])
    frame = raw.table.to_pandas().reindex(columns=names)
    sold = pd.to_numeric(frame["n_sold"], errors="coerce").fillna(0)
    frame = frame.fillna("").astype(str).loc[sold.sort_values(ascending=False, kind="stable").index]
    found: dict[str, ContentRequest] = {}
    for row in frame.itertuples(index=False):
        titles = {"zh": row.title_zh} if row.title_zh else {}
        known = (row.item_id, row.title, row.category, row.department, row.brand)
        item = Item(*known, PRICE, 1, titles)
        name = plain_name(item, language)
        if item.title_in(language).strip() and is_named(item, language) and name not in found:
            found[name] = request_of(item, language, len(found))
        if len(found) == most:
            break
    if not found:
        raise DataError(
            path, f"has no item with a name in {language}", f"fill the column {TITLES[language]!r}"
        )
    return list(found.values())


def request_of(item: Item, language: str, number: int) -> ContentRequest:
    """The `number`th request: every product is asked for in one channel, with or without an offer."""
    channel, offer = CHANNELS[number % len(CHANNELS)], OFFERS[number // len(CHANNELS) % len(OFFERS)]
    return ContentRequest(f"product-{number}", item, offer, channel, language)
