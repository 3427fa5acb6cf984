"""The benchmark's own parts: its truth, its models, its summary, and the policy of the Open Bandit logs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.opeval import open_bandit
from benchmarks.opeval.grid import Outcome, Size, outcomes, unsupported
from benchmarks.opeval.models import fit
from benchmarks.opeval.problem import Problem, sample, target
from benchmarks.opeval.summary import figures_of, peer_of
from qiance.data.packages import package_folder

needs_obp = pytest.mark.skipif(package_folder("obp") is None, reason="the package obp is not installed")


@pytest.fixture(scope="module")
def few() -> list[Outcome]:
    return list(outcomes(Size(1500, (5,), 3, 0), 0, None))


def test_logs_follow_their_propensities_and_the_truth_is_the_value() -> None:
    problem = Problem.draw(6, 1)
    log = sample(problem, -3.0, 60_000, 2)
    assert np.mean(1 / log.propensity) == pytest.approx(6, rel=0.02)
    value = float((log.policy * problem.mean(log.context)).sum(axis=1).mean())
    assert problem.truth() == pytest.approx(value, abs=0.002)
    np.testing.assert_allclose(target(problem.mean(log.context)).sum(axis=1), 1.0)
    hidden = sample(problem, 0.0, 2000, 2, hidden=1 / 3)
    assert hidden.action.max() == 3


def test_the_right_model_is_right_and_the_wrong_one_is_not() -> None:
    problem = Problem.draw(6, 1)
    log = sample(problem, 0.0, 20_000, 3)
    mean = problem.mean(log.context)
    gap = {form: float(np.abs(fit(log, form, 0) - mean).mean()) for form in ("right", "wrong", "mrdr")}
    assert gap["right"] < 0.02 < 0.04 < min(gap["wrong"], gap["mrdr"])


def test_models_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    log = sample(Problem.draw(4, 1), 0.0, 900, 4)
    fold = np.random.default_rng([7, 3]).permutation(900) % 3
    train = fold != 0
    one_hot = np.eye(4)
    x = np.column_stack([log.context, one_hot[log.action]])
    model = LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=1000).fit(x[train], log.reward[train])
    found = fit(log, "wrong", 7)[~train]
    for action in range(4):
        given = np.column_stack([log.context[~train], np.tile(one_hot[action], (int((~train).sum()), 1))])
        np.testing.assert_allclose(found[:, action], model.predict_proba(given)[:, 1], atol=1e-4)


def test_figures_without_a_peer_have_every_key(few: list[Outcome]) -> None:
    found = figures_of(few)
    keys = ("vs_obp", "vs_obp_p95", "win_rate", "parity_max_abs")
    assert [found[key] for key in keys] == [None] * 4
    assert 0 < found["median_rel_error"] < found["p95_rel_error"]
    assert set(found["rules"]) == {"auto", "slope", "least_error", "greg"}
    assert len(found["cells"]) == 6


def test_ratios_are_to_the_best_fixed_estimator(few: list[Outcome]) -> None:
    """A peer with twice our error in one estimator and ten times in the other."""
    told = [
        Outcome(
            one.cell,
            one.truth,
            one.ours,
            one.rules,
            fixed={k: one.truth + m * (one.ours.value - one.truth) for k, m in (("good", 2), ("bad", 10))},
            interval=(one.truth - 1, one.truth + 1),
            parity=1e-12,
        )
        for one in few
    ]
    found = figures_of([*told, *few])  # those that the peer was not asked about do not count
    assert found["vs_obp"] == pytest.approx(2)
    assert found["vs_obp_p95"] == pytest.approx(2)
    assert found["best_fixed"] == "good"
    assert found["win_rate"] == 1.0
    assert peer_of([*told, *few])["dr_bootstrap_coverage95"] == 1.0


def test_missing_support_is_flagged_and_nothing_else() -> None:
    found = unsupported(Size(1500, (10,), 2, 0), 0)
    assert found["flagged"] == 1.0
    assert found["false_alarms"] == 0.0


@needs_obp
def test_open_bandit_policies_are_distributions_and_uniform_is_what_was_logged() -> None:
    data = open_bandit.read("men", 0)
    for probs in data.probs.values():
        np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    np.testing.assert_allclose(data.logs["random"].propensity, 1 / 34)
    # Thompson sampling shows most at the top what its own log shows most.
    top = np.bincount(data.logs["bts"].action, minlength=34) / 10_000
    assert np.corrcoef(top, data.probs["bts"].mean(axis=0))[0, 1] > 0.7
