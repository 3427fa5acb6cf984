"""The simulated shop that stands in for live traffic, and the first log it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.cli.stages import Stage
from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Catalogue,
    Channel,
    Item,
    Objective,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
)
from qiance.features.words import VectorsOf, no_vectors
from qiance.market import CONTACT_COST, Market
from qiance.market.market import ActionTable
from qiance.market.simulate import ContactWindow, MarketLog, collect_log, uniform_over
from qiance.settings import MarketSettings
from qiance.strategy.audience import audience_mask
from qiance.strategy.content import write_content
from qiance.strategy.content_ports import ContentRequest
from qiance.workspace import Snapshot

CHANNELS = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
DEPTHS = (0.0, 0.1, 0.2, 0.3)
ITEMS_PER_CATEGORY = 4
CONTROL_SHARE = 0.2  # of the seed log: what happens anyway must be known well


@dataclass
class World:
    """The market, its calendar, and what it remembers of contacts; words: finds the vectors of texts."""

    market: Market
    snapshot: Snapshot
    now: datetime
    rng: np.random.Generator
    window: ContactWindow
    logs: list[tuple[str, ActionTable, MarketLog]] = field(default_factory=list)
    words: VectorsOf = no_vectors

    @classmethod
    def open(cls, snapshot: Snapshot, seed: int, words: VectorsOf = no_vectors) -> World:
        """A calibrated market over the snapshot's users, beginning where the real log ends."""
        market = Market.build(
            snapshot.users,
            snapshot.user_category["category_share"],
            snapshot.categories,
            snapshot.catalogue,
            seed,
        )
        window = ContactWindow(len(market.population))
        rng = np.random.default_rng([seed, 7])
        return cls(market, snapshot, snapshot.as_of, rng, window, words=words)

    def pass_days(self, days: int) -> None:
        """Move the calendar; the market's own state was moved by whoever ran the days."""
        self.now += timedelta(days=days)


def seed_actions(catalogue: Catalogue, seed: int) -> tuple[Action, ...]:
    """What the shop's old campaigns did: best sellers × channels × depths, in template words."""
    by_category: dict[str, list[Item]] = {}
    for item in catalogue:
        by_category.setdefault(item.category, []).append(item)
    items = [item for group in by_category.values() for item in group[:ITEMS_PER_CATEGORY]]
    rng = np.random.default_rng([seed, 11])
    requests, shown_on = [], []
    for number, item in enumerate(items):
        for channel in CHANNELS:
            depth = DEPTHS[int(rng.integers(len(DEPTHS)))]
            # Words written for any channel: else the model could not tell the words from the channel.
            style = CHANNELS[int(rng.integers(len(CHANNELS)))]
            offer = Offer(OfferKind.PERCENT, depth) if depth else Offer()
            requests.append(
                ContentRequest(
                    key=f"seed-{number}-{channel.value}",
                    item=item,
                    offer=offer,
                    channel=style,
                    language="en",
                    segment="everybody",
                    objective=Objective.MARGIN,
                )
            )
            shown_on.append(channel)
    written = write_content(requests, None, samples=1, seed=seed)
    return (
        CONTROL_ACTION,
        *(
            Action(
                action_id=r.key,
                strategy_id="seed",
                kind=StrategyKind.PROMOTION,
                item_id=r.item.item_id,
                offer=r.offer,
                creative=replace(w.creative, channel=channel),
                channel=channel,
                contact_cost=CONTACT_COST[channel],
            )
            for r, w, channel in zip(requests, written, shown_on, strict=True)
        ),
    )


def seed_log(world: World, settings: MarketSettings, seed: int, stage: Stage) -> None:
    """The exploring log of old campaigns; a fifth of all decisions is control."""
    table = world.market.table(seed_actions(world.snapshot.catalogue, seed))
    size = len(table)
    probabilities = np.full(size, (1.0 - CONTROL_SHARE) / (size - 1))
    probabilities[0] = CONTROL_SHARE
    log = collect_log(
        world.market,
        table,
        lambda users, _: np.broadcast_to(probabilities, (len(users), size)),
        world.now,
        settings.seed_days,
        settings.arrivals_per_day,
        world.window,
        world.rng,
        lambda day: stage.tell((day + 1) / settings.seed_days, f"day {day + 1}"),
    )
    world.logs.append(("seed", table, log))
    world.pass_days(settings.seed_days)
    stage.note(
        f"{len(log):,} decisions over {settings.seed_days} days (simulated): "
        f"click {log.click.mean():.2%}, conversion {log.conversion.mean():.2%}"
    )


def explore(
    world: World, strategies: Sequence[Strategy], settings: MarketSettings, stage: Stage
) -> tuple[ActionTable, MarketLog, NDArray[np.bool_]]:
    """Randomise over the approved strategies: the log that off-policy estimates need.

    Returns the actions (control first), the log, and `[U, A]` which action admits which user.
    """
    actions = (CONTROL_ACTION, *(a for s in strategies for a in s.actions))
    table = world.market.table(actions)
    admits = audiences(strategies, world.snapshot)
    log = collect_log(
        world.market,
        table,
        uniform_over(lambda users: admits[users]),
        world.now,
        settings.explore_days,
        settings.arrivals_per_day,
        world.window,
        world.rng,
        lambda day: stage.tell((day + 1) / settings.explore_days, f"day {day + 1}"),
    )
    world.logs.append(("explore", table, log))
    world.pass_days(settings.explore_days)
    stage.note(f"{len(log):,} randomised decisions over {len(actions)} actions (simulated)")
    return table, log, admits


def audiences(strategies: Sequence[Strategy], snapshot: Snapshot) -> NDArray[np.bool_]:
    """`[U, A]`: control and every action of `strategies`, in order; whether the audience has the user."""
    columns = [np.ones(len(snapshot.users), dtype=np.bool_)]
    for strategy in strategies:
        mask = audience_mask(strategy.audience, snapshot.users)
        columns.extend([mask] * len(strategy.actions))
    return np.stack(columns, axis=1)
