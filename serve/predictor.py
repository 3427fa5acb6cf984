"""The predictor: reads a user's features, scores the live candidates in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.effect import EffectModel
from qiance.decide.predictor import FramePredictor, GridPredictor, UserRows
from qiance.domain import CONTROL, Action, Effect, GridPrediction, UserTable
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.transforms import USER_CATEGORY_FEATURES, USER_FEATURES
from qiance.ledger import NO_VERSION, Ledger
from qiance.strategy.audience import audience_mask, resolve_audience
from qiance.workspace import Snapshot, Workspace
from serve.live import LiveState, Watcher, clears_floor

Floats = NDArray[np.float64]
# Effects per user × action of one request, the degraded parts, the model's version.
Effects = tuple[list[list[Effect]], tuple[str, ...], str]
EVERYBODY = "all"
MAX_PAIRS = 5_000  # of one request for effects: some seconds of one core


class NoModelError(RuntimeError):
    """No effect model is registered, so nothing can be predicted."""


@dataclass(frozen=True)
class ScoreRequest:
    """One user to score: id and number of contacts in the last seven days."""

    user_id: str
    contacts_7d: int


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


class OnlineFeatures(Protocol):
    """Reads the online store."""

    def users(self, user_ids: Sequence[str]) -> Mapping[str, Floats]:
        """`[U]` per user feature, NaN where the user is unknown."""
        ...

    def user_categories(self, user_ids: Sequence[str], categories: Sequence[str]) -> Mapping[str, Floats]:
        """`[U, C]` per feature, NaN where there is no row."""
        ...


class FeastFeatures:
    """The online store of the staged Feast repository."""

    def __init__(self, repository: str) -> None:
        from feast import FeatureStore

        self._store = FeatureStore(repo_path=repository)
        self._user = self._store.get_feature_service("user_v1")
        self._user_category = self._store.get_feature_service("user_category_v1")

    def users(self, user_ids: Sequence[str]) -> Mapping[str, Floats]:
        """`[U]` per user feature, NaN where the user is unknown."""
        rows = [{"user_id": user} for user in user_ids]
        found = self._store.get_online_features(features=self._user, entity_rows=rows).to_dict()
        return {name: _floats(found[name]) for name in USER_FEATURES}

    def user_categories(self, user_ids: Sequence[str], categories: Sequence[str]) -> Mapping[str, Floats]:
        """`[U, C]` per feature, NaN where there is no row."""
        rows = [{"user_id": user, "category": category} for user in user_ids for category in categories]
        shape = (len(user_ids), len(categories))
        if not rows:
            return {name: np.full(shape, np.nan) for name in USER_CATEGORY_FEATURES}
        found = self._store.get_online_features(features=self._user_category, entity_rows=rows).to_dict()
        return {name: _floats(found[name]).reshape(shape) for name in USER_CATEGORY_FEATURES}


def _floats(values: Sequence[Any]) -> Floats:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


class Predictor:
    """Scores users against what is live; a plain class, wrapped by a deployment in app.py."""

    def __init__(
        self, workspace: Workspace, ledger: Ledger, features: OnlineFeatures, min_margin: float
    ) -> None:
        self._workspace, self._features, self._min_margin = workspace, features, min_margin
        self.snapshot = Snapshot.load(workspace.snapshot)
        self._model: EffectModel | None = None
        self._means = {n: float(np.nanmean(v)) for n, v in self.snapshot.users.columns.items()}
        self._watcher = Watcher(ledger, self.snapshot.catalogue, self._adopt)
        self._warm_up()

    def _adopt(self, state: LiveState) -> None:
        """Load the model that the version row names, if it is another one."""
        version = state.versions.model
        if version == NO_VERSION or (self._model is not None and self._model.version == version):
            return
        path = self._workspace.artifact("effect-model", version)
        self._model = EffectModel.load(path, EFFECT_SCHEMA)

    def _warm_up(self) -> None:
        if self._model is not None:
            self.score([ScoreRequest(self.snapshot.users.user_ids[0], 0)])

    @property
    def model(self) -> EffectModel:
        """The champion; NoModelError while none is registered."""
        if self._model is None:
            raise NoModelError("versions.model: no model is registered; run `qiance run` first")
        return self._model

    def _grid(self, model: EffectModel) -> GridPredictor:
        return GridPredictor(model, self.snapshot.catalogue, self.snapshot.item, self.snapshot.categories)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """Scores of every live candidate for each request, in one pass over all of them."""
        # As the watcher's thread left them: a champion that cannot be loaded must not stop scoring.
        state, model = self._watcher.state, self.model
        offered = state.actions[1:]
        rows, known = self._read(requests, offered)
        cold = np.isnan(known.columns["recency_days"])
        if not offered:
            return [self._scored(state, model, u, None, None, None, cold) for u in range(len(requests))]
        prediction, cost = self._grid(model).predict(rows, offered)
        admissible = self._admissible(state, known)
        return [
            self._scored(state, model, u, prediction, cost, admissible, cold) for u in range(len(requests))
        ]

    def _read(
        self, requests: Sequence[ScoreRequest], offered: Sequence[Action]
    ) -> tuple[UserRows, UserTable]:
        """The rows to score, gaps filled with the population's means, and what is known, NaN for gaps."""
        ids = tuple(r.user_id for r in requests)
        known = self._features.users(ids)
        rows = UserRows(
            columns={n: np.where(np.isnan(v), self._means[n], v) for n, v in known.items()},
            user_category=self._category_rows(ids, offered),
            contacts_7d=np.array([float(r.contacts_7d) for r in requests]),
        )
        return rows, UserTable(ids, known)

    def _category_rows(self, ids: Sequence[str], offered: Sequence[Action]) -> dict[str, Floats]:
        """`[U, C]` over all categories; only those of live items are read, the rest is not used."""
        catalogue, categories = self.snapshot.catalogue, self.snapshot.categories
        wanted = sorted({catalogue[a.item_id].category for a in offered if a.item_id is not None})
        found = self._features.user_categories(ids, wanted)
        columns = [categories.index(name) for name in wanted]
        full = {name: np.full((len(ids), len(categories)), np.nan) for name in USER_CATEGORY_FEATURES}
        for name, values in found.items():
            full[name][:, columns] = values
        return full

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
        cold: NDArray[np.bool_],
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
            degraded=("cold_start",) if cold[u] else (),
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
        rows, known = self._read([ScoreRequest(user, 0) for user in user_ids], actions)
        prediction, _ = self._grid(model).predict(rows, actions)
        eye = np.eye(len(user_ids), dtype=np.bool_)
        table = [[prediction.summarise(a, one) for a in range(len(actions))] for one in eye]
        cold = np.isnan(known.columns["recency_days"])
        degraded = tuple(f"cold_start:{u}" for u, is_cold in zip(user_ids, cold, strict=True) if is_cold)
        return table, degraded, model.version

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
        """Predictions from the snapshot's feature values: what proposers ask for, off the live path."""
        predictor = FramePredictor(self._grid(self.model), self.snapshot.users, self.snapshot.user_category)
        return predictor.predict(user_ids, actions)
