"""What the reward model is compared with: the length of a text, and a bag of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.copy.fit import pair_weight
from training.copy.headlines import CopyTests, folds_of, pairs_of

Floats = NDArray[np.float64]
FOLDS = 4
BOW_GRID = tuple(
    {"C": strength, "min_df": least, "ngrams": ngrams, "weighted": weighted}
    for strength in (0.03, 0.1, 0.3, 1.0, 3.0)
    for least in (2, 5)
    for ngrams in (1, 2)
    for weighted in (False, True)
)


def length_scores(fit: CopyTests, judged: CopyTests) -> tuple[Floats, dict[str, Any]]:
    """The longer text or the shorter one, whichever won more pairs of `fit`."""
    pairs, length = pairs_of(fit), _lengths(fit)
    longer = np.sign(length[pairs.first] - length[pairs.second]) * np.where(pairs.won, 1, -1)
    sign = 1.0 if longer.sum() >= 0 else -1.0
    return sign * _lengths(judged), {"better": "longer" if sign > 0 else "shorter"}


def _lengths(tests: CopyTests) -> Floats:
    return np.array([float(len(text)) for text in tests.texts])


def bow_scores(
    fit: CopyTests, judged: CopyTests, grid: Sequence[dict[str, Any]], seed: int
) -> tuple[Floats, dict[str, Any]]:
    """Logistic regression on the difference of two texts' tf-idf, its settings chosen on held-out stories.

    The log loss over four folds of `fit` chooses; the same stories are held out as for the reward model.
    """
    fold = folds_of(fit, FOLDS, seed)
    losses = [_held_out_loss(fit, fold, settings) for settings in grid]
    chosen = grid[int(np.argmin(losses))]
    return _bow(fit, judged, chosen), {**chosen, "held_out_log_loss": float(min(losses))}


def _held_out_loss(tests: CopyTests, fold: NDArray[np.int64], settings: dict[str, Any]) -> float:
    total, count = 0.0, 0.0
    for number in range(FOLDS):
        known, held = tests.take(fold != number), tests.take(fold == number)
        scores, pairs = _bow(known, held, settings), pairs_of(held)
        margin = (scores[pairs.first] - scores[pairs.second]) * np.where(pairs.won, 1, -1)
        weight = pair_weight(held, pairs)
        total, count = total + float(weight @ np.logaddexp(0, -margin)), count + float(weight.sum())
    return total / count


def _bow(fit: CopyTests, judged: CopyTests, settings: dict[str, Any]) -> Floats:
    """Scores `[n]` of the texts of `judged`: a difference of two is the logit that the first wins.

    weighted: a pair weighs as much as it is clear, |z|; else each text weighs alike.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, settings["ngrams"]), min_df=settings["min_df"])
    found, pairs = vectorizer.fit_transform(fit.texts), pairs_of(fit)
    weight = pair_weight(fit, pairs) * (np.abs(pairs.z) if settings["weighted"] else 1.0)
    model = LogisticRegression(C=settings["C"], fit_intercept=False, max_iter=1_000)
    model.fit(found[pairs.first] - found[pairs.second], pairs.won, sample_weight=weight / weight.mean())
    return np.asarray(vectorizer.transform(judged.texts) @ model.coef_[0])
