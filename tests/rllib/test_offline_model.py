from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from sales_cases import write_users
from typer.testing import CliRunner

from qiance.artifacts import load_manifest
from rllib.checkpoints import CHECKPOINT
from rllib.explore import Exploring, record
from rllib.lockstep import AloneEnv
from rllib.model_env import ModelTask, ModelVectorEnv
from rllib.model_fit import Days, Ensemble, fit_ensemble
from rllib.model_plan import Planner
from rllib.model_settings import ModelSettings
from rllib.offline import OfflineTrained, train_offline
from rllib.offline_algorithms import OfflineSettings
from rllib.plan_algorithms import PlanningSettings, algorithm
from rllib.plan_evaluate import returns_of
from rllib.plan_log import PlanningLog, write_log
from rllib.plan_start import start_from
from rllib.policies import load_policy, network_of
from rllib.tasks import Constant, PromotionTask, SalesTask

TASK = PromotionTask(num_segments=2, rules={"horizon": 10})
WIDE = 0.3
OWN = ModelSettings(members=3, hidden=(16,), steps=100, imitation=150)
SMALL = OfflineSettings(
    "model",
    iterations=4,
    updates=10,
    batch=200,
    learning_rate=0.003,
    hidden=(16,),
    checkpoint_every=2,
    model=OWN,
)


class Line:
    """A task of two features and a dial, of which only a log is known."""

    name, scale, explore = "line", 1.0, -1.5
    dials = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def features(self, observations: np.ndarray) -> np.ndarray:
        return observations


def planted(episodes: int = 200, steps: int = 8, seed: int = 0) -> Days:
    """s' = 0.8 s + 0.3 a + noise, r = s₀ + 0.2 a + noise; dials near 0."""
    rng = np.random.default_rng(seed)
    seen, dials, reward = [rng.normal(0, 0.5, (episodes, 2))], [], []
    for _ in range(steps):
        act = WIDE * rng.standard_normal((episodes, 1))
        dials.append(act)
        reward.append(seen[-1][:, 0] + 0.2 * act[:, 0] + 0.02 * rng.standard_normal(episodes))
        seen.append(0.8 * seen[-1] + 0.3 * act + 0.02 * rng.standard_normal((episodes, 2)))
    return Days(np.stack(seen[:-1], axis=1), np.stack(dials, axis=1), np.stack(reward, axis=1))


@pytest.fixture(scope="module")
def line() -> Ensemble:
    return fit_ensemble(planted(), OWN, 0)


@pytest.fixture(scope="module")
def log() -> PlanningLog:
    return record(Exploring(TASK, TASK.cautious(), WIDE), 600, 0)


