"""Channel intercepts such that the market's base rates are near published ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Channel
from qiance.market.population import Population
from qiance.market.responses import CHANNELS, Coefficients, sigmoid

Floats = NDArray[np.float64]

# Hillstrom (2008), visits within two weeks: 10.6 % without mail; 18.3 % and 15.1 % with the two mails.
VISIT_WITHOUT_MAIL = 0.106
VISIT_WITH_MAIL = (0.151, 0.183)
# Open Bandit (Saito et al. 2021): click-through rates of 0.4 to 0.7 % on a fashion site.
DISPLAY_CTR = 0.0055
# The Complete Journey: 792 of 6,589 household × campaign contacts redeemed a coupon.
REDEMPTION_RATE = 792 / 6_589
# Push is assumed to work as well as e-mail; no public figure was found.
REFERENCE_DEPTH = 0.2


@dataclass(frozen=True)
class Intercepts:
    """Log-odds per channel, in the order of `CHANNELS`: of a click, and of a purchase after it."""

    channel: Floats
    purchase: Floats


def induced_visit_rate() -> float:
    """Visits that a mail adds: 1 − (1 − with) ÷ (1 − without), mean of both of Hillstrom's mails."""
    added = [1.0 - (1.0 - rate) / (1.0 - VISIT_WITHOUT_MAIL) for rate in VISIT_WITH_MAIL]
    return float(np.mean(added))


def solve(rate: Callable[[float], float], target: float, low: float = -15.0, high: float = 15.0) -> float:
    """The argument at which the increasing function `rate` reaches `target`, by bisection."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return 0.5 * (low + high)


def calibrate(population: Population, c: Coefficients) -> Intercepts:
    """Solve the intercepts over all users × categories, fresh state, plain words, no offer.

    The mailer is solved for redemptions at `REFERENCE_DEPTH`: organic shoppers use their coupons too.
    """
    purchase = np.array([c.purchase.get(channel, 0.0) for channel in CHANNELS])
    # Words that name the product and have a headline of the best length: what a usual creative does.
    usual_words = c.creative["mentions_product"]

    def mean_click(channel: int, intercept: float, depth: float = 0.0, buying: float | None = None) -> float:
        gain = c.depth * population.sensitivity * np.sqrt(depth / 0.2)
        user = intercept + usual_words + gain + c.channel_taste * population.taste[:, channel]
        click = sigmoid(user[:, None] + c.affinity * population.affinity)
        if buying is not None:
            after = buying + c.depth_purchase * population.sensitivity * (depth / 0.2)
            click = click * sigmoid(after[:, None] + 0.5 * c.affinity * population.affinity)
        return float(click.mean())

    channel = np.zeros(len(CHANNELS))
    for name in (Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER):
        k = CHANNELS.index(name)
        redeem = 1.0 - (1.0 - REDEMPTION_RATE) / (1.0 - float(population.organic.mean()))
        target = {Channel.DISPLAY: DISPLAY_CTR, Channel.MAILER: redeem}.get(name, induced_visit_rate())
        mailer = name is Channel.MAILER
        depth, buying = (REFERENCE_DEPTH, float(purchase[k])) if mailer else (0.0, None)
        channel[k] = solve(lambda x, k=k, d=depth, b=buying: mean_click(k, x, d, b), target)  # type: ignore[misc]
    return Intercepts(channel, purchase)
