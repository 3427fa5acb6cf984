"""A market whose truth is planted, and a brief for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from qiance.domain import (
    Action,
    Brief,
    Catalogue,
    Channel,
    Creative,
    GridPrediction,
    Item,
    Money,
    Objective,
    UserTable,
)
from qiance.strategy.propose_ports import Draft, WrittenText

COSTS = {Channel.EMAIL: 1, Channel.DISPLAY: 0, Channel.MAILER: 40, Channel.PUSH: 0}
CATEGORIES = ("COFFEE", "TEA", "SOAP", "BREAD")
BRIEF = Brief(
    brief_id="b1",
    objective=Objective.MARGIN,
    budget=Money(500_000),
    starts=datetime(2026, 3, 2, tzinfo=UTC),
    ends=datetime(2026, 3, 30, tzinfo=UTC),
)


def make_users(size: int = 900, seed: int = 3) -> UserTable:
    rng = np.random.default_rng(seed)
    recency = rng.integers(1, 90, size).astype(float)
    recency[rng.random(size) < 0.03] = np.nan
    return UserTable(
        tuple(f"u{n}" for n in range(size)),
        {
            "recency_days": recency,
            "baskets_90d": rng.poisson(9, size).astype(float),
            "spend_90d": rng.gamma(2, 8_000, size),
            "discount_share": rng.uniform(0, 1, size),
        },
    )


def make_catalogue(per_category: int = 5) -> Catalogue:
    return Catalogue(
        tuple(
            Item(
                f"{name.lower()}-{n}",
                f"{name.title()} No {n}",
                name,
                "SHOP",
                "Own",
                500 + 100 * n,
                250 + 40 * n,
            )
            for name in CATEGORIES
            for n in range(per_category)
        )
    )


def make_affinity(users: UserTable) -> np.ndarray:
    """Frequent shoppers like coffee, the rest tea."""
    frequent = users.columns["baskets_90d"] > np.quantile(users.columns["baskets_90d"], 0.75)
    affinity = np.full((len(users), len(CATEGORIES)), 0.1)
    affinity[:, 0] += 0.6 * frequent
    affinity[:, 1] += 0.4 * ~frequent
    return affinity


class PlantedMarket:
    """A predictor that knows the truth it was given.

    Display pays `+90` for users with recency > 45 and discount share > 0.5, and `−4` for the rest.
    A discount pays best at 20 %: its uplift is `30 − 4000·(depth − 0.2)²` minor units.
    """

    def __init__(self, users: UserTable, catalogue: Catalogue, heads: int = 8) -> None:
        self.row = {name: n for n, name in enumerate(users.user_ids)}
        self.users, self.catalogue, self.heads = users, catalogue, heads
        self.calls: list[tuple[int, int]] = []

    def responders(self) -> np.ndarray:
        recency = np.nan_to_num(self.users.columns["recency_days"], nan=0.0)
        return (recency > 45) & (self.users.columns["discount_share"] > 0.5)

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        self.calls.append((len(user_ids), len(actions)))
        rows = [self.row[name] for name in user_ids]
        uplift = np.stack([self._uplift(action)[rows] for action in actions], axis=1)
        heads = np.linspace(0.9, 1.1, self.heads)
        control = np.full((len(rows), self.heads), 100.0)
        cost = np.array([action.contact_cost for action in actions], dtype=np.float32)
        margin = uplift[:, :, None] * heads + control[:, None, :] + cost[None, :, None]
        click = np.clip(0.02 + uplift / 5_000, 0.001, 1)[:, :, None] * heads
        draws = [click, click / 2, 10 + margin * 2, margin, control]
        return GridPrediction(*(d.astype(np.float32) for d in draws), contact_cost=cost)

    def _uplift(self, action: Action) -> np.ndarray:
        size = len(self.users)
        assert action.item_id is not None
        value = np.full(size, self.catalogue[action.item_id].price / 1_000.0)
        if action.channel is Channel.DISPLAY:
            value += np.where(self.responders(), 90.0, -4.0)
        if action.offer.depth:
            value += 30 - 4_000 * (action.offer.depth - 0.2) ** 2
        return value


class PlainWriter:
    """Writes one plain line per draft, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Draft] = []

    def write(self, drafts: Sequence[Draft]) -> list[WrittenText]:
        self.asked.extend(drafts)
        return [
            WrittenText(
                Creative(d.channel, d.language, f"{d.item.title} for you", ", ".join(d.segment), "Shop now"),
                (f"Speaks to {', '.join(d.segment)}.",),
                "plain writer",
            )
            for d in drafts
        ]


USERS, CATALOGUE = make_users(), make_catalogue()
AFFINITY = make_affinity(USERS)
