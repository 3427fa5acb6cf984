"""Effects as somebody who plans asks for them: of live actions, on users or a segment, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qiance.artifacts.effect import EffectModel
from qiance.artifacts.explain import BACKGROUND, Explanation, Method
from qiance.decide.predictor import ActionGrid
from qiance.decide.unknown import Blind
from qiance.domain import CONTROL, Action, Effect
from qiance.features.user_row import UserRows
from qiance.ledger.schema import to_micros
from qiance.strategy.audience import audience_mask, resolve_audience
from serve.predictor import Predictor
from serve.reasons import OTHERS, PairExplainer, mean_explanation, row_of
from serve.scoring import ScoreRequest

EVERYBODY = "all"
MAX_PAIRS = 5_000  # of one request for effects: some seconds of one core
# Of one request, users of a segment counted: an explanation takes as long as some ten thousand predictions.
MAX_EXPLAINED = 24
SAMPLED = 8  # users whose explanations stand for a segment


@dataclass(frozen=True)
class Effects:
    """What a planner is told.

    table: effects `[U][A]`, one row for a segment. reasons: the explanations, empty if not asked for.
    degraded: flags with the user each is about. model_version: of the model that said all this.
    """

    table: list[list[Effect]]
    reasons: list[list[Explanation]]
    degraded: tuple[str, ...]
    model_version: str


class Planner:
    """Answers from a predictor, off the path of decisions; safe to use from several threads."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def effects(
        self,
        user_ids: Sequence[str] | None,
        segment: str | None,
        action_ids: Sequence[str],
        explain: Method | None = None,
    ) -> Effects:
        """Effects of live actions: per user, or one row over a segment of the snapshot.

        segment: `all`, a named segment, or an audience's rule. explain: also why the incremental margin is
        what it is; of a segment the mean over some of its users. Raises ValueError that names the field for
        an action that is not live, a segment that is none or empty, and more pairs than can be worked out.
        """
        state, model = self._predictor.live_state, self._predictor.model
        index = state.index
        unknown = [a for a in action_ids if a not in index or a == CONTROL]
        if unknown:
            raise ValueError(f"actions: {unknown[0]!r} is not a live action; see GET /v1/strategies")
        _check_size(None if user_ids is None else len(user_ids), len(action_ids), explain)
        actions = [state.actions[index[a]] for a in action_ids]
        others = [a for a in state.actions[1:] if a.action_id not in action_ids]
        if user_ids is None:
            return self._of_segment(self._members(segment), actions, others, model, explain)
        return self._of_users(user_ids, actions, others, model, explain)

    def _of_segment(
        self,
        members: Sequence[str],
        actions: Sequence[Action],
        others: Sequence[Action],
        model: EffectModel,
        explain: Method | None,
    ) -> Effects:
        prediction = self._predictor.predict(members, actions)
        table = [[prediction.summarise(a) for a in range(len(actions))]]
        if explain is None:
            return Effects(table, [], (), model.version)
        some = np.random.default_rng(0).permutation(len(members))[:SAMPLED]
        rows = self._predictor.known_rows([members[n] for n in some])
        explained = self._explained(rows, actions, others, model, explain)
        means = [mean_explanation([of_user[a] for of_user in explained]) for a in range(len(actions))]
        return Effects(table, [means], (), model.version)

    def _of_users(
        self,
        user_ids: Sequence[str],
        actions: Sequence[Action],
        others: Sequence[Action],
        model: EffectModel,
        explain: Method | None,
    ) -> Effects:
        predictor = self._predictor
        catalogue, now, allowed = (
            predictor.snapshot.catalogue,
            predictor.now(),
            predictor.users.allowed(user_ids),
        )
        shown = [*actions, *others[:OTHERS]] if explain else actions
        wanted = sorted({catalogue[a.item_id].category for a in shown if a.item_id})
        requests = [
            ScoreRequest(u, 0, now, bool(agrees)) for u, agrees in zip(user_ids, allowed, strict=True)
        ]
        rows, read = predictor.read(requests, wanted)
        _, items = predictor.items.at(to_micros(now))
        vectors = predictor.live_state.vectors
        grid = ActionGrid(model, catalogue, actions, items, predictor.snapshot.categories, vectors)
        prediction = grid.score(rows).prediction
        stranger, cold = read.strangers, predictor.cold(actions, to_micros(now))
        seldom = stranger.any() or cold.any()
        blind = Blind(predictor.unknown_of(model, grid), stranger, cold) if seldom else None
        every, table = range(len(actions)), []
        for user in range(len(user_ids)):
            each = [user] * len(actions)
            unknown = blind.variance(each, every) if blind else None
            table.append(prediction.effects_on(each, every, unknown=unknown))
        pairs = zip(user_ids, read.flags, strict=True)
        flags = tuple(f"{flag}:{user}" for user, of_user in pairs for flag in of_user)
        reasons = self._explained(rows, actions, others, model, explain) if explain else []
        return Effects(table, reasons, flags, model.version)

    def _explained(
        self,
        rows: UserRows,
        actions: Sequence[Action],
        others: Sequence[Action],
        model: EffectModel,
        method: Method,
    ) -> list[list[Explanation]]:
        """`[U][A]` explanations of the incremental margin."""
        predictor = self._predictor
        _, items = predictor.items.at(to_micros(predictor.now()))
        snapshot = predictor.snapshot
        order = np.random.default_rng(0).permutation(len(snapshot.users.user_ids))[:BACKGROUND]
        background = predictor.known_rows([snapshot.users.user_ids[n] for n in order])
        shown = (*actions, *others[:OTHERS])
        explainer = PairExplainer(
            model,
            snapshot.catalogue,
            shown,
            items,
            snapshot.categories,
            background,
            predictor.live_state.vectors,
        )
        return [
            [explainer.explain(row_of(rows, user), action, method) for action in range(len(actions))]
            for user in range(len(rows))
        ]

    def _members(self, segment: str | None) -> list[str]:
        """Users of the snapshot in the segment; ValueError if it is none, or empty."""
        table = self._predictor.snapshot.users
        if segment is None or segment == EVERYBODY:
            return list(table.user_ids)
        try:
            mask = audience_mask(resolve_audience(segment, table), table)
        except ValueError as error:
            raise ValueError(f"segment: {str(error).partition(': ')[2]}") from None
        return [user for user, inside in zip(table.user_ids, mask, strict=True) if inside]


def _check_size(users: int | None, actions: int, explain: Method | None) -> None:
    """users: None for a segment."""
    explained = (SAMPLED if users is None else users) * actions
    if users is not None and users * actions > MAX_PAIRS:
        raise ValueError(f"user_ids: {users} users × {actions} actions; at most {MAX_PAIRS} pairs")
    if explain and explained > MAX_EXPLAINED:
        raise ValueError(
            f"explain: {explained} pairs of user and action (a segment counts {SAMPLED} users); at most "
            f"{MAX_EXPLAINED} are explained at once"
        )
