"""From feature values to predicted effects and expected costs, for any room that has the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import discounted_price
from qiance.domain import CONTROL_ACTION, Action, Catalogue, Effect, GridPrediction, UserTable
from qiance.features.columns import NO_VECTORS, ActionColumns
from qiance.features.encoder import Encoder
from qiance.features.grid import EncodedGrid, GridColumns
from qiance.features.session import no_session
from qiance.features.transforms import USER_CATEGORY_FEATURES, USER_FEATURES
from qiance.features.user_row import UserRows
from qiance.features.words import Vectors, VectorsOf, creative_text, no_vectors

Floats = NDArray[np.float64]
Draws = NDArray[np.float32]


class DrawnEffects(Protocol):
    """Predictions per row and bootstrap head, `[n, H]` float32 each, or `[U, A, H]`."""

    @property
    def click(self) -> Draws: ...
    @property
    def conversion(self) -> Draws: ...
    @property
    def sales(self) -> Draws: ...
    @property
    def margin(self) -> Draws: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """See `DrawnEffects`."""

    click: Draws
    conversion: Draws
    sales: Draws
    margin: Draws


class PreparedGrid(Protocol):
    """A actions that a model has worked out as far as it can without the user."""

    def predict(self, user: Draws, pair: Draws) -> DrawnEffects:
        """`[U, A, H]` each; user `[Du, U]` and pair `[Dp, U, A]` as `EncodedGrid` gives them."""
        ...


class EffectScorer(Protocol):
    """The effect model as this room needs it."""

    @property
    def encoder(self) -> Encoder: ...

    def scales_of(self, cat: NDArray[np.int64]) -> Floats:
        """`[n]` factor on the spread of the heads of each row; cat `[n, Dc]` as encoded."""
        ...

    def predict_encoded(self, num: Draws, cat: NDArray[np.int64]) -> DrawnEffects: ...

    def prepare(self, num: Draws, cat: NDArray[np.int64], columns: GridColumns) -> PreparedGrid | None:
        """A actions for `PreparedGrid.predict`, or None where the model takes whole rows only."""
        ...


@dataclass(frozen=True)
class GridScores:
    """Scores of U users × A actions, control left out.

    value: `[U, A]` float32, mean over the heads of the incremental margin after contact cost, minor units.
    cost: `[U, A]` float32, expected minor units of contact and discount given. prediction: the heads.
    """

    value: Draws
    cost: Draws
    prediction: GridPrediction

    def effect(self, user: int, action: int) -> Effect:
        """Effect of one action on one user; `action` counts without control."""
        return self.prediction.effect_on(user, action)


class ActionGrid:
    """A model, actions and item values at one moment: what does not hang on the user is encoded once.

    actions: without control, which is scored beside them; item_values: `[I]` per feature, in the order of the
    catalogue; categories: names of the columns of `UserRows.user_category`; vectors: of the actions' words,
    see `vectors_of`. Safe to use from several threads.
    Raises ValueError for an action of an unknown item, or a model that reads other features.
    """

    def __init__(
        self,
        model: EffectScorer,
        catalogue: Catalogue,
        actions: Sequence[Action],
        item_values: Mapping[str, Floats],
        categories: Sequence[str],
        vectors: Vectors = NO_VECTORS,
    ) -> None:
        self.model, self.actions = model, tuple(actions)
        self.contact_cost = np.array([a.contact_cost for a in actions], dtype=np.float32)
        self.discount = np.array([discount_of(a, catalogue) for a in actions], dtype=np.float32)
        parts = ActionColumns.build(
            (*actions, CONTROL_ACTION), catalogue.index, [item.category for item in catalogue], vectors
        )
        codes = {name: code for code, name in enumerate(categories)}
        encoded = self.encoded = EncodedGrid(model.encoder, parts, item_values, codes)
        self._scales = model.scales_of(encoded.cat)[:-1]  # those of actions: control is the last
        self._prepared = model.prepare(encoded.num, encoded.cat, encoded.columns) if encoded.columns else None

    def score(self, users: UserRows) -> GridScores:
        """Scores of every user × action in one pass."""
        drawn = self._draw(users)
        prediction = GridPrediction(
            click=drawn.click[:, :-1],
            conversion=drawn.conversion[:, :-1],
            sales=drawn.sales[:, :-1],
            margin=drawn.margin[:, :-1],
            control_margin=drawn.margin[:, -1],
            contact_cost=self.contact_cost,
            width_scale=self._scales,
        )
        mean = drawn.margin.mean(axis=2)
        value = mean[:, :-1] - mean[:, -1:] - self.contact_cost
        cost = self.contact_cost + prediction.conversion.mean(axis=2) * self.discount
        return GridScores(value, cost, prediction)

    def _draw(self, users: UserRows) -> DrawnEffects:
        """`[U, A + 1, H]` each, control last."""
        if self._prepared is not None:
            return self._prepared.predict(self.encoded.user(users), self.encoded.pair(users))
        drawn = self.model.predict_encoded(*self.encoded.rows(users))
        shape = (len(users), len(self.encoded), drawn.click.shape[1])
        return Drawn(*(x.reshape(shape) for x in (drawn.click, drawn.conversion, drawn.sales, drawn.margin)))


class GridPredictor:
    """Scores users × any actions, as a proposer asks for them; a decision keeps an `ActionGrid`.

    vectors: finds those of the actions' words.
    """

    def __init__(
        self,
        model: EffectScorer,
        catalogue: Catalogue,
        item_features: Mapping[str, Floats],
        categories: Sequence[str],
        vectors: VectorsOf = no_vectors,
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self._item_features, self._categories = item_features, tuple(categories)
        self._vectors = vectors

    def predict(self, users: UserRows, actions: Sequence[Action]) -> tuple[GridPrediction, Floats]:
        """Predictions `[U, A, H]` and expected cost `[U, A]` in minor units (contact + discount given)."""
        vectors = vectors_of(actions, self._vectors)
        grid = ActionGrid(self.model, self.catalogue, actions, self._item_features, self._categories, vectors)
        scores = grid.score(users)
        return scores.prediction, scores.cost.astype(np.float64)


def vectors_of(actions: Sequence[Action], find: VectorsOf) -> Vectors:
    """Those of the words of `actions`."""
    texts = {creative_text(action.creative) for action in actions if action.creative is not None}
    return find(sorted(texts)) if texts else NO_VECTORS


def discount_of(action: Action, catalogue: Catalogue) -> int:
    """Minor units given away when the action's offer is used: it holds for one unit."""
    if action.item_id is None or action.offer.depth == 0.0:
        return 0
    price = catalogue[action.item_id].price
    return price - int(discounted_price(np.array([price]), np.array([action.offer.depth]))[0])


