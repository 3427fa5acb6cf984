"""The response over offer depth: learned from a randomised log, rising with it, shrunken by its spread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.dose import DoseModel, DoseSettings, fit_dose

DEPTHS = [0.0, 0.1, 0.2]
SMALL = DoseSettings(members=2, heads=2, epochs=6, trees=60)


def truth(x: np.ndarray) -> np.ndarray:
    """Half of the users respond to depth, the other half are put off by being contacted."""
    responds = x[:, :1] > 0
    return np.where(responds, [0.1, 0.25, 0.4], [0.2, 0.1, 0.1])


def make_log(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4))
    chance = np.where(x[:, 1:2] > 0, [0.6, 0.2, 0.2], [0.2, 0.4, 0.4])
    level = (rng.random((rows, 1)) >= np.cumsum(chance, axis=1)).sum(axis=1)
    at = np.arange(rows)
    bought = (rng.random(rows) < truth(x)[at, level]).astype(int)
    return {"x": x, "level": level, "bought": bought, "depths": DEPTHS, "propensity": chance[at, level]}


@pytest.fixture(scope="module")
def model() -> DoseModel:
    return fit_dose(**make_log(6_000), settings=SMALL)


def test_it_finds_who_responds_and_who_is_put_off(model: DoseModel) -> None:
    x = make_log(4_000, seed=1)["x"]
    found = model.predict(x)
    lift, true = found - found[:, :1], truth(x) - truth(x)[:, :1]
    assert np.abs(lift - true).mean() < 0.06
    assert np.corrcoef(lift[:, 2], true[:, 2])[0, 1] > 0.9
    assert (lift[x[:, 0] < -0.3, 1] < 0).mean() > 0.9
    assert (np.diff(found[:, 1:], axis=1) > -0.02).mean() > 0.99


def test_shrinking_keeps_the_mean_and_lessens_the_differences(model: DoseModel) -> None:
    x = make_log(5_000, seed=2)["x"]
    shrunken, plain = (model.predict(x, kind) for kind in (True, False))
    lifts = [part[:, 2] - part[:, 0] for part in (shrunken, plain)]
    assert lifts[0].mean() == pytest.approx(lifts[1].mean(), abs=5e-3)
    assert lifts[0].std() < lifts[1].std()


def test_what_is_less_sure_is_shrunken_more() -> None:
    x = make_log(5_000, seed=2)["x"]
    kept = []
    for rows in (500, 6_000):
        model = fit_dose(**make_log(rows), settings=SMALL)
        shrunken, plain = (
            model.predict(x, kind)[:, 2] - model.predict(x, kind)[:, 0] for kind in (True, False)
        )
        kept.append(shrunken.std() / plain.std())
    assert kept[0] < kept[1] - 0.02
    assert kept[1] > 0.9


def test_any_seed_will_do() -> None:
    few = replace(SMALL, members=1, heads=1, epochs=1, trees=5)
    for seed in (0, 2**31, 10**12):
        assert np.isfinite(fit_dose(**make_log(400), seed=seed, settings=few).predict(np.zeros((1, 4)))).all()


def test_without_heads_nothing_is_shrunken() -> None:
    model = fit_dose(**make_log(1_000), settings=replace(SMALL, heads=0))
    x = make_log(50, seed=2)["x"]
    assert model.share == 0.5
    np.testing.assert_array_equal(model.predict(x), model.predict(x, shrunken=False))


def test_rows_are_scored_alone_as_together(model: DoseModel) -> None:
    x = make_log(5, seed=3)["x"]
    together = model.predict(x)
    alone = np.concatenate([model.predict(x[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": np.zeros(60)}, r"propensity: row 0 is 0.0; must be in \(0, 1\]"),
        ({"depths": [0.1, 0.2, 0.3]}, r"depths: \[0.1, 0.2, 0.3\] must rise from 0"),
        ({"level": np.full(60, 3)}, r"level: row 0 is 3; there are 3 depths"),
        ({"bought": np.full(60, 2)}, r"bought: row 0 is 2; must be 0 or 1"),
        ({"x": np.full((60, 4), np.nan)}, r"x: row 0, column 0 is nan"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_dose(**{**make_log(60), **change}, settings=SMALL)
