"""Explanations add up, name what a person knows, and find what was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.artifacts.explain import explain

NAMES = ("recency", "spend", "channel", "noise")
CHANNEL = {"email": 0.0, "app": 0.15, None: -0.05}


def background(n: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "recency": random.normal(10, 2, n),
        "spend": np.where(random.random(n) < 0.1, np.nan, random.normal(50, 5, n)),
        "channel": random.choice(np.array(["email", "app", None], dtype=object), n),
        "noise": random.normal(size=n),
    }


def linear(columns: Any) -> np.ndarray:
    channel = np.array([CHANNEL[value] for value in columns["channel"]])
    return np.asarray(0.3 - 0.02 * columns["recency"] + 0.004 * np.nan_to_num(columns["spend"]) + channel)


def crooked(columns: Any) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-linear(columns) * columns["noise"])))


def row(**values: Any) -> dict[str, np.ndarray]:
    return {name: np.array([value], dtype=object if isinstance(value, str) or value is None else float)
            for name, value in values.items()}  # fmt: skip


@given(
    recency=st.floats(-50, 50),
    spend=st.floats(-50, 50) | st.just(float("nan")),
    channel=st.sampled_from(["email", "app", None]),
    noise=st.floats(-3, 3),
)
@settings(deadline=None, max_examples=10)
def test_shap_values_sum_to_prediction_minus_baseline(
    recency: float, spend: float, channel: str | None, noise: float
) -> None:
    one = explain(
        crooked, row(recency=recency, spend=spend, channel=channel, noise=noise), background(), NAMES
    )
    total = sum(part.effect for part in one.contributions)
    assert one.prediction - one.baseline == pytest.approx(total, abs=1e-5)
    assert abs(one.additivity_error) < 1e-5
    assert one.baseline == pytest.approx(float(crooked(background()).mean()))


def test_on_a_linear_truth_both_are_the_truth() -> None:
    asked = row(recency=16.0, spend=65.0, channel="app", noise=1.0)
    shap = explain(linear, asked, background(), NAMES)
    lime = explain(linear, asked, background(), NAMES, "lime")
    rows = background()
    truth = {
        "recency": -0.02 * (16 - rows["recency"].mean()),
        "spend": 0.004 * (65 - np.nan_to_num(rows["spend"]).mean()),
        "channel": 0.15 - np.mean([CHANNEL[value] for value in rows["channel"]]),
        "noise": 0.0,
    }
    for one, within in ((shap, 1e-5), (lime, 0.02)):
        for part in one.contributions:
            assert part.effect == pytest.approx(truth[part.feature], abs=within), one.method
    signs = [{p.feature: np.sign(p.effect) for p in one.contributions[:3]} for one in (shap, lime)]
    assert signs[0] == signs[1] == {"channel": 1.0, "recency": -1.0, "spend": 1.0}
    assert abs(lime.additivity_error) < 0.02


def test_values_are_what_came_and_the_seed_decides() -> None:
    asked = row(recency=16.0, spend=float("nan"), channel=None, noise=1.0)
    one = explain(crooked, asked, background(), NAMES, "lime", seed=1)
    values = {part.feature: part.value for part in one.contributions}
    assert values == {"recency": 16.0, "spend": None, "channel": None, "noise": 1.0}
    assert explain(crooked, asked, background(), NAMES, "lime", seed=1) == one
    assert explain(crooked, asked, background(), NAMES, "lime", seed=2) != one


def test_the_cost_is_bounded_whatever_the_background() -> None:
    asked: list[int] = []

    def counted(columns: Any) -> np.ndarray:
        asked.append(len(columns["noise"]))
        return linear(columns)

    given = row(recency=16.0, spend=65.0, channel="app", noise=1.0)
    explain(counted, given, background(5_000), NAMES)
    assert sum(asked) <= 16 * 4 * 32 + 2 * 32 + 1
    asked.clear()
    explain(counted, given, background(5_000), NAMES, "lime")
    assert sum(asked) <= (1_500 + 2) * 8 + 1


def test_nothing_to_explain_with_is_said() -> None:
    with pytest.raises(ValueError, match="at least one feature and one row"):
        explain(linear, row(recency=1.0), {"recency": np.empty(0)}, ("recency",))
