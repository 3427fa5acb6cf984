from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sales_cases import write_users
from typer.testing import CliRunner

from qiance.artifacts import load_manifest
from rllib.advantage import shaped
from rllib.checkpoints import CHECKPOINT
from rllib.explore import Exploring, record
from rllib.offline import OfflineTrained, split, train_offline
from rllib.offline_algorithms import OfflineSettings
from rllib.offline_judge import judge
from rllib.plan_algorithms import PlanningSettings, algorithm
from rllib.plan_log import PlanningLog, write_log
from rllib.plan_start import start_from
from rllib.planning import train_planning
from rllib.policies import load_policy, network_of
from rllib.tasks import Constant, PromotionTask, SalesTask

TASK = PromotionTask(num_segments=2, rules={"horizon": 10})
WIDE = 0.3
SMALL = OfflineSettings(
    "bc", iterations=4, updates=50, batch=200, hidden=(16,), learning_rate=0.01, checkpoint_every=2
)


def moved(dials: float) -> Constant:
    """The cautious rule with caps at `dials`."""
    own = TASK.cautious().dials.copy()
    own[:2] = dials
    return Constant(TASK, own)


@pytest.fixture(scope="module")
def log() -> PlanningLog:
    return record(Exploring(TASK, TASK.cautious(), WIDE), 600, 0)