@pytest.fixture(scope="module")
def trained(log: PlanningLog, tmp_path_factory: pytest.TempPathFactory) -> tuple[OfflineTrained, Path]:
    out, told = tmp_path_factory.mktemp("model"), []
    found = train_offline(log, TASK, out=out, settings=SMALL, progress=lambda s, t: told.append((s, t)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert any("iteration 4 of 4" in text for _, text in told)
    return found, out


def test_a_linear_transition_is_found_again(line: Ensemble) -> None:
    rng = np.random.default_rng(1)
    seen, act = rng.normal(0, 0.5, (100, 2)), rng.normal(0, WIDE, (100, 1))
    means = line.means(*(torch.from_numpy(x.astype(np.float32)) for x in (seen, act)), day=3).numpy()
    for member in means:
        np.testing.assert_allclose(member[:, 0], seen[:, 0] + 0.2 * act[:, 0], atol=0.05)
        np.testing.assert_allclose(member[:, 1:], -0.2 * seen + 0.3 * act, atol=0.05)
    assert (line.r2 > 0.98).all()
    assert (line.ridge[0] - line.ridge[1]).abs().max() > 1e-4, "members are fitted to other episodes"
    np.testing.assert_allclose(line.residual[:, :-1].std().item(), 0.02, rtol=0.2)


def test_what_cannot_be_foretold_is_said() -> None:
    days = planted()
    luck = np.random.default_rng(2).normal(0, 1, days.reward.shape)
    found = fit_ensemble(replace(days, reward=luck), OWN, 0)
    assert (found.r2[:, 0] < 0.05).all(), "the share explained is of days that were not fitted to"
    assert (found.r2[:, 1:] > 0.98).all()


def test_members_disagree_where_the_log_has_nothing(line: Ensemble) -> None:
    dials = torch.tensor([[0.0], [0.6], [1.0]])
    nothing = torch.zeros(3, dtype=torch.int64)
    _, _, apart = line.live(torch.zeros(3, 2), dials, 3, nothing, nothing)
    assert apart[1] > 1.5 * apart[0]
    assert apart[2] > 1.5 * apart[1]


def test_the_penalty_keeps_a_planner_near_the_log(line: Ensemble) -> None:
    """A member believes that what was hardly tried brings much: without the penalty it is listened to."""
    ridge = line.ridge.clone()
    square = ridge.shape[1] - 3  # of the dial: products are in order, and the day comes last
    ridge[0, square, 0] += 1.0
    dial = torch.cat([torch.zeros(2, 2), torch.tensor([[0.0], [1.0]])], dim=1)
    false = replace(line, ridge=ridge)
    wrong = (false.means(dial[:, :2], dial[:, 2:], 3) - line.means(dial[:, :2], dial[:, 2:], 3))[0, :, 0]
    assert wrong[1] > wrong[0] + 0.5, "the dial's square was changed"
    far = {}
    for penalty in (0.0, 5.0):
        own = replace(OWN, penalty=penalty, effective=1e-9)
        settings = OfflineSettings("model", updates=60, batch=128, hidden=(8,), learning_rate=0.02, model=own)
        planner = Planner(false, planted(), Line(), settings, WIDE, 200)  # type: ignore[arg-type]
        planner.imitate()
        planner.improve(1)
        seen = planted(seed=5).features.reshape(-1, 2).astype(np.float32)
        far[penalty] = np.abs(planner.network().choose(seen)).mean()
    assert far[5.0] < 0.5 * far[0.0]


def test_the_environment_keeps_the_contract(line: Ensemble) -> None:
    env = ModelVectorEnv(7, Line.dials, line, penalty=2.0)
    check_env(AloneEnv(ModelVectorEnv(1, Line.dials, line, 2.0)), skip_render_check=True)
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 7, 1)).astype(np.float32)

    def lived() -> list[np.ndarray]:
        seen, _ = env.reset(seed=3)
        found = [seen]
        for day in range(9):
            seen, reward, ended, cut, info = env.step(actions[day])
            assert env.observation_space.contains(seen)
            assert not cut.any()
            assert ended.all() == ended.any() == (day == 7)
            if day < 8:
                lost = 2.0 * line.unit * info["disagreement"]
                np.testing.assert_allclose(reward, info["reward"] - lost)
            else:
                np.testing.assert_array_equal(reward, 0.0)
            found += [seen, reward]
        return found

    for before, after in zip(lived(), lived(), strict=True):
        np.testing.assert_array_equal(before, after)
    first = {tuple(row) for row in planted().features[:, 0].astype(np.float32)}
    assert {tuple(row) for row in env.reset(seed=4)[0]} <= first


def test_episodes_in_the_model_return_what_the_logged_ones_did(line: Ensemble) -> None:
    place, days = ModelTask(Line(), line, 0.0), planted()  # type: ignore[arg-type]
    rule = Exploring(place, Constant(place, np.zeros(1, dtype=np.float32)), WIDE)
    found = record(rule, 2_000, 0).reward.sum(axis=1)
    assert abs(found.mean() - days.reward.sum(axis=1).mean()) < 3 * days.reward.sum(axis=1).std() / 200**0.5
    np.testing.assert_allclose(found.std(), days.reward.sum(axis=1).std(), rtol=0.15)
    assert returns_of(place.make(5), Constant(place, np.ones(1, dtype=np.float32)), 0).shape == (5,)


