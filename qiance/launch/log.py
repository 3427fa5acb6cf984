"""Logged decisions as two policies would have made them: the arrays that off-policy evaluation reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import discounted_price
from qiance.decide.margin import order_margin
from qiance.decide.rescore import Rescored, Rescorer, unscored
from qiance.decide.rule import policy_probabilities, scores
from qiance.domain import Action, Catalogue, Decision
from qiance.evaluate.bandit_log import BanditLog
from qiance.launch.scoring import FrameGoneError
from qiance.ledger import NO_VERSION, LoggedDecision
from qiance.ledger.schema import to_micros

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MAX_CELLS = 5_000_000  # rows × actions of one evaluation: some hundred megabytes
NO_CHOICE = "nothing but control could be chosen"
OTHER = "no action of a live campaign could be chosen"
UNSCORED = "what the scores were made of was not kept"
LEARNED = "the policy's effect model may have learned from them"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it decides: the model that scores, and the price λ₀ that pacing moves.

    made_at: when its model was made; decisions before that, of another model, may be what it learned from.
    """

    version: str
    model: str
    price: float
    made_at: datetime | None = None


@dataclass(frozen=True, eq=False)
class PolicyLog:
    """n decisions in the order in which they were made, K actions.

    at: `[n]` microseconds since the epoch. policy, live: `[n, K]` probabilities of the policy and of the one
    that is live. model: `[n, K]` predicted reward. campaigns: id → `[n]`, see `qiance.evaluate.gate.judge`.
    spend, live_spend: mean predicted use of the budgets per decision by the policy's model, minor units.
    """

    bandit: BanditLog
    at: NDArray[np.int64]
    policy: Floats
    live: Floats
    model: NDArray[np.float32]
    campaigns: Mapping[str, Bools]
    spend: float
    live_spend: float


@dataclass(frozen=True, eq=False)
class _Block:
    """Decisions that share a candidate set; columns: `[A]` place of its actions among all."""

    rows: Sequence[LoggedDecision]
    columns: NDArray[np.int64]
    policy: Floats
    live: Floats
    model: NDArray[np.float32]
    campaigns: Mapping[str, Bools]
    reward: Floats
    spend: float
    live_spend: float


