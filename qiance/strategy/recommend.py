"""Which items are worth proposing, and which of them suit which users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from qiance.strategy.retrieve import MAX_ASKED, Retriever, codes_of, in_turns

NUM_ITEMS = 12
_SHORTLIST_PER_ITEM = 4
PRIOR = "affinity, popularity and margin"


@dataclass(frozen=True)
class Chosen:
    """items: best first; source: what they were retrieved by."""

    items: tuple[Item, ...]
    source: str


def candidate_items(
    request: Request, predictor: EffectPredictor, retriever: Retriever | None = None
) -> Chosen:
    """The items that strategies are made of: at least 12 where there are as many, best first.

    1. those that keep the margin floor at full price and are not known to be sold out; 2. retrieved: by the
    chance to be bought next × margin where there is a `retriever`, else by affinity × popularity × margin;
    3. ranked by the predicted objective; 2 and 3 take categories in turn, so that one strong category does
    not fill the list. A brief's own items skip the turns while they fit. The effect model is asked about as
    many items, and the retriever about as many users, however large the catalogue is.
    """
    wanted = max(NUM_ITEMS, request.brief.n // 2)
    items = admissible_items(request.brief, request.catalogue, request.stock)
    prior = _prior(request, items)
    if request.brief.items and len(items) <= wanted:
        return Chosen(tuple(items[row] for row in np.argsort(-prior, kind="stable")), "brief")
    most, (category, _) = _SHORTLIST_PER_ITEM * wanted, codes_of([item.category for item in items])
    rows = request.sample(request.members, MAX_ASKED, SHORTLIST_STAGE)
    ids, source = [request.users.user_ids[row] for row in rows], PRIOR
    found = in_turns(category, prior, most)
    if retriever is not None and len(items) > most:
        found, source = _retrieved(request, items, category, prior, ids, most, retriever), retriever.version
        source = f"sequence model {source}"
    shortlist = [items[place] for place in found]
    actions = [draft_action(request, item, request.brief.channels[0], 0.0) for item in shortlist]
    prediction = checked_prediction(predictor, ids, actions)
    value = objective_draws(prediction, request.brief.objective).mean(axis=(0, 2), dtype=np.float64)
    best = in_turns(category[found], value, wanted)
    return Chosen(tuple(shortlist[place] for place in best), "brief" if request.brief.items else source)


def _retrieved(
    request: Request,
    items: Sequence[Item],
    category: NDArray[np.int64],
    prior: NDArray[np.float64],
    user_ids: Sequence[str],
    most: int,
    retriever: Retriever,
) -> NDArray[np.int64]:
    """Places of at most `most` items by chance × margin; what is missing, by the prior."""
    index = request.catalogue.index
    chance = retriever.chances(user_ids)[[index[item.item_id] for item in items]]
    value = chance * np.array([max(item.price - item.unit_cost, 0) for item in items])
    found = in_turns(category, value, most)
    found = found[value[found] > 0]
    others = np.setdiff1d(np.arange(len(items)), found)
    rest = others[in_turns(category[others], prior[others], most - len(found))]
    return np.append(found, rest)


def _prior(request: Request, items: Sequence[Item]) -> NDArray[np.float64]:
    """`[n]` mean affinity of the audience × popularity × unit margin, minor units."""
    # Once per category: users × items would not fit into memory for a large catalogue.
    category, codes = codes_of([item.category for item in items])
    columns = [request.category_row.get(name, -1) for name in codes]
    means = np.append(request.affinity[request.members].mean(axis=0), 0.0)[columns]
    index = request.catalogue.index
    popularity = request.popularity[[index[item.item_id] for item in items]]
    margin = np.array([max(item.price - item.unit_cost, 0) for item in items], dtype=np.float64)
    # A trace of affinity lets a catalogue without any (all new users) still be ranked.
    return np.asarray((means[category] + 1e-6) * popularity * margin)


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