def test_a_policy_is_planned_and_judged(trained: tuple[OfflineTrained, Path], log: PlanningLog) -> None:
    found, out = trained
    promise = found.promise
    assert abs(promise.running - promise.logged) < 0.02 * promise.logged
    assert promise.gain > 0
    assert promise.gain_penalised > 0
    assert len(promise.members) == len(promise.r2) == 3
    assert found.kept == found.judged.gate.passed
    seen, _ = TASK.make(200).reset(seed=9)
    assert 0.01 < np.abs(found.policy.choose(seen) - TASK.cautious().choose(seen)).mean() < WIDE
    if found.artifact is not None:
        metrics = load_manifest(found.artifact.path).metrics
        assert metrics["promised_gain"] == promise.gain
        assert metrics["gain"] == found.judged.improvements["dr"].value
        np.testing.assert_array_equal(
            load_policy(found.artifact.path, TASK).act(seen), found.policy.act(seen)
        )
    assert (out / f"{CHECKPOINT}-4").is_dir()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    trained: tuple[OfflineTrained, Path], log: PlanningLog, tmp_path: Path
) -> None:
    def stop(share: float, text: str) -> None:
        if "iteration 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_offline(log, TASK, out=tmp_path, settings=SMALL, progress=stop)
    other = replace(SMALL, model=replace(OWN, penalty=9.0))
    with pytest.raises(ValueError, match=r"settings\.model: the checkpoint"):
        train_offline(log, TASK, out=tmp_path, settings=other, resume=True)
    again = train_offline(log, TASK, out=tmp_path, settings=SMALL, resume=True)
    assert again.history == trained[0].history
    for before, after in zip(trained[0].policy.weights, again.policy.weights, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 1}, "members: 1 cannot disagree; use 2 or more"),
        ({"steps": 0}, "steps: 0 is less than 1"),
        ({"hidden": ()}, r"hidden: \(\) must name"),
        ({"penalty": -1.0}, "penalty: -1.0 is not a number of 0 or more"),
        ({"effective": 0.0}, "effective: 0.0 is not a positive number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OWN, **settings)


def test_logs_that_no_model_fits_are_refused(log: PlanningLog, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log: 25 episodes are too few to fit a model to; log 30"):
        train_offline(log.take(np.arange(50)), TASK, out=tmp_path / "few", settings=SMALL)
    length = log.length.copy()
    length[:300] -= 1
    with pytest.raises(ValueError, match="episodes have 9 to 10 days; 'model' plans over"):
        train_offline(replace(log, length=length), TASK, out=tmp_path / "uneven", settings=SMALL)
    sales = SalesTask(str(write_users(tmp_path)))
    choices = record(Exploring(sales, sales.cautious(), 0.2), 40, 0)
    with pytest.raises(ValueError, match=r"algorithm: 'model' sets numbers.*take marwil"):
        train_offline(choices, sales, out=tmp_path / "sales", settings=SMALL)


def test_options_of_the_model_are_refused_elsewhere(tmp_path: Path, log: PlanningLog) -> None:
    from qiance.cli.main import app

    arguments = ["train", "planning-offline", str(write_log(tmp_path / "log.parquet", log, TASK))]
    arguments += ["--environment", "promotion", "--out", str(tmp_path / "x"), "--penalty", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--penalty" in result.output
    assert "belongs to --algorithm model" in result.output


@pytest.mark.slow
def test_ppo_plans_in_the_model_too(
    trained: tuple[OfflineTrained, Path], log: PlanningLog, tmp_path: Path, ray_cluster: None
) -> None:
    days = Days(TASK.features(log.observation), log.dials, log.reward)
    place = ModelTask(TASK, fit_ensemble(days, OWN, 0), 1.0)
    ppo = algorithm(place, PlanningSettings(iterations=1, num_envs=8, hidden=(16,)), tmp_path)
    try:
        start_from(ppo, replace(trained[0].policy, task=place), 8, 0)
        before = network_of(ppo.get_module(), TASK)
        returned = ppo.train()["env_runners"]["episode_return_mean"]
    finally:
        ppo.stop()
    seen, _ = TASK.make(50).reset(seed=1)
    np.testing.assert_allclose(before.choose(seen), trained[0].policy.choose(seen), rtol=1e-4)
    assert abs(returned - log.reward.sum(axis=1).mean()) < 0.5


@pytest.mark.slow
def test_the_command_says_what_was_promised_and_what_was_judged(tmp_path: Path) -> None:
    from qiance.cli.main import app

    task = PromotionTask()
    made = record(Exploring(task, task.cautious(), WIDE), 200, 0)
    path, out = write_log(tmp_path / "log.parquet", made, task), tmp_path / "out"
    arguments = ["train", "planning-offline", str(path), "--environment", "promotion", "-a", "model"]
    result = CliRunner().invoke(app, [*arguments, "--iterations", "1", "--out", str(out)])
    assert result.exit_code in (0, 1), result.output
    assert "promised gain" in result.output
    assert "In the model: the running policy returns" in result.output
    assert ("Not kept" in result.output) == (result.exit_code == 1)
