"""Intervals of group means against known truth: how often they hold, by segment, and when it is said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.artifacts.effect import EffectInfo
from qiance.artifacts.response import ResponseInfo, outcome_interval
from qiance.artifacts.width import WidthScale, enough_groups
from qiance.evaluate.calibration import Calibrator
from training.effect.width import MIN_GROUP, Width, coverage, fit_width, fit_widths, make_groups

HEADS = 8


@dataclass(frozen=True)
class World:
    """A model whose heads lie around the truth by `spread`, and whose mean is twice as far off.

    It is wrong alike for all rows, along a feature, and by segment; in segment 0 `bad` times as wrong.
    """

    error: np.ndarray
    heads: np.ndarray

    @classmethod
    def of(cls, seed: int, spread: float = 0.015, bad: float = 1.0) -> World:
        random = np.random.default_rng(seed)
        error = 2 * spread * random.normal(size=6)
        error[2] *= bad
        return cls(error, spread * random.normal(size=(6, HEADS)))

    def rows(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws `[n, H]`, outcomes `[n]`, segments `[n]`."""
        random = np.random.default_rng(seed)
        x, segment = random.normal(size=n), random.integers(0, 4, n)
        features = np.stack([np.ones(n), x / 2, *(segment == k for k in range(4))], axis=1)
        p = 1 / (1 + np.exp(1.2 - 0.8 * x - 0.3 * (segment - 1.5)))
        draws = p[:, None] + features @ self.heads + (features @ self.error)[:, None]
        return draws.astype(np.float32), (random.random(n) < p).astype(float), segment.astype(str)

    def fit(self, n: int, seed: int) -> Width:
        draws, outcomes, segments = self.rows(n, seed)
        return fit_widths({"y": draws}, {"y": outcomes}, [segments], segments, seed)


def held(groups: int, worlds: int, conformal_only: bool = False) -> tuple[float, float]:
    """Share of further groups that are held, drawn at random and by prediction; mean over worlds."""
    found = []
    for seed in range(worlds):
        world = World.of(seed)
        draws, outcomes, segments = world.rows(groups * MIN_GROUP, 1_000 + seed)
        scale = fit_widths({"y": draws}, {"y": outcomes}, [segments], None, seed).scale
        if conformal_only:
            inside = make_groups({"y": draws.mean(axis=1)}, [segments], seed)
            scale = max(1.0, _needed(draws, outcomes, inside))
        draws, outcomes, _ = world.rows(20 * MIN_GROUP, 2_000 + seed)
        parts = make_groups({"y": draws.mean(axis=1)}, [], seed)
        found.append([coverage(draws, outcomes, part, scale) for part in (parts[:20], parts[-20:])])
    at_random, sorted_ = np.mean(found, axis=0)
    return float(at_random), float(sorted_)


def _needed(draws: np.ndarray, outcomes: np.ndarray, groups: list[np.ndarray]) -> float:
    """The least scale that holds all groups, by trying."""
    tried = np.geomspace(1, 30, 60)
    return next((s for s in tried if coverage(draws, outcomes, groups, s) == 1), 30.0)


def test_further_groups_are_held_as_often_as_it_says() -> None:
    at_random, by_prediction = held(12, 60)
    assert 0.89 <= at_random <= 0.97
    assert 0.85 <= by_prediction <= 0.97


def test_of_too_few_groups_the_largest_error_that_is_left_counts() -> None:
    """The largest scale that one group asks for holds two thirds to four fifths of further ones."""
    assert held(1, 80, conformal_only=True)[0] < 0.86
    assert 0.9 <= held(1, 80)[0] <= 0.985
    assert 0.9 <= held(4, 60)[0] <= 0.985


def test_a_segment_that_is_predicted_worse_has_a_width_of_its_own() -> None:
    marginal, own = [], []
    for seed in range(40):
        world = World.of(seed, bad=4.0)
        width = world.fit(20_000, 1_000 + seed)
        assert set(width.segments) == set("0123"), "about ten groups each"
        draws, outcomes, segments = world.rows(20_000, 2_000 + seed)
        groups = [np.array(part) for part in np.array_split(np.flatnonzero(segments == "0"), 10)]
        marginal.append(coverage(draws, outcomes, groups, width.scale))
        scales = np.array([width.served.of_group(segments[group]) for group in groups])
        own.append(coverage(draws, outcomes, groups, scales))
    assert np.mean(marginal) < 0.6
    assert 0.86 <= np.mean(own) <= 0.96


