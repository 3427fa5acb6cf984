"""Promotions: who × level × when, within the floors and what is on hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Audience, Channel, Interval, Item, StrategyKind
from qiance.strategy.audience import intersect
from qiance.strategy.promotion import DepthChoice, Schedule, choose_depth
from qiance.strategy.propose_candidate import (
    Candidate,
    Segment,
    Sold,
    candidate,
    contacts,
    leaves_of,
    mean_of,
    rate_of,
    segment_of,
    units_of,
)
from qiance.strategy.propose_grid import Grid
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import kept_words, money, percent
from qiance.strategy.timing import Window

Floats = NDArray[np.float64]
Note = Callable[[str], None]
Columns = Mapping[float, int]

_NAMED = 3  # items that a note names


@dataclass(frozen=True)
class Deal:
    """One way to promote an item. value: objective over all contacts; units: that it is predicted to sell."""

    segment: Segment
    depth: float
    window: Window
    value: float
    demand: float
    units: Interval


def promotions(request: Request, grid: Grid, segments: list[Segment], note: Note) -> Iterator[Candidate]:
    """For each audience the depth of highest predicted uplift that the floors admit, when it brings most.

    One that would sell more than what is on hand is made smaller, or left out; note: told which items.
    """
    left_out: list[str] = []
    for channel in request.channels(StrategyKind.PROMOTION):
        for item in grid.items:
            columns = {d: grid.cells[item.item_id, channel, d] for d in grid.depths(item, channel)}
            if len(columns) < 2:
                continue
            deals = max(columns.values(), key=lambda column: float(grid.uplift[:, column].mean()))
            everyone = [*segments, *(segment for segment, _ in leaves_of(request, grid, deals))]
            demand = demand_of(request, item, request.windows)
            for segment in everyone:
                found = _promotion(request, grid, item, segment, channel, columns, demand, everyone)
                if found is None:
                    left_out.append(item.title)
                else:
                    yield found
    if left_out:
        note(left_out_words(left_out))


def left_out_words(titles: Sequence[str]) -> str:
    """How many promotions the stock does not permit, and of which items; titles: one for each of them."""
    distinct = list(dict.fromkeys(titles))
    named = ", ".join(distinct[:_NAMED]) + (", …" if len(distinct) > _NAMED else "")
    return f"{len(titles)} promotions left out since more would be sold than is on hand ({named})"


def with_sold(request: Request, grid: Grid, made: Candidate, segment: Segment, window: Window) -> Candidate:
    """A promotion that runs within `window`, with what it is predicted to sell."""
    column = grid.cells[made.item.item_id, made.channels[0], made.offer.depth]
    demand = demand_of(request, made.item, (window,))
    value = 1.0 if demand is None else float(demand[0])
    count = float(contacts(request, grid, segment, column, np.array([window.days]))[0])
    units = units_of(rate_of(grid, segment, column), count, value)
    return replace(made, sold=Sold(units, value, request.on_hand(made.item)))


def _promotion(
    request: Request,
    grid: Grid,
    item: Item,
    segment: Segment,
    channel: Channel,
    columns: Columns,
    demand: Floats | None,
    others: Sequence[Segment],
) -> Candidate | None:
    choice = choose_depth({depth: mean_of(grid.uplift, segment, c) for depth, c in columns.items()})
    assert choice is not None, "called with a depth above 0"
    wanted = _best(request, grid, segment, (choice.depth,), columns, demand, np.inf)
    assert wanted is not None, "nothing limits it"
    sold = Sold(wanted.units, wanted.demand, request.on_hand(item))
    deal, smaller = wanted, ""
    if wanted.units.high > sold.limit:
        depths = tuple(depth for depth in sorted(columns, reverse=True) if 0 < depth <= choice.depth)
        narrower = [segment, *_within(request, grid, segment, others)]
        tries = (_best(request, grid, one, depths, columns, demand, sold.limit) for one in narrower)
        fits = [one for one in tries if one is not None]
        if not fits:
            return None
        deal = max(fits, key=lambda one: one.value)
        smaller = _smaller_words(wanted, deal, sold)
    return _made(request, grid, item, channel, choice, deal, smaller, demand is not None)


def _made(
    request: Request,
    grid: Grid,
    item: Item,
    channel: Channel,
    choice: DepthChoice,
    deal: Deal,
    smaller: str,
    by_demand: bool,
) -> Candidate:
    currency, brief = request.brief.budget.currency, request.brief
    sold = Sold(deal.units, deal.demand, request.on_hand(item))
    made = candidate(
        request,
        grid,
        StrategyKind.PROMOTION,
        item,
        deal.segment,
        deal.depth,
        (channel,),
        _depth_words(choice, currency),
        kept_words(item, deal.depth, brief.min_margin, currency),
        *((smaller,) if smaller else ()),
        days=deal.window.days,
        demand=deal.demand,
    )
    schedule = Schedule(deal.window.starts, deal.window.ends, _timing_words(request, item, deal, by_demand))
    timing = "demand of the category by day" if by_demand else "length alone: demand by day is not known"
    provenance = made.provenance | {"timing": timing}
    if smaller:
        provenance["offer"] += " and the stock"
    return replace(made, schedule=schedule, sold=sold, provenance=provenance)


def _best(
    request: Request,
    grid: Grid,
    segment: Segment,
    depths: Sequence[float],
    columns: Columns,
    demand: Floats | None,
    limit: float,
) -> Deal | None:
    """Of depths × windows what is worth most and sells at most `limit` units; None where nothing does.

    The value of a window is that of a contact × contacts × the demand of its days. What a contact does is
    worth nothing or less is no reason for one day or another: then the earliest of the windows that fit, the
    whole period first.
    """
    best: Deal | None = None
    days = np.array([window.days for window in request.windows])
    index = np.ones(len(days)) if demand is None else demand
    for depth in depths:
        column = columns[depth]
        count, rate = contacts(request, grid, segment, column, days), rate_of(grid, segment, column)
        value = mean_of(grid.value, segment, column) * count * index
        fits = np.flatnonzero(count * np.minimum(rate.high * index, 1.0) <= limit)
        if not fits.size:
            continue
        place = int(fits[np.argmax(value[fits])]) if value[fits[0]] > 0 else int(fits[0])
        if best is None or value[place] > best.value:
            units = units_of(rate, float(count[place]), float(index[place]))
            window = request.windows[place]
            best = Deal(segment, depth, window, float(value[place]), float(index[place]), units)
    return best


def demand_of(request: Request, item: Item, windows: Sequence[Window]) -> Floats | None:
    """`[n]` mean demand for the item's category on the days of each window; None where it is not known."""
    if request.demand is None:
        return None
    dates = [window.dates for window in windows]
    found = request.demand.index(item.category, np.concatenate(dates), request.country)
    if found is None:
        return None
    ends = np.cumsum([len(own) for own in dates])
    return np.array([part.mean() for part in np.split(found, ends[:-1])])


