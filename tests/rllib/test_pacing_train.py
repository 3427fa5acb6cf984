from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qiance.artifacts.pacing import ExportedPolicy, write_program
from qiance.decide.pacing import Constant, EvenPace, multiplier
from rllib.evaluate import choose, episode_returns, mean_interval, tuned_baselines
from rllib.export import export_module
from rllib.start import demonstrate, start_from
from rllib.train import PacingTrained, algorithm, train_pacing


def test_settings_are_checked(world: Path, tmp_path: Path) -> None:
    for settings, message in [
        ({"iterations": 0}, "iterations: 0 is less than 1"),
        ({"episodes": 19}, "episodes: 19 is less than 20"),
    ]:
        with pytest.raises(ValueError, match=message):
            train_pacing(world, out=tmp_path, storage=tmp_path, **settings)
    with pytest.raises(ValueError, match="does not exist"):
        train_pacing(tmp_path / "none.npz", out=tmp_path, storage=tmp_path)


def test_ray_is_never_started_behind_the_back_of_the_caller(world: Path, tmp_path: Path) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another test has a cluster running")
    with pytest.raises(RuntimeError, match=r"call ray\.init"):
        algorithm(world, EvenPace(), 1, 0, tmp_path)
    assert not ray.is_initialized()


def test_tuned_rules_are_the_best_of_their_grids(world: Path) -> None:
    rules = tuned_baselines(world, range(4))
    best = {name: episode_returns(world, rule, range(4)).mean() for name, rule in rules.items()}
    assert best["constant"] >= episode_returns(world, Constant(1.0), range(4)).mean()
    assert best["even_pace"] >= episode_returns(world, EvenPace(1.0), range(4)).mean()


def test_the_gate_keeps_a_rule_unless_it_is_beaten() -> None:
    rng = np.random.default_rng(0)
    traffic, noise = rng.normal(100, 20, 40), rng.normal(0, 1, 40)
    rules = {"constant": traffic, "even_pace": traffic + 2}
    assert choose({**rules, "learned": traffic + 4 + noise}) == "learned"
    assert choose({**rules, "learned": traffic + 2 + noise - noise.mean()}) == "even_pace"
    assert choose({**rules, "learned": traffic - 5}) == "even_pace"
    assert choose({"constant": traffic + 9, "even_pace": traffic, "learned": traffic + 3}) == "constant"


def test_mean_interval() -> None:
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    # t(0.95; 2) = 2.920
    assert (interval.value, interval.high) == pytest.approx((2.0, 2.0 + 2.91999 / np.sqrt(3)), rel=1e-5)
    with pytest.raises(ValueError, match="values: has 1 independent unit"):
        mean_interval(np.ones(1))


def test_demonstrations_hold_the_actions_of_the_rule(world: Path) -> None:
    rule = EvenPace(2.0)
    shown = demonstrate(world, rule, range(3))
    assert shown.observations.shape == (30, 6)
    wanted = [rule.multiplier(o) for o in shown.observations]
    np.testing.assert_allclose(3.0 ** shown.actions.astype(np.float64), wanted, rtol=1e-5)
    np.testing.assert_array_equal(demonstrate(world, rule, range(3)).actions, shown.actions)


def test_export_is_the_trained_algorithm(world: Path, tmp_path: Path, ray_cluster: None) -> None:
    rule = EvenPace(2.0)
    ppo = algorithm(world, rule, 2, 0, tmp_path)
    try:
        start_from(ppo, world, rule, range(24))
        _assert_starts_at_the_rule(ppo, world, rule)
        ppo.train()
        artifact = write_program(
            tmp_path / "out",
            lambda path: export_module(ppo.get_module(), path),
            metrics={},
            data_fingerprint="d",
        )
        policy = ExportedPolicy.load(artifact.path)
        _assert_same_on_random_observations(ppo, policy)
        _assert_same_through_all_connectors(ppo, policy)
    finally:
        ppo.stop()