def test_a_segment_needs_nine_groups_of_its_own() -> None:
    draws, outcomes, _ = World.of(0).rows(10_000, 1)
    segments = np.where(np.arange(10_000) < 9 * MIN_GROUP, "large", "other")
    segments[-9 * MIN_GROUP + 1 :] = "small"
    found = fit_widths({"y": draws}, {"y": outcomes}, [], segments, 0)
    assert set(found.segments) == {"large"}
    large = segments == "large"
    alone = fit_widths({"y": draws[large]}, {"y": outcomes[large]}, [], None, 0)
    assert found.segments["large"] == alone.scale
    assert found.scale == fit_widths({"y": draws}, {"y": outcomes}, [], None, 0).scale, "as without segments"


def test_one_group_is_no_ninety_per_cent() -> None:
    draws, outcomes, _ = World.of(1).rows(500, 1)
    one = fit_width({"y": draws}, {"y": outcomes}, [np.arange(500)])
    assert one.disjoint == 1
    assert one.served.doubt is not None
    assert "rests on one group; nine of 500 rows" in one.served.doubt
    # No smaller scale reaches the mean error and what 500 outcomes leave open of it.
    residual = outcomes - draws.mean(axis=1)
    luck = 1.645 * residual.std() / np.sqrt(500)
    spread = 1.895 * draws.mean(axis=0, dtype=float).std(ddof=1)
    assert one.scale == pytest.approx(max(1.0, (abs(residual.mean()) + luck) / spread), rel=1e-3)
    two = fit_width({"y": draws, "x": draws}, {"y": outcomes, "x": 1 - outcomes}, [np.arange(500)])
    assert two.scale == max(two.scales.values()) > two.scales["y"] == one.scale
    same = np.repeat(draws[:, :1], HEADS, axis=1)
    assert fit_width({"y": same}, {"y": np.zeros(500)}, [np.arange(500)]).scale < np.inf
    enough = fit_widths({"y": np.tile(draws, (9, 1))}, {"y": np.tile(outcomes, 9)}, [], None, 0)
    assert (enough.disjoint, enough.served.doubt) == (9, None)


@given(st.integers(0, 500), st.floats(0.5, 0.99))
def test_enough_groups_is_the_conformal_rank(groups: int, confidence: float) -> None:
    """The r-th of G needs is exceeded by a further one with probability 1 − r / (G + 1)."""
    reached = groups / (groups + 1) if groups else 0.0
    if abs(reached - confidence) > 1e-9:
        assert enough_groups(groups, confidence) == (reached > confidence)


def test_nine_is_the_least_at_ninety_per_cent() -> None:
    assert [groups for groups in range(30) if enough_groups(groups)] == list(range(9, 30))
    assert "rests on 8 groups" in (WidthScale(1.0, groups=8).doubt or "")
    assert WidthScale(1.0, groups=9).doubt is None
    assert WidthScale(1.0).doubt is None, "of models from before nobody counted"


def test_rows_and_groups_get_the_width_of_their_segment() -> None:
    width = WidthScale(2.0, {"a": 3.0, "b": 1.5})
    names = np.array(["a", "c", "b", "a"])
    np.testing.assert_array_equal(width.of_rows(names, 4), [3.0, 2.0, 1.5, 3.0])
    np.testing.assert_array_equal(width.of_rows(None, 2), [2.0, 2.0])
    assert width.of_group(names[[0, 3]]) == 3.0
    assert width.of_group(names) == width.of_group(names[:0]) == width.of_group(None) == 2.0
    assert width.of_group(names[[1]]) == 2.0


def test_what_was_written_before_is_read_and_what_is_written_is_read_back() -> None:
    effect = EffectInfo(("click",), 2, (8,), False, 1.5, {"click": 1.5}, None, None, {"email": 2.0}, 12)
    response = ResponseInfo(
        "click", 0.5, 2, 2, Calibrator(1.0, 1.0, 0.0), "arm", 1.5, 1.0, 0.1, {}, {"a": 2.0}, 4
    )
    for info in (effect, response):
        data = info.to_dict()
        assert type(info).from_dict(data) == info
        del data["segment_scales"], data["width_groups"]
        before = type(info).from_dict(data)
        assert before.width == WidthScale(1.5)
        assert before.width.doubt is None
    assert "; nine of 500 rows" in (response.width.doubt or "")


def test_the_share_that_answers_is_held_with_its_luck() -> None:
    """500 rows that are known exactly: only luck is left, and the design effect doubles its variance."""
    random = np.random.default_rng(0)
    p = random.beta(2, 5, 500)
    answers = random.random((4_000, 500)) < p
    seen = answers.mean(axis=1)
    for design, expected in ((1.0, 0.9), (2.0, 0.98)):
        found = outcome_interval(np.repeat(p[:, None], HEADS, axis=1), 1.0, design)
        assert ((found.low <= seen) & (seen <= found.high)).mean() == pytest.approx(expected, abs=0.015)
