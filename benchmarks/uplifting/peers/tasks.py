"""Files in which rows go to a peer and effects come back.

A task is `NAME.npz` with train_x `[n, F]`, train_arm `[n]` (0 is control), train_outcome `[n]`, share `[K]` (the
propensity of each arm, the same for all rows) and test_x `[m, F]`. The answer is `NAME.effects.npz`: configuration
→ `[m, K]` effects over control, and `seconds-CONFIGURATION`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ANSWER = ".effects.npz"


@dataclass(frozen=True)
class Task:
    """See the module. seed: of whatever the learner draws."""

    train_x: Any
    train_arm: Any
    train_outcome: Any
    share: Any
    test_x: Any
    seed: int

    @property
    def arms(self) -> int:
        """K, control included."""
        return len(self.share)

    def by_arm(self, effect_of: Callable[[Any, Any, Any], Any]) -> Any:
        """`[m, K]` from a learner of one treatment: called with x, treated, outcome per arm, returns `[m]`."""
        found = np.zeros((len(self.test_x), self.arms))
        for arm in range(1, self.arms):
            rows = (self.train_arm == 0) | (self.train_arm == arm)
            treated = (self.train_arm[rows] == arm).astype(int)
            found[:, arm] = effect_of(self.train_x[rows], treated, self.train_outcome[rows])
        return found


def trees(kind: Any, seed: int, rounds: int, rate: float = 0.05, least: int = 100) -> Any:
    """The small boosted trees that suit a weak signal: those that the product uses."""
    return kind(
        n_estimators=rounds,
        learning_rate=rate,
        num_leaves=4,
        min_child_samples=least,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.7,
        n_jobs=1,
        verbose=-1,
        random_state=seed,
    )


def answer(learners: Mapping[str, Callable[[Task], Any]]) -> None:
    """Answer every task in the folder that the command line names, with the configurations named after it."""
    warnings.simplefilter("ignore")
    wanted = sys.argv[2:] or list(learners)
    for path in sorted(p for p in Path(sys.argv[1]).glob("*.npz") if not p.name.endswith(ANSWER)):
        with np.load(path, allow_pickle=False) as file:
            names = ("train_x", "train_arm", "train_outcome", "share", "test_x")
            task = Task(*(file[name] for name in names), seed=int(file["seed"]))
        found = {}
        for name in wanted:
            started = time.perf_counter()
            found[name] = np.asarray(learners[name](task), dtype=np.float64)
            found[f"seconds-{name}"] = np.array(time.perf_counter() - started)
        np.savez(path.with_name(path.stem + ANSWER), **found)
        print(path.stem, flush=True)
