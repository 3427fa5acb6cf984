"""From rows and their vectors to the feature table: one line per entity and instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.features.embedding_spec import SENTIMENT_MEAN, SENTIMENT_N, EmbeddingSpec
from training.embed.parts import vector_lists

DAY_US = 86_400_000_000
_WHEN = pa.timestamp("us", "UTC")
# Below any time there is: a row without a time counts as always known.
_ALWAYS = np.iinfo(np.int64).min


@dataclass
class _Instant:
    """What is gathered for one instant; arrays grow with the entities, never with the rows.

    sums: `[E, d]`; latest: time of the row that `sums` has where there is one row per entity.
    """

    at_us: int
    sums: NDArray[np.float64]
    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    score: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scored: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    latest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def grow(self, size: int) -> None:
        more = size - len(self.sums)
        if more <= 0:
            return
        self.sums = np.concatenate([self.sums, np.zeros((more, self.sums.shape[1]))])
        for name in ("count", "score", "scored"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more)]))
        self.latest = np.concatenate([self.latest, np.full(more, _ALWAYS)])


class Combiner:
    """Adds parts in any order; `table` has a line per entity that had content by each instant.

    Memory grows with entities × instants. Rows after an instant do not count for it, nor do rows without
    a time where the spec names a column for it (`undated` counts those). bad: (key, reason) of each row
    whose content could not be read.
    """

    def __init__(self, spec: EmbeddingSpec, instants: Sequence[datetime]) -> None:
        if not instants:
            raise ValueError(f"{spec.name}: no instant was given; pass at least one --as-of")
        self.spec = spec
        self.undated = 0
        self.bad: list[tuple[str, str]] = []
        self._slots: dict[str, int] = {}
        self._digest: dict[tuple[int, int], bytes] = {}
        empty = np.zeros((0, spec.dimension))
        self._instants = [_Instant(_micros(at, spec), empty) for at in sorted(set(instants))]

    def add(self, rows: pa.Table, part: pa.Table) -> None:
        """Take in rows (key, at, digest) whose vectors are in `part` (digest, embedding, score)."""
        where = {digest: row for row, digest in enumerate(part["digest"].to_pylist())}
        found = np.array([where[digest] for digest in rows["digest"].to_pylist()], dtype=np.int64)
        valid = np.asarray(part["embedding"].combine_chunks().is_valid())
        self._note_bad(rows, part, found, valid)
        at = _row_times(rows["at"], self.spec)
        keep = valid[found] if len(found) else np.zeros(0, dtype=bool)
        if self.spec.roles.at is not None:
            dated = at != _ALWAYS
            self.undated += int((keep & ~dated).sum())
            keep &= dated
        index = np.flatnonzero(keep)
        slots = self._slots_of([rows["key"][int(i)].as_py() for i in index])
        vectors = _matrix(part["embedding"], self.spec.dimension)
        scores = part["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        for instant in self._instants:
            instant.grow(len(self._slots))
            self._add(instant, slots, at[index], found[index], vectors, scores, part)

    def _note_bad(self, rows: pa.Table, part: pa.Table, found: Any, valid: Any) -> None:
        for row in np.flatnonzero(~valid[found]) if len(found) else ():
            self.bad.append((rows["key"][int(row)].as_py(), part["reason"][int(found[row])].as_py()))

    def _add(
        self, instant: _Instant, slots: Any, at: Any, found: Any, vectors: Any, scores: Any, part: pa.Table
    ) -> None:
        spec = self.spec
        seen = at <= instant.at_us
        if spec.window_days is not None:
            seen &= at > instant.at_us - spec.window_days * DAY_US
        slots, at, found = slots[seen], at[seen], found[seen]
        if spec.combine == "one":
            self._take_latest(instant, slots, at, found, vectors, part)
            return
        weight = np.ones(len(slots))
        if spec.half_life_days is not None:
            weight = 0.5 ** ((instant.at_us - at) / (spec.half_life_days * DAY_US))
        np.add.at(instant.sums, slots, weight[:, None] * vectors[found])
        np.add.at(instant.count, slots, 1.0)
        has = ~np.isnan(scores[found])
        np.add.at(instant.score, slots[has], scores[found][has])
        np.add.at(instant.scored, slots[has], 1.0)

    def _take_latest(
        self, instant: _Instant, slots: Any, at: Any, found: Any, vectors: Any, part: pa.Table
    ) -> None:
        """The row of the latest time; two rows of the same time must have the same content."""
        for slot, when, row in zip(slots.tolist(), at.tolist(), found.tolist(), strict=True):
            digest = part["digest"][row].as_py()
            mark = (instant.at_us, slot)
            if instant.count[slot] and when == instant.latest[slot] and self._digest[mark] != digest:
                key = next(key for key, at_slot in self._slots.items() if at_slot == slot)
                raise ValueError(
                    f"{self.spec.name}: {self.spec.source_key} {key!r} has two rows with different content "
                    "and no later one; remove one, set roles.at to the time of a row, or set combine: mean"
                )
            if not instant.count[slot] or when > instant.latest[slot]:
                instant.sums[slot], instant.latest[slot] = vectors[row], when
                instant.count[slot], self._digest[mark] = 1.0, digest

    def _slots_of(self, keys: list[str]) -> NDArray[np.int64]:
        return np.array([self._slots.setdefault(key, len(self._slots)) for key in keys], dtype=np.int64)

    def table(self, created: datetime) -> pa.Table:
        """Key, embedding, scores, event_timestamp (the instant), created; sorted by instant and key."""
        keys = sorted(self._slots)
        order = np.array([self._slots[key] for key in keys], dtype=np.int64)
        return pa.concat_tables([self._lines(instant, keys, order, created) for instant in self._instants])

    def _lines(self, instant: _Instant, keys: list[str], order: Any, created: datetime) -> pa.Table:
        instant.grow(len(keys))
        length = np.linalg.norm(instant.sums, axis=1)
        kept = [i for i, slot in enumerate(order) if instant.count[slot] > 0 and length[slot] > 0]
        slots = order[kept]
        vectors = (instant.sums[slots] / length[slots, None]).astype(np.float32)
        columns: dict[str, Any] = {
            self.spec.key_column: pa.array([keys[i] for i in kept], pa.string()),
            "embedding": vector_lists(vectors, np.ones(len(kept), dtype=bool)),
        }
        columns |= {name: pa.array(values[slots]) for name, values in self._scores(instant).items()}
        moment = pa.array(np.full(len(kept), instant.at_us), pa.int64()).cast(_WHEN)
        stamp = pa.array([created.astimezone(UTC)] * len(kept), _WHEN)
        return pa.table({**columns, "event_timestamp": moment, "created": stamp})

    def _scores(self, instant: _Instant) -> dict[str, NDArray[np.float64]]:
        """The declared scores; the mean is (Σp + k·m) / (n + k), m over all reviews, k = prior_reviews."""
        if not self.spec.scores:
            return {}
        n, prior = instant.scored, self.spec.prior_reviews
        overall = instant.score.sum() / max(n.sum(), 1.0)
        mean = (instant.score + prior * overall) / np.maximum(n + prior, 1e-12)
        known = {SENTIMENT_MEAN: np.where(n + prior > 0, mean, overall), SENTIMENT_N: n}
        return {name: known[name] for name in self.spec.scores}


def _micros(at: datetime, spec: EmbeddingSpec) -> int:
    if at.tzinfo is None:
        raise ValueError(f"{spec.name}: as-of {at} has no offset from UTC; write e.g. {at.isoformat()}+00:00")
    return int(pa.scalar(at.astimezone(UTC), _WHEN).value)


def _row_times(at: Any, spec: EmbeddingSpec) -> NDArray[np.int64]:
    """Microseconds; `_ALWAYS` for no time."""
    numbers = at.cast(pa.int64()).fill_null(_ALWAYS)
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.int64)


def _matrix(lists: Any, dimension: int) -> NDArray[np.float32]:
    """`[n, dimension]`, zeros where null."""
    joined = lists.combine_chunks()
    matrix = np.zeros((len(joined), dimension), dtype=np.float32)
    valid = np.asarray(joined.is_valid())
    matrix[valid] = joined.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return matrix
