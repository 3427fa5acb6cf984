"""Predicted value of every item × channel × depth for a sample of users, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import discount_of
from qiance.domain import (
    Action,
    Audience,
    Channel,
    Creative,
    EffectPredictor,
    GridPrediction,
    Item,
    Objective,
    StrategyKind,
    UserTable,
)
from qiance.strategy.audience import audience_mask, take_users
from qiance.strategy.promotion import admissible_depths, admitted_offer
from qiance.strategy.propose_request import Request

MAX_USERS = 600
# Stages of the proposal that draw users, so that each has its own stream of random numbers.
SHORTLIST_STAGE, GRID_STAGE, EFFECT_STAGE = 0, 1, 2

Cell = tuple[str, Channel, float]


@dataclass(frozen=True)
class Grid:
    """Predictions for S sampled users × A draft actions, averaged over the predictor's heads.

    sample: the S users; rows: `[S]` their rows in the users table.
    cells: (item id, channel, depth) → action column; value, uplift: `[S, A]`, the objective (a
    probability or minor units per contact) and incremental margin (minor units per contact).
    cost: `[S, A]`, what a contact is expected to take from the budget, minor units: itself and its discount.
    conversion: `[S, A, H]` by head, probability per contact; widths: `[A]`, see `GridPrediction.width_scale`.
    source: what the items were retrieved by.
    """

    items: tuple[Item, ...]
    sample: UserTable
    rows: NDArray[np.int64]
    cells: dict[Cell, int]
    value: NDArray[np.float64]
    uplift: NDArray[np.float64]
    cost: NDArray[np.float64]
    conversion: NDArray[np.float32]
    widths: NDArray[np.float64]
    source: str = ""

    def mask(self, audience: Audience) -> NDArray[np.bool_]:
        """Which sampled users `audience` matches, `[S]`."""
        return audience_mask(audience, self.sample)

    def depths(self, item: Item, channel: Channel) -> tuple[float, ...]:
        """Depths that were predicted for this item on this channel, ascending, 0 first."""
        return tuple(
            sorted(depth for name, where, depth in self.cells if (name, where) == (item.item_id, channel))
        )


def objective_draws(prediction: GridPrediction, objective: Objective) -> NDArray[np.float32]:
    """What the brief wants more of, `[U, A, H]`: probability of a click or conversion, or minor units."""
    if objective is Objective.MARGIN:
        return prediction.uplift()
    return {
        Objective.CLICKS: prediction.click,
        Objective.CONVERSIONS: prediction.conversion,
        Objective.SALES: prediction.sales,
    }[objective]


def checked_prediction(
    predictor: EffectPredictor, user_ids: Sequence[str], actions: Sequence[Action]
) -> GridPrediction:
    """One call of the predictor.

    Raises ValueError when its answer is not users × actions × heads of finite numbers.
    """
    prediction = predictor.predict(user_ids, actions)
    for name in ("click", "conversion", "sales", "margin"):
        draws = getattr(prediction, name)
        if draws.ndim != 3 or draws.shape[:2] != (len(user_ids), len(actions)):
            raise ValueError(
                f"predictor: {name} has shape {draws.shape}"
                f" for {len(user_ids)} users × {len(actions)} actions"
            )
        if not np.isfinite(draws).all():
            raise ValueError(f"predictor: {name} holds NaN or infinity; train it again")
    return prediction


def draft_action(request: Request, item: Item, channel: Channel, depth: float) -> Action:
    """An action in the same plain words for every item, so that wording does not decide the choice."""
    language = request.brief.languages[0]
    body = "{discount} off {product}." if depth > 0 else "{product}, chosen for you."
    return Action(
        action_id=f"draft:{item.item_id}:{channel.value}:{depth:g}",
        strategy_id="draft",
        kind=StrategyKind.PROMOTION if depth > 0 else StrategyKind.RECOMMENDATION,
        item_id=item.item_id,
        offer=admitted_offer(item, depth, request.brief),
        creative=Creative(channel, language, "Now in store: {product}", body, "See it"),
        channel=channel,
        contact_cost=request.contact_cost[channel],
    )


def score_grid(request: Request, items: tuple[Item, ...], predictor: EffectPredictor) -> Grid:
    """Predict every admissible item × channel × depth for at most 600 users of the brief's audience.

    Discounts are tried on the channels of promotions only; every channel is tried at full price.
    """
    rows = request.sample(request.members, MAX_USERS, GRID_STAGE)
    sample = take_users(request.users, rows)
    promoted = request.channels(StrategyKind.PROMOTION)
    keys: list[Cell] = []
    for item in items:
        for channel in dict.fromkeys(request.brief.channels):
            tried = request.depths if channel in promoted else ()
            depths = admissible_depths(item, (0.0, *tried), request.brief)
            keys += [(item.item_id, channel, depth) for depth in depths]
    none, heads = np.empty((len(rows), 0)), np.empty((len(rows), 0, 1), dtype=np.float32)
    empty = Grid(items, sample, rows, {}, none, none, none, heads, np.empty(0))
    return widened(request, empty, keys, predictor)


def widened(request: Request, grid: Grid, cells: Iterable[Cell], predictor: EffectPredictor) -> Grid:
    """The grid with further cells for the same users, predicted in one call where it lacks any.

    Raises ValueError for a depth that the brief's limits do not admit.
    """
    keys = [cell for cell in dict.fromkeys(cells) if cell not in grid.cells]
    if not keys:
        return grid
    actions = [draft_action(request, request.catalogue[item], where, d) for item, where, d in keys]
    prediction = checked_prediction(predictor, grid.sample.user_ids, actions)
    value = objective_draws(prediction, request.brief.objective)
    contact = np.array([action.contact_cost for action in actions], dtype=np.float64)
    discount = np.array([discount_of(action, request.catalogue) for action in actions], dtype=np.float64)
    cost = contact + discount * prediction.conversion.mean(axis=2, dtype=np.float64)
    before = len(grid.cells)
    return replace(
        grid,
        cells=grid.cells | {key: before + column for column, key in enumerate(keys)},
        value=np.hstack([grid.value, value.mean(axis=2, dtype=np.float64)]),
        uplift=np.hstack([grid.uplift, prediction.uplift().mean(axis=2, dtype=np.float64)]),
        cost=np.hstack([grid.cost, cost]),
        conversion=np.concatenate([grid.conversion, prediction.conversion], axis=1)
        if before
        else prediction.conversion,
        widths=np.append(grid.widths, np.broadcast_to(prediction.width_scale, len(keys))),
    )
