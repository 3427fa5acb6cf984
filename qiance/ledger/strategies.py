"""Strategies and their states."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select, update

from qiance.domain import CreativeState, Strategy, StrategyState
from qiance.guard import Linted, creative_id_of, is_sealed, subjects_of
from qiance.ledger.briefs import Briefs
from qiance.ledger.codec import strategy_from_dict, strategy_to_dict
from qiance.ledger.database import checked, chunks, inserted, text_problem
from qiance.ledger.schema import strategies

_NEXT = {
    StrategyState.DRAFT: {StrategyState.APPROVED},
    StrategyState.APPROVED: {StrategyState.LIVE},
    StrategyState.LIVE: {StrategyState.PAUSED, StrategyState.ENDED},
    StrategyState.PAUSED: {StrategyState.LIVE, StrategyState.ENDED},
    StrategyState.ENDED: set(),
}
# States that lead to service: nobody comes into them with words that the guard has not just passed.
_GATED = (StrategyState.APPROVED, StrategyState.LIVE)
# What may still change once somebody has approved the words, the money and the audience.
_REFRESHABLE = ("state", "effect", "reach")


class Strategies(Briefs):
    """Strategies and their states."""

    def put_strategies(self, batch: Sequence[Strategy], by: str = "system") -> None:
        """Stores strategies, new or again.

        A new one is a draft: ValueError for any other state. A draft may be replaced. Of one that was
        approved, only `effect` and `reach` may be refreshed: ValueError if anything else differs. The state
        never changes here, see `set_strategy_state`.
        """
        if not batch:
            return
        with self.write() as connection:
            known = self._known_strategies(connection, [strategy.strategy_id for strategy in batch])
            for strategy in batch:
                old = known.get(strategy.strategy_id)
                self._put(connection, strategy, old)
                known[strategy.strategy_id] = strategy if old is None else replace(strategy, state=old.state)
                event = "strategy.proposed" if old is None else "strategy.changed"
                detail = {"state": known[strategy.strategy_id].state.value}
                self._write_line(connection, event, strategy.strategy_id, by, detail)
            self._bump(connection, strategies_changed=True)

    def strategies(self, state: StrategyState | None = None, brief_id: str | None = None) -> list[Strategy]:
        """Strategies in the order they were stored; only those in `state`, of `brief_id`, if given."""
        if brief_id is not None and text_problem(brief_id) is not None:
            return []
        statement = select(strategies).where(strategies.c.tenant_id == self.tenant)
        if state is not None:
            statement = statement.where(strategies.c.state == state.value)
        if brief_id is not None:
            statement = statement.where(strategies.c.brief_id == brief_id)
        statement = statement.order_by(strategies.c.created_at, strategies.c.strategy_id)
        with self.read() as connection:
            return [_strategy(row) for row in connection.execute(statement)]

    def strategy(self, strategy_id: str) -> Strategy | None:
        """One strategy, or None."""
        if text_problem(strategy_id) is not None:
            return None
        statement = select(strategies).where(
            strategies.c.tenant_id == self.tenant, strategies.c.strategy_id == strategy_id
        )
        with self.read() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _strategy(row)

    def set_strategy_state(
        self, strategy_id: str, state: StrategyState, by: str, reason: str, linted: Sequence[Linted] = ()
    ) -> Strategy:
        """Moves a strategy along draft → approved → live ⇄ paused → ended (live → ended too).

        linted: for a move to approved or live, the fresh lint of all its words (`qiance.guard.gate` does it).
        Approving a strategy approves its words; going live needs them approved.
        ValueError for any other move, and for words that are missing from `linted`, blocked or retired.
        Replicas see it by `versions().serial`; an audit line keeps by whom.
        """
        checked("strategy_id", strategy_id)
        with self.write() as connection:
            old = self._known_strategies(connection, [strategy_id]).get(strategy_id)
            if old is None:
                raise ValueError(f"strategy_id: {strategy_id!r} is not known; put_strategies first")
            if state not in _NEXT[old.state]:
                allowed = ", ".join(sorted(_NEXT[old.state])) or "nothing"
                raise ValueError(
                    f"state: {strategy_id!r} is {old.state.value}, it can become {allowed}, not {state.value}"
                )
            if state in _GATED:
                self._admit_words(connection, old, state, linted, by, reason)
            self._update(connection, replace(old, state=state))
            detail = {"from": old.state.value, "to": state.value, "reason": reason}
            self._write_line(connection, f"strategy.{state.value}", strategy_id, by, detail)
            self._bump(connection, strategies_changed=True)
        return replace(old, state=state)

    def _admit_words(
        self,
        connection: Connection,
        strategy: Strategy,
        state: StrategyState,
        linted: Sequence[Linted],
        by: str,
        reason: str,
    ) -> None:
        """Refuses words that were not linted or do not pass; the others are approved, or were."""
        given = {each.creative_id: each for each in linted if is_sealed(each)}
        wanted = {creative_id_of(s): name for name, s in subjects_of(strategy, None).items()}
        for creative_id, action_id in wanted.items():
            if creative_id not in given:
                raise ValueError(
                    f"strategy {strategy.strategy_id!r}: the words of {action_id!r} were not linted; "
                    "move it with qiance.guard.gate.move_strategy"
                )
            if given[creative_id].result.blocked:
                why = given[creative_id].result.why()
                raise ValueError(
                    f"strategy {strategy.strategy_id!r}: the words of {action_id!r} are blocked: {why}"
                )
        if state is StrategyState.APPROVED:
            self._approve_creatives(connection, [given[name] for name in wanted], by, reason)
            return
        known = self._known_creatives(connection, wanted)
        for creative_id, action_id in wanted.items():
            entry = known.get(creative_id)
            if entry is None or entry.state is not CreativeState.APPROVED:
                found = "not in the bank" if entry is None else entry.state.value
                raise ValueError(
                    f"strategy {strategy.strategy_id!r}: the words of {action_id!r} are {found}; "
                    f"approve them first: qiance creatives approve {creative_id}"
                )
            self._bank(connection, given[creative_id], entry, by)

    def _known_strategies(self, connection: Connection, ids: Sequence[str]) -> dict[str, Strategy]:
        """Stored strategies by id, locked until the transaction ends."""
        base = select(strategies).where(strategies.c.tenant_id == self.tenant)
        return {
            row.strategy_id: _strategy(row)
            for part in chunks(sorted(set(ids)))
            for row in connection.execute(
                base.where(strategies.c.strategy_id.in_(part))
                .order_by(strategies.c.strategy_id)
                .with_for_update()
            )
        }

    def _put(self, connection: Connection, strategy: Strategy, old: Strategy | None) -> None:
        if old is None:
            if strategy.state is not StrategyState.DRAFT:
                raise ValueError(
                    f"strategy {strategy.strategy_id!r}: state {strategy.state.value} is not one to begin "
                    "with; store a draft, then approve it"
                )
            now = self._now()
            row = {"tenant_id": self.tenant, "created_at": now, "updated_at": now, **_columns(strategy)}
            if not inserted(connection, strategies, row):
                raise ValueError(
                    f"strategy_id: {strategy.strategy_id!r} was stored by another writer; try again"
                )
            return
        if old.state is not StrategyState.DRAFT:
            changed = _changed(old, strategy)
            if changed:
                raise ValueError(
                    f"strategy {strategy.strategy_id!r} is {old.state.value}: its {', '.join(changed)} "
                    "cannot change any more; propose a new strategy"
                )
        self._update(connection, replace(strategy, state=old.state))

    def _update(self, connection: Connection, strategy: Strategy) -> None:
        connection.execute(
            update(strategies)
            .where(strategies.c.tenant_id == self.tenant, strategies.c.strategy_id == strategy.strategy_id)
            .values(updated_at=self._now(), **_columns(strategy))
        )


def _columns(strategy: Strategy) -> dict[str, str]:
    return {
        "strategy_id": checked("strategy_id", strategy.strategy_id),
        "brief_id": checked("brief_id", strategy.brief_id),
        "state": strategy.state.value,
        "payload": _to_json(strategy_to_dict(strategy)),
    }


def _changed(old: Strategy, new: Strategy) -> list[str]:
    """Names of the fields, besides the refreshable ones, in which two versions differ."""
    before, after = strategy_to_dict(old), strategy_to_dict(new)
    return [name for name in before if name not in _REFRESHABLE and before[name] != after[name]]


def _strategy(row: Any) -> Strategy:
    return replace(strategy_from_dict(json.loads(row.payload)), state=StrategyState(row.state))


def _to_json(data: dict[str, Any]) -> str:
    try:
        # ASCII escapes: any text survives, and NUL, which PostgreSQL refuses, becomes an escape.
        return json.dumps(data, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"effect: {error}; every number must be finite") from None
