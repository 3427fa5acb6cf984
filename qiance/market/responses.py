"""The market's known response functions: how likely a user clicks and buys, and for how much.

All functions broadcast over users `[U, 1]` and actions `[1, A]`, or over matching rows `[n]`.
Coefficients are fixed by hand; the intercepts of the channels are calibrated (calibrate.py) so that
base rates are near published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Channel

Floats = NDArray[np.float64]

CHANNELS = (Channel.NONE, Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER)
# What a contact costs, in minor units: assumptions for a grocer in the USA, not figures from the data.
CONTACT_COST = MappingProxyType(
    {Channel.NONE: 0, Channel.EMAIL: 1, Channel.PUSH: 1, Channel.DISPLAY: 2, Channel.MAILER: 35}
)


@dataclass(frozen=True)
class Coefficients:
    """Effects on the log-odds of a click (and, where stated, of a purchase after it).

    affinity: per unit of standardised category affinity; depth: per unit of price sensitivity at 20 %
    off; fatigue: per recent contact; stock: per recent unit bought on offer in the category;
    creative: per unit of each creative feature; foreign: a language the user does not read.
    """

    affinity: float = 0.6
    depth: float = 0.9
    depth_purchase: float = 0.7
    fatigue: float = 0.12
    stock: float = 0.5
    channel_taste: float = 0.5
    foreign: float = 0.8
    purchase: Mapping[Channel, float] = field(
        default_factory=lambda: {
            Channel.EMAIL: -1.5,
            Channel.PUSH: -1.5,
            Channel.DISPLAY: -2.2,
            Channel.MAILER: 0.6,
        }
    )
    creative: Mapping[str, float] = field(
        default_factory=lambda: {"mentions_product": 0.25, "has_question": 0.1, "has_discount_slot": 0.15}
    )
    headline_best: float = 36.0
    headline_curvature: float = 0.0004
    exclamation: float = 0.1


def sigmoid(x: Floats) -> Floats:
    """1 ÷ (1 + e^−x), stable for large |x|."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def creative_logit(features: Mapping[str, Floats], c: Coefficients) -> Floats:
    """Contribution of the words to the log-odds of a click."""
    length = features["headline_length"]
    total = -c.headline_curvature * (length - c.headline_best) ** 2
    total = total - c.exclamation * np.maximum(features["exclamations"] - 1.0, 0.0)
    for name, weight in c.creative.items():
        total = total + weight * features[name]
    return np.asarray(total - c.foreign * features["language_zh"], dtype=np.float64)


def click_logit(
    intercept: Floats,
    affinity: Floats,
    sensitivity: Floats,
    depth: Floats,
    words: Floats,
    taste: Floats,
    fatigue: Floats,
    stock: Floats,
    c: Coefficients,
) -> Floats:
    """Log-odds that a contact is followed: a visit (mail, push), a click (display), an activation."""
    gain = c.depth * sensitivity * np.sqrt(np.maximum(depth, 0.0) / 0.2)
    return np.asarray(
        intercept
        + c.affinity * affinity
        + gain
        + words
        + c.channel_taste * taste
        - c.fatigue * fatigue
        - c.stock * stock,
        dtype=np.float64,
    )


def purchase_logit(
    base: Floats, affinity: Floats, sensitivity: Floats, depth: Floats, stock: Floats, c: Coefficients
) -> Floats:
    """Log-odds of buying the item after the click."""
    return np.asarray(
        base + 0.5 * c.affinity * affinity + c.depth_purchase * sensitivity * (depth / 0.2) - c.stock * stock,
        dtype=np.float64,
    )
