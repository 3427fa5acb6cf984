"""The catalogue and the user table that proposers and decisions read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Item:
    """A product that can be shown or discounted.

    price, unit_cost: minor units per unit, price ≥ 1. titles: by language, where it has another title there.
    """

    item_id: str
    title: str
    category: str
    department: str
    brand: str
    price: int
    unit_cost: int
    titles: Mapping[str, str] = field(default_factory=dict, hash=False)

    def title_in(self, language: str) -> str:
        """Its title for readers of `language`: `title` where it has no other."""
        return self.titles.get(language) or self.title

    @property
    def margin_rate(self) -> float:
        """Fraction of the full price that is left after the goods are paid."""
        return (self.price - self.unit_cost) / self.price


@dataclass(frozen=True)
class Catalogue:
    """Items by id, in a fixed order; `index[item_id]` is the row used by arrays over items."""

    items: tuple[Item, ...]

    @cached_property
    def index(self) -> Mapping[str, int]:
        return {item.item_id: row for row, item in enumerate(self.items)}

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __getitem__(self, item_id: str) -> Item:
        try:
            return self.items[self.index[item_id]]
        except KeyError:
            raise ValueError(f"item_id: {item_id!r} is not in the catalogue of {len(self)} items") from None


@dataclass(frozen=True)
class UserTable:
    """Users with their numeric features, column by column.

    user_ids: U ids; columns: feature name → [U] float64 (NaN where unknown).
    """

    user_ids: tuple[str, ...]
    columns: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.user_ids)
