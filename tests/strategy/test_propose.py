"""The whole proposal, on a market whose truth is planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from math import ceil

import numpy as np
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

from qiance.domain import (
    Action,
    Brief,
    Catalogue,
    Channel,
    GridPrediction,
    Item,
    Money,
    Objective,
    Strategy,
    StrategyKind,
    StrategyState,
    UserTable,
)
from qiance.strategy.audience import audience_mask
from qiance.strategy.propose import propose
from qiance.strategy.propose_ports import Draft, WrittenText


def run(brief: Brief = BRIEF, seed: int = 7, **options: object) -> list[Strategy]:
    given_: dict[str, object] = {
        "catalogue": CATALOGUE,
        "users": USERS,
        "affinity": AFFINITY,
        "categories": CATEGORIES,
        "writer": PlainWriter(),
        "contact_cost": COSTS,
    }
    given_ |= options
    given_.setdefault("predictor", PlantedMarket(given_["users"], given_["catalogue"]))  # type: ignore[arg-type]
    return propose(brief, seed=seed, **given_)  # type: ignore[arg-type]


def of_kind(strategies: list[Strategy], kind: StrategyKind) -> list[Strategy]:
    return [strategy for strategy in strategies if strategy.kind is kind]


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("n", [4, 8, 20])
def test_all_four_kinds_complete_and_distinct(objective: Objective, n: int) -> None:
    strategies = run(replace(BRIEF, objective=objective, n=n))
    assert len(strategies) == n
    assert {strategy.kind for strategy in strategies} == set(StrategyKind)
    ids = [s.strategy_id for s in strategies] + [a.action_id for s in strategies for a in s.actions]
    assert len(set(ids)) == len(ids)
    for strategy in strategies:
        assert strategy.state is StrategyState.DRAFT
        assert strategy.effect is not None
        assert strategy.effect.uplift.low <= strategy.effect.uplift.value <= strategy.effect.uplift.high
        assert strategy.reach == audience_mask(strategy.audience, USERS).sum() > 0
        planned = {"timing", "stock"} if strategy.kind is StrategyKind.PROMOTION else set()
        assert set(strategy.provenance) == {"audience", "item", "offer", "creative", "effect"} | planned
        assert strategy.reasons
        assert all(reason.endswith(".") for reason in strategy.reasons)
        assert BRIEF.starts <= strategy.starts < strategy.ends <= BRIEF.ends
        assert 1 <= len(strategy.actions) <= 2
        _check_actions(strategy)


def _check_actions(strategy: Strategy) -> None:
    for number, action in enumerate(strategy.actions):
        assert action.action_id == f"{strategy.strategy_id}:{number}"
        assert action.contact_cost == COSTS[action.channel]
        assert action.creative is not None
        assert action.creative.channel is action.channel


def test_the_ad_goes_to_the_planted_responders() -> None:
    market = PlantedMarket(USERS, CATALOGUE)
    best = of_kind(run(predictor=market), StrategyKind.AD)[0]
    found, truth = audience_mask(best.audience, USERS), market.responders()
    assert (found & truth).sum() / (found | truth).sum() > 0.9
    assert best.effect is not None
    assert best.effect.uplift.value == pytest.approx(90, rel=0.1)
    assert "decision tree" in best.provenance["audience"]
    assert any("recency_days" in reason and "USD" in reason for reason in best.reasons)


def test_the_promotion_takes_the_planted_depth_or_the_deepest_that_is_allowed() -> None:
    promotions = of_kind(run(), StrategyKind.PROMOTION)
    assert {a.offer.depth for s in promotions for a in s.actions} == {0.2}
    floored = of_kind(run(replace(BRIEF, max_depth=0.15)), StrategyKind.PROMOTION)
    assert {a.offer.depth for s in floored for a in s.actions} == {0.1}


def test_recommendations_follow_affinity() -> None:
    brief = replace(BRIEF, n=30, channels=(Channel.EMAIL, Channel.DISPLAY))
    for strategy in of_kind(run(brief), StrategyKind.RECOMMENDATION):
        if strategy.audience.name == "frequent-shoppers":
            favoured = CATALOGUE[strategy.actions[0].item_id or ""].category
            assert favoured != "TEA"
            break
    else:
        pytest.fail("no recommendation for frequent shoppers among 30 strategies")


def test_the_same_arguments_give_the_same_strategies() -> None:
    assert run() == run()
    assert [s.strategy_id for s in run(seed=8)] == [s.strategy_id for s in run(seed=8)]


def test_varied_over_items_audiences_and_channels() -> None:
    strategies = run()
    assert len({a.item_id for s in strategies for a in s.actions}) >= 5
    assert len({s.audience.conditions for s in strategies}) >= 4
    assert len({a.channel for s in strategies for a in s.actions}) == 3


def test_the_predictor_sees_few_users_and_few_calls() -> None:
    market = PlantedMarket(USERS, CATALOGUE)
    run(predictor=market)
    assert max(users for users, _ in market.calls) <= 600
    # One for the shortlist, one for the grid, one for each strategy's final words.
    assert len(market.calls) == 2 + BRIEF.n


def test_words_are_asked_for_the_chosen_only_and_kept() -> None:
    writer = PlainWriter()
    brief = replace(BRIEF, languages=("en", "zh"), n=5)
    strategies = run(brief, writer=writer)
    actions = [action for strategy in strategies for action in strategy.actions]
    assert [draft.key for draft in writer.asked] == [action.action_id for action in actions]
    for strategy in strategies:
        places = [(a.channel, a.creative.language) for a in strategy.actions if a.creative]
        assert len(set(places)) == len(places) == 2
        assert {language for _, language in places} == {"en", "zh"}
        assert strategy.provenance["creative"] == "plain writer"
        assert any(reason.startswith("Speaks to") for reason in strategy.reasons)


def test_content_keeps_item_and_offer_and_varies_channel() -> None:
    for strategy in of_kind(run(), StrategyKind.CONTENT):
        assert len({(a.item_id, a.offer) for a in strategy.actions}) == 1
        assert len({a.channel for a in strategy.actions}) == 2


@pytest.mark.parametrize(
    ("channels", "kinds"),
    [
        (
            (Channel.EMAIL,),
            {StrategyKind.RECOMMENDATION, StrategyKind.PROMOTION, StrategyKind.CONTENT},
        ),
        ((Channel.DISPLAY,), {StrategyKind.RECOMMENDATION, StrategyKind.AD, StrategyKind.CONTENT}),
        ((Channel.MAILER,), {StrategyKind.PROMOTION, StrategyKind.CONTENT}),
        ((Channel.PUSH,), {StrategyKind.RECOMMENDATION, StrategyKind.CONTENT}),
    ],
)
def test_kinds_that_the_channels_permit(channels: tuple[Channel, ...], kinds: set[StrategyKind]) -> None:
    told: list[tuple[float, str]] = []
    strategies = run(
        replace(BRIEF, channels=channels), on_progress=lambda done, what: told.append((done, what))
    )
    assert {s.kind for s in strategies} == kinds
    assert {a.channel for s in strategies for a in s.actions} == set(channels)
    assert all(before[0] <= after[0] for before, after in pairwise(told))
    assert told[-1][0] == 1.0
    assert any("do not permit" in message for _, message in told)


def test_named_items_and_audience_are_kept() -> None:
    brief = replace(BRIEF, items=("soap-1", "tea-2"), audience="discount_share > 0.3", n=10)
    strategies = run(brief)
    assert {a.item_id for s in strategies for a in s.actions} == {"soap-1", "tea-2"}
    inside = USERS.columns["discount_share"] > 0.3
    assert all(inside[audience_mask(s.audience, USERS)].all() for s in strategies)


def test_one_item_and_no_feature_still_give_every_kind() -> None:
    bare = UserTable(USERS.user_ids, {})
    market = PlantedMarket(USERS, CATALOGUE)
    strategies = run(replace(BRIEF, items=("tea-1",)), users=bare, predictor=market)
    assert {s.kind for s in strategies} == set(StrategyKind)
    assert len(strategies) < BRIEF.n
    assert all(s.audience.conditions == () for s in strategies)


def test_a_strategy_that_does_not_pay_says_so() -> None:
    class Losing(PlantedMarket):
        def _uplift(self, action: Action) -> np.ndarray:
            return np.full(len(self.users), -50.0)

    for strategy in run(predictor=Losing(USERS, CATALOGUE)):
        assert any("not to pay for itself" in reason for reason in strategy.reasons)


def test_chinese_titles_and_a_tiny_table() -> None:
    catalogue = Catalogue((Item("茶-1", "龙井茶", "TEA", "饮料", "自有", 900, 300),))
    users = make_users(3)
    strategies = run(
        replace(BRIEF, languages=("zh",), n=4),
        catalogue=catalogue,
        users=users,
        affinity=make_affinity(users),
        predictor=PlantedMarket(users, catalogue),
    )
    assert {s.kind for s in strategies} == set(StrategyKind)
    assert all(s.strategy_id.isascii() for s in strategies)


@given(
    max_depth=st.floats(0, 1, exclude_max=True),
    min_margin=st.floats(0, 0.6),
    depths=st.lists(st.floats(0, 0.95), max_size=4),
    costs=st.lists(st.integers(0, 1200), min_size=4, max_size=4),
    n=st.integers(1, 12),
)
@settings(max_examples=25, deadline=None)
def test_no_strategy_passes_a_floor_by_any_path(
    max_depth: float, min_margin: float, depths: list[float], costs: list[int], n: int
) -> None:
    items = tuple(Item(f"i{k}", f"Item {k}", "TEA", "S", "B", 1000, cost) for k, cost in enumerate(costs))
    users, catalogue = make_users(60), Catalogue(items)
    brief = replace(BRIEF, max_depth=max_depth, min_margin=min_margin, n=n)
    options = {"catalogue": catalogue, "users": users, "affinity": make_affinity(users), "depths": depths}
    # Under a millionth of the price the floor is rounded against the item.
    if all(1000 - cost < ceil(min_margin * 1e6) / 1e3 for cost in costs):
        with pytest.raises(ValueError, match=r"brief\.min_margin: none of 4 items"):
            run(brief, **options)
        return
    for strategy in run(brief, **options):
        for action in strategy.actions:
            item = catalogue[action.item_id or ""]
            price = item.price * (1 - Decimal(str(action.offer.depth)))
            assert action.offer.depth <= max_depth
            assert price - item.unit_cost >= price * Decimal(str(min_margin))


class ShortWriter(PlainWriter):
    def write(self, drafts: Sequence[Draft]) -> list[WrittenText]:
        return super().write(drafts)[:-1]


class MonoglotWriter(PlainWriter):
    def write(self, drafts: Sequence[Draft]) -> list[WrittenText]:
        return super().write([replace(draft, language="fr") for draft in drafts])


class BrokenModel(PlantedMarket):
    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        whole = super().predict(user_ids, actions)
        return replace(whole, sales=np.full_like(whole.sales, np.nan))


@pytest.mark.parametrize(
    ("brief", "options", "message"),
    [
        (replace(BRIEF, n=0), {}, r"brief\.n: 0 is outside \[1, 50\]"),
        (replace(BRIEF, n=1_000_000), {}, r"brief\.n: 1000000 is outside"),
        (replace(BRIEF, ends=BRIEF.starts), {}, r"brief\.ends: .* is not after brief\.starts"),
        (replace(BRIEF, starts=datetime(2026, 1, 1)), {}, r"brief\.starts: .* has no time zone"),
        (replace(BRIEF, items=("tea-1", "nope")), {}, r"brief\.items: 'nope' is not in the catalogue of 20"),
        (replace(BRIEF, min_margin=0.9), {}, r"brief\.min_margin: none of 20 items keeps 0\.9 .* lower"),
        (replace(BRIEF, min_margin=float("nan")), {}, r"brief\.min_margin: nan is outside \[0, 1\)"),
        (replace(BRIEF, max_depth=-0.1), {}, r"brief\.max_depth: -0\.1 is outside"),
        (replace(BRIEF, channels=()), {}, r"brief\.channels: none cannot carry"),
        (replace(BRIEF, channels=(Channel.NONE,)), {}, r"brief\.channels: none cannot carry"),
        (BRIEF, {"contact_cost": {Channel.EMAIL: 1}}, "contact_cost: no cost for channel 'display'"),
        (BRIEF, {"contact_cost": COSTS | {Channel.EMAIL: -1}}, "contact_cost: -1 for 'email' is negative"),
        (replace(BRIEF, languages=()), {}, r"brief\.languages: empty"),
        (replace(BRIEF, budget=Money(-1)), {}, r"brief\.budget: -0\.01 USD is negative"),
        (replace(BRIEF, audience="vip"), {}, r"brief\.audience: 'vip' is no segment"),
        (replace(BRIEF, audience="spend_90d > 1e12"), {}, "matches none of the 900 users"),
        (BRIEF, {"depths": (0.1, 1.0)}, r"depths: 1\.0 is outside \[0, 1\)"),
        (BRIEF, {"depths": (float("nan"),)}, "depths: nan is outside"),
        (BRIEF, {"depths": tuple(k / 100 for k in range(1, 13))}, "depths: 12 are more than 10"),
        (BRIEF, {"affinity": AFFINITY[:, :2]}, r"affinity: shape \(900, 2\) is not 900 users × 4"),
        (BRIEF, {"affinity": AFFINITY * np.inf}, "affinity: inf is negative or infinite"),
        (BRIEF, {"affinity": AFFINITY - 0.5}, r"affinity: \S+ is negative or infinite; use shares"),
        (BRIEF, {"popularity": np.ones(3)}, "popularity: needs 20 finite weights"),
        (BRIEF, {"users": UserTable((), {})}, "users: the table is empty"),
        (BRIEF, {"users": replace(USERS, columns={"a": np.ones(3)})}, r"users\.columns\['a'\]: shape \(3,\)"),
        (BRIEF, {"catalogue": Catalogue(())}, "catalogue: no items"),
        (
            BRIEF,
            {"catalogue": Catalogue((replace(CATALOGUE.items[0], price=-5),))},
            "catalogue: item 'coffee-0' has price -5",
        ),
        (BRIEF, {"seed": -1}, "seed: -1 is negative"),
        (BRIEF, {"writer": ShortWriter()}, r"writer: returned \d+ texts for \d+ drafts"),
        (BRIEF, {"writer": MonoglotWriter()}, "writer: draft .* asked for"),
        (BRIEF, {"predictor": BrokenModel(USERS, CATALOGUE)}, "predictor: sales holds NaN"),
    ],
)
def test_bad_input_is_named(brief: Brief, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(brief, **options)  # type: ignore[arg-type]
