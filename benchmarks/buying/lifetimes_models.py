"""Fits the models of `lifetimes` and says what they predict; runs in an environment of its own.

    python lifetimes_models.py IN.npz HORIZON_DAYS OUT.npz

IN has, by customer: repeats (days with a purchase after the first), last, age (days), spend (mean value of
the repeat purchases, NaN without one). OUT has for each model NAME: NAME_churn, NAME_purchases,
NAME_purchases_median, NAME_value, NAME_value_median `[U]` and NAME_within `[U, D]`, P(next purchase by day
d).
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
from lifetimes import BetaGeoFitter, GammaGammaFitter, ModifiedBetaGeoFitter, ParetoNBDFitter

WEEK = 7.0
DRAWS = 400
MODELS = {"bg_nbd": BetaGeoFitter, "mbg_nbd": ModifiedBetaGeoFitter, "pareto_nbd": ParetoNBDFitter}


def spend_of(repeats, spend):
    """Gamma-Gamma: expected value of a purchase `[U]`."""
    model = GammaGammaFitter(penalizer_coef=0.0)
    known = (repeats > 0) & (spend > 0)
    model.fit(repeats[known], spend[known])
    return np.asarray(model.conditional_expected_average_profit(repeats, np.nan_to_num(spend)))


def purchases_drawn(name, model, alive, x, age, horizon, random):
    """`[U]` median purchases by simulation: given that a customer is alive, rates follow known distributions.

    The models are conjugate: λ | alive ~ gamma(r + x, α + T); a purchase is the last with p ~ beta(a, b + x)
    (BG), beta(a, b + x + 1) (MBG), or the end comes at the rate μ ~ gamma(s, β + T) (Pareto).
    """
    p = model.params_
    found = np.empty((len(x), DRAWS))
    for n in range(DRAWS):
        rate = random.gamma(p["r"] + x) / (p["alpha"] + age)
        if name == "pareto_nbd":
            leaving = random.gamma(p["s"], size=len(x)) / (p["beta"] + age)
            left = random.exponential(1 / np.maximum(leaving, 1e-12))
            count = random.poisson(rate * np.minimum(left, horizon))
        else:
            last = random.beta(p["a"], p["b"] + x + (name == "mbg_nbd"))
            count = np.minimum(random.poisson(rate * horizon), random.geometric(np.clip(last, 1e-9, 1.0)))
        found[:, n] = np.where(random.random(len(x)) < alive, count, 0)
    return np.median(found, axis=1)


def within_of(name, model, alive, x, last, age, days):
    """`[U, D]` P(next purchase by day d). While a BG or MBG customer lives, the next purchase is only a
    matter of λ | alive ~ gamma(r + x, α + T); Pareto/NBD has it in the library."""
    p = model.params_
    if name == "pareto_nbd":
        none = model.conditional_probability_of_n_purchases_up_to_time
        some = np.linspace(0, len(days) - 1, min(len(days), 40)).astype(int)
        known = np.stack([1 - np.asarray(none(0, days[d], x, last, age)) for d in some], axis=1)
        return np.stack([np.interp(days, days[some], row) for row in known])
    power = ((p["alpha"] + age)[:, None] / ((p["alpha"] + age)[:, None] + days)) ** (p["r"] + x)[:, None]
    return alive[:, None] * (1 - power)


def main(source, horizon_days, target):
    given = np.load(source)
    x, last, age = given["repeats"], given["last"] / WEEK, given["age"] / WEEK
    value, days = spend_of(x, given["spend"]), np.arange(1, int(horizon_days) + 1) / WEEK
    found = {}
    for name, fitter in MODELS.items():
        model = fitter(penalizer_coef=0.0)
        model.fit(x, last, age)
        alive = np.asarray(model.conditional_probability_alive(x, last, age))
        count = np.asarray(model.conditional_expected_number_of_purchases_up_to_time(days[-1], x, last, age))
        within = within_of(name, model, alive, x, last, age, days)
        median = purchases_drawn(name, model, alive, x, age, days[-1], np.random.default_rng(0))
        found[f"{name}_churn"], found[f"{name}_within"] = 1 - within[:, -1], within
        found[f"{name}_purchases"], found[f"{name}_purchases_median"] = count, median
        found[f"{name}_value"], found[f"{name}_value_median"] = count * value, median * value
        print(name, dict(model.params_), file=sys.stderr)
    np.savez(target, **found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
