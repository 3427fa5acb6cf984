"""The next configuration: the one of which a Gaussian process expects most.

What a sweep of a dozen trials can learn is how smoothly the value changes with the parameters. A Gaussian
process learns that from a handful; the densities of TPE need some dozens. Optuna's own sampler of this kind
takes 0.2 s and more for a draw, in which a core waits; here it is 0.01 s.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

Floats = NDArray[np.float64]
ANYWHERE, NEAR = 1_024, 512  # candidates: in the whole space, and around the best so far
BEYOND = 0.1  # candidates fall that far outside and are moved to the edge: often the best is there
SPREAD = 0.05  # of the candidates around the best; as all of these, a share of a parameter's range
# One length for all parameters: a dozen values do not tell which of them matters.
LENGTH, LENGTHS = 0.5, (0.3, 3.0)
NOISE, NOISES = 0.01, (0.001, 0.1)  # share of the variance that is luck
WORST = 2.0  # in quartiles above the median: how bad a bad configuration was says little of the good ones


class SeededGaussian(BaseSampler):
    """Expected improvement under a Gaussian process; random draws until `startup` trials are over.

    The draws for a trial hang on the seed, its number and what is known by then, and nothing else: a study
    that is opened again goes on as it would have.

    Source: Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms" (2012).
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int, startup: int) -> None:
        self._distributions, self._seed, self._startup = dict(distributions), seed, startup

    def _number(self, trial: FrozenTrial) -> int:
        text = hashlib.sha256(f"{self._seed}/{trial.number}".encode()).digest()
        return int.from_bytes(text[:4], "big")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna: all parameters are drawn together."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna."""
        random = np.random.default_rng(self._number(trial))
        space = _SearchSpaceTransform(search_space, transform_0_1=True)
        others = [
            one
            for one in study.get_trials(deepcopy=False)
            if one.number != trial.number and one.params.keys() >= search_space.keys()
        ]
        over = [one for one in others if one.state == TrialState.COMPLETE]
        if len(over) < self._startup:
            return space.untransform(random.random(len(space.bounds)))
        flying = [one for one in others if one.state == TrialState.RUNNING]
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        values = sign * np.array([one.value for one in over], dtype=float)
        tried, waiting = (_places(space, search_space, trials) for trials in (over, flying))
        return space.untransform(most_promising(tried, values, waiting, random))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See Optuna: of a parameter that the space has not."""
        sampler = RandomSampler(seed=self._number(trial))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _places(space: _SearchSpaceTransform, names: Iterable[str], trials: Sequence[FrozenTrial]) -> Floats:
    """`[N, D]` in the unit cube."""
    rows = [space.transform({name: one.params[name] for name in names}) for one in trials]
    return np.array(rows).reshape(len(trials), len(space.bounds))


def most_promising(tried: Floats, values: Floats, flying: Floats, random: np.random.Generator) -> Floats:
    """`[D]` in the unit cube: of random candidates the one with the largest expected improvement.

    tried: `[N, D]` with its values `[N]`, the smaller the better. flying: `[M, D]` whose values are yet to
    come; they are taken to be as expected, so that two workers do not try the same.
    """
    scale = np.quantile(values, 0.75) - values.min()
    if scale <= 0:
        return random.random(tried.shape[1])
    scaled = np.minimum((values - np.median(values)) / scale, WORST)
    model = _fitted(tried, scaled, _kernel())
    if len(flying):
        known = model.predict(flying)
        model = _fitted(np.vstack([tried, flying]), np.append(scaled, known), model.kernel_, learn=False)
    candidates = _candidates(tried[values.argmin()], random)
    mean, deviation = model.predict(candidates, return_std=True)
    gain = scaled.min() - mean
    z = gain / np.maximum(deviation, 1e-12)
    best: Floats = candidates[(gain * norm.cdf(z) + deviation * norm.pdf(z)).argmax()]
    return best


def _candidates(best: Floats, random: np.random.Generator) -> Floats:
    anywhere = random.random((ANYWHERE, len(best))) * (1 + 2 * BEYOND) - BEYOND
    near = best + SPREAD * random.standard_normal((NEAR, len(best)))
    return np.vstack([anywhere, near]).clip(0.0, 1.0)


def _kernel() -> Any:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    return ConstantKernel(1.0, (0.1, 10.0)) * Matern(LENGTH, LENGTHS, nu=2.5) + WhiteKernel(NOISE, NOISES)


def _fitted(places: Floats, values: Floats, kernel: Any, learn: bool = True) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    optimizer = "fmin_l_bfgs_b" if learn else None
    model = GaussianProcessRegressor(kernel, optimizer=optimizer, normalize_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at the end of its range
        return model.fit(places, values)
