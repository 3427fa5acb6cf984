"""What a scorer takes and gives: users × live candidates, in this process or in another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.decide.unknown import Blind
from qiance.domain import Effect, GridPrediction
from qiance.ledger.schema import to_micros

Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]


class NoModelError(RuntimeError):
    """No effect model is registered, so nothing can be predicted."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One user to score at an instant.

    contacts_7d: contacts in the last seven days. personal: whether personal features may be read.
    deadline: of its call, by the clock of the machine that asks; see `Call`.
    """

    user_id: str
    contacts_7d: int
    at: datetime
    personal: bool
    deadline: float = math.inf

    @property
    def at_us(self) -> int:
        return to_micros(self.at)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of U users × A candidates; column 0 is control.

    candidate_set: content hash of the candidates, in whose order the columns are.
    value: `[U, A]` predicted incremental margin, minor units; cost: `[U, A]` expected use of the budget.
    admissible: `[U, A]` audience, stock and margin floor admit the user.
    prediction: of all columns but control's, None where nothing was predicted.
    items: content hash of the item values, empty where they were not kept. user_rows, degraded: per user.
    blind: users and items of which nothing is known, what is said of these is wider; None: of none.
    """

    candidate_set: str
    value: Scores
    cost: Scores
    admissible: Mask
    prediction: GridPrediction | None
    model_version: str
    items: str
    user_rows: tuple[bytes, ...]
    degraded: tuple[tuple[str, ...], ...]
    blind: Blind | None = None

    def effects(self, users: Sequence[int], columns: Sequence[int]) -> list[Effect | None]:
        """Predicted effects of the actions in `columns` `[n]` on `users` `[n]`; None for control."""
        if self.prediction is None:
            return [None] * len(users)
        told = [place for place, column in enumerate(columns) if column != 0]
        who, what = [users[n] for n in told], [columns[n] - 1 for n in told]
        unknown = self.blind.variance(who, what) if self.blind else None
        found = self.prediction.effects_on(who, what, unknown=unknown)
        effects: list[Effect | None] = [None] * len(users)
        for place, effect in zip(told, found, strict=True):
            effects[place] = effect
        return effects


class Scorer(Protocol):
    """The predictor, wherever it runs."""

    def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        """Scores of the live candidates for every request, in one pass; what it raises, the ladder takes."""
        ...
