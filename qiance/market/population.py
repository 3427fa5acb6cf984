"""Who lives in the simulated market: real households with their measured habits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qiance.domain import UserTable
from qiance.market.responses import CHANNELS

Floats = NDArray[np.float64]

# Gross margin of the rest of a basket: an assumption for a grocer, the data has no costs.
BASKET_MARGIN_RATE = 0.28


@dataclass(frozen=True)
class Population:
    """Users of the market.

    affinity: `[U, C]` standardised taste per category, from the household's real spend shares.
    sensitivity: `[U]` in [0, 2], mean 1, from the share of its spend bought at a discount.
    organic: `[U]` probability of a purchase within the outcome window without any contact.
    basket: `[U]` mean basket in minor units; taste: `[U, channels]`, standard normal.
    """

    user_ids: tuple[str, ...]
    categories: tuple[str, ...]
    affinity: Floats
    sensitivity: Floats
    organic: Floats
    basket: Floats
    taste: Floats
    margin_rate: float = BASKET_MARGIN_RATE
    basket_sigma: float = 0.5

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids)}

    def rows(self, user_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers of `user_ids`; an unknown one is refused by name."""
        try:
            return np.array([self._index[u] for u in user_ids], dtype=np.int64)
        except KeyError as missing:
            raise ValueError(f"user_id: {missing.args[0]!r} does not live in this market") from None

    @classmethod
    def build(
        cls,
        users: UserTable,
        affinity: Floats,
        categories: Sequence[str],
        seed: int,
        num_users: int | None = None,
        organic_rate: float = 0.106 * 0.3,
    ) -> Population:
        """From user features and `[U, C]` spend shares; `num_users` draws that many with replacement.

        organic_rate: mean of `organic`; the default is Hillstrom's visit rate without mail (10.6 %)
        times an assumed 30 % of visits that buy.
        """
        rng = np.random.default_rng([seed, 1])
        size = len(users) if num_users is None else num_users
        rows = np.arange(len(users)) if num_users is None else rng.integers(0, len(users), size)
        names = users.user_ids if num_users is None else tuple(f"u{n:07d}" for n in range(size))
        return cls(
            user_ids=tuple(names),
            categories=tuple(categories),
            affinity=_standardise(np.sqrt(affinity))[rows],
            sensitivity=_sensitivity(users.columns["discount_share"])[rows],
            organic=_organic(users.columns["baskets_90d"][rows], organic_rate),
            basket=_basket(users.columns["avg_basket"])[rows],
            taste=rng.standard_normal((size, len(CHANNELS))),
        )


def _standardise(x: Floats) -> Floats:
    spread = x.std(axis=0)
    return np.asarray(np.clip((x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0), -2.0, 3.0))


def _sensitivity(discount_share: Floats) -> Floats:
    ranks = np.argsort(np.argsort(np.nan_to_num(discount_share)))
    return np.asarray(2.0 * ranks / max(len(ranks) - 1, 1), dtype=np.float64)


def _organic(baskets: Floats, mean_rate: float) -> Floats:
    weight = np.sqrt(np.nan_to_num(baskets) + 1.0)
    return np.asarray(np.clip(mean_rate * weight / weight.mean(), 0.0, 0.5))


def _basket(avg_basket: Floats) -> Floats:
    known = np.where(avg_basket > 0, avg_basket, np.nan)
    middle = float(np.nanmedian(known)) if np.isfinite(known).any() else 2_000.0
    return np.asarray(np.clip(np.nan_to_num(known, nan=middle), 300.0, 15_000.0))
