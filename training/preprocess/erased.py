"""Events that must not come in: those of users who were erased."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qiance.ledger.pseudonyms import load_or_create_key, lookup_of

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


@dataclass(frozen=True)
class ErasedInLedger:
    """Leaves out events of the users on a ledger's list of erasures, which knows them by keyed hashes alone.

    key_file: the tenant's secret, read where the work is done, so that it travels with no task; at: keyed
    hash of a user → when it was last erased.
    """

    key_file: Path
    tenant: str
    at: Mapping[str, datetime]

    @classmethod
    def of(cls, exported: Mapping[str, Any], key_file: Path) -> ErasedInLedger:
        """From `Ledger.export_erasures`; the last erasure of a user counts."""
        entries = ((e["lookup"], datetime.fromisoformat(e["erased_at"])) for e in exported["erasures"])
        last = dict(sorted(entries, key=lambda entry: entry[1]))
        return cls(key_file.resolve(), str(exported["tenant"]), last)

    @property
    def fingerprint(self) -> str:
        lines = sorted(f"{lookup} {_micros(when)}" for lookup, when in self.at.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __call__(self, events: pa.Table) -> np.ndarray:
        key = load_or_create_key(self.key_file)
        users = pc.unique(events["user_id"]).to_pylist()
        hashed = {lookup_of(key, self.tenant, user): user for user in users}
        known = {hashed[lookup]: when for lookup, when in self.at.items() if lookup in hashed}
        return ErasedBefore(known)(events)


def _micros(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)