@pytest.fixture(scope="module")
def trained(
    log: PlanningLog, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[OfflineTrained, Path]:
    out, told = tmp_path_factory.mktemp("offline"), []
    found = train_offline(
        log, TASK, out=out, settings=SMALL, parents=("abc",), progress=lambda s, t: told.append((s, t))
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert any("iteration 4 of 4" in text for _, text in told)
    return found, out


def test_an_imitation_does_what_the_running_policy_does(trained: tuple[OfflineTrained, Path]) -> None:
    found, out = trained
    seen, _ = TASK.make(200).reset(seed=9)
    wanted = TASK.cautious().choose(seen)
    np.testing.assert_allclose(found.policy.choose(seen), wanted, atol=0.15)
    assert found.history[-1] < found.history[0]
    gain = found.judged.improvements["dr"]
    assert gain.diagnostics.effective_sample_size > 30
    assert abs(gain.value) < 0.1 * gain.baseline_value
    assert found.artifact is not None, "an imitation is written whatever it brings"
    np.testing.assert_array_equal(load_policy(found.artifact.path, TASK).act(seen), found.policy.act(seen))
    manifest = load_manifest(found.artifact.path)
    assert manifest.parents == ("abc",)
    assert manifest.metrics["gain_low"] == gain.low
    assert {path.name for path in out.iterdir()} == {f"{CHECKPOINT}-4", found.artifact.path.name}


def test_a_run_goes_on_from_its_checkpoint(trained: tuple[OfflineTrained, Path], log: PlanningLog) -> None:
    found, out = trained
    with pytest.raises(ValueError, match="holds a checkpoint; resume it"):
        train_offline(log, TASK, out=out, settings=SMALL)
    with pytest.raises(ValueError, match=r"settings\.algorithm: the checkpoint .* 'bc', now it is 'marwil'"):
        train_offline(log, TASK, out=out, settings=replace(SMALL, algorithm="marwil"), resume=True)
    with pytest.raises(ValueError, match=r"log\.content: the checkpoint"):
        train_offline(log.take(np.arange(300)), TASK, out=out, settings=SMALL, resume=True)
    again = train_offline(log, TASK, out=out, settings=SMALL, resume=True)
    assert again.history == found.history, "nothing was left to do"
    for before, after in zip(found.policy.weights, again.policy.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    longer = train_offline(log, TASK, out=out, settings=replace(SMALL, iterations=5), resume=True)
    assert longer.history[:4] == found.history
    assert len(longer.history) == 5


def test_ppo_goes_on_from_an_imitation(
    trained: tuple[OfflineTrained, Path], tmp_path: Path, ray_cluster: None
) -> None:
    network = trained[0].policy
    settings = PlanningSettings(iterations=1, num_envs=8, hidden=(16,), episodes=24, rounds=1)
    ppo = algorithm(TASK, settings, tmp_path)
    try:
        start_from(ppo, network, 8, 0)
        taken = network_of(ppo.get_module(), TASK)
        with pytest.raises(ValueError, match="start: the network is squashed"):
            start_from(ppo, replace(network, squash=True), 8, 0)
    finally:
        ppo.stop()
    seen, _ = TASK.make(50).reset(seed=1)
    np.testing.assert_allclose(taken.choose(seen), network.choose(seen), rtol=1e-5)
    assert trained[0].artifact is not None
    place = {"environment": "promotion", "num_segments": 2, "rules": {"horizon": 10}}
    with pytest.raises(ValueError, match="start: 'sac' starts from nothing"):
        train_planning(
            place,
            out=tmp_path,
            settings=replace(settings, algorithm="sac"),
            start=trained[0].artifact.path,
        )


def test_a_better_policy_passes_and_a_worse_one_does_not(log: PlanningLog) -> None:
    """Contacts are kept short by the cautious rule: a little more is better here, and less is worse."""
    near = {"better": 0.46, "worse": 0.34}
    acted = {
        name: record(Exploring(TASK, moved(dials), WIDE), 4_000, 7).reward.sum(axis=1).mean()
        for name, dials in near.items()
    }
    running = record(Exploring(TASK, TASK.cautious(), WIDE), 4_000, 7).reward.sum(axis=1).mean()
    for name, dials in near.items():
        found = judge(log, Exploring(TASK, moved(dials), WIDE))
        gain = found.improvements["dr"]
        assert gain.low - 0.002 < acted[name] - running < gain.high + 0.002, name
        assert found.gate.passed == (name == "better"), found.gate.reason
        assert gain.high - gain.low < found.improvements["pdis"].high - found.improvements["pdis"].low


def test_a_policy_that_the_log_knows_nothing_of_is_kept_out(log: PlanningLog) -> None:
    found = judge(log, Exploring(TASK, moved(-0.9), WIDE))
    assert not found.gate.passed
    assert "effective sample size" in found.gate.reason


def test_shaping_takes_off_what_was_to_be_expected() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6, 3)).astype(np.float32)
    reward, inside = rng.normal(2.0, 1.0, (50, 6)), np.ones((50, 6), dtype=bool)
    found, sums = shaped(reward, features, inside, 1.0, 1.0)
    potential = reward[:, ::-1].cumsum(axis=1)[:, ::-1] - sums
    np.testing.assert_allclose(found.sum(axis=1), reward.sum(axis=1) - potential[:, 0])
    np.testing.assert_allclose(sums[:, 0], found.sum(axis=1))
    assert np.abs(sums.mean()) < 1e-6
    np.testing.assert_allclose(shaped(reward, features, inside, 1.0, 1e-12)[1], found)


def test_episodes_are_either_learned_from_or_judge(log: PlanningLog) -> None:
    learned_from, held_out = split(log, 0.25)
    assert (len(learned_from), len(held_out)) == (450, 150)
    assert not set(learned_from.episode) & set(held_out.episode)
    with pytest.raises(ValueError, match="log: 30 episodes, 8 of them held out, are too few"):
        split(log.take(np.arange(30)), 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dqn"}, "algorithm: 'dqn' is none of bc, marwil, iql, cql, model"),
        ({"updates": 0}, "updates: 0 is less than 1"),
        ({"held_out": 1.0}, "held_out: 1"),
        ({"beta": 0.0}, "beta: 0.0 is not a positive number"),
        ({"trace": 1.5}, "trace: 1.5"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_what_cannot_be_learned_or_judged_is_said(log: PlanningLog, tmp_path: Path) -> None:
    sales = SalesTask(str(write_users(tmp_path)))
    choices = record(Exploring(sales, sales.cautious(), 0.2), 40, 0)
    with pytest.raises(ValueError, match=r"algorithm: 'cql' sets numbers.*take marwil"):
        train_offline(choices, sales, out=tmp_path, settings=replace(SMALL, algorithm="cql"))
    with pytest.raises(ValueError, match="explore: the log does not say"):
        train_offline(replace(log, explore=None), TASK, out=tmp_path, settings=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marwil", "iql", "cql"])
def test_other_algorithms_learn_from_the_log(
    name: str, log: PlanningLog, tmp_path: Path, ray_cluster: None
) -> None:
    settings = replace(SMALL, algorithm=name, iterations=6)
    found = train_offline(log, TASK, out=tmp_path, settings=settings)
    seen, _ = TASK.make(100).reset(seed=9)
    assert np.ptp(found.policy.choose(seen), axis=0).max() > 1e-3, "a constant would prove nothing"
    assert found.kept == found.judged.gate.passed
    assert list(tmp_path.glob("planning-policy-*")) == ([found.artifact.path] if found.artifact else [])


@pytest.mark.slow
def test_choices_are_learned_too(tmp_path: Path, ray_cluster: None) -> None:
    sales = SalesTask(str(write_users(tmp_path)))
    choices = record(Exploring(sales, sales.cautious(), 0.2), 200, 0)
    found = train_offline(choices, sales, out=tmp_path / "out", settings=SMALL)
    seen, _ = sales.make(50).reset(seed=1)
    np.testing.assert_array_equal(found.policy.choose(seen), sales.cautious().choose(seen))


def test_the_command_names_what_is_wrong(tmp_path: Path, log: PlanningLog) -> None:
    from qiance.cli.main import app

    path = write_log(tmp_path / "log.parquet", log, TASK)
    arguments = ["train", "planning-offline", str(path), "--environment"]
    result = CliRunner().invoke(app, [*arguments, "sales", "--out", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "--data" in result.output
    result = CliRunner().invoke(app, [*arguments, "promotion", "--out", str(tmp_path / "x")])
    assert "observation: row 0 is 9 (and 5999 more rows); numbers; the environment has 15" in str(
        result.exception
    )
