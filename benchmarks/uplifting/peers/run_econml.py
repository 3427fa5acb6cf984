"""EconML: DR-learners with a linear and a boosted final stage, and a causal forest."""

from __future__ import annotations

from typing import Any

import numpy as np
from econml.dml import CausalForestDML
from econml.dr import DRLearner, LinearDRLearner
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.dummy import DummyClassifier

from benchmarks.uplifting.peers.tasks import Task, answer, trees

FOLDS = 3


def _nuisances(task: Task) -> dict[str, Any]:
    """Propensities are those of a test: the same for all rows."""
    return {
        "model_propensity": DummyClassifier(strategy="prior"),
        "model_regression": trees(LGBMClassifier, task.seed, 150),
        "discrete_outcome": True,
        "cv": FOLDS,
        "random_state": task.seed,
    }


def _effects(task: Task, learner: Any) -> Any:
    learner.fit(task.train_outcome.astype(int), task.train_arm, X=task.train_x, inference=None)
    found = np.asarray(learner.const_marginal_effect(task.test_x)).reshape(len(task.test_x), -1)
    return np.column_stack([np.zeros(len(found)), found])


def linear_dr(task: Task) -> Any:
    """Kennedy (2023), linear in the features."""
    return _effects(task, LinearDRLearner(**_nuisances(task)))


def dr_learner(task: Task) -> Any:
    """Kennedy (2023), small boosted trees."""
    final = trees(LGBMRegressor, task.seed, 100, 0.03, 300)
    return _effects(task, DRLearner(model_final=final, **_nuisances(task)))


def causal_forest(task: Task) -> Any:
    """Athey, Tibshirani and Wager (2019)."""
    forest = CausalForestDML(
        model_y=trees(LGBMClassifier, task.seed, 150),
        model_t=DummyClassifier(strategy="prior"),
        discrete_outcome=True,
        discrete_treatment=True,
        cv=FOLDS,
        n_estimators=100,
        min_samples_leaf=500,
        max_samples=0.45,
        n_jobs=1,
        inference=False,
        random_state=task.seed,
    )
    return _effects(task, forest)


if __name__ == "__main__":
    answer({"linear_dr": linear_dr, "dr_learner": dr_learner, "causal_forest": causal_forest})
