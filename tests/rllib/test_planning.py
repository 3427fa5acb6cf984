from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from sales_cases import write_users
from typer.testing import CliRunner

from qiance.artifacts import ArtifactError, load_manifest
from rllib.array_runner import middle
from rllib.checkpoints import CHECKPOINT
from rllib.lockstep import LockstepEnv
from rllib.plan_algorithms import PlanningSettings, algorithm
from rllib.plan_evaluate import best_constant, compare, returns_of, verdict
from rllib.plan_start import held_choice, start_from
from rllib.planning import PlanningTrained, train_planning
from rllib.policies import load_policy, network_of, save_policy
from rllib.tasks import Constant, PromotionTask, SalesTask, TrainingEnv, task_of

SMALL = PlanningSettings(
    iterations=2, num_envs=8, epochs=1, hidden=(16,), episodes=24, rounds=1, checkpoint_every=1, updates=2
)
PROMOTION = {"environment": "promotion", "num_segments": 2}


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_users(tmp_path_factory.mktemp("users"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[PlanningTrained, Path]:
    out, told = tmp_path_factory.mktemp("plan"), []
    result = train_planning(
        PROMOTION, out=out, settings=SMALL, parents=("abc",), progress=lambda s, t: told.append((s, t))
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert any("iteration 2 of 2" in text for _, text in told)
    return result, out


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("ppo", "promotion"),
        ("sac", "sales"),
        pytest.param("ppo", "sales", marks=pytest.mark.slow),
        pytest.param("sac", "promotion", marks=pytest.mark.slow),
    ],
)
def test_the_network_is_the_trained_module(
    name: str, environment: str, users: Path, tmp_path: Path, ray_cluster: None
) -> None:
    task = SalesTask(str(users)) if environment == "sales" else PromotionTask(num_segments=2)
    found = algorithm(task, replace(SMALL, algorithm=name), tmp_path)
    try:
        for _ in range(2):
            found.train()
        module = found.get_module()
        network = network_of(module, task)
    finally:
        found.stop()
    env = task.make(50)
    seen, _ = env.reset(seed=0)
    logits = module.forward_inference({"obs": torch.from_numpy(task.features(seen))})["action_dist_inputs"]
    own = middle(module.get_inference_action_dist_cls().from_logits(logits)).detach().numpy()
    np.testing.assert_allclose(network.act(seen), task.act(seen, own), atol=1e-5)
    assert np.ptp(logits.detach().numpy()[:, 0]) > 0.001, "a constant would prove nothing"


def test_training_meets_the_environment_as_the_policy_does(
    users: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """What a network earns in RLlib's hands, without exploration, is what it earns in ours."""
    task = SalesTask(str(users))
    found = algorithm(task, SMALL, tmp_path)
    try:
        episodes = found.env_runner.sample(num_episodes=8, explore=False, force_reset=True)
        network = network_of(found.get_module(), task)
    finally:
        found.stop()
    assert all(len(episode) == 30 and episode.is_terminated for episode in episodes)
    returns = [episode.get_return() / task.scale for episode in episodes]
    np.testing.assert_allclose(returns, returns_of(task.make(8), network, SMALL.seed), rtol=1e-4)


def test_ppo_starts_at_the_constant(tmp_path: Path, ray_cluster: None) -> None:
    task = PromotionTask(num_segments=2)
    constant = Constant(task, task.constants()[10])
    found = algorithm(task, replace(SMALL, hidden=(64, 64)), tmp_path)
    try:
        start_from(found, constant, 8, 0)
        network = network_of(found.get_module(), task)
    finally:
        found.stop()
    env = task.make(32)
    returns = [returns_of(env, policy, 9).mean() for policy in (network, constant)]
    assert returns[0] == pytest.approx(returns[1], rel=0.02)


def test_a_run_keeps_the_policy_that_it_names(trained: tuple[PlanningTrained, Path]) -> None:
    result, out = trained
    assert set(result.returns) == {"constant", "myopic", "learned"}
    assert (result.chosen == "learned") == (result.gain.low > 0)
    task = task_of(PROMOTION)
    policy = load_policy(result.artifact.path, task)
    env = task.make(24)
    kept = returns_of(env, policy, 2_000_000)
    np.testing.assert_array_equal(kept, returns_of(env, result.policies[result.chosen], 2_000_000))
    assert kept.mean() == pytest.approx(result.returns[result.chosen].value)
    manifest = load_manifest(result.artifact.path)
    assert manifest.parents == ("abc",)
    assert manifest.metrics["gain_low"] == result.gain.low
    left = {path.name for path in out.iterdir()}
    assert left == {f"{CHECKPOINT}-2", result.artifact.path.name}


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(trained: tuple[PlanningTrained, Path]) -> None:
    result, out = trained
    with pytest.raises(ValueError, match="holds a checkpoint; resume it"):
        train_planning(PROMOTION, out=out, settings=SMALL)
    with pytest.raises(ValueError, match=r"settings\.seed: the checkpoint .* was made with 0, now it is 5"):
        train_planning(PROMOTION, out=out, settings=replace(SMALL, seed=5), resume=True)
    with pytest.raises(ValueError, match=r"environment\.num_segments"):
        train_planning({**PROMOTION, "num_segments": 3}, out=out, settings=SMALL, resume=True)
    again = train_planning(PROMOTION, out=out, settings=SMALL, resume=True)
    assert again.history == result.history, "nothing was left to do"
    learned = [run.policies["learned"].weights for run in (result, again)]
    for before, after in zip(*learned, strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-6)
    longer = train_planning(PROMOTION, out=out, settings=replace(SMALL, iterations=3), resume=True)
    assert longer.history[:2] == result.history
    assert len(longer.history) == 3


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint to resume"):
        train_planning(PROMOTION, out=tmp_path, settings=SMALL, resume=True)


def test_policies_are_stored_and_act_alike(users: Path, tmp_path: Path) -> None:
    promotion, sales = PromotionTask(num_segments=2), SalesTask(str(users))
    constant = Constant(sales, sales.constants()[2])
    saved = save_policy(tmp_path, sales, "constant", constant, metrics={}, data_fingerprint="d")
    again = load_policy(saved.path, sales).act(np.zeros((3, 4), dtype=np.float32))
    np.testing.assert_allclose(again, np.tile([1.0, 0.65], (3, 1)), rtol=1e-6)
    myopic = promotion.rules()["myopic"]
    saved = save_policy(tmp_path, promotion, "myopic", myopic, metrics={}, data_fingerprint="d")
    seen = np.random.default_rng(0).uniform(0, 1, (5, 9)).astype(np.float32)
    np.testing.assert_array_equal(load_policy(saved.path, promotion).act(seen), myopic.act(seen))
    for other in (sales, PromotionTask(num_segments=3)):
        with pytest.raises(ArtifactError, match="other observations or actions"):
            load_policy(saved.path, other)
    (saved.path / "policy.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"changed|hash|SHA"):
        load_policy(saved.path, promotion)


def test_the_rule_stays_unless_it_is_beaten_beyond_doubt() -> None:
    rng = np.random.default_rng(0)
    luck, noise = rng.normal(100, 20, 60), rng.normal(0, 1, 60)
    rules = {"constant": luck, "myopic": luck + 2}
    assert verdict({**rules, "learned": luck + 4 + noise})[:2] == ("learned", "myopic")
    assert verdict({**rules, "learned": luck + 2 + noise - noise.mean()})[0] == "myopic"


def test_the_best_constant_is_the_best_of_its_grid(users: Path) -> None:
    task = SalesTask(str(users))
    best = best_constant(task, 16, 3)
    tried = {str(n): Constant(task, dials) for n, dials in enumerate(task.constants())}
    returns = compare(task, {**tried, "best": best}, 16, [3])
    assert returns["best"].mean() == max(values.mean() for values in returns.values())


def test_networks_see_the_four_numbers_only(users: Path) -> None:
    task = SalesTask(str(users))
    env = TrainingEnv({"task": task, "num_envs": 6})
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    total, rate = np.array([65.0, 85.0]), np.array([1.0, 1.0])
    features = task.features(np.stack([total, rate, [4.0, 4.0], [2.0, 2.0]], axis=1).astype(np.float32))
    assert (features[:, 4:] == np.eye(7)[2]).all()
    assert features[0, 3] < features[1, 3], "days gone by"


def test_choices_that_are_held_are_the_best_for_each_user() -> None:
    """Two kinds of users, told apart by what is seen, for whom opposite choices are best if held."""

    class Two(LockstepEnv):
        single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        single_action_space = gymnasium.spaces.Box(0.0, 2.0, (1,), np.float32)

        def _begin(self) -> np.ndarray:
            self.kind = self.np_random.choice([-1.0, 1.0], self.num_envs)
            return self.kind[:, None].astype(np.float32)

        def _live(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
            gain = np.choose(
                np.rint(actions[:, 0]).astype(int), [0.2 * np.ones_like(self.kind), self.kind, -self.kind]
            )
            return (
                self.kind[:, None].astype(np.float32),
                gain + self.np_random.normal(0, 3, self.num_envs),
                {},
            )

    class TwoTask(SalesTask):
        dials = gymnasium.spaces.Discrete(3)

        def make(self, num_envs: int) -> LockstepEnv:
            return Two(num_envs, 3)

        def features(self, observations: np.ndarray) -> np.ndarray:
            return observations

        def act(self, observations: np.ndarray, dials: np.ndarray) -> np.ndarray:
            return dials[:, None].astype(np.float32)

    best = held_choice(TwoTask(""), 4_000, 0)
    np.testing.assert_array_equal(best(np.array([[-1.0], [1.0]], dtype=np.float32)), [2, 1])


def test_dials_that_are_neutral_leave_the_allocator_alone() -> None:
    task = PromotionTask(num_segments=2)
    seen, _ = task.make(20).reset(seed=0)
    neutral = np.array([1.0, 1.0, 0.0, 0.0, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(Constant(task, neutral).act(seen), task.rules()["myopic"].act(seen))
    capped = Constant(task, np.array([-1.0, 0.0, 0.0, 0.0, 0.0], dtype=np.float32)).act(seen)
    assert (capped[:, 0] == -1).all(), "nobody of the first segment"
    assert (capped[:, 1] <= 1e-6).all(), "half of the second at most"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dqn"}, "algorithm: 'dqn' is none of ppo, sac"),
        ({"iterations": 0}, "iterations: 0 is less than 1"),
        ({"episodes": 5}, "episodes: 5"),
        ({"learning_rate": 0.0}, "learning_rate: 0"),
        ({"discount": 1.5}, "discount: 1.5"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_bad_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="environment: 'chess' is none of sales, promotion"):
        task_of({"environment": "chess"})
    with pytest.raises(ValueError, match=r"environment sales: .*data"):
        task_of({"environment": "sales"})
    with pytest.raises(ValueError, match=r"environment promotion: .*colour"):
        task_of({"environment": "promotion", "colour": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--environment", "sales", "--out", "x"], "--data"),
        (["--environment", "promotion", "--out", "x", "--data", "y"], "--data"),
        (["--environment", "sales", "--out", "x", "--data", "y", "--world", "z"], "--world"),
    ],
)
def test_the_command_names_the_option_that_is_wrong(arguments: list[str], message: str) -> None:
    from qiance.cli.main import app

    result = CliRunner().invoke(app, ["train", "planning", *arguments])
    assert result.exit_code == 2
    assert message in result.output
