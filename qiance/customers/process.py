"""Buy till you die: each customer buys at an own rate λ, and leaves for good at an own rate μ.

Both are constant, unseen and different between customers; while alive, purchases are a Poisson process. This
is the Pareto/NBD model (Schmittlein, Morrison and Colombo, 1987) without its assumption that λ and μ are
gamma distributed and independent: their joint distribution is weights on a grid, estimated by maximum
likelihood (Kiefer and Wolfowitz, 1956; Laird, 1978). Then every quantity is a sum over the grid. U users, G
points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaln, xlogy

from qiance.customers.history import History

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """What is known of each user. alive: `[U, G]` P(this point, and not gone | history); its rows sum to
    P(alive)."""

    alive: Floats


@dataclass(frozen=True)
class BuyingProcess:
    """rate λ, dropout μ: `[G]` per day, above 0; weight: `[G]` shares of the customers, sum 1."""

    rate: Floats
    dropout: Floats
    weight: Floats

    def posterior(self, history: History) -> Posterior:
        """By Bayes' rule."""
        loglik, alive = log_likelihood(history.repeats, history.last, history.age, self.rate, self.dropout)
        joint = np.exp(loglik - loglik.max(axis=1, keepdims=True)) * self.weight
        joint /= joint.sum(axis=1, keepdims=True)
        return Posterior(joint * alive)

    def next_within(self, posterior: Posterior, days: Floats) -> Floats:
        """P(the next purchase comes within `days` `[D]`), `[U, D]`: λ / (λ + μ) · (1 − exp(−(λ + μ) t))."""
        both = self.rate + self.dropout
        return np.asarray(posterior.alive @ ((self.rate / both)[:, None] * -np.expm1(-np.outer(both, days))))

    def expected_count(self, posterior: Posterior, days: float) -> Floats:
        """`[U]` expected purchases within `days`: λ / μ · (1 − exp(−μ t))."""
        mean = self.rate / self.dropout * -np.expm1(-self.dropout * days)
        return np.asarray(posterior.alive @ mean)

    def count_given_any(self, posterior: Posterior, days: int) -> Floats:
        """`[U, days]` P(n purchases | at least one) for n = 1 … days: at most one a day is counted."""
        chances = posterior.alive @ _counts(self.rate, self.dropout, float(days), days)[:, 1:]
        return np.asarray(chances / np.maximum(chances.sum(axis=1, keepdims=True), 1e-300))


def log_likelihood(
    repeats: Floats, last: Floats, age: Floats, rate: Floats, dropout: Floats
) -> tuple[Floats, Floats]:
    """`[U, G]` log likelihood of the histories, and P(alive at the cutoff | history, point).

    λ^x / (λ + μ) · [μ exp(−(λ + μ) t_x) + λ exp(−(λ + μ) T)], x repeats, t_x the last one, T the age.
    Source: Fader and Hardie (2005), A note on deriving the Pareto/NBD model.
    """
    both = rate + dropout
    gone = np.log(dropout) - np.outer(last, both)
    here = np.log(rate) - np.outer(age, both)
    either = np.logaddexp(gone, here)
    return np.outer(repeats, np.log(rate)) - np.log(both) + either, np.exp(here - either)


def _counts(rate: Floats, dropout: Floats, days: float, most: int) -> Floats:
    """`[G, most + 1]` P(n purchases within `days` | alive at their start).

    exp(−(λ+μ)t) (λt)ⁿ / n! + μ/(λ+μ) · (λ/(λ+μ))ⁿ · P(n + 1, (λ+μ)t), P the lower incomplete gamma ratio.
    Source: Fader and Hardie (2014), The Pareto/NBD conditional penetration.
    """
    n, both = np.arange(most + 1.0), (rate + dropout)[:, None]
    stays = np.exp(xlogy(n, rate[:, None] * days) - both * days - gammaln(n + 1))
    leaves = dropout[:, None] / both * (rate[:, None] / both) ** n * gammainc(n + 1, both * days)
    return np.asarray(stays + leaves)
