"""The judge that watches the tuning: boosted trees over words and the look of a headline.

The reward model is linear in the states of a sentence encoder; trees that learned from other tests make other
mistakes. A writer that finds the reward model's mistakes gains by the one and not by the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.copy.features import features_of
from training.copy.headlines import CopyTests
from training.copy.ridge import log_rate
from training.writer.settings import Floats

COMPONENTS = 100
TREES = {
    "n_estimators": 300,
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_child_samples": 20,
    "subsample": 0.7,
    "subsample_freq": 1,
    "colsample_bytree": 0.3,
    "reg_lambda": 5.0,
    "n_jobs": 1,
    "verbose": -1,
}


@dataclass(frozen=True)
class TreeJudge:
    """Scores headlines; called with `[n]` texts it gives `[n]` logarithms of the click rate."""

    words: Any
    components: Any
    trees: Any

    def __call__(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self.trees.predict(self._features(texts)), dtype=np.float64)

    def _features(self, texts: Sequence[str]) -> Floats:
        return np.hstack(
            [features_of(list(texts)), self.components.transform(self.words.transform(list(texts)))]
        )


def fit_trees(tests: CopyTests, tau2: float, seed: int) -> TreeJudge:
    """Learn how far a text's click rate is from that of its group. tau2: as in the reward model."""
    from lightgbm import LGBMRegressor
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [str(text) for text in tests.texts]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True).fit(texts)
    known = words.transform(texts)
    components = TruncatedSVD(min(COMPONENTS, known.shape[1] - 1), random_state=seed).fit(known)
    judge = TreeJudge(words, components, LGBMRegressor(**TREES, random_state=seed))
    deviation, weight = deviations(tests, tau2)
    judge.trees.fit(judge._features(texts), deviation, sample_weight=weight)
    return judge


def deviations(tests: CopyTests, tau2: float) -> tuple[Floats, Floats]:
    """`[n]` each: log click rate less the group's weighted mean; weights 1 / (τ² + sampling variance)."""
    rate, variance = log_rate(tests.clicks, tests.impressions)
    weight = 1.0 / (tau2 + variance)
    total = np.bincount(tests.group, weight)
    mean = np.bincount(tests.group, weight * rate) / np.where(total > 0, total, 1.0)
    return rate - mean[tests.group], weight
