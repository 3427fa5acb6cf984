"""Which policy is kept: the trained one if it beats the best rule beyond doubt on held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qiance.artifacts import Artifact
from qiance.domain import Interval
from rllib.evaluate import mean_interval
from rllib.plan_algorithms import PlanningSettings
from rllib.plan_evaluate import compare, verdict
from rllib.policies import Network, save_policy
from rllib.tasks import Constant, Policy, Task

# Apart from each other, and from the seeds that training draws its episodes from. A sweep chooses by episodes
# of its own: what is best of many on some episodes looks better there than it is.
TUNING_SEED, HELD_OUT_SEED, SWEEP_SEED = 1_000_000, 2_000_000, 3_000_000


@dataclass(frozen=True, slots=True)
class Kept:
    """What was kept.

    artifact: of that policy. policies: all of them, by name. chosen: `learned` or the name of a rule.
    best_rule: the best of the rules. returns: of an episode by policy, mean and 90 % interval over held-out
    episodes. gain: learned minus the best rule on the same episodes.
    """

    artifact: Artifact = field(repr=False)
    policies: Mapping[str, Policy] = field(repr=False)
    chosen: str
    best_rule: str
    returns: Mapping[str, Interval]
    gain: Interval


def keep_better(
    task: Task,
    constant: Constant,
    learned: Network,
    settings: PlanningSettings,
    out: Path,
    *,
    metrics: Mapping[str, float],
    fingerprint: str,
    parents: Sequence[str] = (),
) -> Kept:
    """Compare `learned` with `constant` and the task's rules on held-out episodes, and write the one to keep.

    settings: how many episodes. metrics: of the manifest, beside the returns. fingerprint: of the data.
    """
    policies: dict[str, Policy] = {"constant": constant, **task.rules(), "learned": learned}
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + settings.rounds)
    returns = compare(task, policies, settings.episodes, seeds)
    chosen, best_rule, gain = verdict(returns)
    means = {name: mean_interval(values) for name, values in returns.items()}
    found = {f"return_{name}": mean.value for name, mean in means.items()}
    artifact = save_policy(
        out,
        task,
        "network" if chosen == "learned" else chosen,
        policies[chosen],
        metrics=found | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high} | dict(metrics),
        data_fingerprint=fingerprint,
        parents=parents,
    )
    return Kept(artifact, policies, chosen, best_rule, means, gain)
