"""What a policy would have brought, from episodes of a log that it has not learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from qiance.evaluate.ope_densities import density_pair
from qiance.evaluate.ope_fitted_q import fitted_q, fitted_q_numbers
from qiance.evaluate.ope_result import Estimate, GateResult, clears_gate
from qiance.evaluate.ope_trajectory import TrajectoryLog, trajectory_improvement
from rllib.explore import Exploring
from rllib.lockstep import Floats
from rllib.plan_log import PlanningLog
from rllib.quadratic import Quadratic

ESTIMATORS = ("dr", "pdis", "dm")
_DRAWS = 4  # dials of the policy per state, for the value model


@dataclass(frozen=True, slots=True)
class Judged:
    """Improvements over the logged policy by estimator, and the gate's word on the doubly robust one.

    Each has the logged policy's value as `baseline_value`; returns in the environment's unit.
    """

    improvements: Mapping[str, Estimate]
    gate: GateResult


def judge(log: PlanningLog, policy: Exploring, discount: float = 1.0, confidence: float = 0.9) -> Judged:
    """Estimate `policy`, which explores, on the episodes of `log`, none of which it may have learned from.

    Doubly robust with a value model by fitted Q evaluation, out of fold; beside it per-decision importance
    sampling, and the value model alone (`qiance.evaluate.ope_trajectory`). The gate (`clears_gate`) opens if
    the lower bound of the improvement is above 0, from enough effective episodes.
    """
    flat = log.observation.reshape(-1, log.observation.shape[-1])
    shape, inside = log.reward.shape, log.inside()
    wanted = policy.log_propensity(flat, log.dials.reshape(-1, *log.dials.shape[2:])).reshape(shape)
    pair = density_pair(np.log(log.propensity), np.where(inside, wanted, 0.0), log.length)
    trajectories = TrajectoryLog(log.reward, pair[0], log.length)
    models = _value_model(log, trajectories, policy, flat, discount)
    found = {
        name: trajectory_improvement(trajectories, pair[1], *models, name, discount, confidence)
        for name in ESTIMATORS
    }
    return Judged(found, clears_gate(found["dr"]))


def _value_model(
    log: PlanningLog, trajectories: TrajectoryLog, policy: Exploring, flat: Any, discount: float
) -> tuple[Floats, Floats]:
    """(q, v) `[n, T]`."""
    steps = log.reward.shape[1]
    features = policy.task.features(flat).reshape(len(log), steps, -1).astype(np.float64)
    if isinstance(policy.task.dials, gymnasium.spaces.Discrete):
        chances = policy.chances(flat).reshape(len(log), steps, -1)
        return fitted_q(trajectories, features, log.dials, chances, Quadratic, discount)
    rng = np.random.default_rng(0)

    def draws(step: int) -> Floats:
        found = [policy.draw(log.observation[:, step], rng) for _ in range(_DRAWS)]
        return np.clip(np.stack(found, axis=1), -1.0, 1.0).astype(np.float64)

    # Dials act within [−1, 1]: so the model sees them.
    return fitted_q_numbers(trajectories, features, np.clip(log.dials, -1.0, 1.0), draws, Quadratic, discount)
