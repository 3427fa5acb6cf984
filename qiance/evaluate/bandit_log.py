"""The logged decisions that off-policy evaluation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import (
    FloatArray,
    IndexArray,
    finite_matrix,
    finite_vector,
    index_vector,
    refuse_where,
)
from qiance.evaluate.inference import Units, units_of

# Rows of policy_probs may miss 1 by this much (float32 probabilities do).
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class BanditLog:
    """n logged decisions with a known propensity each.

    action: `[n]` column number of the action taken, from 0.
    reward: `[n]` what came of it, in the units of the answer (clicks, minor units of margin).
    propensity: `[n]` probability, in (0, 1], with which the logging policy took that action in that row.
    context: `[n, d]` features, or None; kept for the caller's reward model, not read here.
    position: `[n]` slot number from 0, or None; support is then judged per slot. Probabilities of the policy
        are given per row, so a row's slot is already in them.
    cluster: `[n]` ids of the independent units (users), or None when rows are independent. The same user's
        rows resemble each other, and intervals that ignore it are too narrow.

    A field that does not hold raises ValueError naming the array, the row and the value.
    """

    action: IndexArray
    reward: FloatArray
    propensity: FloatArray
    context: NDArray[Any] | None = None
    position: IndexArray | None = None
    cluster: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "action", index_vector("action", self.action))
        set_field(self, "reward", finite_vector("reward", self.reward, len(self)))
        propensity = finite_vector("propensity", self.propensity, len(self))
        must = "must be in (0, 1]: the probability with which the logged action was chosen"
        refuse_where("propensity", propensity, (propensity <= 0) | (propensity > 1), must)
        set_field(self, "propensity", propensity)
        if self.position is not None:
            set_field(self, "position", index_vector("position", self.position, len(self)))
        if self.context is not None and np.shape(self.context)[:1] != (len(self),):
            raise ValueError(f"context: has shape {np.shape(self.context)}; must have {len(self)} rows")
        if self.cluster is not None:
            set_field(self, "cluster", np.asarray(self.cluster))
            units_of("cluster", self.cluster, len(self))

    def __len__(self) -> int:
        return int(self.action.shape[0])

    def units(self) -> Units:
        """The independent units: clusters where given, else rows."""
        return units_of("cluster", self.cluster, len(self))


def checked_policy(name: str, probs: NDArray[Any], log: BanditLog) -> NDArray[Any]:
    """`probs` as `[n, n_actions]` whose rows are distributions; ValueError names the row that is not.

    Also refuses a log with an action beyond the last column.
    """
    matrix = finite_matrix(name, probs)
    if matrix.shape[0] != len(log):
        raise ValueError(f"{name}: has {matrix.shape[0]} rows; must have {len(log)}, one per row of the log")
    refuse_where(name, matrix, matrix < 0, "must be ≥ 0, a probability")
    sums = matrix.sum(axis=1, dtype=np.float64)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    refuse_where(f"{name} row sum", sums, off, f"must be 1 within {SUM_TOLERANCE:g}")
    columns = matrix.shape[1]
    refuse_where("action", log.action, log.action >= columns, f"out of range: {name} has {columns} columns")
    return matrix


def checked_model(model: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`model` as finite `[n, n_actions]`, the expected reward of every action in every row."""
    return finite_matrix("reward_model", model, shape)
