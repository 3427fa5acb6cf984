"""A checked request for strategies: everything the steps of a proposal read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import margin_floor_mask
from qiance.domain import Audience, Brief, Catalogue, Channel, Item, StrategyKind, UserTable
from qiance.strategy.audience import audience_mask, intersect, resolve_audience
from qiance.strategy.demand import DayDemand
from qiance.strategy.timing import Window, windows

MAX_STRATEGIES = 50
MAX_DEPTHS = 10

# Where each kind can be shown; the brief's own order is the preference.
KIND_CHANNELS: Mapping[StrategyKind, tuple[Channel, ...]] = {
    StrategyKind.RECOMMENDATION: (Channel.EMAIL, Channel.DISPLAY, Channel.PUSH),
    StrategyKind.AD: (Channel.DISPLAY,),
    StrategyKind.PROMOTION: (Channel.MAILER, Channel.EMAIL),
    StrategyKind.CONTENT: (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER, Channel.PUSH),
}


@dataclass(frozen=True)
class Known:
    """What else is known of a shop, where it is.

    stock: `[I]` units on hand of each catalogue item, NaN for unknown. demand: what is bought by day;
    country: ISO 3166 code, whose public holidays count.
    """

    stock: NDArray[np.floating] | None = None
    demand: DayDemand | None = None
    country: str = "US"


@dataclass(frozen=True)
class Request:
    """A brief with what it is answered from.

    affinity: `[U, C]` user × category, finite, ≥ 0; category_row: category → column of it.
    popularity: `[I]` weight of each catalogue item, ≥ 0; contact_cost: minor units per contact.
    depths: ascending, all in (0, 1); base: the brief's audience; members: `[M]` its rows, M ≥ 1.
    stock: `[I]` units on hand, ≥ 0, NaN unknown. demand: see `Known`. windows: when a promotion may run, the
    whole period first.
    """

    brief: Brief
    catalogue: Catalogue
    users: UserTable
    affinity: NDArray[np.float64]
    category_row: Mapping[str, int]
    popularity: NDArray[np.float64]
    contact_cost: Mapping[Channel, int]
    depths: tuple[float, ...]
    seed: int
    base: Audience
    members: NDArray[np.int64]
    stock: NDArray[np.float64]
    demand: DayDemand | None
    country: str
    windows: tuple[Window, ...]

    def on_hand(self, item: Item) -> float | None:
        """Units of the item on hand; None where that is not known."""
        units = float(self.stock[self.catalogue.index[item.item_id]])
        return None if np.isnan(units) else units

    def channels(self, kind: StrategyKind) -> tuple[Channel, ...]:
        """The brief's channels that `kind` can use, in the brief's order."""
        allowed = dict.fromkeys(self.brief.channels)
        return tuple(channel for channel in allowed if channel in KIND_CHANNELS[kind])

    def narrowed(self, audience: Audience) -> Audience:
        """`audience` within the brief's own."""
        return intersect(self.base, audience)

    def matching(self, audience: Audience) -> NDArray[np.int64]:
        """Rows of the users table that `audience` matches, `[M']`."""
        return np.flatnonzero(audience_mask(audience, self.users)).astype(np.int64)

    def sample(self, rows: NDArray[np.int64], limit: int, stage: int) -> NDArray[np.int64]:
        """At most `limit` of `rows`, ascending; the same for the same seed and stage."""
        if rows.size <= limit:
            return rows
        rng = np.random.default_rng([self.seed, stage])
        return np.sort(rng.choice(rows, size=limit, replace=False))

    def item_affinity(self, item: Item) -> NDArray[np.float64]:
        """Affinity of every user for the item's category, `[U]`; zeros for a category without a column."""
        column = self.category_row.get(item.category)
        return np.zeros(len(self.users)) if column is None else self.affinity[:, column]


def build_request(
    brief: Brief,
    catalogue: Catalogue,
    users: UserTable,
    affinity: NDArray[np.floating],
    categories: tuple[str, ...],
    contact_cost: Mapping[Channel, int],
    depths: Sequence[float],
    popularity: NDArray[np.floating] | None,
    seed: int,
    known: Known | None = None,
) -> Request:
    """Check everything and put it together.

    Raises ValueError that names the field, its value and the remedy.
    """
    _check_brief(brief)
    _check_channels(brief, contact_cost)
    _check_tables(users, affinity, categories)
    given = known or Known()
    _check_catalogue(catalogue, popularity, given.stock)
    if seed < 0:
        raise ValueError(f"seed: {seed} is negative; use an integer of at least 0")
    base = resolve_audience(brief.audience, users)
    return Request(
        brief=brief,
        catalogue=catalogue,
        users=users,
        affinity=np.nan_to_num(affinity.astype(np.float64), nan=0.0),
        category_row={name: column for column, name in enumerate(categories)},
        popularity=np.ones(len(catalogue)) if popularity is None else popularity.astype(np.float64),
        contact_cost=contact_cost,
        depths=_checked_depths(depths),
        seed=seed,
        base=base,
        members=np.flatnonzero(audience_mask(base, users)).astype(np.int64),
        stock=_on_hand(given.stock, len(catalogue)),
        demand=given.demand,
        country=given.country,
        windows=windows(brief.starts, brief.ends, given.country),
    )


