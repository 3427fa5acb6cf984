"""Optuna's Gaussian process for a sweep: a draw hangs on the seed, its number and what is known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

# Random candidates of a draw, and how many of them are improved by gradients: fewer than Optuna's 2,048 and
# 10, so that a draw takes a tenth of a second.
CANDIDATES, CLIMBS = 512, 3


class SeededGaussian(BaseSampler):
    """Draws for a trial that hang on the seed, its number and what is known by then, and nothing else.

    So a study that is opened again goes on as it would have. startup: trials at random before the first that
    learns from them.

    Source: Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms" (2012).
    """

    def __init__(self, seed: int, startup: int) -> None:
        self._seed, self._startup = seed, startup
        self._number, self._inner = -1, _Believing(seed, startup)

    def _of(self, trial: FrozenTrial) -> GPSampler:
        if trial.number != self._number:
            text = hashlib.sha256(f"{self._seed}/{trial.number}".encode()).digest()
            self._inner = _Believing(int.from_bytes(text[:4], "big"), self._startup)
            self._number = trial.number
        return self._inner

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See Optuna."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


class _Believing(GPSampler):
    """Takes what is in flight for as good as the median, so that two workers do not try the same.

    Optuna integrates over what it may come to, which takes a second and more, in which cores wait.
    """

    def __init__(self, seed: int, startup: int) -> None:
        super().__init__(seed=seed, n_startup_trials=startup)
        self._n_preliminary_samples, self._n_local_search = CANDIDATES, CLIMBS

    def _sample_relative_impl(
        self,
        study: Study,
        completed_trials: Sequence[FrozenTrial],
        running_trials: Sequence[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        middle = float(np.median([trial.value for trial in completed_trials]))
        believed = []
        for trial in running_trials:
            known = copy(trial)
            known.values = [middle]
            believed.append(known)
        return super()._sample_relative_impl(study, [*completed_trials, *believed], [], search_space)
