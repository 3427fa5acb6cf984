"""The plans of a brief, and what they and their rivals bring in the market's truth for the same money."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import discount_of
from qiance.domain import Action, Brief, Channel, EffectPredictor, StrategyKind
from qiance.market import CONTACT_COST, Market
from qiance.strategy.propose_candidate import Candidate
from qiance.strategy.propose_grid import Grid, draft_action, score_grid
from qiance.strategy.propose_kinds import ads, usable_segments
from qiance.strategy.propose_promotions import promotions
from qiance.strategy.propose_request import Request, build_request
from qiance.strategy.recommend import candidate_items
from qiance.workspace import Snapshot

Floats = NDArray[np.float64]
DEPTHS = (0.1, 0.2, 0.3)
RIVALS = ("random", "response")
KINDS = {"audience": StrategyKind.AD, "promotion": StrategyKind.PROMOTION}


@dataclass(frozen=True)
class Gains:
    """Expected margin over doing nothing, minor units for the same money, `[plans]` by who planned it."""

    by: Mapping[str, Floats]

    def total(self, who: str) -> float:
        """Of all plans together."""
        return float(self.by[who].sum())


@dataclass(frozen=True)
class Seen:
    """An action on every user, `[users]` each: what a contact truly brings and costs, and predictions."""

    gain: Floats
    cost: Floats
    response: Floats
    uplift: Floats
    ratio: Floats


class Judge:
    """What contacts truly bring and cost; whoever contacts stops when the money is spent."""

    def __init__(self, market: Market, request: Request, predictor: EffectPredictor, money: float) -> None:
        self._market, self._request, self._predictor = market, request, predictor
        self._money = money
        self._known: dict[str, Seen] = {}

    def of(self, action: Action) -> Seen:
        """Truth and predictions; ratio: predicted uplift per predicted cost."""
        if action.action_id not in self._known:
            users, people = self._request.users.user_ids, self._market.population
            rows, table = people.rows(users), self._market.table([action])
            truth = self._market.truth(rows, table)
            control = people.organic[rows] * people.basket[rows] * people.margin_rate
            found = self._predictor.predict(users, [action])
            response = found.conversion.mean(axis=(1, 2), dtype=np.float64)
            uplift = found.uplift().mean(axis=(1, 2), dtype=np.float64)
            cost = action.contact_cost + discount_of(action, self._request.catalogue) * response
            gain = truth.margin[:, 0] - table.contact_cost[0] - control
            self._known[action.action_id] = Seen(gain, truth.cost[:, 0], response, uplift, uplift / cost)
        return self._known[action.action_id]

    def at_random(self, action: Action, members: NDArray[np.int64]) -> float:
        """Gain of contacting `members` in any order."""
        seen = self.of(action)
        contacts = min(float(members.size), self._money / float(seen.cost[members].mean()))
        return float(seen.gain[members].mean()) * contacts

    def in_order(self, action: Action, order: NDArray[np.int64]) -> float:
        """Gain of contacting users in this order."""
        seen = self.of(action)
        cost = seen.cost[order]
        paid = np.clip((self._money - (cost.cumsum() - cost)) / cost, 0.0, 1.0)
        return float((seen.gain[order] * paid).sum())

    def by_response(self, action: Action) -> float:
        """Of everybody, those of the highest predicted conversion first."""
        return self.in_order(action, np.argsort(-self.of(action).response, kind="stable"))

    def by_value(self, action: Action, members: NDArray[np.int64]) -> float:
        """Of `members`, those of most predicted uplift per cost first, as long as it is positive."""
        seen = self.of(action)
        order = members[np.argsort(-seen.ratio[members], kind="stable")]
        return self.in_order(action, order[seen.uplift[order] > 0])


def request_of(snapshot: Snapshot, brief: Brief, seed: int) -> Request:
    """The brief, checked against the shop."""
    return build_request(
        brief,
        snapshot.catalogue,
        snapshot.users,
        snapshot.user_category["category_share"],
        snapshot.categories,
        CONTACT_COST,
        DEPTHS,
        snapshot.item["units_28d"],
        seed,
    )


def gains(kind: str, request: Request, predictor: EffectPredictor, market: Market) -> Gains:
    """Of the best plan of `kind` for every item and channel, each with the brief's whole budget."""
    items = candidate_items(request, predictor).items
    grid, truth = score_grid(request, items, predictor), score_grid(request, items, market)
    money = float(request.brief.budget.minor)
    judge, seer = Judge(market, request, predictor, money), Judge(market, request, market, money)
    perfect = {_place(c): c for c in best_of(_candidates(kind, request, truth))}
    everybody, found = request.matching(request.base), dict[str, list[float]]()
    for plan in best_of(_candidates(kind, request, grid)):
        action = _action(request, plan)
        tried = [action] if kind == "audience" else list(_offers(request, grid, plan))
        reached = max(tried, key=lambda a: float(judge.of(a).response.mean()))
        best = perfect.get(_place(plan), plan)
        values = {
            "ours": judge.by_value(action, request.matching(plan.audience)),
            "rule_alone": judge.at_random(action, request.matching(plan.audience)),
            "random": float(np.mean([judge.at_random(a, everybody) for a in tried])),
            "response": judge.by_response(reached),
            "foresight": seer.by_value(_action(request, best), request.matching(best.audience)),
        }
        for who, value in values.items():
            found.setdefault(who, []).append(value)
    return Gains({who: np.asarray(each) for who, each in found.items()})


def best_of(candidates: Iterable[Candidate]) -> list[Candidate]:
    """For every item and channel the candidate that promises most."""
    best: dict[tuple[str, Channel], Candidate] = {}
    for candidate in candidates:
        held = best.get(_place(candidate))
        if held is None or candidate.total > held.total:
            best[_place(candidate)] = candidate
    return list(best.values())


def _candidates(kind: str, request: Request, grid: Grid) -> Iterator[Candidate]:
    if kind == "audience":
        return ads(request, grid)
    return promotions(request, grid, usable_segments(request, grid), lambda _note: None)


def _place(candidate: Candidate) -> tuple[str, Channel]:
    return candidate.item.item_id, candidate.channels[0]


def _action(request: Request, plan: Candidate) -> Action:
    return draft_action(request, plan.item, plan.channels[0], plan.offer.depth)


def _offers(request: Request, grid: Grid, plan: Candidate) -> Iterator[Action]:
    """The item on that channel at every depth that the brief admits."""
    for depth in grid.depths(plan.item, plan.channels[0]):
        if depth > 0:
            yield draft_action(request, plan.item, plan.channels[0], depth)
