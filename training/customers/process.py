"""Fits the distribution of buying and leaving rates: nonparametric maximum likelihood by EM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qiance.customers.history import History
from qiance.customers.process import BuyingProcess, log_likelihood
from training.customers.settings import ProcessSettings

Floats = NDArray[np.float64]
_SLOWEST = 0.02  # of the history: a rate that shows once in fifty of its lengths
_FASTEST_RATE, _FASTEST_DROPOUT = 0.7, 0.5  # per day: at most one purchase a day is counted


def fit_process(history: History, settings: ProcessSettings) -> BuyingProcess:
    """Weights on a grid of rates, from equal ones by `settings.turns` steps of EM.

    w ← w · mean over customers of L(history | point) / Σ w L. Equal histories are counted, not repeated.
    """
    rate, dropout = _grid(float(history.span), settings)
    known = np.column_stack([history.repeats, history.last, history.age])
    patterns, count = np.unique(known, axis=0, return_counts=True)
    loglik, _ = log_likelihood(*patterns.T, rate, dropout)
    chance = np.exp(loglik - loglik.max(axis=1, keepdims=True))
    share, weight = count / count.sum(), np.full(len(rate), 1 / len(rate))
    for _ in range(settings.turns):
        weight = weight * (chance.T @ (share / (chance @ weight)))
    return BuyingProcess(rate, dropout, weight / weight.sum())


def _grid(span: float, settings: ProcessSettings) -> tuple[Floats, Floats]:
    slowest = np.log(min(_SLOWEST / span, _SLOWEST))
    rates = np.exp(np.linspace(slowest, np.log(_FASTEST_RATE), settings.rates))
    dropouts = np.exp(np.linspace(slowest, np.log(_FASTEST_DROPOUT), settings.dropouts))
    rate, dropout = np.meshgrid(rates, dropouts, indexing="ij")
    return rate.ravel(), dropout.ravel()
