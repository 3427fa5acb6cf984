"""Scores of predictions on rows that no model has seen, one set per task."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.prediction import auc, ece, ece_if_calibrated, log_loss, mse, normalised_entropy, rmse

PROBABILITIES = ("click", "conversion")


def task_scores(task: str, labels: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, float]:
    """`{task_metric: value}`: log loss, NE, AUC and ECE of probabilities; MSE and RMSE of every task.

    Metrics that need both classes are left out where the rows hold one only.
    """
    found = {"mse": mse(labels, prediction), "rmse": rmse(labels, prediction)}
    if task in PROBABILITIES:
        clipped = np.clip(prediction, 0.0, 1.0)
        found["log_loss"] = log_loss(labels, clipped)
        found["ece"] = ece(labels, clipped)
        found["ece_if_calibrated"] = ece_if_calibrated(clipped)
        if 0 < labels.mean() < 1:
            found["ne"] = normalised_entropy(labels, clipped)
            found["auc"] = auc(labels, prediction)
    else:
        found["bias"] = float(prediction.mean() - labels.mean())
    return {f"{task}_{name}": value for name, value in found.items()}
