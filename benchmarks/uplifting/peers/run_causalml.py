"""CausalML: X-learner, DR-learner and uplift forest."""

from __future__ import annotations

from typing import Any

import numpy as np
from causalml.inference.meta import BaseDRLearner, BaseXClassifier
from causalml.inference.tree import UpliftRandomForestClassifier
from lightgbm import LGBMClassifier, LGBMRegressor

from benchmarks.uplifting.peers.tasks import Task, answer, trees


def _known(task: Task, rows: int) -> dict[str, Any]:
    """Propensity of an arm where only it and control are."""
    pairs = {str(arm): task.share[arm] / (task.share[0] + task.share[arm]) for arm in range(1, task.arms)}
    return {arm: np.full(rows, share) for arm, share in pairs.items()}


def _effects(task: Task, learner: Any, **more: Any) -> Any:
    groups = task.train_arm.astype(str)
    learner.fit(task.train_x, groups, task.train_outcome, p=_known(task, len(groups)), **more)
    found = learner.predict(task.test_x, p=_known(task, len(task.test_x)))
    return np.column_stack([np.zeros(len(found)), found])


def x_learner(task: Task) -> Any:
    """Künzel et al. (2019)."""
    outcome = trees(LGBMClassifier, task.seed, 60)
    effect = trees(LGBMRegressor, task.seed, 150, 0.03, 300)
    return _effects(task, BaseXClassifier(outcome, effect, control_name="0"))


def dr_learner(task: Task) -> Any:
    """Kennedy (2023), by three folds."""
    outcome = trees(LGBMRegressor, task.seed, 100)
    effect = trees(LGBMRegressor, task.seed, 100, 0.03, 300)
    learner = BaseDRLearner(
        control_outcome_learner=outcome,
        treatment_outcome_learner=outcome,
        treatment_effect_learner=effect,
        control_name="0",
    )
    return _effects(task, learner, seed=task.seed)


def uplift_forest(task: Task) -> Any:
    """Forest of all arms at once, split by the distance of outcomes (Rzepakowski and Jaroszewicz, 2012)."""
    forest = UpliftRandomForestClassifier(
        control_name="0",
        n_estimators=50,
        max_depth=4,
        min_samples_leaf=500,
        min_samples_treatment=100,
        n_reg=1_000,
        evaluationFunction="ED",
        n_jobs=1,
        random_state=task.seed,
    )
    forest.fit(task.train_x, task.train_arm.astype(str), task.train_outcome.astype(int))
    found = np.asarray(forest.predict(task.test_x))
    return np.column_stack([np.zeros(len(found)), found])


if __name__ == "__main__":
    answer({"x_learner": x_learner, "dr_learner": dr_learner, "uplift_forest": uplift_forest})