def _assert_starts_at_the_rule(ppo, world: Path, rule: EvenPace) -> None:
    shown = demonstrate(world, rule, range(100, 106))
    output = ppo.get_module().forward_inference({"obs": torch.from_numpy(shown.observations)})
    error = output["action_dist_inputs"][:, 0].detach().numpy() - shown.actions
    assert np.sqrt((error**2).mean()) < 0.15
    np.testing.assert_allclose(output["action_dist_inputs"][:, 1].detach(), -1.5)


def _assert_same_on_random_observations(ppo, policy: ExportedPolicy) -> None:
    observations = np.random.default_rng(1).uniform(-1, 1, (300, 6)).astype(np.float32)
    module = ppo.get_module()
    logits = module.forward_inference({"obs": torch.from_numpy(observations)})["action_dist_inputs"]
    actions = module.get_inference_action_dist_cls().from_logits(logits).to_deterministic().sample()
    expected = [multiplier(float(a)) for a in actions[:, 0]]
    found = [policy.multiplier(o) for o in observations]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.ptp(found) > 0.1, "a constant would prove nothing"


def _assert_same_through_all_connectors(ppo, policy: ExportedPolicy) -> None:
    """What the environment really received from RLlib without exploration is what the export answers."""
    episodes = ppo.env_runner.sample(num_episodes=4, explore=False, force_reset=True)
    days = 0
    for episode in episodes:
        observations = np.asarray(episode.get_observations())
        for before, info in zip(observations[:-1], episode.get_infos()[1:], strict=True):
            assert policy.multiplier(before) == pytest.approx(info["multiplier"], rel=1e-5)
            days += 1
    assert days >= 40


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> PacingTrained:
    folder = tmp_path_factory.mktemp("trained")
    before = _home()
    told: list[tuple[float, str]] = []
    result = train_pacing(
        world,
        out=folder / "artifacts",
        storage=folder / "storage",
        iterations=3,
        episodes=20,
        parents=("abc",),
        progress=lambda share, text: told.append((share, text)),
    )
    assert list((folder / "storage").iterdir()) == []
    assert _home() == before, "RLlib must not write to the home folder"
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert any("iteration 3 of 3" in text for _, text in told)
    return result


def _home() -> set[str]:
    folder = Path("~/ray_results").expanduser()
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def test_a_run_keeps_the_policy_that_it_names(trained: PacingTrained, world: Path) -> None:
    assert set(trained.returns) == {"constant", "even_pace", "learned"}
    assert len(trained.history) == 3
    rule = {"learned": "program"}.get(trained.chosen, trained.chosen)
    policy = ExportedPolicy.load(trained.path)
    assert policy.rule == rule
    seeds = range(2_000_000, 2_000_020)
    assert episode_returns(world, policy, seeds).mean() == pytest.approx(
        trained.returns[trained.chosen].value
    )


def test_a_run_says_what_it_was_and_what_it_came_to(trained: PacingTrained) -> None:
    manifest = trained.artifact.manifest
    assert manifest.parents == ("abc",)
    assert manifest.metrics["gain"] == trained.gain.value
    assert manifest.metrics["return_learned"] == trained.returns["learned"].value
    assert all(x.low < x.value < x.high for x in trained.returns.values())
    assert (trained.chosen == "learned") == (trained.gain.low > 0)


def test_a_short_run_is_not_far_from_the_rule_that_it_starts_from(trained: PacingTrained) -> None:
    assert trained.returns["learned"].value > 0.98 * trained.returns["even_pace"].value
    assert trained.returns["learned"].value > trained.returns["constant"].value


@pytest.mark.slow
def test_training_helps(world: Path, tmp_path: Path, ray_cluster: None) -> None:
    result = train_pacing(world, out=tmp_path / "a", storage=tmp_path / "s", iterations=20)
    assert np.mean(result.history[-5:]) > np.mean(result.history[:5]) + 0.005
    assert result.gain.high > 0
