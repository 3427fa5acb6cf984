"""Which items are proposed, to whom they suit, and how candidates are valued and chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from qiance.domain import (
    Action,
    Audience,
    Brief,
    Catalogue,
    Channel,
    GridPrediction,
    Item,
    Money,
    Objective,
    Offer,
    StrategyKind,
    UserTable,
)
from qiance.strategy.propose_candidate import Candidate
from qiance.strategy.propose_grid import score_grid
from qiance.strategy.propose_kinds import ads, candidates, usable_segments
from qiance.strategy.propose_request import Request, build_request
from qiance.strategy.propose_select import choose_diverse
from qiance.strategy.propose_words import money, readable_id
from qiance.strategy.recommend import candidate_items, suited_items
from qiance.strategy.retrieve import in_turns

SIZE = 40
USERS = UserTable(tuple(f"u{n}" for n in range(SIZE)), {"recency_days": np.arange(float(SIZE))})
BRIEF = Brief(
    brief_id="b1",
    objective=Objective.MARGIN,
    budget=Money(1_000),
    starts=datetime(2026, 3, 2, tzinfo=UTC),
    ends=datetime(2026, 3, 30, tzinfo=UTC),
    channels=(Channel.DISPLAY, Channel.EMAIL),
)


def product(item_id: str, category: str = "TEA", price: int = 500) -> Item:
    return Item(item_id, item_id.title(), category, "SHOP", "Own", price, 200)


class Stepwise:
    """A predictor whose uplift, minor units, is given per item, and is `low` for recency under 20."""

    def __init__(self, uplift: dict[str, float], low: float | None = None) -> None:
        self.uplift, self.low = uplift, low

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        recency = np.array([float(name[1:]) for name in user_ids])
        grid = np.zeros((len(user_ids), len(actions), 2), dtype=np.float32)
        for column, action in enumerate(actions):
            value = self.uplift.get(action.item_id or "", 0.0)
            low = value if self.low is None else self.low
            grid[:, column] = np.where(recency < 20, low, value)[:, None]
        probability = np.full_like(grid, 0.1)
        nothing = np.zeros((len(user_ids), 2), dtype=np.float32)
        cost = np.zeros(len(actions), dtype=np.float32)
        return GridPrediction(probability, probability, grid, grid, nothing, cost)


def request(
    items: Sequence[Item],
    affinity: np.ndarray | None = None,
    brief: Brief = BRIEF,
    popularity: np.ndarray | None = None,
    cost: int = 0,
) -> Request:
    catalogue = Catalogue(tuple(items))
    categories = tuple(dict.fromkeys(item.category for item in items))
    shares = np.ones((SIZE, len(categories))) if affinity is None else affinity
    costs = dict.fromkeys(brief.channels, cost)
    return build_request(brief, catalogue, USERS, shares, categories, costs, (0.1,), popularity, 0)


def test_categories_take_turns() -> None:
    category, score = np.array([0, 0, 0, 1]), np.array([4.0, 3.0, 2.0, 1.0])
    assert in_turns(category, score, 3).tolist() == [0, 3, 1]
    assert in_turns(category, score, 99)[-1] == 2
    assert in_turns(category[:0], score[:0], 3).size == 0


def test_the_predictor_ranks_what_affinity_shortlisted() -> None:
    items = [product(f"t{n:02}") for n in range(30)]
    found = candidate_items(request(items), Stepwise({"t17": 9.0, "t29": 5.0})).items
    assert [item.item_id for item in found[:2]] == ["t17", "t29"]
    assert len(found) == 12


def test_popularity_margin_and_affinity_fill_the_shortlist() -> None:
    # 80 items of one category: only 48 are shortlisted, those that sell.
    items = [product(f"t{n:02}") for n in range(80)]
    popularity = np.where(np.arange(80) % 2, 5.0, 1.0)
    found = candidate_items(request(items, popularity=popularity), Stepwise({"t78": 99.0, "t01": 9.0})).items
    assert found[0].item_id == "t01"
    named = replace(BRIEF, items=("t02", "t03", "t05"))
    found = candidate_items(request(items, brief=named, popularity=popularity), Stepwise({})).items
    assert [item.item_id for item in found] == ["t03", "t05", "t02"]


def test_items_suit_those_who_favour_their_category() -> None:
    items = [product("tea", "TEA"), product("soap", "SOAP"), product("bread", "BREAD")]
    affinity = np.tile([0.3, 0.1, 0.5], (SIZE, 1))
    affinity[:10, 1] += 0.15
    asked = request(items, affinity)
    inside = suited_items(asked, items, np.arange(10), 2)
    assert inside[0][0].item_id == "soap"
    assert inside[0][1] == pytest.approx(0.25)
    assert inside[0][2] == pytest.approx(0.1 + 0.15 / 4)
    everyone = suited_items(asked, items, asked.members, 3)
    assert [item.item_id for item, _, _ in everyone] == ["bread", "tea", "soap"]


def test_an_ad_is_not_aimed_at_those_whom_it_puts_off() -> None:
    items = (product("tea"),)
    asked = request(items)
    predictor = Stepwise({"tea": 6.0}, low=-3.0)
    grid = score_grid(asked, items, predictor)
    found = list(ads(asked, grid))
    assert [candidate.audience.conditions for candidate in found] == [(("recency_days", ">", 19.0),)]
    assert found[0].per_contact == pytest.approx(6.0)
    assert (found[0].reach, found[0].total) == (20, pytest.approx(120.0))


def test_the_budget_bounds_the_contacts_that_count() -> None:
    """A tenth buys, and a tenth off 500 is 50: with the offer a contact is expected to take 10 + 5."""
    asked = request((product("tea"),), brief=replace(BRIEF, budget=Money(60)), cost=10)
    grid = score_grid(asked, asked.catalogue.items, Stepwise({"tea": 6.0}))
    notes: list[str] = []
    found = candidates(asked, grid, usable_segments(asked, grid), notes.append)
    offered = [c.total for c in found if c.offer.depth]
    assert offered == pytest.approx([4 * 6.0] * len(offered))
    plain = [c.total for c in found if not c.offer.depth]
    assert plain == pytest.approx([6 * 6.0] * len(plain))
    assert min(len(offered), len(plain)) >= 1


def option(kind: StrategyKind, item: str, total: float, channel: Channel = Channel.DISPLAY) -> Candidate:
    audience = Audience("everybody")
    return Candidate(kind, product(item), audience, Offer(), (channel,), total, total, total, 10, ())


def test_the_best_first_then_what_differs() -> None:
    ad, content = StrategyKind.AD, StrategyKind.CONTENT
    pool = [
        option(ad, "tea", 10.0),
        option(ad, "tea", 9.0, Channel.EMAIL),
        option(ad, "soap", 8.0),
        option(content, "tea", 1.0),
    ]
    chosen = choose_diverse(pool, 2)
    assert [(c.kind, c.total) for c in chosen] == [(ad, 10.0), (content, 1.0)]
    chosen = choose_diverse(pool, 3)
    assert [c.item.item_id for c in chosen[:2]] == ["tea", "soap"]
    assert choose_diverse(pool[::-1], 3) == chosen
    assert len(choose_diverse([*pool, *pool], 50)) == len(pool)


def test_figures_and_ids_for_people() -> None:
    assert money(12.5, "USD") == "0.125 USD"
    assert money(12.5, "JPY") == "12.5 JPY"
    assert money(-0.01, "USD") == "0.000 USD"
    first = readable_id(StrategyKind.AD, "Café au Lait, 250 g!", ["x"])
    assert first.startswith("ad-cafe-au-lait-250-g-")
    assert first != readable_id(StrategyKind.AD, "Café au Lait, 250 g!", ["y"])
    assert readable_id(StrategyKind.AD, "龙井茶", []).count("-") == 1
