"""Generators of users: marginals apart, and the dependence of their normal scores by a mixture or a VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from sklearn.mixture import GaussianMixture

from training.effect.loop import torch_left_alone
from training.propose.fit import Tell, VaeSettings, fit_vae
from training.propose.network import Records, VaeConfig
from training.synth.table import Floats, Marginals

Method = Literal["copula", "vae"]
# Draws that a table is ranked among, so that a small cohort is a random one and not evenly spread.
RANKED_AMONG = 20_000
COMPONENTS = (1, 2, 4, 8)
LEAST_PER_COMPONENT = 20
Sampler = Callable[[int, np.random.Generator], Floats]


@dataclass(frozen=True)
class Generator:
    """marginals: of the columns. sampler: draws normal scores `[n, columns]`."""

    marginals: Marginals
    sampler: Sampler

    def sample(self, count: int, seed: int = 0) -> pd.DataFrame:
        """`count` users; equal seeds give equal users."""
        if count < 1:
            raise ValueError(f"n: {count} users are none; ask for at least 1")
        rng = np.random.default_rng(seed)
        drawn = self.sampler(max(count, RANKED_AMONG), rng)
        table = self.marginals.table(drawn)
        return table.iloc[rng.permutation(len(table))[:count]].reset_index(drop=True)


def fit_generator(
    users: pd.DataFrame, method: Method = "copula", seed: int = 0, tell: Tell | None = None
) -> Generator:
    """Learn from users, a row each, as `read_users` has them."""
    marginals = Marginals.fit(users)
    scores = marginals.scores(users, np.random.default_rng([seed, 1]))
    fit = {"copula": _mixture, "vae": _vae}[method]
    return Generator(marginals, fit(scores, seed, tell))


def _mixture(scores: Floats, seed: int, tell: Tell | None) -> Sampler:
    """A Gaussian mixture copula; the number of components by the Bayesian information criterion.

    One component is the Gaussian copula. Source: Tewari, Giering & Raghunathan, ICDM Workshops (2011),
    286-292; the criterion: Schwarz, Ann. Stat. 6 (1978), 461-464.
    """
    width = scores.shape[1]
    tried = [
        GaussianMixture(k, reg_covar=1e-2, random_state=seed, max_iter=200).fit(scores)
        for k in COMPONENTS
        if len(scores) >= k * LEAST_PER_COMPONENT * width or k == 1
    ]
    best = min(tried, key=lambda one: one.bic(scores))
    if tell:
        tell(1.0, f"{best.n_components} components")

    def sample(count: int, rng: np.random.Generator) -> Floats:
        which = rng.choice(best.n_components, count, p=best.weights_)
        factors = np.linalg.cholesky(best.covariances_)
        noise = rng.standard_normal((count, width))
        return np.asarray(best.means_[which] + np.einsum("nij,nj->ni", factors[which], noise))

    return sample


def _vae(scores: Floats, seed: int, tell: Tell | None) -> Sampler:
    """The VAE of the proposer, without a condition, on numbers only."""
    order = np.random.default_rng([seed, 2]).permutation(len(scores))
    held = max(1, len(scores) // 7)
    learned, valid = _records(scores[order[held:]]), _records(scores[order[:held]])
    settings = VaeSettings(latent=8, hidden=128, seed=seed)
    config = VaeConfig(0, scores.shape[1], latent=settings.latent, hidden=settings.hidden)
    network = fit_vae(config, lambda _rng: learned, valid, settings, tell).network

    def sample(count: int, rng: np.random.Generator) -> Floats:
        with torch_left_alone():
            torch.set_num_threads(1)
            torch.manual_seed(int(rng.integers(2**31)))
            return network.sample(torch.zeros(count, 0)).numbers.double().numpy()

    return sample


def _records(scores: Floats) -> Records:
    numbers = torch.from_numpy(scores.astype(np.float32))
    n = len(numbers)
    return Records(
        torch.zeros(n, 0),
        numbers,
        torch.ones_like(numbers),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n, 0),
        torch.ones(n),
    )
