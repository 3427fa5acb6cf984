"""Replay of a logged decision: its choice from the logged scores, and the scores from what made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.decide.rescore import Rescored, Rescorer, unscored
from qiance.decide.rule import policy_probabilities, replay, scores
from qiance.domain import Decision

Scores = NDArray[np.float32]
# By the precision of the products that scored. A batch of another size or another processor sums in another
# order. A score is the difference of two margins in float32: it is as exact as those are, so that is what a
# difference is held against. More than this is another model, user or item. Sums that are rounded to bfloat16
# keep 8 bits, so they differ by steps of 2⁻⁸ where the order was another; a step or two per layer.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2.0**-5}
TOLERANCE = TOLERANCES["float32"]


@dataclass(frozen=True)
class Replayed:
    """A decision replayed.

    action_id, propensity: what follows from the logged scores and uniform; bit for bit, or they differ.
    unscored: why the scores could not be made again, empty where they were. difference: largest
    |recomputed − logged| score, minor units; relative: the same in parts of the larger margin, with the
    action or without it, that the score is the difference of, at least 1. tolerance: of `relative`.
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
    tolerance: float = TOLERANCE

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
            "scores": not self.relative <= self.tolerance,
        }
        return tuple(name for name, wrong in found.items() if wrong)


class Replayer:
    """Replays decisions, their scores by a rescorer; tolerance: see `TOLERANCES`."""

    def __init__(self, rescorer: Rescorer, tolerance: float = TOLERANCE) -> None:
        self._rescorer, self._tolerance = rescorer, tolerance

    def replay(self, decision: Decision) -> Replayed:
        """Choice, propensity and scores of `decision`, made again."""
        column, propensity = choice_of(decision)
        action_id = decision.candidates[column]
        reason = unscored(decision)
        if reason:
            return Replayed(decision, action_id, propensity, reason)
        found = self._rescorer.score([decision])
        mask, logged = decision.mask(), decision.admissible_scores().astype(np.float64)
        again = scores(found.value, found.cost, decision.shadow_price)[0][mask].astype(np.float64)
        apart = np.abs(again - logged)
        return Replayed(
            decision,
            action_id,
            propensity,
            difference=float(apart.max()),
            relative=float((apart / np.maximum(np.abs(logged), _size(found)[mask])).max()),
            value=float(found.value[0, decision.chosen]),
            cost=float(found.cost[0, decision.chosen]),
            tolerance=self._tolerance,
        )


def _size(found: Rescored) -> Scores:
    """`[A]` size of the margins behind each score, at least 1."""
    size = np.ones(found.value.shape[1], np.float32)
    if found.prediction is not None:
        with_it, without = (
            np.abs(margin[0]).mean(axis=-1)
            for margin in (found.prediction.margin, found.prediction.control_margin)
        )
        np.maximum(np.maximum(with_it, without), 1.0, out=size[1:])
    return size


def choice_of(decision: Decision) -> tuple[int, float]:
    """Column and propensity that follow from the logged scores, ε and uniform, by the rule that decided."""
    logged = decision.admissible_scores()[None]
    open_ = np.ones(logged.shape, dtype=np.bool_)
    place = int(replay(logged, open_, decision.epsilon, [decision.uniform])[0])
    # A value without cost is its own score.
    free: Any = np.zeros(logged.shape)
    probabilities = policy_probabilities(logged, free, open_, 0.0, decision.epsilon)
    return int(np.flatnonzero(decision.mask())[place]), float(probabilities[0, place])
