"""scikit-uplift on LightGBM: solo model, two models, class transformation; one treatment at a time."""

from __future__ import annotations

from typing import Any

import pandas as pd
from lightgbm import LGBMClassifier
from sklift.models import ClassTransformation, SoloModel, TwoModels

from benchmarks.uplifting.peers.tasks import Task, answer, trees


def _effects(task: Task, model: Any) -> Any:
    test = pd.DataFrame(task.test_x).rename(columns=str)

    def one(x: Any, treated: Any, outcome: Any) -> Any:
        frame = pd.DataFrame(x).rename(columns=str)
        model.fit(frame, pd.Series(outcome), pd.Series(treated))
        return model.predict(test)

    return task.by_arm(one)


def solo_model(task: Task) -> Any:
    """One model with the treatment and its interactions among the features."""
    return _effects(task, SoloModel(trees(LGBMClassifier, task.seed, 150), method="treatment_interaction"))


def two_models(task: Task) -> Any:
    """The model of the treated reads what that of the others says."""
    outcome = [trees(LGBMClassifier, task.seed + k, 100) for k in range(2)]
    return _effects(task, TwoModels(outcome[0], outcome[1], method="ddr_control"))


def class_transformation(task: Task) -> Any:
    """Jaskowski and Jaroszewicz (2012); both groups are of equal size in the test."""
    return _effects(task, ClassTransformation(trees(LGBMClassifier, task.seed, 60, 0.03, 300)))


if __name__ == "__main__":
    answer({"solo_model": solo_model, "two_models": two_models, "class_transformation": class_transformation})
