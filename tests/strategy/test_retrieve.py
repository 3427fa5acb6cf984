"""Retrieval: what is bought next is found, and work does not grow with the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brief_cases import (
    BRIEF,
    CATALOGUE,
    CATEGORIES,
    COSTS,
    PlainWriter,
    PlantedMarket,
    make_affinity,
    make_users,
)
from hypothesis import given
from hypothesis import strategies as st

from qiance.artifacts.recommend import Recommender
from qiance.data.errors import DataError
from qiance.domain import Catalogue, Item, Strategy
from qiance.strategy.propose import propose
from qiance.strategy.propose_request import Known
from qiance.strategy.retrieve import MAX_ASKED, Purchases, Retriever, SequenceRetriever, in_turns

USERS = make_users(300)
NOON = datetime(2025, 3, 3, 12, tzinfo=UTC)


class Following:
    """Who bought item k buys item k + 1 next, almost surely."""

    def __init__(self, items: int) -> None:
        self.items, self.asked = items, 0

    def chances(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        self.asked += len(rows)
        found = np.full((len(rows), self.items), 0.01 / self.items, dtype=np.float32)
        found[np.arange(len(rows)), [row[-1] % self.items for row in rows]] += 0.99
        return found


def catalogue_of(size: int) -> Catalogue:
    return Catalogue(
        tuple(
            Item(f"i{n:05}", f"Item {n}", CATEGORIES[n % 4], "SHOP", "Own", 500 + n % 700, 250 + n % 90)
            for n in range(size)
        )
    )


def retriever_of(catalogue: Catalogue, last: str) -> tuple[SequenceRetriever, Following]:
    """Everybody bought `last` last."""
    scorer = Following(len(catalogue))
    bought = np.ones(len(catalogue), dtype=np.int64)
    model = Recommender(scorer, list(catalogue.index), bought, "0123abcd")
    return SequenceRetriever(model, catalogue, lambda users: [[last]] * len(users)), scorer


def run(
    catalogue: Catalogue, market: PlantedMarket, retriever: Retriever | None = None, **options: object
) -> list[Strategy]:
    return propose(
        BRIEF,
        catalogue,
        USERS,
        make_affinity(USERS),
        CATEGORIES,
        market,
        PlainWriter(),
        contact_cost=COSTS,
        retriever=retriever,
        seed=7,
        **options,  # type: ignore[arg-type]
    )


def items_of(strategies: list[Strategy]) -> set[str | None]:
    return {action.item_id for strategy in strategies for action in strategy.actions}


@pytest.mark.parametrize("sequence", [False, True])
def test_work_does_not_grow_with_the_catalogue(sequence: bool) -> None:
    cells, asked = [], []
    for size in (300, 3_000, 30_000):
        catalogue = catalogue_of(size)
        market = PlantedMarket(USERS, catalogue)
        retriever, scorer = retriever_of(catalogue, "i00010")
        strategies = run(catalogue, market, retriever if sequence else None)
        assert len(strategies) == BRIEF.n
        grid = sum(users * actions for users, actions in market.calls[:2])
        cells.append(grid)
        asked.append(scorer.asked)
        assert market.calls[0] == (MAX_ASKED, 48)
    assert max(cells) == cells[0]
    assert asked == [MAX_ASKED if sequence else 0] * 3


def test_what_is_bought_next_is_retrieved_though_nobody_looks_for_it() -> None:
    catalogue = catalogue_of(600)
    popularity = np.ones(600)
    popularity[[11, 12]] = 0.0
    market = PlantedMarket(USERS, catalogue)
    retriever, _ = retriever_of(catalogue, "i00010")
    before = run(catalogue, market, popularity=popularity)
    found = run(catalogue, market, retriever, popularity=popularity)
    # PlantedMarket pays by price, so that retrieval alone decides what it is asked about.
    assert "i00011" not in items_of(before)
    asked = retriever.chances(USERS.user_ids[:20])
    assert asked.argmax() == catalogue.index["i00011"]
    assert asked.sum() == pytest.approx(1.0)
    assert {strategy.provenance["item"] for strategy in found} == {
        "sequence model 0123abcd, then predicted objective"
    }
    assert found == run(catalogue, market, retriever, popularity=popularity)


def test_the_retriever_decides_what_is_ranked() -> None:
    catalogue = catalogue_of(600)
    cheap = replace(catalogue.items[11], price=300, unit_cost=100)
    catalogue = Catalogue((*catalogue.items[:11], cheap, *catalogue.items[12:]))
    asked: list[set[str | None]] = []

    class Watched(PlantedMarket):
        def predict(self, user_ids, actions):  # type: ignore[no-untyped-def]
            asked.append({action.item_id for action in actions})
            return super().predict(user_ids, actions)

    retriever, _ = retriever_of(catalogue, "i00010")
    run(catalogue, Watched(USERS, catalogue), popularity=np.arange(600.0))
    run(catalogue, Watched(USERS, catalogue), retriever, popularity=np.arange(600.0))
    shortlists = [items for items in asked if len(items) == 48]
    assert [cheap.item_id in items for items in shortlists] == [False, True]


def test_what_is_sold_out_is_not_proposed() -> None:
    stock = np.full(len(CATALOGUE), np.nan)
    stock[:15] = 0.0  # all coffee, tea and soap
    found = run(CATALOGUE, PlantedMarket(USERS, CATALOGUE), known=Known(stock))
    assert {CATALOGUE[item or ""].category for item in items_of(found)} == {"BREAD"}
    with pytest.raises(ValueError, match=r"brief\.items: all 20 that keep the margin floor are sold out"):
        run(CATALOGUE, PlantedMarket(USERS, CATALOGUE), known=Known(np.zeros(len(CATALOGUE))))


def test_a_model_of_another_shop_is_refused() -> None:
    model = Recommender(Following(2), ["x", "y"], np.ones(2, dtype=np.int64), "v")
    with pytest.raises(ValueError, match=r"briefs\.recommender: v knows 2 items, and none of the 20"):
        SequenceRetriever(model, CATALOGUE, lambda users: [[] for _ in users])
    some = Recommender(Following(2), ["x", "tea-1"], np.array([1, 3]), "v")
    # Who bought nothing that is known buys what is bought most: three in four tea.
    chance = SequenceRetriever(some, CATALOGUE, lambda users: [[] for _ in users]).chances(["a", "b"])
    assert chance[CATALOGUE.index["tea-1"]] == pytest.approx(0.75)
    assert np.count_nonzero(chance) == 1


def test_purchases_are_those_of_who_agreed_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    rows = [
        ("a", "tea", "purchase", 5),
        ("a", "soap", "purchase", 1),
        ("a", "tea", "purchase", 0),
        ("a", "bread", "view", 2),
        ("b", "tea", "purchase", 3),
        ("c", "soap", "purchase", 4),
    ]
    names = ("user_id", "item_id", "type")
    table = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    times = pa.array([NOON + timedelta(hours=row[3]) for row in rows], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(table | {"occurred_at": times}), path)
    purchases = Purchases(path, lambda users: np.array([user != "b" for user in users]))
    assert purchases(["b", "a", "nobody"]) == [[], ["tea", "soap"], []]
    with pytest.raises(DataError, match="does not exist"):
        Purchases(tmp_path / "none", lambda users: np.ones(len(users), dtype=bool))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=30),
    st.integers(0, 40),
)
def test_categories_take_turns_as_they_would_by_hand(items: list[tuple[int, int]], limit: int) -> None:
    ranked = sorted(range(len(items)), key=lambda place: -items[place][1])
    turns, seen = {}, dict[int, int]()
    for place in ranked:
        turns[place] = seen.get(items[place][0], 0)
        seen[items[place][0]] = turns[place] + 1
    wanted = sorted(ranked, key=lambda place: turns[place])[:limit]
    category = np.array([item[0] for item in items], dtype=np.int64)
    found = in_turns(category, np.array([float(item[1]) for item in items]), limit)
    assert found.tolist() == wanted
