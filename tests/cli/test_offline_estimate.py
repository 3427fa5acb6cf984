"""Off-policy estimates on a log whose truth is known, and intervals where responses are rare."""

from __future__ import annotations

import numpy as np
import pytest
from offline_cases import SALES, SHARES, age_of, planted, responses_of, study_of, truth

from qiance.cli.offline.estimate import Evaluated, Log, evaluate, make_log, proposed_of
from qiance.cli.offline.policies import BEST, LOGGED, Choice, Policy, policies
from qiance.cli.offline.rare import Support
from qiance.cli.offline.study import Study


def evaluated(study: Study, noise: float = 0.02) -> tuple[Log, dict[str, Evaluated]]:
    """All policies, made from the truth with some noise."""
    value = truth(age_of(study)) + np.random.default_rng(5).normal(0, noise, (len(study), 3))
    log = make_log(study, {"click": value}, 0.7)
    choice = Choice(value, study.arms, True, (study.first, ~study.first), log.logging, 0.1)
    # The study sorts arms with control first; the planted truth is in that order already.
    assert study.arms == ("none", "shoes", "hats")
    return log, {p.name: evaluate(log, p, "click", True) for p in policies(choice)}


def ordered_study(**options: object) -> Study:
    return study_of(planted(**options))  # type: ignore[arg-type]


def test_the_policy_found_beats_control_and_its_interval_holds_the_truth() -> None:
    _, found = evaluated(ordered_study(seed=1))
    best, control = found[BEST], found["everybody: none"]
    assert {e.estimator for e in best.estimates} == {"sndr", "snipw", "ipw"}
    for estimate in best.estimates:
        assert estimate.low < 0.3 < estimate.high
    for estimate in control.estimates:
        assert estimate.low < 0.1 < estimate.high
    assert best.estimates[0].low > control.estimates[0].high
    assert best.gate is not None
    assert best.gate.passed
    assert best.gain is not None
    assert best.gain.low < 0.3 - (0.2 * 0.1 + 0.8 * 0.2) < best.gain.high


def test_the_logging_policy_earns_the_mean_of_the_log() -> None:
    study = ordered_study()
    _, found = evaluated(study)
    assert found[LOGGED].estimates[1].value == pytest.approx(study.outcome("click").mean(), abs=0.01)
    assert found[LOGGED].gain is not None
    assert found[LOGGED].gain.value == pytest.approx(0.0, abs=1e-12)
    assert found[LOGGED].gate is not None
    assert not found[LOGGED].gate.passed


def test_choosing_whom_to_contact_beats_contacting_as_many_at_random() -> None:
    _, found = evaluated(ordered_study())
    targeted = found["contact 30% by predicted uplift"]
    assert targeted.contacted == pytest.approx(0.3, abs=0.001)
    assert targeted.targeting is not None
    # 30 % at random with one arm gain 0.3 · 0.1, chosen ones 0.3 · 0.2.
    assert 0 < targeted.targeting.low < 0.03 < targeted.targeting.high


def test_margin_is_sales_less_goods_and_contacts() -> None:
    study = ordered_study(labels=("click", "conversion", "sales"))
    sales = truth(age_of(study)) * 0.5 * SALES
    means = {"click": truth(age_of(study)), "conversion": sales / SALES, "sales": sales}
    log = make_log(study, means, 0.7)
    bought = np.flatnonzero(study.outcome("sales") > 0)[0]
    cost = 0 if study.action[bought] == 0 else 10
    assert log.rewards["margin"][bought] == pytest.approx(0.3 * SALES - cost)
    everybody = np.zeros((len(study), 3))
    everybody[:, 1] = 1.0
    others = evaluate(log, Policy("shoes", everybody), "click", True).others
    assert set(others) == {"conversion", "sales", "margin"}
    # Shoes: 0.2 click, half of them buy for 40.00, 30 % of it stays, 10 cents are paid.
    assert others["margin"].low < 0.3 * 0.2 * 0.5 * SALES - 10 < others["margin"].high


def test_rows_of_one_unit_widen_the_interval() -> None:
    table = planted(3_000)
    twice = np.repeat(np.arange(len(table)), 4)
    units = np.array([f"u{i}" for i in range(len(table))])[twice]
    columns = {name: table.table[name].combine_chunks().take(twice) for name in ("age", "city", "click")}
    shown = table.table["arm"].combine_chunks().take(twice).to_numpy(zero_copy_only=False).astype(str)
    given = table.table["propensity"].to_numpy()[twice]
    clustered = study_of(responses_of(shown, given, columns, ("click",), control="none", units=units))
    assert clustered.cluster is not None
    alone = study_of(responses_of(shown, given, columns, ("click",), control="none"))
    assert alone.cluster is None
    widths = []
    for study in (clustered, alone):
        estimate = evaluated(study)[1][BEST].estimates[1]
        widths.append(estimate.high - estimate.low)
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)


