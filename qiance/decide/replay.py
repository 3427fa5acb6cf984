"""Replay of a logged decision: its choice from the logged scores, and the scores from what made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import ActionGrid, EffectScorer
from qiance.decide.rule import policy_probabilities, replay, scores
from qiance.domain import Action, Catalogue, Decision
from qiance.features import user_row

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
# A batch of another size or another processor sums in another order. A score is the difference of two margins
# in float32: it is as exact as those are, so that is what a difference is held against. More than this is
# another model, user or item.
TOLERANCE = 1e-5
_KEPT = 16  # action grids in memory; decisions of one hour mostly share one


@dataclass(frozen=True)
class Replayed:
    """A decision replayed.

    action_id, propensity: what follows from the logged scores and uniform; bit for bit, or they differ.
    unscored: why the scores could not be made again, empty where they were. difference: largest
    |recomputed − logged| score, minor units; relative: the same in parts of the larger margin, with the
    action or without it, that the score is the difference of, at least 1.
    value, cost: of the logged choice, as recomputed; minor units.
    """

    decision: Decision
    action_id: str
    propensity: float
    unscored: str = ""
    difference: float = 0.0
    relative: float = 0.0
    value: float = 0.0
    cost: float = 0.0

    @property
    def same_choice(self) -> bool:
        return self.action_id == self.decision.action_id

    @property
    def same_propensity(self) -> bool:
        return self.propensity == self.decision.propensity

    @property
    def differs(self) -> tuple[str, ...]:
        """What is not as it was logged: choice, propensity, scores."""
        found = {
            "choice": not self.same_choice,
            "propensity": not self.same_propensity,
            "scores": not self.relative <= TOLERANCE,
        }
        return tuple(name for name, wrong in found.items() if wrong)


class Replayer:
    """Replays decisions of one shop.

    candidates: the actions of a set by its hash; models: the effect model of a version; frames: item values
    by their hash. What they raise for something that is gone is the caller's to tell. catalogue, categories:
    those of the snapshot that the model was served with.
    """

    def __init__(
        self,
        candidates: Callable[[str], Sequence[Action]],
        models: Callable[[str], EffectScorer],
        frames: Callable[[str], Mapping[str, Floats]],
        catalogue: Catalogue,
        categories: Sequence[str],
    ) -> None:
        self._candidates, self._models, self._frames = candidates, models, frames
        self._catalogue, self._categories = catalogue, tuple(categories)
        self._grids: dict[tuple[str, str, str], ActionGrid] = {}

    def replay(self, decision: Decision) -> Replayed:
        """Choice, propensity and scores of `decision`, made again."""
        column, propensity = choice_of(decision)
        action_id = decision.candidates[column]
        reason = _unscored(decision)
        if reason:
            return Replayed(decision, action_id, propensity, reason)
        value, cost, size = self._score(decision)
        mask, logged = decision.mask(), decision.admissible_scores().astype(np.float64)
        again = scores(value[None], cost[None], decision.shadow_price)[0][mask].astype(np.float64)
        apart = np.abs(again - logged)
        return Replayed(
            decision,
            action_id,
            propensity,
            difference=float(apart.max()),
            relative=float((apart / np.maximum(np.abs(logged), size[mask])).max()),
            value=float(value[decision.chosen]),
            cost=float(cost[decision.chosen]),
        )

    def _score(self, decision: Decision) -> tuple[Scores, Scores, Scores]:
        """`[A]` value and cost of every candidate, 0 for control, and the size of the margins behind them."""
        width = len(decision.candidates)
        value, cost, size = (
            np.zeros(width, np.float32),
            np.zeros(width, np.float32),
            np.ones(width, np.float32),
        )
        if width > 1:
            found = self._grid(decision).score(self._user(decision))
            value[1:] = found.value[0]
            np.maximum(found.cost[0], 0.0, out=cost[1:])
            with_it, without = (
                np.abs(margin[0]).mean(axis=-1)
                for margin in (found.prediction.margin, found.prediction.control_margin)
            )
            np.maximum(np.maximum(with_it, without), 1.0, out=size[1:])
        return value, cost, size

    def _user(self, decision: Decision) -> user_row.UserRows:
        rows = user_row.unpack([decision.user_row])
        found = next(iter(rows.user_category.values())).shape[1]
        if found != len(self._categories):
            raise ValueError(
                f"user_row: has {found} categories, the snapshot {len(self._categories)}; replay it with the "
                "snapshot that served it"
            )
        return rows

    def _grid(self, decision: Decision) -> ActionGrid:
        key = decision.model_version, decision.candidate_set, decision.items
        grid = self._grids.get(key)
        if grid is None:
            while len(self._grids) >= _KEPT:
                del self._grids[next(iter(self._grids))]
            grid = self._grids[key] = ActionGrid(
                self._models(decision.model_version),
                self._catalogue,
                self._candidates(decision.candidate_set)[1:],
                self._frames(decision.items),
                self._categories,
            )
        return grid


def choice_of(decision: Decision) -> tuple[int, float]:
    """Column and propensity that follow from the logged scores, ε and uniform, by the rule that decided."""
    logged = decision.admissible_scores()[None]
    open_ = np.ones(logged.shape, dtype=np.bool_)
    place = int(replay(logged, open_, decision.epsilon, [decision.uniform])[0])
    # A value without cost is its own score.
    free: Any = np.zeros(logged.shape)
    probabilities = policy_probabilities(logged, free, open_, 0.0, decision.epsilon)
    return int(np.flatnonzero(decision.mask())[place]), float(probabilities[0, place])


def _unscored(decision: Decision) -> str:
    """Why the scores of `decision` cannot be made again, or nothing."""
    if not decision.user_row:
        return "no user row is logged: no model scored it, or it was logged before rows were"
    if not decision.items:
        return "the item values that it was scored with were not kept"
    return ""
