"""A log in which every segment has one channel that works, and half of the segments answer to depth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from qiance.domain import Brief, Item, Money, Objective
from qiance.proposer.proposer import Proposer, Request
from qiance.proposer.vector import CHANNELS, FORMS, Space, Vectors, rounded_shares
from training.propose.fit import ProposerSettings, VaeSettings, fit_proposer
from training.propose.log import StrategyLog

SPACE = Space(deepest=0.4, highest=4_000, period=14)
NAMES = ("segment_best_channel", "segment_deal_seeker")
SEGMENTS = {f"{channel.value}-{deal}": (k, deal) for k, channel in enumerate(CHANNELS[:2]) for deal in (0, 1)}
QUICK = ProposerSettings(VaeSettings(hidden=32, epochs=60, batch=128, learning_rate=5e-3))
ITEM = Item("item", "Coffee", "coffee", "grocery", "House", 1_000, 500)
BUDGET = 4.0
START = datetime(2025, 3, 3, tzinfo=UTC)


def random_vectors(size: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    shares = rounded_shares(rng.dirichlet(np.full(len(CHANNELS), 0.5), size) + 1e-9)
    return SPACE.decode(rng.integers(0, FORMS, size), rng.random((size, 4)), shares)


def truth(segment: str, vectors: Vectors) -> np.ndarray:
    """Margin per user: contacts on the segment's channel, more with depth for deal seekers only."""
    channel, deal = SEGMENTS[segment]
    pull = 4.0 * vectors.depth if deal else -2.0 * vectors.depth
    return vectors.days * vectors.shares[:, channel] * (1.0 + pull)


def cost(vectors: Vectors) -> np.ndarray:
    return vectors.days * (0.5 + vectors.depth)


def gain(segment: str, vectors: Vectors) -> np.ndarray:
    """What `BUDGET` per member truly brings."""
    return truth(segment, vectors) * np.minimum(1, BUDGET / cost(vectors))


def planted(per_segment: int = 60, noise: float = 2.0, seed: int = 0) -> StrategyLog:
    rng = np.random.default_rng(seed)
    segment = np.repeat(list(SEGMENTS), per_segment)
    vectors = random_vectors(len(segment), seed)
    mean = np.array([truth(name, vectors.take(np.array([row])))[0] for row, name in enumerate(segment)])
    users = rng.integers(20, 60, len(segment))
    margin = users * mean + np.sqrt(users) * noise * rng.standard_normal(len(segment)) * 5
    outcomes = {Objective.MARGIN: margin, Objective.CLICKS: users * vectors.days * vectors.shares[:, 0]}
    features = np.array([SEGMENTS[name] for name in segment], dtype=np.float64)
    spent = users * cost(vectors)
    return StrategyLog(segment, NAMES, features, vectors, users, spent, outcomes, "planted")


def request(segment: str, n: int = 5, **changes: object) -> Request:
    fields: dict[str, object] = {
        "brief_id": "b",
        "objective": Objective.MARGIN,
        "budget": Money(1_000),
        "starts": START,
        "ends": START + timedelta(days=14),
        "channels": CHANNELS,
        "n": n,
    }
    brief = Brief(**(fields | changes))  # type: ignore[arg-type]
    return Request(np.array(SEGMENTS[segment], dtype=np.float64), ITEM, brief, BUDGET)


def fitted(log: StrategyLog, settings: ProposerSettings = QUICK) -> Proposer:
    return Proposer(fit_proposer(log, settings), log.names, log.segments, settings.asked)


SHOP_FEATURES = ("segment_discount_share", "segment_baskets_90d")
SHOP_SEGMENTS = {"calm": (0.3, 6.0), "keen": (0.7, 6.0), "busy": (0.3, 14.0), "both": (0.7, 14.0)}


def of_a_shop(features: dict[str, tuple[float, float]] = SHOP_SEGMENTS) -> Proposer:
    """Learned from segments with features of users, in which contacts by e-mail pay, and depth does."""
    segment = np.repeat(list(features), 40)
    vectors = random_vectors(len(segment), 1)
    users = np.full(len(segment), 50)
    margin = users * vectors.days * vectors.shares[:, 0] * (1.0 + 4.0 * vectors.depth)
    own = np.array([features[name] for name in segment])
    outcomes = {Objective.MARGIN: margin}
    log = StrategyLog(segment, SHOP_FEATURES, own, vectors, users, users * cost(vectors), outcomes, "made up")
    return replace(fitted(log), version="0123abcd")