def liability_of(action: Action, catalogue: Catalogue) -> int:
    """Most that the action may cost its budget, minor units: the contact and one use of the offer."""
    return action.contact_cost + discount_of(action, catalogue)


class FramePredictor:
    """An `EffectPredictor` over a table of users held in memory; unknown users get the mean user."""

    def __init__(self, grid_predictor: GridPredictor, users: UserTable, user_category: Mapping[str, Floats]):
        self._grid = grid_predictor
        self._row = {user: row for row, user in enumerate(users.user_ids)}
        # One more row at the end: the population's mean, for users that are not in the table.
        self._columns = {n: np.append(users.columns[n], np.nanmean(users.columns[n])) for n in USER_FEATURES}
        self._user_category = {
            n: np.vstack([user_category[n], np.nanmean(user_category[n], axis=0, keepdims=True)])
            for n in USER_CATEGORY_FEATURES
        }

    def rows(self, user_ids: Sequence[str], contacts_7d: Floats | None = None) -> UserRows:
        """Feature values of `user_ids`; contacts default to none."""
        index = np.array([self._row.get(user, len(self._row)) for user in user_ids], dtype=np.int64)
        return UserRows(
            columns={n: values[index] for n, values in self._columns.items()} | no_session(len(index)),
            user_category={n: values[index] for n, values in self._user_category.items()},
            contacts_7d=np.zeros(len(index)) if contacts_7d is None else contacts_7d,
        )

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for every user × action, without recent contacts."""
        return self._grid.predict(self.rows(user_ids), actions)[0]

    def predict_with_cost(
        self, user_ids: Sequence[str], actions: Sequence[Action], contacts_7d: Floats
    ) -> tuple[GridPrediction, Floats]:
        """Predictions and expected costs `[U, A]` given recent contacts."""
        return self._grid.predict(self.rows(user_ids, contacts_7d), actions)
