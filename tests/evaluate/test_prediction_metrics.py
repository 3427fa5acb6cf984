"""Prediction metrics agree with scikit-learn and keep their invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from qiance.evaluate.prediction import (
    auc,
    calibration_table,
    ece,
    ece_if_calibrated,
    log_loss,
    mse,
    normalised_entropy,
    rmse,
)

pairs = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0.001, 0.999)),
    min_size=2,
    max_size=80,
).filter(lambda rows: len({y for y, _ in rows}) == 2)


def _calibrated(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.beta(1, 20, n)
    return (random.random(n) < p).astype(int), p


@given(pairs)
@settings(deadline=None)
def test_agrees_with_scikit_learn(rows: list[tuple[int, float]]) -> None:
    y, p = (np.array(values) for values in zip(*rows, strict=True))
    assert auc(y, p) == pytest.approx(sk.roc_auc_score(y, p))
    assert rmse(y, p) == pytest.approx(sk.root_mean_squared_error(y, p))
    assert mse(y, p) == pytest.approx(sk.mean_squared_error(y, p))
    inside = np.clip(p, 1e-9, 1 - 1e-9)
    assert log_loss(y, inside) == pytest.approx(sk.log_loss(y, inside))


@given(pairs)
@settings(deadline=None)
def test_invariants(rows: list[tuple[int, float]]) -> None:
    y, p = (np.array(values) for values in zip(*rows, strict=True))
    assert auc(y, -p) == pytest.approx(1 - auc(y, p))
    assert auc(y, np.full(len(y), 0.3)) == 0.5
    assert np.isfinite(log_loss(y, p))
    assert normalised_entropy(y, np.full(len(y), y.mean())) == pytest.approx(1)
    table = calibration_table(y, p)
    assert sum(row.n for row in table) == len(y)
    assert sum(row.n * row.observed for row in table) == pytest.approx(y.sum())
    assert all(0 <= row.low <= row.observed <= row.high <= 1 for row in table)
    predicted = [row.predicted for row in table]
    assert predicted == sorted(predicted)
    assert 0 <= ece(y, p) <= 1


def test_a_calibrated_model_looks_so() -> None:
    y, p = _calibrated()
    assert ece(y, p) < 2 * ece_if_calibrated(p)
    assert ece(y, np.clip(3 * p, 0, 1)) > 10 * ece_if_calibrated(p)
    table = calibration_table(y, p)
    assert len(table) == 10
    assert max(row.n for row in table) - min(row.n for row in table) <= 2
    assert sum(row.low <= row.predicted <= row.high for row in table) >= 8


def test_equal_probabilities_share_a_bin() -> None:
    y, p = np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.2, 0.9])
    assert [(row.n, row.predicted) for row in calibration_table(y, p, bins=4)] == [
        (3, pytest.approx(0.2)),
        (1, 0.9),
    ]


def test_known_values() -> None:
    assert log_loss([1, 0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert normalised_entropy([1, 0], [0.5, 0.5]) == pytest.approx(1)
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == pytest.approx(0.75)
    assert rmse([0, 300], [40, 330]) == pytest.approx(np.sqrt(1250))
    assert ece([0, 0, 1, 1], [0.25] * 4, bins=1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("metric", "y", "p", "message"),
    [
        (log_loss, [0, 1], [0.5], "p: has 1 values where y has 2"),
        (log_loss, [], [], "y: is empty"),
        (log_loss, [0, 2], [0.5, 0.5], "y: label 2 at row 1 is neither 0 nor 1"),
        (log_loss, [0, 1], [0.5, 1.5], r"p: 1.5 at row 1 is outside \[0, 1\]"),
        (log_loss, [0, 1], [0.5, np.nan], "p: value nan at row 1 is not finite"),
        (rmse, [0, np.inf], [0.5, 1], "y: value inf at row 1 is not finite"),
        (auc, [1, 1], [0.5, 0.6], "y: all 2 labels are 1; AUC needs both classes"),
        (normalised_entropy, [0, 0], [0.5, 0.6], "normalised entropy needs both classes"),
        (ece, [[0, 1]], [[0.5, 0.6]], r"y: has shape \(1, 2\)"),
    ],
)
def test_bad_input_is_named(metric, y, p, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        metric(y, p)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins: 0 is not positive"):
        calibration_table([0, 1], [0.1, 0.9], bins=0)