def test_a_log_that_was_not_randomised_is_compared_without_a_model() -> None:
    rng = np.random.default_rng(3)
    n = 4_000
    table = planted(n)
    age = table.table["age"].to_numpy()
    chance = np.where(age[:, None] < 40, [[0.2, 0.6, 0.2]], [[0.2, 0.2, 0.6]])
    action = (rng.random(n)[:, None] > np.cumsum(chance, axis=1)).sum(axis=1)
    clicked = rng.random(n) < truth(age)[np.arange(n), action]
    columns = {"age": age, "click": clicked.astype(np.int64)}
    study = study_of(
        responses_of(
            np.array(["none", "shoes", "hats"])[action],
            chance[np.arange(n), action],
            columns,  # type: ignore[arg-type]
            ("click",),
            control="none",
            randomised=False,
        )
    )
    log, found = evaluated(study)
    np.testing.assert_allclose(log.logging.sum(axis=1), 1.0)
    np.testing.assert_allclose(log.logging[np.arange(n), study.action], study.propensity)
    gain = found[BEST].gain
    assert gain is not None
    assert gain.estimator == "snipw"
    assert gain.low < 0.3 - (0.2 * 0.1 + 0.6 * 0.3 + 0.2 * 0.1) < gain.high
    assert found[LOGGED].gain is not None
    assert found[LOGGED].gain.value == pytest.approx(0.0, abs=1e-12)


def test_a_policy_that_the_log_never_followed_is_reported_as_a_problem() -> None:
    study = ordered_study()
    log, _ = evaluated(study)
    probs = np.zeros((len(study), 3))
    probs[np.arange(len(study)), (study.action + 1) % 3] = 1.0
    found = evaluate(log, Policy("the opposite", probs), "click", True)
    assert not found.estimates
    assert "no overlap" in found.problem


def test_no_click_in_few_decisions_is_not_a_click_rate_of_zero() -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    action = rng.integers(0, 100, n)
    clicked = (rng.random(n) < 0.004) & (action != 7)
    arms = tuple(str(k) for k in range(100))
    study = study_of(
        responses_of(
            np.array(arms)[action],
            np.full(n, 0.01),
            {"age": rng.normal(size=n), "click": clicked.astype(np.int64)},  # type: ignore[dict-item]
            ("click",),
            arms=arms,
        )
    )
    log = make_log(study, {"click": np.full((n, 100), 0.004)}, 0.7)
    probs = np.zeros((n, 100))
    probs[:, 7] = 1.0
    found = evaluate(log, Policy("arm 7", probs), "click", False)
    for estimate in found.estimates:
        assert estimate.high > 0.01
        assert any("next to no responses" in text for text in estimate.diagnostics.warnings)
    assert found.gain is not None
    assert found.gain.low < 0 < found.gain.high
    logged = evaluate(log, Policy(LOGGED, np.broadcast_to(study.shares, (n, 100))), "click", False)
    assert not logged.estimates[0].diagnostics.warnings


def test_money_without_sales_has_no_interval() -> None:
    study = ordered_study(labels=("click", "conversion", "sales"))
    log = make_log(study, {label: np.ones((len(study), 3)) for label in study.labels}, 0.7)
    log.rewards["sales"][:] = 0.0
    found = log.value("sales", np.broadcast_to(study.shares, (len(study), 3)))
    assert np.isinf([found.low, found.high]).all()


@pytest.mark.parametrize(("rate", "size"), [(0.004, 150), (0.02, 150), (0.004, 1_000)])
def test_the_interval_of_a_rare_rate_covers(rate: float, size: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for clicks in rng.binomial(size, rate, 2_000):
        low, high = Support(size, clicks / size).interval(0.95)
        covered += low <= rate <= high
    # Wilson's interval of a small count covers 92 to 98 %.
    assert covered / 2_000 > 0.91


def test_the_boldest_policy_that_the_log_can_judge_is_proposed() -> None:
    study = ordered_study()
    log, found = evaluated(study)
    few = evaluate(log, Policy("few", np.eye(3)[np.zeros(len(study), dtype=int)]), "click", True)
    judged = [few, found[BEST]]
    # Control was shown to a fifth of 6,000: 1,200 rows hold ten responses at 1 %, not at 0.5 %.
    assert proposed_of(judged, ("few", BEST), 0.01).name == "few"
    assert proposed_of(judged, ("few", BEST), 0.005).name == BEST
    assert proposed_of(judged, ("few",), 0.0001).name == "few"


def test_shares_of_the_log_are_the_propensities() -> None:
    np.testing.assert_allclose(ordered_study().shares, SHARES)
