"""Training over several seeds, and what the policies bring."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import log
from rllib.evaluate import mean_interval
from rllib.hindsight import HindsightPlan, hindsight
from rllib.plan_algorithms import PlanningSettings
from rllib.plan_evaluate import returns_of
from rllib.planning import PlanningTrained, train_planning
from rllib.promotion import PromotionVectorEnv

_BOUND_SEED = 3_000_000


def train_seeds(
    environment: Mapping[str, Any], settings: PlanningSettings, seeds: Sequence[int]
) -> list[PlanningTrained]:
    """A run per seed; held-out episodes are the same in all of them."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            told = replace(settings, seed=seed)
            found.append(train_planning(environment, out=Path(folder), settings=told))
        means = ", ".join(f"{name} {value.value:.4g}" for name, value in found[-1].returns.items())
        log(f"{environment['environment']}, seed {seed}: {means}; kept {found[-1].chosen}")
    return found


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over training seeds with its 90 % Student-t interval, which one seed has not."""
    if len(values) < 2:
        return {"value": float(values[0]), "low": None, "high": None}
    found = mean_interval(np.array(values))
    return {"value": found.value, "low": found.low, "high": found.high}


def shares_of_bound(runs: Sequence[PlanningTrained], num_episodes: int) -> dict[str, Any]:
    """Returns ÷ the bound by perfect information, on episodes of their own; `plan` knows the demand."""
    env = PromotionVectorEnv(num_episodes)
    found = hindsight(env, _BOUND_SEED)
    bound = float(found.bound.mean())
    plan = float(returns_of(env, HindsightPlan(env, found), _BOUND_SEED).mean())
    names = [name for name in runs[0].policies if name != "learned"]
    rules = {name: _share(env, runs[0].policies[name], bound) for name in names}
    learned = [_share(env, run.policies["learned"], bound) for run in runs]
    return {"learned": over_seeds(learned), "plan": plan / bound, **rules, "bound": bound}


def _share(env: PromotionVectorEnv, policy: Any, bound: float) -> float:
    return float(returns_of(env, policy, _BOUND_SEED).mean()) / bound
