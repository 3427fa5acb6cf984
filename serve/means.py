"""The last step before control: candidates at their strategies' mean effects, where no predictor answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qiance.domain import Catalogue
from serve.live import LiveState, floors
from serve.scoring import Mask, ScoredBatch, Scores


@dataclass(frozen=True)
class _Known:
    """value, cost, admissible: `[1, A]` of every user alike."""

    state: LiveState
    value: Scores
    cost: Scores
    admissible: Mask


class Means:
    """Scores every user alike; what it takes from a state is worked out once for it. Safe in several threads.

    min_margin: share of the price that an item must still earn after the offer.
    """

    def __init__(self, catalogue: Catalogue, min_margin: float) -> None:
        self._catalogue, self._min_margin = catalogue, min_margin
        self._known: _Known | None = None

    def score(self, state: LiveState, users: int) -> ScoredBatch:
        """Every candidate of `state` at its strategy's mean predicted effect, for `users` users.

        Without the user's features an audience rule cannot be checked: only open audiences stay.
        """
        known = self._known
        if known is None or known.state is not state:
            known = self._known = self._look(state)
        return ScoredBatch(
            candidate_set=state.candidate_set,
            value=np.repeat(known.value, users, axis=0),
            cost=np.repeat(known.cost, users, axis=0),
            admissible=np.repeat(known.admissible, users, axis=0),
            prediction=None,
            model_version=state.versions.model,
            items="",
            user_rows=(b"",) * users,
            degraded=((),) * users,
        )

    def _look(self, state: LiveState) -> _Known:
        live = [state.strategies.get(action.strategy_id) for action in state.actions]
        value = [s.effect.uplift.value if s is not None and s.effect else 0.0 for s in live]
        is_open = np.array([s is None or not s.audience.conditions for s in live], dtype=np.bool_)
        mask = is_open & floors(state, self._catalogue, self._min_margin)
        cost = state.liability.astype(np.float32)
        return _Known(state, np.array([value], dtype=np.float32), cost[None], mask[None])
