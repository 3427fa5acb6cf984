"""The predictor: reads a user's features, scores the live candidates in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.effect import EffectModel
from qiance.decide.predictor import FramePredictor, GridPredictor, UserRows
from qiance.domain import CONTROL, Action, Effect, GridPrediction, UserTable
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.online import OnlineReader
from qiance.ledger import NO_VERSION, Ledger
from qiance.ledger.schema import to_micros
from qiance.strategy.audience import audience_mask, resolve_audience
from qiance.workspace import Snapshot, Workspace
from serve.items import ItemSnapshot
from serve.live import LiveState, Watcher, clears_floor
from serve.profile import KnownRow
from serve.users import NO_CONSENT, Consents, LiveUsers, UserRead

Floats = NDArray[np.float64]
# Effects per user × action of one request, the degraded parts, the model's version.
Effects = tuple[list[list[Effect]], tuple[str, ...], str]
EVERYBODY = "all"
REFRESH_S = 5.0
STRANGER = ""  # no user has this id
MAX_PAIRS = 5_000  # of one request for effects: some seconds of one core


class NoModelError(RuntimeError):
    """No effect model is registered, so nothing can be predicted."""


@dataclass(frozen=True)
class ScoreRequest:
    """One user to score at an instant: id and number of contacts in the last seven days."""

    user_id: str
    contacts_7d: int
    at: datetime

    @property
    def at_us(self) -> int:
        return to_micros(self.at)


@dataclass(frozen=True)
class Scored:
    """Scores of the live candidates for one user; column 0 is control.

    value: `[A]` predicted incremental margin, minor units; cost: `[A]` expected use of the budget.
    admissible: `[A]` audience and margin floor admit the user; effects: per action, None for control.
    """

    serial: int
    action_ids: tuple[str, ...]
    value: Floats
    cost: Floats
    admissible: NDArray[np.bool_]
    effects: tuple[Effect | None, ...]
    model_version: str
    degraded: tuple[str, ...]


class Predictor:
    """Scores users against what is live; a plain class, wrapped by a deployment in app.py."""

    def __init__(
        self,
        workspace: Workspace,
        ledger: Ledger,
        reader: OnlineReader,
        consents: Consents,
        clock: Callable[[], datetime],
        min_margin: float,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._workspace, self._clock, self._min_margin = workspace, clock, min_margin
        self.snapshot = Snapshot.load(workspace.snapshot)
        self.users = LiveUsers(reader, consents, self.snapshot)
        self.items = ItemSnapshot(reader, self.snapshot, refresh_s)
        self._model: EffectModel | None = None
        self._watcher = Watcher(ledger, self.snapshot.catalogue, self._adopt)
        self._warm_up()

    def close(self) -> None:
        """Stop the threads that follow the ledger and the items."""
        self._watcher.close()
        self.items.close()

    def _adopt(self, state: LiveState) -> None:
        """Load the model that the version row names, if it is another one."""
        version = state.versions.model
        if version == NO_VERSION or (self._model is not None and self._model.version == version):
            return
        path = self._workspace.artifact("effect-model", version)
        self._model = EffectModel.load(path, EFFECT_SCHEMA)

    def _warm_up(self) -> None:
        if self._model is not None:
            self.score([ScoreRequest(self.snapshot.users.user_ids[0], 0, self._clock())])

    @property
    def model(self) -> EffectModel:
        """The champion; NoModelError while none is registered."""
        if self._model is None:
            raise NoModelError("versions.model: no model is registered; run `qiance run` first")
        return self._model

    def _grid(self, model: EffectModel, now_us: int) -> GridPredictor:
        items = self.items.values(now_us)
        return GridPredictor(model, self.snapshot.catalogue, items, self.snapshot.categories)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """Scores of every live candidate for each request, in one pass over all of them."""
        # As the watcher's thread left them: a champion that cannot be loaded must not stop scoring.
        state, model = self._watcher.state, self.model
        offered = state.actions[1:]
        rows, read = self._read(requests, offered)
        if not offered:
            return [
                self._scored(state, model, u, None, None, None, read.flags[u]) for u in range(len(requests))
            ]
        # Items move by the hour, requests of one pass lie within milliseconds.
        now_us = max(r.at_us for r in requests)
        prediction, cost = self._grid(model, now_us).predict(rows, offered)
        admissible = self._admissible(state, read.known)
        return [
            self._scored(
                state, model, u, prediction, cost, admissible, (*read.flags[u], *self._item_flags(now_us))
            )
            for u in range(len(requests))
        ]

    def _item_flags(self, now_us: int) -> tuple[str, ...]:
        """What is wrong with the items of live actions: not read of late, or filled with defaults."""
        rows = [self.snapshot.catalogue.index[a.item_id] for a in self._watcher.state.actions if a.item_id]
        flags = ("item_snapshot",) if self.items.degraded else ()
        return (*flags, "cold_start_item") if self.items.cold(now_us)[rows].any() else flags

    def _read(self, requests: Sequence[ScoreRequest], offered: Sequence[Action]) -> tuple[UserRows, UserRead]:
        """The rows to score, gaps filled with defaults, and what was read of each user."""
        catalogue = self.snapshot.catalogue
        wanted = sorted({catalogue[a.item_id].category for a in offered if a.item_id is not None})
        now_us = np.array([r.at_us for r in requests], dtype=np.int64)
        read = self.users.read([r.user_id for r in requests], wanted, now_us)
        rows = UserRows(
            columns=read.filled,
            user_category=read.user_category,
            # How often a user was contacted is personal too; caps, which protect the user, are elsewhere.
            contacts_7d=np.array(
                [
                    0.0 if NO_CONSENT in flags else float(r.contacts_7d)
                    for r, flags in zip(requests, read.flags, strict=True)
                ]
            ),
        )
        return rows, read

    def _admissible(self, state: LiveState, users: UserTable) -> NDArray[np.bool_]:
        by_strategy = {
            name: audience_mask(strategy.audience, users) for name, strategy in state.strategies.items()
        }
        offered = state.actions[1:]
        mask = np.stack([by_strategy[a.strategy_id] for a in offered], axis=1)
        floors = [clears_floor(a, self.snapshot.catalogue, self._min_margin) for a in offered]
        return np.asarray(mask & np.array(floors)[None, :], dtype=np.bool_)

    def _scored(
        self,
        state: LiveState,
        model: EffectModel,
        u: int,
        prediction: GridPrediction | None,
        cost: Floats | None,
        admissible: NDArray[np.bool_] | None,
        degraded: tuple[str, ...],
    ) -> Scored:
        size = len(state.actions)
        value, spend, mask = np.zeros(size), np.zeros(size), np.ones(size, dtype=np.bool_)
        effects: list[Effect | None] = [None] * size
        if prediction is not None and cost is not None and admissible is not None:
            one = np.zeros(prediction.click.shape[0], dtype=np.bool_)
            one[u] = True
            value[1:] = prediction.uplift()[u].mean(axis=1)
            spend[1:], mask[1:] = cost[u], admissible[u]
            effects[1:] = [prediction.summarise(a, one) for a in range(size - 1)]
        return Scored(
            serial=state.versions.serial,
            action_ids=state.action_ids,
            value=value,
            cost=np.maximum(spend, 0.0),
            admissible=mask,
            effects=tuple(effects),
            model_version=model.version,
            degraded=degraded,
        )

    def effects(
        self, user_ids: Sequence[str] | None, segment: str | None, action_ids: Sequence[str]
    ) -> Effects:
        """Effects of live actions: per user `[U][A]`, or one row over a segment of the snapshot.

        segment: `all`, a named segment, or an audience's rule. Raises ValueError that names the field for an
        action that is not live, a segment that is none or empty, and more than `MAX_PAIRS` pairs.
        """
        state, model = self._watcher.state, self.model
        index = state.index()
        unknown = [a for a in action_ids if a not in index or a == CONTROL]
        if unknown:
            raise ValueError(f"actions: {unknown[0]!r} is not a live action; see GET /v1/strategies")
        actions = [state.actions[index[a]] for a in action_ids]
        if user_ids is None:
            prediction = self.predict(self._members(segment), actions)
            return [[prediction.summarise(a) for a in range(len(actions))]], (), model.version
        if len(user_ids) * len(actions) > MAX_PAIRS:
            raise ValueError(
                f"user_ids: {len(user_ids)} users × {len(actions)} actions; at most {MAX_PAIRS} pairs"
            )
        now = self._clock()
        rows, read = self._read([ScoreRequest(user, 0, now) for user in user_ids], actions)
        prediction, _ = self._grid(model, to_micros(now)).predict(rows, actions)
        eye = np.eye(len(user_ids), dtype=np.bool_)
        table = [[prediction.summarise(a, one) for a in range(len(actions))] for one in eye]
        pairs = zip(user_ids, read.flags, strict=True)
        return table, tuple(f"{flag}:{user}" for user, flags in pairs for flag in flags), model.version

    def describe(self, user_id: str) -> list[KnownRow]:
        """What a decision would read of the user now; raises RowsUnavailableError."""
        return self.users.describe(user_id, to_micros(self._clock()))

    def _members(self, segment: str | None) -> list[str]:
        """Users of the snapshot in the segment; ValueError if it is none, or empty."""
        table = self.snapshot.users
        if segment is None or segment == EVERYBODY:
            return list(table.user_ids)
        try:
            mask = audience_mask(resolve_audience(segment, table), table)
        except ValueError as error:
            raise ValueError(f"segment: {str(error).partition(': ')[2]}") from None
        return [user for user, inside in zip(table.user_ids, mask, strict=True) if inside]

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions from the snapshot's feature values: what proposers ask for, off the live path.

        Who has withdrawn consent since the snapshot was made counts as a mean user.
        """
        allowed = self.users.allowed(user_ids)
        user_ids = [user if agrees else STRANGER for user, agrees in zip(user_ids, allowed, strict=True)]
        items = GridPredictor(
            self.model, self.snapshot.catalogue, self.snapshot.item, self.snapshot.categories
        )
        predictor = FramePredictor(items, self.snapshot.users, self.snapshot.user_category)
        return predictor.predict(user_ids, actions)
