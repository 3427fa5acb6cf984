"""How much a purchase is worth: its mean, and an interval for a single one.

K members, each trained without one fold of the purchases, give the mean value μ_k(x); the prediction is
m^(1 − w) · μ(x)^w, μ the geometric mean over the members and m that of everybody, times the factor that makes
predicted and observed sums equal. The interval is CV+ (Barber, Candès, Ramdas and Tibshirani, 2021,
Predictive inference with the jackknife+) on the log scale, its two sides apart since purchases are skewed: of
{log μ_k(i)(x) + r_i}, r_i the residual of purchase i under the member that did not see it, the ranks ⌊α/2 (n
+ 1)⌋ and ⌈(1 − α/2)(n + 1)⌉. A new purchase lies in it with probability 1 − 2α at least whatever the model
is, and in practice 1 − α. A segment with 100 purchases or more has an interval of its own residuals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.trees import tree_inputs
from qiance.features.encoder import Encoder
from qiance.features.schema import Columns

Floats = NDArray[np.float64]
MIN_SEGMENT = 100
_HALVINGS = 50  # of the range of log values: far below the precision of a float


@dataclass(frozen=True, slots=True)
class PurchaseValue:
    """Of one purchase, by row, minor units `[N]`: the mean, and the bounds of a single value."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class ValueModel:
    """members: K boosters of the mean. scores: per segment K sorted arrays of residuals; "" is everybody.

    segment: the feature that holds a row's segment. mean: minor units. weight: of the members, in [0, 1].
    factor: makes the sums equal. share: of the outcomes that come with a value above 0.
    """

    encoder: Encoder
    segment: str | None
    members: Sequence[Any]
    scores: Mapping[str, Sequence[Floats]]
    mean: float
    weight: float
    factor: float
    share: float

    @property
    def purchases(self) -> int:
        """How many it has learned from."""
        return sum(part.size for part in self.scores[""])

    def predict(self, columns: Columns, confidence: float = 0.9) -> PurchaseValue:
        """columns: feature → `[N]`. The bounds are 0 and infinity where purchases are too few to tell."""
        log_means = self._log_means(columns)
        low, high = np.empty(len(log_means)), np.empty(len(log_means))
        for name, scores in self.scores.items():
            rows = self._rows_of(name, columns, len(log_means))
            low[rows], high[rows] = _bounds(log_means[rows], scores, confidence)
        mean = self.factor * np.exp(log_means.mean(axis=1))
        return PurchaseValue(np.asarray(mean), np.exp(low), np.exp(high))

    def _rows_of(self, name: str, columns: Columns, count: int) -> NDArray[np.bool_]:
        """Everybody's bounds come first; those of a segment with its own are then written over them."""
        if not name or self.segment is None:
            return np.ones(count, dtype=np.bool_)
        return np.asarray(np.asarray(columns[self.segment]).astype(np.str_) == name)

    def _log_means(self, columns: Columns) -> Floats:
        """`[N, K]`, drawn to the mean of everybody by the weight."""
        table = tree_inputs(self.encoder.schema, columns, self.encoder.encode(columns)[1])
        if not len(table):
            return np.empty((0, len(self.members)))
        found = np.column_stack([np.log(member.predict(table)) for member in self.members])
        return (1 - self.weight) * math.log(self.mean) + self.weight * found

    def to_dict(self) -> dict[str, Any]:
        """All but encoder and members, which have files of their own."""
        scores = {name: [part.tolist() for part in parts] for name, parts in self.scores.items()}
        named = {name: getattr(self, name) for name in ("segment", "mean", "weight", "factor", "share")}
        return {**named, "members": len(self.members), "scores": scores}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], encoder: Encoder, members: Sequence[Any]) -> ValueModel:
        """members: as many as `data["members"]` says."""
        scores = {name: [np.array(part) for part in parts] for name, parts in data["scores"].items()}
        numbers = {name: float(data[name]) for name in ("mean", "weight", "factor", "share")}
        return cls(encoder, data["segment"], members, scores, **numbers)


def _bounds(log_means: Floats, scores: Sequence[Floats], confidence: float) -> tuple[Floats, Floats]:
    count, tail = sum(part.size for part in scores), (1 - confidence) / 2
    # Rounded so that 0.05 · 20, which a float makes 1 + 2e-16, is the first rank and not the second.
    low = math.floor(round(tail * (count + 1), 9))
    high = math.ceil(round((1 - tail) * (count + 1), 9))
    return _ranked(log_means, scores, low)[0], _ranked(log_means, scores, high)[1]


def _ranked(log_means: Floats, scores: Sequence[Floats], rank: int) -> tuple[Floats, Floats]:
    """`[N]` below and above the `rank`-th smallest of {log_means[:, k] + scores[k]} over all k, by next to
    nothing; ∓∞ beyond their number. Many purchases may be of one price: a bound on the wrong side of it would
    miss all of them.

    By halving: how many lie at or below a value takes K binary searches; the union would be N times as long
    as all purchases.
    """
    count = sum(part.size for part in scores)
    if not 1 <= rank <= count:
        return (np.full(len(log_means), -np.inf if rank < 1 else np.inf),) * 2
    low = np.full(len(log_means), np.inf)
    high = np.full(len(log_means), -np.inf)
    for place, part in enumerate(scores):
        if part.size:
            low = np.minimum(low, log_means[:, place] + part[0])
            high = np.maximum(high, log_means[:, place] + part[-1])
    low -= 1e-9
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = sum(
            np.searchsorted(part, middle - log_means[:, place], side="right")
            for place, part in enumerate(scores)
        )
        enough = below >= rank
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return low, high