def _within(request: Request, grid: Grid, segment: Segment, others: Sequence[Segment]) -> Iterator[Segment]:
    """The parts of `segment` that the other audiences cut out of it, named after both."""
    for other in others:
        both = intersect(segment.audience, other.audience)
        named = Audience(f"{segment.audience.name} and {other.audience.name}", both.conditions)
        part = segment_of(request, grid, named, f"{segment.source}, narrowed by {other.source}")
        if part is not None and 0 < part.rows.size < segment.rows.size:
            yield part


def _depth_words(choice: DepthChoice, currency: str) -> str:
    others = "".join(f", {money(uplift, currency)} at {percent(depth)}" for depth, uplift in choice.others)
    return (
        f"{percent(choice.depth)} off is predicted to bring {money(choice.uplift, currency)} more margin a"
        f" contact than doing nothing{others}, {money(choice.full_price, currency)} at full price."
    )


def _smaller_words(wanted: Deal, deal: Deal, sold: Sold) -> str:
    """How the promotion that was wanted was made smaller."""
    changed = []
    if deal.depth < wanted.depth:
        changed.append(f"{percent(deal.depth)} off instead of {percent(wanted.depth)}")
    if deal.segment is not wanted.segment:
        changed.append(f"{deal.segment.rows.size:,} users instead of {wanted.segment.rows.size:,}")
    if deal.window != wanted.window:
        changed.append(f"{deal.window.words} instead of {wanted.window.words}")
    return (
        f"Made smaller, {', '.join(changed)}, since it would have sold up to {wanted.units.high:,.1f} units"
        f" of {sold.on_hand:,.0f}."
    )


def _timing_words(request: Request, item: Item, deal: Deal, by_demand: bool) -> str:
    where, category = f"Runs {deal.window.describe()}", item.category
    if len(request.windows) == 1:
        return f"{where}: the period holds no week, weekend or public holiday to choose."
    if not by_demand:
        return f"{where}: the effect model does not tell dates apart, and demand by day is unknown."
    return (
        f"{where}, the best of {len(request.windows)} choices by who shops then, what the budget pays for,"
        f" and the log's demand for {category} by day, {deal.demand:.2f} times the average; the effect model"
        " itself does not tell dates apart."
    )
