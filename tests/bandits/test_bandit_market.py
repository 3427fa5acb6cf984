"""Bandits in the simulated shop: honest propensities, learning, the artifact, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from qiance.artifacts import ArtifactError, load_manifest
from qiance.artifacts.bandit import KIND, STATE, load_bandit, write_bandit
from qiance.bandits import Bandit, Rule
from qiance.bandits.contest import Agent, Contender, bandit_of, best_constant, compare
from qiance.bandits.decision_log import read_log, write_log
from qiance.bandits.play import Rows, Schedule, play
from qiance.bandits.shop import Shop, made_up_shop
from qiance.evaluate.ope import estimate
from training.bandit.fit import FitSettings, fit_network

SMALL = Schedule(days=16, per_day=250, window=4, delay=1.5)
LINEAR = (Agent.UNIFORM, Agent.EPSILON_GREEDY, Agent.LIN_TS, Agent.LIN_UCB)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return made_up_shop(1_500)


@pytest.fixture(scope="module")
def played(shop: Shop) -> tuple[Bandit, Rows]:
    player = bandit_of(Agent.LIN_TS, shop, SMALL.window, 0.1)
    return player, play(shop, player, SMALL, seed=3)


def quick_fit(*rows: np.ndarray) -> object:
    return fit_network(*rows, FitSettings(hidden=(8, 4), epochs=2))


@pytest.mark.parametrize("agent", [Agent.LIN_TS, Agent.LIN_UCB])
def test_importance_weights_find_the_value_of_a_known_policy(shop: Shop, agent: Agent) -> None:
    """Over 30 logs that the agent made while it learned, IPW is right on average, and so is its interval.

    The policy: three quarters of the probability on the best arm for everybody, the rest anywhere.
    """
    errors, held, schedule = [], 0, replace(SMALL, days=8, per_day=200)
    for seed in range(30):
        rows = play(shop, bandit_of(agent, shop, schedule.window, 0.3), schedule, seed)
        wanted = np.where(rows.admissible[:, 11], 11, 0)
        policy = 0.25 * rows.admissible / rows.admissible.sum(axis=1, keepdims=True)
        policy[np.arange(len(rows)), wanted] += 0.75
        truth = float((policy * rows.truth).sum(axis=1).mean())
        reward = rows.margin - shop.table.contact_cost[rows.action]
        weight = policy[np.arange(len(rows)), rows.action] / rows.propensity
        errors.append(float((weight * reward).mean()) - truth)
        held += abs(errors[-1]) < 1.96 * (weight * reward).std() / np.sqrt(len(rows))
    assert abs(np.mean(errors)) < 3 * np.std(errors, ddof=1) / np.sqrt(30), errors
    assert held >= 23


@pytest.mark.parametrize("agent", LINEAR)
def test_arms_are_chosen_as_often_as_their_propensities_say(shop: Shop, agent: Agent) -> None:
    """Chi-square over the arms of a whole play, in which every row has probabilities of its own."""
    rows = play(shop, bandit_of(agent, shop, SMALL.window, 0.1), SMALL, seed=8)
    counts, expected = np.bincount(rows.action, minlength=len(shop.arms)), rows.probabilities.sum(axis=0)
    covariance = np.diag(expected) - rows.probabilities.T @ rows.probabilities
    gap = (counts - expected)[1:]
    statistic = gap @ np.linalg.solve(covariance[1:, 1:], gap)
    assert stats.chi2.sf(statistic, len(gap)) > 1e-3
    assert rows.admissible[np.arange(len(rows)), rows.action].all()
    floor = 0.1 / rows.admissible.sum(axis=1)
    assert np.all(rows.probabilities[rows.admissible] >= np.repeat(floor, rows.admissible.sum(axis=1)))


def test_a_bandit_learns_and_nobody_reaches_the_best(shop: Shop) -> None:
    schedule = replace(SMALL, days=20, per_day=500)
    found = {agent: Contender(lambda agent=agent: bandit_of(agent, shop, 4, 0.02)) for agent in LINEAR}
    told: list[float] = []
    results = compare(shop, found, schedule, [0, 1], lambda share, text: told.append(share))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    for agent in (Agent.EPSILON_GREEDY, Agent.LIN_TS, Agent.LIN_UCB):
        assert np.all(results[agent].late > 1.5 * results[Agent.UNIFORM].late)
    for result in results.values():
        assert np.all(result.regret > 0)
    assert best_constant(shop, replace(SMALL, days=3)) in range(1, len(shop.arms))


def test_before_anything_is_known_everybody_may_get_anything(shop: Shop) -> None:
    for agent in Agent:
        player = bandit_of(agent, shop, 7, 0.0)
        mask = shop.admissible[:5]
        expected = mask / mask.sum(axis=1, keepdims=True)
        context = shop.context(np.arange(5), np.zeros(5))
        np.testing.assert_allclose(player.probabilities(context, mask), expected)


def test_the_same_seed_plays_the_same(shop: Shop, played: tuple[Bandit, Rows]) -> None:
    again = play(shop, bandit_of(Agent.LIN_TS, shop, SMALL.window, 0.1), SMALL, seed=3)
    np.testing.assert_array_equal(again.action, played[1].action)
    np.testing.assert_array_equal(again.probabilities, played[1].probabilities)


def test_a_constant_leaves_alone_who_does_not_admit_it(shop: Shop) -> None:
    rows = play(shop, 3, replace(SMALL, days=2), seed=0)
    np.testing.assert_array_equal(rows.action, np.where(rows.admissible[:, 3], 3, 0))
    np.testing.assert_array_equal(rows.propensity, 1.0)


@pytest.mark.parametrize("agent", [Agent.LIN_TS, Agent.NEURAL_LINEAR])
def test_a_saved_bandit_goes_on_where_it_was(shop: Shop, agent: Agent, tmp_path: Path) -> None:
    player = bandit_of(agent, shop, SMALL.window, 0.05)
    fit = quick_fit if agent is Agent.NEURAL_LINEAR else None
    rows = play(shop, player, replace(SMALL, days=10), 1, fit)  # type: ignore[arg-type]
    artifact = write_bandit(tmp_path, player, metrics={"value": 1.0}, data_fingerprint="abc")
    loaded = load_bandit(artifact.path, shop.features, shop.arms)
    assert loaded.settings == player.settings
    assert len(loaded.pending) == len(player.pending) > 0
    # Both learn from the same late outcomes, and close the same windows.
    for one in (player, loaded):
        one.outcomes(rows.ids[-100:], np.arange(100.0))
        one.close(50.0)
        if fit:
            one.refit(fit)  # type: ignore[arg-type]
    context, mask = rows.context, rows.admissible
    np.testing.assert_array_equal(loaded.probabilities(context, mask), player.probabilities(context, mask))
    chosen = [one.choose(context, mask, rng=np.random.default_rng(4)) for one in (player, loaded)]
    np.testing.assert_array_equal(chosen[0].choice, chosen[1].choice)
    assert write_bandit(tmp_path, loaded, metrics={}, data_fingerprint="abc").version != artifact.version
    again = load_bandit(artifact.path)
    assert write_bandit(tmp_path, again, metrics={}, data_fingerprint="abc").version == artifact.version


def other_kind(path: Path) -> None:
    record = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(record | {"kind": "pacing-policy"}))


def another_schema(path: Path) -> None:
    record = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(record | {"schema_hash": "0" * 64}))


def cut(path: Path) -> None:
    (path / STATE).write_bytes((path / STATE).read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_kind, f"is of kind 'pacing-policy'; pass a '{KIND}' of `qiance train bandit`"),
        (another_schema, "features and arms are not those of the manifest"),
        (cut, "was changed"),
    ],
)
def test_a_damaged_bandit_is_refused(
    played: tuple[Bandit, Rows], damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    artifact = write_bandit(tmp_path, played[0], metrics={}, data_fingerprint="abc")
    damage(artifact.path)
    with pytest.raises(ArtifactError, match=message):
        load_bandit(artifact.path)


def test_other_features_or_arms_are_named(shop: Shop, played: tuple[Bandit, Rows], tmp_path: Path) -> None:
    path = write_bandit(tmp_path, played[0], metrics={}, data_fingerprint="abc").path
    with pytest.raises(ArtifactError, match="feature 2 is 'log_avg_basket', and here 'age'"):
        load_bandit(path, features=(*shop.features[:2], "age", *shop.features[3:]))
    with pytest.raises(ArtifactError, match=f"arm {len(shop.arms)} is None, and here 'sms'"):
        load_bandit(path, arms=(*shop.arms, "sms"))


def test_the_log_is_judged_off_policy(shop: Shop, played: tuple[Bandit, Rows], tmp_path: Path) -> None:
    rows = played[1]
    log, arms = read_log(write_log(tmp_path, shop, rows))
    assert arms == shop.arms
    np.testing.assert_array_equal(log.action, rows.action)
    np.testing.assert_array_equal(log.propensity, rows.propensity)
    np.testing.assert_array_equal(log.reward, rows.margin - shop.table.contact_cost[rows.action])
    uniform = rows.admissible / rows.admissible.sum(axis=1, keepdims=True)
    found = estimate(log, uniform, estimator="ipw")
    truth = float((uniform * rows.truth).sum(axis=1).mean())
    assert found.low < truth < found.high
    table = pq.read_table(tmp_path / "decisions.parquet")
    np.testing.assert_allclose(sum(table[f"p:{arm}"].to_numpy() for arm in arms), 1.0)
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({}), other)
    with pytest.raises(ValueError, match="names no arms"):
        read_log(other)


def test_a_network_sees_what_a_line_does_not() -> None:
    """The reward of an arm is high at both ends of a feature: linear in the network's units only."""
    rng = np.random.default_rng(0)
    x, action = rng.normal(size=(6_000, 3)), rng.integers(0, 2, 6_000)
    reward = np.where(action == 1, 2.0 * np.abs(x[:, 0]) - 1.5, 0.0) + 0.3 * rng.normal(size=6_000)
    ids, errors = 10_000 + np.arange(6_000), {}
    fitted = Bandit(["a", "b", "c"], ["no", "yes"], replace(bandit_settings(), keep=True))
    for name, refit in (("linear", False), ("network", True)):
        fitted.decided(ids, x, action, 0.0)
        fitted.outcomes(ids, reward)
        if refit:
            fitted.refit(fit_network)
        at = rng.normal(size=(500, 3))
        chosen = fitted.probabilities(at)[:, 1] > 0.5
        errors[name] = float(np.mean(chosen != (np.abs(at[:, 0]) > 0.75)))
    assert errors["network"] < 0.1 < errors["linear"]
    hidden = fitted.network.hidden(x)  # type: ignore[union-attr]
    used = hidden.std(axis=0) > 0
    np.testing.assert_allclose(np.square(hidden[:, used]).mean(axis=0), 1.0, atol=1e-3)
    again = fit_network(x, action, reward)
    np.testing.assert_array_equal(again.hidden(x), fitted.network.hidden(x))  # type: ignore[union-attr]


