"""A short PPO run that learns to pace a budget on the simulated market, and the gate behind it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qiance.artifacts import Artifact
from qiance.artifacts.pacing import ExportedPolicy, Rule, write_program, write_rule
from qiance.decide.pacing import EvenPace
from qiance.domain import Interval
from rllib.against import SCALE, AgainstRuleEnv
from rllib.evaluate import Floats, choose, episode_returns, mean_interval, tuned_baselines
from rllib.export import export_module
from rllib.start import logging_below, start_from
from rllib.world import fingerprint

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

Tell = Callable[[float, str], None]
ENVS, STEPS_PER_ITERATION, TUNING_EPISODES, DEMONSTRATIONS = 16, 960, 12, 48
# Training draws its episodes from 2³² on (see AgainstRuleEnv): what is held out is never trained on.
_TUNING_SEEDS, _HELD_OUT_SEEDS = 1_000_000, 2_000_000


@dataclass(frozen=True, slots=True)
class PacingTrained:
    """What a run leaves behind.

    artifact: of the policy that is kept. chosen: `learned`, `constant` or `even_pace`.
    returns: incremental margin of an episode by policy, minor units, mean and 90 % interval over the held-out
        episodes. gain: learned minus the best rule on the same episodes, minor units.
    history: by iteration, what the exploring policy brought more than even pace, fraction of the budget.
    """

    artifact: Artifact = field(repr=False)
    chosen: str
    returns: Mapping[str, Interval]
    gain: Interval
    history: tuple[float, ...]
    seconds: float

    @property
    def path(self) -> Path:
        return self.artifact.path


def train_pacing(
    world: Path,
    *,
    out: Path,
    storage: Path,
    iterations: int = 20,
    seed: int = 0,
    episodes: int = 40,
    parents: Sequence[str] = (),
    progress: Tell | None = None,
) -> PacingTrained:
    """Train on `world`, compare with tuned rules on held-out episodes, and write the one that is kept.

    world: file of `rllib.world.save_world`. out: folder the artifact is written to. storage: folder for what
    RLlib writes while it runs; nothing is left there. iterations: of about 960 days each, about 1 s.
    episodes: held-out ones, at least 20, the same for all policies. progress: called with a fraction and a
    sentence.
    Ray must be running. Raises ValueError for a bad world or setting; RuntimeError without Ray.
    """
    if iterations < 1:
        raise ValueError(f"iterations: {iterations} is less than 1")
    if episodes < 20:
        raise ValueError(f"episodes: {episodes} is less than 20; fewer tell policies apart by luck")
    tell, started = progress or (lambda share, text: None), time.monotonic()
    world = world.resolve()
    tell(0.0, "tuning the rules that a trained policy must beat")
    tuning = range(_TUNING_SEEDS, _TUNING_SEEDS + TUNING_EPISODES)
    rules = tuned_baselines(world, tuning)
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pacing-", dir=storage.resolve()) as folder:
        program = Path(folder) / "program.pt2"
        history = _learn(world, rules["even_pace"], iterations, seed, program, tell)
        learned = write_program(Path(folder), _copy(program), metrics={}, data_fingerprint="")
        tell(0.9, f"comparing on {episodes} held-out episodes")
        seeds = range(_HELD_OUT_SEEDS, _HELD_OUT_SEEDS + episodes)
        policies = {**rules, "learned": ExportedPolicy.load(learned.path)}
        returns = {name: episode_returns(world, policy, seeds) for name, policy in policies.items()}
        chosen, gain = choose(returns), _gain(returns)
        metrics = _metrics(returns, gain, iterations)
        artifact = _write(out, rules.get(chosen), program, metrics, fingerprint(world), parents)
    tell(1.0, f"pacing policy {artifact.version} written: {chosen}")
    means = {name: mean_interval(values) for name, values in returns.items()}
    return PacingTrained(artifact, chosen, means, gain, history, time.monotonic() - started)


def algorithm(world: Path, rule: EvenPace, iterations: int, seed: int, storage: Path) -> Algorithm:
    """PPO on `AgainstRuleEnv`, in this process: its one environment runner and its learner are local.

    rule: that rewards are measured against. storage: folder for RLlib's own files.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms" (2017).
    """
    import ray
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    if not ray.is_initialized():
        # Left to itself RLlib would start a cluster that listens on every interface.
        raise RuntimeError("Ray is not running: call ray.init before training")
    steps = iterations * STEPS_PER_ITERATION
    model = DefaultModelConfig(fcnet_hiddens=[32, 32], free_log_std=True, vf_share_layers=False)
    config = (
        PPOConfig(algo_class=logging_below(storage, PPO))
        .environment(AgainstRuleEnv, env_config={"world": str(world), "gain": rule.gain})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS, batch_mode="complete_episodes")
        .learners(num_learners=0)
        .rl_module(model_config=model)
        .training(
            gamma=1.0,  # a campaign's last day counts as much as its first
            lambda_=0.95,
            lr=[[0, 3e-3], [steps, 3e-4]],
            train_batch_size_per_learner=STEPS_PER_ITERATION,
            minibatch_size=240,
            num_epochs=10,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            grad_clip=1.0,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    return config.build_algo()


def _learn(
    world: Path, rule: EvenPace, iterations: int, seed: int, program: Path, tell: Tell
) -> tuple[float, ...]:
    """Train, write the policy to `program`, and return what each iteration brought."""
    tell(0.05, "starting PPO")
    ppo = algorithm(world, rule, iterations, seed, program.parent)
    try:
        start_from(ppo, world, rule, range(_TUNING_SEEDS, _TUNING_SEEDS + DEMONSTRATIONS))
        history = []
        for number in range(1, iterations + 1):
            history.append(float(ppo.train()["env_runners"]["episode_return_mean"]) / SCALE)
            share = 0.1 + 0.75 * number / iterations
            tell(
                share,
                f"iteration {number} of {iterations}: {history[-1]:+.2%} of the budget against even pace",
            )
        export_module(ppo.get_module(), program)
        return tuple(history)
    finally:
        ppo.stop()


def _gain(returns: Mapping[str, Floats]) -> Interval:
    """Learned minus the rule with the highest mean, paired by episode."""
    best = max((v for name, v in returns.items() if name != "learned"), key=lambda v: v.mean())
    return mean_interval(returns["learned"] - best)


def _metrics(returns: Mapping[str, Floats], gain: Interval, iterations: int) -> dict[str, float]:
    means = {f"return_{name}": mean_interval(values).value for name, values in returns.items()}
    return {
        **means,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "iterations": iterations,
    }


def _write(
    out: Path,
    rule: Rule | None,
    program: Path,
    metrics: Mapping[str, float],
    data: str,
    parents: Sequence[str],
) -> Artifact:
    if rule is None:
        return write_program(out, _copy(program), metrics=metrics, data_fingerprint=data, parents=parents)
    return write_rule(out, rule, metrics=metrics, data_fingerprint=data, parents=parents)


def _copy(source: Path) -> Callable[[Path], None]:
    def write(target: Path) -> None:
        shutil.copyfile(source, target)

    return write