def admissible_items(brief: Brief, catalogue: Catalogue, stock: NDArray[np.float64]) -> tuple[Item, ...]:
    """The brief's items, or all, that keep the margin floor at full price and are not known to be sold out.

    stock: `[I]` units on hand, NaN unknown. Raises ValueError for an id that the catalogue lacks, and when no
    item is left.
    """
    unknown = [item_id for item_id in brief.items if item_id not in catalogue.index]
    if unknown:
        raise ValueError(
            f"brief.items: {unknown[0]!r} is not in the catalogue of {len(catalogue)} items;"
            " remove or correct it"
        )
    wanted = [catalogue[item_id] for item_id in dict.fromkeys(brief.items)] or list(catalogue)
    price = np.array([item.price for item in wanted], dtype=np.int64)
    cost = np.array([item.unit_cost for item in wanted], dtype=np.int64)
    kept = margin_floor_mask(price, cost, 0.0, brief.min_margin)
    if not kept.any():
        best = max(wanted, key=lambda item: item.margin_rate)
        highest = f"the best, {best.item_id!r}, keeps {best.margin_rate:.3g}"
        raise ValueError(
            f"brief.min_margin: none of {len(wanted)} items keeps {brief.min_margin:g} of its price"
            f" even without a discount ({highest}); lower the floor or name other items"
        )
    there = kept & ~(stock[[catalogue.index[item.item_id] for item in wanted]] <= 0)
    if not there.any():
        raise ValueError(
            f"brief.items: all {int(kept.sum())} that keep the margin floor are sold out; name others,"
            " or correct the stock"
        )
    return tuple(wanted[place] for place in np.flatnonzero(there))


def _check_brief(brief: Brief) -> None:
    if not 1 <= brief.n <= MAX_STRATEGIES:
        raise ValueError(f"brief.n: {brief.n} is outside [1, {MAX_STRATEGIES}]")
    for name in ("starts", "ends"):
        if getattr(brief, name).utcoffset() is None:
            raise ValueError(f"brief.{name}: {getattr(brief, name)} has no time zone; pass a UTC time")
    if brief.ends <= brief.starts:
        raise ValueError(f"brief.ends: {brief.ends} is not after brief.starts {brief.starts}")
    for name in ("max_depth", "min_margin"):
        value = getattr(brief, name)
        if not 0.0 <= value < 1.0:
            raise ValueError(f"brief.{name}: {value} is outside [0, 1); it is a fraction of the price")
    if brief.budget.minor < 0:
        raise ValueError(f"brief.budget: {brief.budget} is negative")
    if not brief.languages:
        raise ValueError("brief.languages: empty; name at least one, such as 'en'")


def _check_channels(brief: Brief, contact_cost: Mapping[Channel, int]) -> None:
    if not brief.channels or Channel.NONE in brief.channels:
        named = ", ".join(brief.channels) or "none"
        raise ValueError(
            f"brief.channels: {named} cannot carry a strategy; use email, display, mailer or push only"
        )
    for channel in brief.channels:
        cost = contact_cost.get(channel)
        if cost is None:
            raise ValueError(f"contact_cost: no cost for channel {channel.value!r} of the brief; add it")
        if cost < 0:
            raise ValueError(f"contact_cost: {cost} for {channel.value!r} is negative")


def _check_tables(users: UserTable, affinity: NDArray[np.floating], categories: tuple[str, ...]) -> None:
    if len(users) == 0:
        raise ValueError("users: the table is empty; ingest purchases first")
    for name, column in users.columns.items():
        if column.shape != (len(users),):
            raise ValueError(f"users.columns[{name!r}]: shape {column.shape} is not ({len(users)},)")
    if affinity.shape != (len(users), len(categories)):
        raise ValueError(
            f"affinity: shape {affinity.shape} is not {len(users)} users × {len(categories)} categories"
        )
    bad = affinity[np.isinf(affinity) | (affinity < 0)]
    if bad.size:
        raise ValueError(
            f"affinity: {bad[0]} is negative or infinite; use shares of spend or counts, NaN for unknown"
        )


def _on_hand(stock: NDArray[np.floating] | None, items: int) -> NDArray[np.float64]:
    """What was oversold is not on hand."""
    return np.full(items, np.nan) if stock is None else np.maximum(stock.astype(np.float64), 0.0)


def _check_catalogue(
    catalogue: Catalogue, popularity: NDArray[np.floating] | None, stock: NDArray[np.floating] | None
) -> None:
    if len(catalogue) == 0:
        raise ValueError("catalogue: no items; ingest products first")
    for item in catalogue:
        if item.price < 1 or item.unit_cost < 0:
            raise ValueError(
                f"catalogue: item {item.item_id!r} has price {item.price} and unit_cost {item.unit_cost};"
                " they are minor units, at least 1 and 0"
            )
    if popularity is not None and (popularity.shape != (len(catalogue),) or not _non_negative(popularity)):
        raise ValueError(
            f"popularity: needs {len(catalogue)} finite weights of at least 0, one per catalogue item"
        )
    if stock is not None and (stock.shape != (len(catalogue),) or np.isinf(stock).any()):
        raise ValueError(f"stock: needs {len(catalogue)} units, one per catalogue item, NaN where unknown")


def _non_negative(values: NDArray[np.floating]) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _checked_depths(depths: Sequence[float]) -> tuple[float, ...]:
    bad = [depth for depth in depths if not isfinite(depth) or not 0.0 <= depth < 1.0]
    if bad:
        raise ValueError(f"depths: {bad[0]} is outside [0, 1); a depth is a fraction of the price")
    kept = tuple(sorted({float(depth) for depth in depths if depth > 0}))
    if len(kept) > MAX_DEPTHS:
        raise ValueError(f"depths: {len(kept)} are more than {MAX_DEPTHS}; name fewer")
    return kept