def bandit_settings() -> object:
    from qiance.bandits import BanditSettings, Learn

    return BanditSettings(rule=Rule.GREEDY, epsilon=0.0, learn=Learn.OUTCOME)


def test_a_network_needs_rows() -> None:
    with pytest.raises(ValueError, match="context: has 3 rows; a network needs at least 10"):
        fit_network(np.ones((3, 2)), np.zeros(3, int), np.ones(3))


def run(*arguments: str) -> tuple[int, str]:
    from qiance.cli.main import app

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_command_plays_shows_and_keeps(tmp_path: Path) -> None:
    small = ["--days", "9", "--per-day", "60", "--seeds", "2", "--window", "3"]
    status, text = run("train", "bandit", "--out", str(tmp_path), "--agent", "neural-linear", *small)
    assert status == 0, text
    for name in (*Agent, "best-constant"):
        assert name in text
    assert "Kept: neural-linear" in text
    (folder,) = tmp_path.glob(f"{KIND}-*")
    assert load_manifest(folder).metrics.keys() == {"value", "regret", "late"}
    assert load_bandit(folder).network.width == FitSettings().hidden[-1]
    log = pq.read_table(tmp_path / "decisions.parquet")
    assert log.num_rows == 9 * 60
    data, mapping = tmp_path / "decisions.parquet", tmp_path / "decisions.map.yaml"
    policy = str(tmp_path / "uniform.parquet")
    status, text = run(
        *("evaluate", "ope", "--data", str(data), "--mapping", str(mapping), "--policy", policy),
        *("--reward", "sales"),
    )
    assert status == 0, text
    assert "mean importance weight is" not in text, "the propensities are those of the choices"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workspace", "nowhere"], "nowhere holds no run; make one with `qiance run`"),
        (["--per-day", "30000"], "per_day: 30000 arrivals from a cohort of 20000 users"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    status, text = run("train", "bandit", "--out", str(tmp_path), "--seeds", "1", *arguments)
    assert status != 0
    assert message in text


def test_a_schedule_is_checked() -> None:
    with pytest.raises(ValueError, match=r"delay: 0\.5 is under 1"):
        Schedule(delay=0.5)
