"""How often the better text of a pair is named, on tests that nothing was learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.inference import bootstrap_interval, units_of
from qiance.evaluate.prediction import ece, ece_floor, log_loss
from training.copy.calibration import Calibration
from training.copy.headlines import CopyTests, Floats, pairs_of
from training.copy.ridge import log_rate

CLEAR = 1.96  # |z| of pairs whose winner is beyond chance at 95 %
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Judged:
    """right: `[m]` whether the better text of each pair was named, half where the scores are equal. chance:
    `[m]` that the first is ahead in a test of this size, won: `[m]` whether it was. clear: `[m]` pairs that
    were decided beyond chance. test: `[m]` codes."""

    right: Floats
    chance: Floats
    won: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    test: NDArray[np.int64]

    def figures(self, seed: int) -> dict[str, float]:
        """Pair accuracy with a 95 % interval that resamples tests; log loss and calibration."""
        _, low, high = self.interval(self.right, seed)
        found = {"pair_accuracy": float(self.right.mean()), "pair_low": low, "pair_high": high}
        found |= {"pairs": float(len(self.right)), "tests": float(len(np.unique(self.test)))}
        if self.clear.any():
            found["clear_pair_accuracy"] = float(self.right[self.clear].mean())
            found["clear_pairs"] = float(self.clear.sum())
        return found | {
            "log_loss": log_loss(self.won, self.chance),
            "ece": ece(self.won, self.chance),
            "ece_floor": ece_floor(self.chance, seed=seed),
        }

    def interval(self, rows: Floats, seed: int) -> tuple[float, float, float]:
        """Standard error and 95 % interval of the mean of `rows` `[m]`, resampling tests."""
        return bootstrap_interval(rows, units_of("test", self.test, len(rows)), CONFIDENCE, seed)


def judge(tests: CopyTests, scores: Floats, calibration: Calibration) -> Judged:
    """scores: `[n]` of the texts of `tests`."""
    pairs = pairs_of(tests)
    _, variance = log_rate(tests.clicks, tests.impressions)
    difference = scores[pairs.first] - scores[pairs.second]
    right = np.where(difference == 0, 0.5, (difference > 0) == pairs.won)
    chance = calibration.beats(difference, variance[pairs.first] + variance[pairs.second])
    return Judged(right, chance, pairs.won, np.abs(pairs.z) > CLEAR, pairs.test)
