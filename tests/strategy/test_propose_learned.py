"""A model of logged strategies proposes for briefs: which segments it is asked for, and what comes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil

import numpy as np
import propose_cases as cases
import pytest
from brief_cases import (
    AFFINITY,
    BRIEF,
    CATALOGUE,
    CATEGORIES,
    COSTS,
    USERS,
    PlainWriter,
    PlantedMarket,
    make_affinity,
    make_users,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.domain import Brief, Catalogue, Channel, Item, Money, Objective, Strategy, StrategyKind
from qiance.proposer.proposer import Proposer
from qiance.strategy.propose import propose
from qiance.strategy.propose_candidate import Segment
from qiance.strategy.propose_learned import check_proposer, features_of
from qiance.strategy.propose_request import build_request


@pytest.fixture(scope="module")
def proposer() -> Proposer:
    return cases.of_a_shop()


def run(
    brief: Brief, proposer: Proposer | None, notes: list[str] | None = None, **options: object
) -> list[Strategy]:
    defaults: dict[str, object] = {"catalogue": CATALOGUE, "users": USERS, "affinity": AFFINITY}
    given_ = defaults | options
    market = PlantedMarket(given_["users"], given_["catalogue"])  # type: ignore[arg-type]
    given_ = {"predictor": market, "writer": PlainWriter(), **given_}
    return propose(
        brief,
        categories=CATEGORIES,
        contact_cost=COSTS,
        proposer=proposer,
        seed=7,
        on_note=(notes if notes is not None else []).append,
        **given_,  # type: ignore[arg-type]
    )


def proposed(strategies: list[Strategy]) -> list[Strategy]:
    return [strategy for strategy in strategies if "channels" in strategy.provenance]


@pytest.mark.parametrize("n", [4, 8, 13])
def test_some_of_the_proposals_are_the_proposers_and_every_kind_stays(proposer: Proposer, n: int) -> None:
    notes: list[str] = []
    strategies = run(replace(BRIEF, n=n), proposer, notes)
    found = proposed(strategies)
    assert notes == []
    assert len(strategies) == n
    assert len(found) >= n // 4
    assert {strategy.kind for strategy in strategies} == set(StrategyKind)
    assert len({strategy.strategy_id for strategy in strategies}) == n
    for strategy in found:
        assert strategy.provenance["offer"] == strategy.provenance["timing"] == "proposer 0123abcd"
        assert strategy.reasons[0].startswith("Proposed by a model of logged strategies: ")
        assert "it expects" in strategy.reasons[0]
        assert " of margin a member from " in strategy.reasons[0]
        assert any("as the model of logged strategies has it" in reason for reason in strategy.reasons)
        assert BRIEF.starts <= strategy.starts < strategy.ends <= BRIEF.ends
        assert {action.offer.threshold for action in strategy.actions} == {0}
        # In words of its own, and predicted by the effect model as every other.
        assert strategy.provenance["creative"] == "plain writer"
        assert strategy.effect is not None
        assert strategy.effect.uplift.low <= strategy.effect.uplift.value <= strategy.effect.uplift.high
    assert run(replace(BRIEF, n=n), proposer) == strategies


def test_its_channels_and_depths_are_those_that_paid_in_its_log(proposer: Proposer) -> None:
    found = proposed(run(replace(BRIEF, n=20, channels=(Channel.EMAIL, Channel.MAILER)), proposer))
    promoted = [strategy for strategy in found if strategy.kind is StrategyKind.PROMOTION]
    assert Counter(strategy.actions[0].channel for strategy in promoted).most_common(1)[0][0] is Channel.EMAIL
    assert np.mean([strategy.actions[0].offer.depth for strategy in promoted]) > 0.15


def test_without_a_proposer_briefs_are_answered_as_before(proposer: Proposer) -> None:
    before = run(BRIEF, None)
    assert not proposed(before)
    assert run(BRIEF, None) == before != run(BRIEF, proposer)


def test_segments_are_known_by_their_members_or_by_name(proposer: Proposer) -> None:
    tables = (CATALOGUE, USERS, AFFINITY, CATEGORIES, COSTS, (0.1,), None, 0)
    request = build_request(BRIEF, *tables)
    rows = np.flatnonzero(USERS.columns["discount_share"] > 0.5)
    segment = Segment(request.base, rows, np.ones(1, dtype=bool), "brief")
    found = features_of(proposer, request, segment)
    assert found is not None
    expected = [USERS.columns[name.removeprefix("segment_")][rows].mean() for name in cases.SHOP_FEATURES]
    assert found == pytest.approx(expected)
    by_name = replace(
        proposer, names=("segment_x", "segment_y"), segments={"everybody": np.array([1.0, 2.0])}
    )
    assert features_of(by_name, request, segment) == pytest.approx([1.0, 2.0])
    # The brief's own audience has not the features of the whole segment.
    narrowed = build_request(
        replace(BRIEF, audience="spend_90d > 9000"),
        CATALOGUE,
        USERS,
        AFFINITY,
        CATEGORIES,
        COSTS,
        (0.1,),
        None,
        0,
    )
    assert features_of(by_name, narrowed, segment) is None


def test_a_segment_unlike_those_of_its_log_is_said_to_be_one() -> None:
    elsewhere = {name: (share + 5, baskets) for name, (share, baskets) in cases.SHOP_SEGMENTS.items()}
    far = cases.of_a_shop(elsewhere)
    for strategy in proposed(run(BRIEF, far)):
        assert any("in discount_share, so it had to extrapolate" in reason for reason in strategy.reasons)


@pytest.mark.parametrize(
    ("brief", "message"),
    [
        (replace(BRIEF, objective=Objective.CLICKS), "it has learned for margin, not for clicks"),
        (replace(BRIEF, budget=Money(0)), "it plans with a budget, and the brief has none"),
    ],
)
def test_where_it_cannot_be_asked_whoever_asked_is_told(
    proposer: Proposer, brief: Brief, message: str
) -> None:
    notes: list[str] = []
    strategies = run(brief, proposer, notes)
    assert len(strategies) == BRIEF.n
    assert not proposed(strategies)
    assert [message in note for note in notes] == [True]


def test_a_proposer_that_knows_no_segment_of_a_shop_is_refused(proposer: Proposer) -> None:
    check_proposer(proposer)
    foreign = replace(proposer, names=("segment_x", "segment_y"), version="v")
    with pytest.raises(ValueError, match=r"briefs\.proposer: v cannot be asked for a brief: x, y cannot be"):
        check_proposer(foreign)
    check_proposer(replace(foreign, segments={"deal-seekers": np.zeros(2)}))
    notes: list[str] = []
    assert not proposed(run(BRIEF, foreign, notes))
    assert notes == ["the proposer was not asked: it knows none of the brief's segments"]


@given(
    max_depth=st.floats(0, 0.95),
    min_margin=st.floats(0, 0.5),
    costs=st.lists(st.integers(0, 1_000), min_size=2, max_size=2),
    hours=st.integers(1, 24 * 40),
    channels=st.sets(st.sampled_from(sorted(COSTS)), min_size=1),
)
@settings(max_examples=20, deadline=None)
def test_no_proposal_passes_a_floor_or_leaves_the_period(
    proposer: Proposer,
    max_depth: float,
    min_margin: float,
    costs: list[int],
    hours: int,
    channels: set[Channel],
) -> None:
    items = tuple(Item(f"i{k}", f"Item {k}", "TEA", "S", "B", 1000, cost) for k, cost in enumerate(costs))
    users = make_users(60)
    starts = datetime(2026, 3, 2, 7, tzinfo=UTC)
    brief = replace(
        BRIEF,
        max_depth=max_depth,
        min_margin=min_margin,
        channels=tuple(sorted(channels)),
        starts=starts,
        ends=starts + timedelta(hours=hours),
    )
    if all(1000 - cost < ceil(min_margin * 1e6) / 1e3 for cost in costs):
        return
    options = {"catalogue": Catalogue(items), "users": users, "affinity": make_affinity(users)}
    for strategy in run(brief, proposer, **options):
        assert brief.starts <= strategy.starts < strategy.ends <= brief.ends
        for action in strategy.actions:
            assert action.channel in channels
            assert action.offer.depth <= max_depth
            price = 1000 * (1 - Decimal(str(action.offer.depth)))
            cost = Catalogue(items)[action.item_id or ""].unit_cost
            assert price - cost >= price * Decimal(str(min_margin))