@dataclass
class LogBuilder:
    """Takes pages of logged decisions, newest first, until it has enough.

    campaign_of: strategy id → campaign, of all that is live. price_of: λ₀ of a policy version, None where it
    is not known. epsilon: share of exploration of both policies; margin_rate: see `order_margin`.

    Scores of the model that logged are those of the log, moved by the difference in price; those of another
    model are made again from the logged features. A policy's price is λ₀ times what pacing had made of the
    λ₀ of the policy that logged the decision.
    """

    rescorer: Rescorer
    policy: Policy
    live: Policy
    campaign_of: Mapping[str, str]
    price_of: Callable[[str], float | None]
    epsilon: float
    margin_rate: float
    max_rows: int
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    _blocks: list[_Block] = field(default_factory=list)
    _columns: dict[str, int] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether more would be too much."""
        return self.rows >= self.max_rows or self.rows * len(self._columns) >= MAX_CELLS

    def add(self, page: Sequence[LoggedDecision]) -> None:
        """Takes what can be used of a page, and counts the rest by reason."""
        groups = defaultdict[tuple[str, str, str], list[LoggedDecision]](list)
        for row in page[: self.max_rows - self.rows]:
            reason = self._unusable(row.decision)
            if reason:
                self.left_out[reason] += 1
            else:
                made = row.decision
                groups[made.candidate_set, made.items, made.model_version].append(row)
        for rows in groups.values():
            self._add(rows)

    def _add(self, rows: Sequence[LoggedDecision]) -> None:
        """Takes decisions that share candidate set, item values and model."""
        actions = self.rescorer.candidates(rows[0].decision.candidate_set)
        mask = np.stack([row.decision.mask() for row in rows])
        campaigns = {name: self._reached(name, actions, mask) for name in set(self.campaign_of.values())}
        inside = np.any([*campaigns.values(), np.zeros(len(rows), np.bool_)], axis=0)
        if not inside.all():
            self.left_out[OTHER] += len(rows) - int(inside.sum())
        if not inside.any():
            return
        kept = [row for row, keep in zip(rows, inside.tolist(), strict=True) if keep]
        try:
            block = self._block(kept, actions, mask[inside], {n: m[inside] for n, m in campaigns.items()})
        except FrameGoneError:
            self.left_out[UNSCORED] += len(kept)
            return
        self._blocks.append(block)
        self.rows += len(kept)

    def build(self) -> PolicyLog | None:
        """The log, oldest first; None where no decision could be used."""
        if not self._blocks:
            return None
        rows = [row.decision for block in self._blocks for row in block.rows]
        at = np.array([to_micros(decision.decided_at) for decision in rows], dtype=np.int64)
        order = np.argsort(at, kind="stable")
        chosen = [block.columns[[r.decision.chosen for r in block.rows]] for block in self._blocks]
        bandit = BanditLog(
            np.concatenate(chosen)[order],
            np.concatenate([block.reward for block in self._blocks])[order],
            np.array([decision.propensity for decision in rows])[order],
            cluster=np.array([decision.pseudonym for decision in rows])[order],
        )
        names = sorted(set(self.campaign_of.values()))
        return PolicyLog(
            bandit,
            at[order],
            self._matrix("policy", order),
            self._matrix("live", order),
            self._matrix("model", order),
            {n: np.concatenate([block.campaigns[n] for block in self._blocks])[order] for n in names},
            sum(block.spend for block in self._blocks) / self.rows,
            sum(block.live_spend for block in self._blocks) / self.rows,
        )

    def _matrix(self, name: str, order: NDArray[np.intp]) -> Any:
        """`[n, K]` of what blocks have `[rows, A]` of, of the same kind."""
        dtype = getattr(self._blocks[0], name).dtype
        found, start = np.zeros((self.rows, len(self._columns)), dtype), 0
        place = np.empty(self.rows, dtype=np.int64)
        place[order] = np.arange(self.rows)
        for block in self._blocks:
            end = start + len(block.rows)
            found[place[start:end, None], block.columns] = getattr(block, name)
            start = end
        return found

    def _unusable(self, decision: Decision) -> str:
        if len(decision.scores) <= 4:
            return NO_CHOICE
        if unscored(decision) or decision.policy_version == NO_VERSION:
            return UNSCORED
        made_at = self.policy.made_at
        if decision.model_version != self.policy.model and made_at and decision.decided_at < made_at:
            return LEARNED
        return ""

    def _block(
        self,
        rows: Sequence[LoggedDecision],
        actions: Sequence[Action],
        mask: Bools,
        campaigns: Mapping[str, Bools],
    ) -> _Block:
        made = [row.decision for row in rows]
        found = self.rescorer.score(made, self.policy.model)
        policy = self._probabilities(self.policy, made, mask, found)
        live = self._probabilities(self.live, made, mask, found)
        columns = [self._columns.setdefault(a.action_id, len(self._columns)) for a in actions]
        return _Block(
            rows,
            np.array(columns, dtype=np.int64),
            policy,
            live,
            np.where(mask, found.margin, np.float32(0.0)),
            campaigns,
            _rewards(rows, actions, self.rescorer.catalogue, self.margin_rate),
            float((policy * found.cost).sum()),
            float((live * found.cost).sum()),
        )

    def _reached(self, campaign: str, actions: Sequence[Action], mask: Bools) -> Bools:
        """`[n]` whether an action of the campaign could have been chosen."""
        own = np.array([self.campaign_of.get(action.strategy_id) == campaign for action in actions])
        return np.asarray((mask & own).any(axis=1))

    def _probabilities(
        self, policy: Policy, made: Sequence[Decision], mask: Bools, found: Rescored
    ) -> Floats:
        if policy.version == NO_VERSION:
            return np.tile(np.eye(1, mask.shape[1]), (len(made), 1))
        price = np.array([self._price(policy, decision) for decision in made])
        score = self._scores(policy, price, made, mask, found)
        return policy_probabilities(score, np.zeros_like(score), mask, 0.0, self.epsilon)

    def _scores(
        self, policy: Policy, price: Floats, made: Sequence[Decision], mask: Bools, found: Rescored
    ) -> Floats:
        """`[n, A]` value − λ·cost, 0 where inadmissible."""
        same = policy.model == made[0].model_version
        moved = np.array([decision.shadow_price for decision in made]) - price
        if policy.model != self.policy.model and (moved.any() or not same):
            found = self.rescorer.score(made, policy.model)
        cost = found.cost.astype(np.float64)
        if same:
            again = np.stack([decision.score_row() for decision in made]) + moved[:, None] * cost
        else:
            again = scores(found.value, price[:, None] * cost, 1.0).astype(np.float64)
        return np.where(mask, again, 0.0)

    def _price(self, policy: Policy, decision: Decision) -> float:
        """The policy's λ₀, moved as pacing had moved that of the policy which decided."""
        if decision.policy_version == policy.version:
            return decision.shadow_price
        start = self.price_of(decision.policy_version)
        return policy.price * decision.shadow_price / start if start else policy.price


def _rewards(
    rows: Sequence[LoggedDecision], actions: Sequence[Action], catalogue: Catalogue, margin_rate: float
) -> Floats:
    """`[n]` margin of what came of each decision, after the contact, minor units."""
    chosen = np.array([row.decision.chosen for row in rows])
    items = [
        None if a.item_id is None or a.item_id not in catalogue.index else catalogue[a.item_id]
        for a in actions
    ]
    depth = np.array([a.offer.depth if item else 0.0 for a, item in zip(actions, items, strict=True)])
    price = np.array([item.price if item else 1 for item in items], dtype=np.int64)
    unit_cost = np.array([float(item.unit_cost) if item else 0.0 for item in items])
    contact = np.array([float(action.contact_cost) for action in actions])
    paid = discounted_price(price, depth)
    sales = np.array([row.sales for row in rows], dtype=np.int64)
    margin = order_margin(sales, depth[chosen], paid[chosen], unit_cost[chosen], margin_rate)
    return np.asarray(margin - contact[chosen], dtype=np.float64)
