"""Purchase lines and items as arrays: what the transforms are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.domain import Catalogue

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class ItemTable:
    """What is known of each item, `[I]` each, in a fixed order.

    category, brand: text, empty where unknown; price: minor units; margin_rate: fraction of the price;
    stock: units on hand now. NaN where the shop does not tell.
    """

    item_ids: tuple[str, ...]
    category: tuple[str, ...]
    brand: tuple[str, ...]
    price: Floats
    margin_rate: Floats
    stock: Floats

    def __len__(self) -> int:
        return len(self.item_ids)

    @classmethod
    def of(cls, catalogue: Catalogue, stock: Mapping[str, float] | None = None) -> ItemTable:
        """The items of a catalogue; `stock` by item id, where it is known."""
        known = stock or {}
        return cls(
            item_ids=tuple(item.item_id for item in catalogue),
            category=tuple(item.category for item in catalogue),
            brand=tuple(item.brand for item in catalogue),
            price=np.array([item.price for item in catalogue], dtype=np.float64),
            margin_rate=np.array([item.margin_rate for item in catalogue], dtype=np.float64),
            stock=np.array([known.get(item.item_id, np.nan) for item in catalogue], dtype=np.float64),
        )


@dataclass(frozen=True)
class Repeats:
    """Events of one kind and, for each, the event before it that has the same key.

    place: `[m]` positions in the index, ascending; previous: `[m]` position of the last earlier event of
    the key, −1 where there is none.
    """

    place: Codes
    previous: Codes

    @classmethod
    def of(cls, keys: Codes, place: Codes) -> Repeats:
        """`keys` `[m]` of the events at `place`."""
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        same = ranked[1:] == ranked[:-1]
        previous = np.full(len(keys), -1, dtype=np.int64)
        previous[order[1:][same]] = place[order[:-1][same]]
        return cls(place, previous)

    def first_in(self, window: slice) -> Codes:
        """Positions in `window` whose key has no earlier event in it: one for every distinct key."""
        low, high = np.searchsorted(self.place, [window.start, window.stop])
        first: Codes = self.place[low:high][self.previous[low:high] < window.start]
        return first


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, other) pairs of the events, `[P]`, ordered; code: `[n]` pair of each event or −1."""

    user: Codes
    other: Codes
    code: Codes

    @classmethod
    def of(cls, user: Codes, other: Codes) -> Pairs:
        """Pairs of the events whose `other` is known (≥ 0)."""
        span = int(other.max(initial=0)) + 1
        known = other >= 0
        found, inverse = np.unique(user[known] * span + other[known], return_inverse=True)
        code = np.full(len(user), -1, dtype=np.int64)
        code[known] = inverse
        return cls(found // span, found % span, code)

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class EventIndex:
    """Purchase lines as arrays, sorted by time.

    user, item, category, brand: `[n]` int64 codes (−1: outside the catalogue, or unknown);
    basket: `[n]` code of the user's basket; day: `[n]` float days since the epoch;
    value, discount, coupon: `[n]` minor units; quantity: `[n]`.
    """

    user_ids: tuple[str, ...]
    categories: tuple[str, ...]
    brands: tuple[str, ...]
    num_items: int
    user: Codes
    item: Codes
    category: Codes
    brand: Codes
    basket: Codes
    day: Floats
    value: Floats
    discount: Floats
    coupon: Floats
    quantity: Floats

    @classmethod
    def build(
        cls,
        events: pa.Table,
        user_ids: Sequence[str],
        item_categories: Mapping[str, str],
        catalogue: Catalogue | ItemTable,
        categories: Sequence[str],
        item_brands: Mapping[str, str] | None = None,
    ) -> EventIndex:
        """Index the `events` table.

        item_categories, item_brands: of every known item id, also outside the catalogue; brands default
        to the catalogue's. A user outside `user_ids` is refused.
        """
        items = catalogue if isinstance(catalogue, ItemTable) else ItemTable.of(catalogue)
        of_brand = dict(zip(items.item_ids, items.brand, strict=True)) if item_brands is None else item_brands
        brands = tuple(sorted(set(of_brand.values()) - {""}))
        names = pc.unique(events["item_id"])
        ids = names.to_pylist()
        rows = {item_id: row for row, item_id in enumerate(items.item_ids)}
        lookup = ItemCodes(
            names=names,
            item=np.array([rows.get(name, -1) for name in ids], dtype=np.int64),
            category=_coded([item_categories.get(name, "") for name in ids], categories),
            brand=_coded([of_brand.get(name, "") for name in ids], brands),
        )
        return cls.of(events, user_ids, lookup, tuple(categories), brands, len(items))

    @classmethod
    def of(
        cls,
        events: pa.Table,
        user_ids: Sequence[str],
        codes: ItemCodes,
        categories: tuple[str, ...],
        brands: tuple[str, ...],
        num_items: int,
    ) -> EventIndex:
        """Index the purchases of `events`, whose items `codes` knows."""
        purchases = events.filter(pc.equal(events["type"], "purchase"))
        micros = pc.cast(purchases["occurred_at"], pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        # A stable order: events of the same instant stay as the file has them.
        order = np.argsort(micros, kind="stable")
        row = codes.rows(purchases["item_id"])[order]
        user = _index_in(purchases["user_id"], user_ids)[order]
        if (user < 0).any():
            stranger = purchases["user_id"][int(order[np.argmax(user < 0)])].as_py()
            raise ValueError(f"user_id: {stranger!r} is not among the {len(user_ids)} users; add it to them")
        basket = purchases["basket_id"].combine_chunks().dictionary_encode()
        basket_code = basket.indices.to_numpy(zero_copy_only=False).astype(np.int64)[order]
        pair = pa.array(user * len(basket.dictionary) + basket_code).dictionary_encode()
        return cls(
            user_ids=tuple(user_ids),
            categories=categories,
            brands=brands,
            num_items=num_items,
            user=user,
            item=np.where(row >= 0, codes.item[row], -1) if len(codes.item) else row,
            category=np.where(row >= 0, codes.category[row], -1) if len(codes.item) else row,
            brand=np.where(row >= 0, codes.brand[row], -1) if len(codes.item) else row,
            basket=pair.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            day=micros[order] / DAY_US,
            value=_floats(purchases, "value")[order],
            discount=_floats(purchases, "discount")[order],
            coupon=_floats(purchases, "coupon")[order],
            quantity=_floats(purchases, "quantity")[order],
        )

    def __len__(self) -> int:
        return len(self.day)

    def between(self, start: float, end: float) -> slice:
        """Rows with start ≤ day < end."""
        low, high = np.searchsorted(self.day, [start, end])
        return slice(int(low), int(high))

    @cached_property
    def of_category(self) -> Pairs:
        """The (user, category) pairs."""
        return Pairs.of(self.user, self.category)

    @cached_property
    def of_brand(self) -> Pairs:
        """The (user, brand) pairs."""
        return Pairs.of(self.user, self.brand)

    @cached_property
    def baskets(self) -> Repeats:
        return self._repeats(self.basket, np.ones(len(self), dtype=bool))

    @cached_property
    def coupon_baskets(self) -> Repeats:
        return self._repeats(self.basket, self.coupon > 0)

    @cached_property
    def categories_of_user(self) -> Repeats:
        """Keys are a user's categories; what is in no known category counts as one of its own."""
        return self._repeats(self.user * (len(self.categories) + 1) + self.category + 1, self.user >= 0)

    @cached_property
    def category_baskets(self) -> Repeats:
        known = self.category >= 0
        return self._repeats(self.basket * (len(self.categories) + 1) + self.category, known)

    @cached_property
    def brand_baskets(self) -> Repeats:
        return self._repeats(self.basket * (len(self.brands) + 1) + self.brand, self.brand >= 0)

    @cached_property
    def item_buyers(self) -> Repeats:
        return self._repeats(self.item * max(len(self.user_ids), 1) + self.user, self.item >= 0)

    @cached_property
    def buyers(self) -> Repeats:
        return self._repeats(self.user, self.user >= 0)

    def _repeats(self, keys: Codes, kept: NDArray[np.bool_]) -> Repeats:
        place = np.flatnonzero(kept)
        return Repeats.of(keys[place], place)


@dataclass(frozen=True)
class ItemCodes:
    """Item ids with their codes: names is an Arrow array `[K]`; item, category, brand `[K]`, −1 unknown."""

    names: Any
    item: Codes
    category: Codes
    brand: Codes

    @classmethod
    def of(cls, items: ItemTable, categories: Sequence[str], brands: Sequence[str]) -> ItemCodes:
        """Every item of the table by its row."""
        return cls(
            names=pa.array(items.item_ids, pa.string()),
            item=np.arange(len(items), dtype=np.int64),
            category=_coded(items.category, categories),
            brand=_coded(items.brand, brands),
        )

    def rows(self, column: Any) -> Codes:
        """`[n]` place of each id of an Arrow column in `names`, −1 where it is not there."""
        ids = column.combine_chunks().dictionary_encode()
        place = pc.index_in(ids.dictionary, value_set=self.names).fill_null(-1).to_numpy()
        codes: Codes = np.asarray(place, dtype=np.int64)[ids.indices.to_numpy(zero_copy_only=False)]
        return codes


def _coded(values: Sequence[str], names: Sequence[str]) -> Codes:
    return _index_in(pa.array(list(values), pa.string()), names)


def _index_in(column: Any, names: Sequence[str]) -> Codes:
    codes = pc.index_in(column, value_set=pa.array(list(names), pa.string()))
    return np.asarray(codes.fill_null(-1).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> Floats:
    """A column as float64; zeros where the table has none."""
    if name not in table.column_names:
        return np.zeros(table.num_rows)
    return np.asarray(table[name].to_numpy(), dtype=np.float64)
