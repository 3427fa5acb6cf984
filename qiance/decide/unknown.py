"""How much is not known of a user or an item that has no features of its own: predictions say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import ActionGrid
from qiance.features.user_row import UserRows

Floats = NDArray[np.float64]
USERS = 200  # enough for a standard deviation within a twentieth


@dataclass(frozen=True)
class Unknown:
    """Variances of expected effects, in the order of the fields of `Effect`.

    user: `[5, A]` between users, and what the model errs by on one of them, of each action; item: `[5]`
    between the items of the actions, of the mean user. Whoever is unknown may be any of these users, while
    the means that stand in for his features are what the model is surest about (law of total variance).
    """

    user: Floats
    item: Floats

    @classmethod
    def of(cls, grid: ActionGrid, users: UserRows) -> Unknown:
        """Between `users` and the actions of `grid`."""
        means, errors = grid.score(users).prediction.moments()
        return cls(means.var(axis=1) + errors.mean(axis=1), _between_items(grid, means.mean(axis=1)))


@dataclass(frozen=True)
class Blind:
    """What is not known in a batch. stranger: `[U]` users, cold: `[A]` actions by their item, without
    features of their own, as the grid of `unknown` counts them."""

    unknown: Unknown
    stranger: NDArray[np.bool_]
    cold: NDArray[np.bool_]

    def variance(self, users: Sequence[int], actions: Sequence[int]) -> Floats | None:
        """`[5, n]` of `[n]` actions on as many users; None where everything is known."""
        who, what = np.asarray(users, dtype=np.int64), np.asarray(actions, dtype=np.int64)
        stranger, cold = self.stranger[who], self.cold[what]
        if not stranger.any() and not cold.any():
            return None
        of_user = np.where(stranger, self.unknown.user[:, what], 0.0)
        return np.asarray(of_user + np.where(cold, self.unknown.item[:, None], 0.0))


def _between_items(grid: ActionGrid, mean: Floats) -> Floats:
    """`[5]` variance of `[5, A]` over the actions that show an item; 0 with fewer than two items."""
    shown = [place for place, action in enumerate(grid.actions) if action.item_id is not None]
    if len({grid.actions[place].item_id for place in shown}) < 2:
        return np.zeros(len(mean))
    return np.asarray(mean[:, shown].var(axis=1), dtype=np.float64)
