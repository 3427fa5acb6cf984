"""Events that must not come in: those of users who were erased."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Drop(Protocol):
    """Which events are left out; it is pickled and sent to every worker."""

    @property
    def fingerprint(self) -> str:
        """Changes when what is left out changes; tells nobody's id."""
        ...

    def __call__(self, events: pa.Table) -> np.ndarray:
        """`[n]` whether each row of an `EVENT_SCHEMA` table is left out."""
        ...


@dataclass(frozen=True)
class ErasedBefore:
    """Leaves out the events of each erased user up to and at the instant of the erasure.

    at: user_id → when it was erased (with an offset). A user who comes back later is taken in from then.
    """

    at: Mapping[str, datetime]

    def __post_init__(self) -> None:
        for user, when in self.at.items():
            if when.tzinfo is None:
                raise ValueError(f"at: {when} of user {user!r} has no offset; give it in UTC")

    @classmethod
    def wholly(cls, user_ids: frozenset[str]) -> ErasedBefore:
        """Leaves out everything of these users."""
        return cls(dict.fromkeys(user_ids, datetime(9999, 1, 1, tzinfo=UTC)))

    @property
    def fingerprint(self) -> str:
        lines = sorted(f"{user!r} {_micros(when)}" for user, when in self.at.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __call__(self, events: pa.Table) -> np.ndarray:
        ids = pa.array(list(self.at), pa.string())
        until = np.array([_micros(when) for when in self.at.values()], dtype=np.int64)
        row = pc.index_in(events["user_id"], value_set=ids).fill_null(-1).to_numpy()
        when = events["occurred_at"].cast(pa.int64()).to_numpy()
        out = np.zeros(len(row), dtype=bool)
        known = row >= 0
        out[known] = when[known] <= until[row[known]]
        return out


def _micros(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)
