"""The uplift benchmark's own parts: planted truth, scores, what is compared, and no data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import uplift
from benchmarks.uplifting.cases import Case
from benchmarks.uplifting.planted import FAMILIES, plant
from benchmarks.uplifting.scores import of_real, pehe


def columns(n: int = 60_000, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "recency": random.integers(1, 13, n).astype(float),
        "history": random.lognormal(5, 1, n),
        **{name: random.integers(0, 2, n).astype(float) for name in ("mens", "womens", "newbie")},
        "channel": random.choice(["Web", "Phone", "Multichannel"], n).astype(object),
        "zip_code": random.choice(["Rural", "Urban", "Surburban"], n).astype(object),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targeted", [False, True])
def test_outcomes_and_arms_follow_the_planted_chances(family: str, targeted: bool) -> None:
    found = plant(columns(), family, targeted, seed=1)
    assert (found.effect[:, 0] == 0).all()
    assert (found.chance > 0).all()
    assert (found.chance < 1).all()
    for arm in range(3):
        here = found.arm == arm
        assert found.outcome[here].mean() == pytest.approx(found.chance[here, arm].mean(), abs=0.01)
        # Weighed by 1 / propensity, those who got an arm stand for all.
        assert (1 / found.propensity[here]).sum() == pytest.approx(len(here), rel=0.03)
    assert (found.effect[:, 1:] < 0).any()


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="'waves' is not known; choose one of odds, additive, steps"):
        plant(columns(10), "waves", targeted=False, seed=0)


def case() -> Case:
    found = plant(columns(20_000), "steps", targeted=False, seed=2)
    rows = np.arange(20_000)
    share = np.full(3, 1 / 3)
    return Case("steps", rows[::2], rows[1::2], found.arm, found.outcome, share, 2, found.effect)


def test_the_truth_scores_better_than_its_opposite_and_has_no_error() -> None:
    one = case()
    assert one.truth is not None
    truth = one.truth[one.test]
    assert pehe(one, truth) == 0
    assert pehe(one, truth + np.array([9.0, 0.1, 0.1])) == pytest.approx(0.1)
    good, bad = of_real(one, truth), of_real(one, -truth)
    assert all(good[name] > bad[name] for name in good)


def test_a_peer_is_compared_in_its_better_configuration() -> None:
    table = {
        "qiance": {"pehe": [0.01, 0.02]},
        "econml.a": {"pehe": [0.03, 0.03]},
        "econml.b": {"pehe": [0.02, 0.02]},
    }
    assert uplift.best_of("econml", table, "pehe", smallest=True) == "econml.b"
    assert uplift.best_of("econml", table, "pehe") == "econml.a"
    ratios = uplift.pehe_ratios({"steps": table})
    assert ratios["vs_econml_pehe"] == pytest.approx(1.5)
    assert ratios["vs_causalml_pehe"] is None


def test_without_the_data_every_figure_is_null_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uplift, "find_data", lambda: None)
    uplift.main(["--smoke"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line["figures"].values()) == {None}
    assert {"policy_value", "qini_a", "qini_b", "rate", "pehe", "vs_causalml_pehe", "vs_econml_pehe"} <= set(
        line["figures"]
    )
    assert ".bench/uplift" in line["protocol"]["missing"]["causalml"]
