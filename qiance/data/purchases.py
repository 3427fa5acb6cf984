"""Purchase logs: who bought on which day, and for how much."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qiance.data.mapping import Mapping

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class PurchaseLog:
    """P purchases of U users, sorted by user and day; all that a user bought on a day is one purchase.

    user_ids: `[U]` in alphabetical order. user: `[P]` position in `user_ids`. day: `[P]` days (UTC) since
    1970-01-01. value: `[P]` minor units. currency: ISO 4217. source: what messages call the log.
    """

    user_ids: NDArray[np.str_]
    user: Ints
    day: Ints
    value: Floats
    currency: str = "USD"
    source: str = "purchases"

    @classmethod
    def of(
        cls,
        user_ids: Sequence[str] | NDArray[np.str_],
        day: Ints,
        value: Floats,
        currency: str = "USD",
        source: str = "purchases",
    ) -> PurchaseLog:
        """From rows in any order, `[n]` each; rows of the same user and day are added up."""
        names, user = np.unique(np.asarray(user_ids, dtype=np.str_), return_inverse=True)
        order = np.lexsort((day, user))
        user, day = user[order].astype(np.int64), np.asarray(day, dtype=np.int64)[order]
        first = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(day) != 0)][: len(user)])
        total = np.add.reduceat(np.asarray(value, np.float64)[order], first) if len(user) else np.zeros(0)
        return cls(names, user[first], day[first], total, currency, source)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def first_day(self) -> int:
        return int(self.day.min())

    @property
    def end_day(self) -> int:
        """The day after the last purchase of anybody: up to here the log is taken to be complete."""
        return int(self.day.max()) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content."""
        digest = hashlib.sha256("\n".join([self.currency, *self.user_ids.tolist()]).encode())
        for part in (self.user, self.day, self.value):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def before(self, day: int) -> PurchaseLog:
        """What was known when `day` began: earlier purchases, and the users who made them."""
        keep = self.day < day
        seen, user = np.unique(self.user[keep], return_inverse=True)
        return PurchaseLog(
            self.user_ids[seen],
            user.astype(np.int64),
            self.day[keep],
            self.value[keep],
            self.currency,
            self.source,
        )

    def count(self) -> Ints:
        """`[U]` purchases of each user."""
        return np.bincount(self.user, minlength=len(self.user_ids)).astype(np.int64)


def purchases_of(table: pa.Table, mapping: Mapping, source: str) -> PurchaseLog:
    """From checked rows with user_id, occurred_at and value (or a constant value in `mapping`)."""
    at = table["occurred_at"].cast(pa.int64()).to_numpy()
    if "value" in table.column_names:
        value = pc.fill_null(table["value"], 0).to_numpy().astype(np.float64)
    else:
        value = np.full(len(at), float(str(mapping.constants["value"])))
    users = table["user_id"].to_numpy(zero_copy_only=False)
    return PurchaseLog.of(users, at // DAY_US, value, mapping.currency, source)
