"""Files in which rows go to a peer and effects come back.

A folder has `x.npy` `[N, F]` and, per task, `NAME.npz`: train and test (row numbers), arm `[N]` (0 is
control), outcome `[N]`, share `[K]` (the propensity of each arm, the same for all rows) and seed. The answer
is `NAME.effects.npz`: configuration → `[m, K]` effects over control of the test rows.
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
    """The rows to train on and those to predict; see the module. seed: of whatever the learner draws."""

    train_x: Any
    train_arm: Any
    train_outcome: Any
    share: Any
    test_x: Any
    seed: int

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task at `path`, with the features of its folder."""
        x = np.load(path.with_name("x.npy"), allow_pickle=False)
        with np.load(path, allow_pickle=False) as file:
            train, test = file["train"], file["test"]
            arm, outcome = file["arm"][train], file["outcome"][train]
            return cls(x[train], arm, outcome, file["share"], x[test], int(file["seed"]))

    @property
    def arms(self) -> int:
        """K, control included."""
        return len(self.share)

    def by_arm(self, effect_of: Callable[[Any, Any, Any], Any]) -> Any:
        """`[m, K]` from a learner of one treatment, called with x, treated, outcome per arm."""
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
    for path in sorted(p for p in Path(sys.argv[1]).glob("*.npz") if not p.name.endswith(ANSWER)):
        task, started = Task.read(path), time.perf_counter()
        found: dict[str, Any] = {
            name: np.asarray(learners[name](task), dtype=np.float64) for name in sys.argv[2:]
        }
        np.savez(path.with_name(path.stem + ANSWER), **found)
        print(f"{path.stem} {time.perf_counter() - started:.1f} s", flush=True)
