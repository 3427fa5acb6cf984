"""Calibration corrects what is wrong, keeps order, and does not learn a small segment's luck."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.calibration import Calibrator, fit_calibrator
from qiance.evaluate.prediction import ece, ece_floor, log_loss


def _draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and their true probabilities."""
    random = np.random.default_rng(seed)
    p = random.beta(2, 8, n)
    return (random.random(n) < p).astype(float), p


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p / (1 - p)))


@pytest.mark.parametrize("wrong", ["too sure", "too low"])
def test_a_distorted_prediction_is_put_right(wrong: str) -> None:
    (y, p), (y_new, p_new) = _draw(20_000, 0), _draw(20_000, 1)

    def distort(true: np.ndarray) -> np.ndarray:
        score = 2.5 * _logit(true) if wrong == "too sure" else _logit(true) - 1.0
        return np.asarray(1 / (1 + np.exp(-score)))

    bad, calibrator = distort(p_new), fit_calibrator(y, distort(p))
    mended = calibrator.apply(bad)
    assert ece(y_new, bad) > 3 * ece_floor(bad)
    assert ece(y_new, mended) < 1.3 * ece_floor(mended), "what is left is the noise of the fit"
    np.testing.assert_allclose(mended, p_new, atol=0.05)


def test_a_right_prediction_stays_nearly_as_it_is() -> None:
    y, p = _draw(20_000, 2)
    moved = np.abs(fit_calibrator(y, p).apply(p) - p)
    assert (float(moved.mean()) < 0.005, float(moved.max()) < 0.06) == (True, True)


@given(
    a=st.floats(0, 5),
    b=st.floats(0, 5),
    c=st.floats(-3, 3),
    p=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
@settings(deadline=None)
def test_order_is_kept_and_the_result_is_a_probability(a: float, b: float, c: float, p: list[float]) -> None:
    ordered = np.sort(p)
    found = Calibrator(a, b, c).apply(ordered)
    assert (np.diff(found) >= -1e-12).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_segments_are_corrected_apart_and_small_ones_are_not_believed() -> None:
    random = np.random.default_rng(3)
    y, p = _draw(30_000, 3)
    names = np.where(random.random(30_000) < 0.5, "rural", "urban").astype(object)
    shifted = 1 / (1 + np.exp(-(_logit(p) + np.where(names == "rural", 0.8, -0.8))))
    y = (random.random(30_000) < shifted).astype(float)
    names[:12] = "tiny"
    y[:12] = 1.0
    calibrator = fit_calibrator(y, p, names)
    assert calibrator.offsets["rural"] - calibrator.offsets["urban"] == pytest.approx(1.6, abs=0.2)
    for name in ("rural", "urban"):
        here = names == name
        mended = calibrator.apply(p[here], names[here])
        assert ece(y[here], mended) < 1.5 * ece_floor(mended)
    # Twelve of twelve bought: believed as it stands that were an offset without bound.
    assert 0 < calibrator.offsets["tiny"] < 4
    assert log_loss(y, calibrator.apply(p, names)) < log_loss(y, fit_calibrator(y, p).apply(p))
    unknown = calibrator.apply(np.array([0.2]), np.array(["nowhere"]))
    np.testing.assert_allclose(unknown, Calibrator(calibrator.a, calibrator.b, calibrator.c).apply([0.2]))


def test_segments_that_do_not_differ_get_no_correction_of_their_own() -> None:
    y, p = _draw(40_000, 4)
    names = np.random.default_rng(4).choice(list("abcdefgh"), 40_000)
    assert max(abs(v) for v in fit_calibrator(y, p, names).offsets.values()) < 0.05


def test_draws_keep_their_shape_and_survive_json() -> None:
    y, p = _draw(2_000, 5)
    names = np.where(np.arange(2_000) % 2 == 0, "a", "b")
    calibrator = fit_calibrator(y, p, names)
    draws = np.stack([p, p], axis=1)
    found = Calibrator.from_dict(calibrator.to_dict()).apply(draws, names)
    assert found.shape == (2_000, 2)
    np.testing.assert_array_equal(found[:, 0], calibrator.apply(p, names))


def test_too_few_outcomes_correct_nothing_and_bad_shapes_are_named() -> None:
    assert fit_calibrator([0.0, 1.0] * 10, [0.1] * 20) == Calibrator()
    with pytest.raises(ValueError, match=r"p: has shape \(3,\) where y has \(2,\)"):
        fit_calibrator([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"segments: has shape \(1,\)"):
        fit_calibrator([0.0, 1.0] * 50, [0.5] * 100, ["a"])
