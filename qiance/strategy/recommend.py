"""Which items are worth proposing, and which of them suit which users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qiance.domain import EffectPredictor, Item
from qiance.strategy.propose_grid import (
    SHORTLIST_STAGE,
    checked_prediction,
    draft_action,
    objective_draws,
)
from qiance.strategy.propose_request import Request, admissible_items

NUM_ITEMS = 12
_SHORTLIST_PER_ITEM = 4
_SHORTLIST_USERS = 128


def candidate_items(request: Request, predictor: EffectPredictor) -> tuple[Item, ...]:
    """The items that strategies are made of: at least 12 where there are as many, best first.

    1. those that keep the margin floor at full price; 2. shortlisted by affinity × popularity ×
    margin; 3. ranked by the predicted objective; 2 and 3 take categories in turn, so that one
    strong category does not fill the list. A brief's own items skip the turns while they fit.
    """
    wanted = max(NUM_ITEMS, request.brief.n // 2)
    items = admissible_items(request.brief, request.catalogue)
    prior = np.array([_prior(request, item) for item in items])
    if request.brief.items and len(items) <= wanted:
        return tuple(items[row] for row in np.argsort(-prior, kind="stable"))
    shortlist = round_robin(items, dict(zip(items, prior, strict=True)), _SHORTLIST_PER_ITEM * wanted)
    rows = request.sample(request.members, _SHORTLIST_USERS, SHORTLIST_STAGE)
    actions = [draft_action(request, item, request.brief.channels[0], 0.0) for item in shortlist]
    prediction = checked_prediction(predictor, [request.users.user_ids[row] for row in rows], actions)
    value = objective_draws(prediction, request.brief.objective).mean(axis=(0, 2), dtype=np.float64)
    predicted = dict(zip(shortlist, (float(v) for v in value), strict=True))
    return round_robin(shortlist, predicted, wanted)


def _prior(request: Request, item: Item) -> float:
    """Mean affinity of the audience × popularity × unit margin, minor units."""
    affinity = float(request.item_affinity(item)[request.members].mean())
    margin = max(item.price - item.unit_cost, 0)
    # A trace of affinity lets a catalogue without any (all new users) still be ranked.
    return (affinity + 1e-6) * float(request.popularity[request.catalogue.index[item.item_id]]) * margin


def round_robin(items: Sequence[Item], score: Mapping[Item, float], limit: int) -> tuple[Item, ...]:
    """At most `limit` items: the best of each category, then the second of each, and so on.

    Categories take their turn in order of their best item; ties keep the order of `items`.
    """
    ranked = sorted(items, key=lambda item: -score[item])
    turn: dict[str, int] = {}
    turns: list[int] = []
    for item in ranked:
        turns.append(turn.get(item.category, 0))
        turn[item.category] = turns[-1] + 1
    order = sorted(range(len(ranked)), key=lambda position: turns[position])
    return tuple(ranked[position] for position in order[:limit])


def segment_affinity(
    request: Request, items: Sequence[Item], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean affinity for each item's category, `[K]`: of the users at `rows`, and of the whole audience."""
    columns = [request.item_affinity(item) for item in items]
    inside = np.array([column[rows].mean() for column in columns])
    overall = np.array([column[request.members].mean() for column in columns])
    return inside, overall


def suited_items(
    request: Request, items: Sequence[Item], rows: NDArray[np.int64], limit: int
) -> list[tuple[Item, float, float]]:
    """The items whose category the users at `rows` favour most, with their and everybody's affinity.

    Ranked by the gain over the whole audience; for the whole audience, by the affinity itself.
    """
    inside, overall = segment_affinity(request, items, rows)
    order = np.lexsort((np.arange(len(items)), -inside, -(inside - overall)))
    return [(items[row], float(inside[row]), float(overall[row])) for row in order[:limit]]
