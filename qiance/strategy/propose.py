"""From a brief to strategies of all four kinds, each with its predicted effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Brief, Catalogue, Channel, EffectPredictor, Strategy, UserTable
from qiance.proposer.proposer import Proposer
from qiance.strategy.propose_finish import finish, plan, write_texts
from qiance.strategy.propose_grid import score_grid
from qiance.strategy.propose_kinds import candidates, usable_segments
from qiance.strategy.propose_learned import learned_candidates
from qiance.strategy.propose_ports import ContentWriter
from qiance.strategy.propose_promotions import left_out_words
from qiance.strategy.propose_request import Known, build_request
from qiance.strategy.propose_select import choose_diverse, missing_kinds
from qiance.strategy.recommend import candidate_items
from qiance.strategy.retrieve import Retriever

Progress = Callable[[float, str], None]


def propose(
    brief: Brief,
    catalogue: Catalogue,
    users: UserTable,
    affinity: NDArray[np.floating],
    categories: tuple[str, ...],
    predictor: EffectPredictor,
    writer: ContentWriter,
    *,
    contact_cost: Mapping[Channel, int],
    depths: Sequence[float] = (0.1, 0.2, 0.3),
    popularity: NDArray[np.floating] | None = None,
    known: Known | None = None,
    retriever: Retriever | None = None,
    proposer: Proposer | None = None,
    seed: int,
    on_progress: Progress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Strategy]:
    """At most `brief.n` strategies in state draft, the most valuable first, varied among themselves.

    affinity: `[U, C]` user × category, ≥ 0, such as shares of spend; NaN is unknown and counts as 0;
        rows as in `users`, columns as in `categories`.
    contact_cost: minor units of one contact, for every channel of the brief.
    depths: discounts to try, fractions of the price; those past a floor of the brief are left out.
    popularity: `[I]` weight of each catalogue item, such as units sold; None weighs all alike.
    known: stock, demand by day, and whose holidays count; a promotion is never predicted to sell more than
        what is known to be on hand.
    retriever: which items are bought next; it chooses what the effect model is asked about.
    proposer: a model of logged strategies, whose proposals stand beside the others; `choose_diverse` says how
        many.
    on_progress: called with the fraction done in [0, 1] and what is being done. on_note: called with what
        whoever asked should know, such as why the proposer was not asked.
    All four kinds are present when `brief.n` ≥ 4, a channel for each is allowed and a discount is
    admissible. Fewer than `brief.n` come back when there are not that many distinct ones. The same
    arguments give the same strategies. Raises ValueError that names the field and the remedy.
    """
    tell, note = on_progress or _silent, on_note or _ignore
    # 1. Check what was asked, and find the users it is about.
    tell(0.0, "checking the brief")
    request = build_request(
        brief, catalogue, users, affinity, categories, contact_cost, depths, popularity, seed, known
    )
    # 2. Items worth proposing, varied over categories, all above the margin floor.
    tell(0.05, f"choosing items for {request.members.size:,} users")
    chosen_items = candidate_items(request, predictor, retriever)
    items = chosen_items.items
    # 3. Predict items × channels × depths for a sample of the users, in one call.
    tell(0.15, f"predicting the effect of {len(items)} items")
    grid = replace(score_grid(request, items, predictor), source=chosen_items.source)
    # 4. Candidates of each kind, valued from that grid.
    tell(0.35, f"composing strategies from {len(grid.cells)} predicted actions")
    segments = usable_segments(request, grid)
    pool = candidates(request, grid, segments, note)
    if proposer is not None:
        tell(0.4, "asking the model of logged strategies")
        learned, grid = learned_candidates(request, grid, segments, proposer, predictor, note)
        pool += learned
    # 5. The best ones that differ.
    chosen = choose_diverse(pool, brief.n)
    absent = ", ".join(kind.value for kind in missing_kinds(pool))
    left_out = f"; no {absent}: its channels or floors do not permit it" if absent else ""
    # 6. Words, for the chosen ones only.
    tell(0.45, f"writing words for {len(chosen)} of {len(pool)} candidates{left_out}")
    plans = [plan(request, candidate) for candidate in chosen]
    texts = write_texts(plans, writer)
    # 7. The effect of each with its own words.
    strategies = []
    for number, each in enumerate(plans):
        tell(0.8 + 0.2 * number / len(plans), f"predicting the effect of {each.strategy_id}")
        made = finish(request, each, texts, predictor)
        if made is None:
            note(left_out_words([each.candidate.item.title]))
        else:
            strategies.append(made)
    tell(1.0, f"{len(strategies)} strategies proposed")
    return strategies


def _silent(_fraction: float, _message: str) -> None:
    return None


def _ignore(_note: str) -> None:
    return None
