"""Why an action's incremental margin on a user is what is predicted: features of the user, and the action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.explain import Contribution, Explanation, Method, explain
from qiance.decide.predictor import ActionGrid, EffectScorer
from qiance.domain import Action, Catalogue
from qiance.features.columns import NO_VECTORS, USER_COLUMNS
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import CONTACTS, UserRows
from qiance.features.words import Vectors

ACTION = "action"  # the action as a whole: its item, offer, words and channel
NAMES = (*USER_COLUMNS, *USER_CATEGORY_FEATURES, CONTACTS, ACTION)
OTHERS = 6  # live actions that the explained one is compared with

Columns = Mapping[str, NDArray[Any]]


class PairExplainer:
    """Explains pairs of a user and one of `actions` against other users and the other actions.

    item_values, categories, vectors: as `ActionGrid` takes them. background: users to compare with.
    """

    def __init__(
        self,
        model: EffectScorer,
        catalogue: Catalogue,
        actions: Sequence[Action],
        item_values: Mapping[str, NDArray[np.float64]],
        categories: Sequence[str],
        background: UserRows,
        vectors: Vectors = NO_VECTORS,
    ) -> None:
        self._grid = ActionGrid(model, catalogue, actions, item_values, categories, vectors)
        self._actions = tuple(actions)
        places = {name: place for place, name in enumerate(categories)}
        items = [catalogue[a.item_id] if a.item_id is not None else None for a in actions]
        self._category = [None if item is None else places[item.category] for item in items]
        given = np.arange(len(background)) % len(actions)
        self._background = {**_columns(background), ACTION: given}

    def explain(self, row: UserRows, action: int, method: Method, seed: int = 0) -> Explanation:
        """Of the one user of `row` and action number `action`, in minor units of incremental margin."""
        asked = {**_columns(row), ACTION: np.array([action])}
        found = explain(self._uplift, asked, self._background, NAMES, method, seed)
        told = tuple(
            Contribution(part.feature, self._shown(part, action), part.effect) for part in found.contributions
        )
        return Explanation(found.method, found.prediction, found.baseline, told, found.additivity_error)

    def _uplift(self, columns: Columns) -> NDArray[np.float64]:
        rows = UserRows(
            {name: columns[name] for name in USER_COLUMNS},
            {name: columns[name] for name in USER_CATEGORY_FEATURES},
            columns[CONTACTS],
        )
        value = self._grid.score(rows).value
        return value[np.arange(len(value)), columns[ACTION]].astype(np.float64)

    def _shown(self, part: Contribution, action: int) -> Any:
        """The action by its id; of what hangs on the category, the value of the action's own."""
        if part.feature == ACTION:
            return self._actions[action].action_id
        if part.feature not in USER_CATEGORY_FEATURES:
            return part.value
        category = self._category[action]
        value = None if category is None else part.value[category]
        return None if value is None or value != value else value


def mean_explanation(found: Sequence[Explanation]) -> Explanation:
    """Over users: means of prediction, baseline and effects; a feature's value is the mean of theirs."""
    effects: dict[str, list[float]] = {}
    values: dict[str, list[Any]] = {}
    for one in found:
        for part in one.contributions:
            effects.setdefault(part.feature, []).append(part.effect)
            values.setdefault(part.feature, []).append(part.value)
    parts = [Contribution(name, _mean(values[name]), float(np.mean(effects[name]))) for name in effects]
    parts.sort(key=lambda part: -abs(part.effect))
    prediction, baseline, error = (
        float(np.mean([getattr(one, name) for one in found]))
        for name in ("prediction", "baseline", "additivity_error")
    )
    return Explanation(found[0].method, prediction, baseline, tuple(parts), error)


def row_of(rows: UserRows, user: int) -> UserRows:
    """One user's row."""
    at = slice(user, user + 1)
    return UserRows(
        {name: values[at] for name, values in rows.columns.items()},
        {name: values[at] for name, values in rows.user_category.items()},
        rows.contacts_7d[at],
    )


def _columns(rows: UserRows) -> dict[str, NDArray[Any]]:
    columns = {name: np.asarray(rows.columns[name]) for name in USER_COLUMNS}
    columns |= {name: np.asarray(rows.user_category[name]) for name in USER_CATEGORY_FEATURES}
    return {**columns, CONTACTS: np.asarray(rows.contacts_7d)}


def _mean(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known or isinstance(known[0], str):
        return known[0] if known else None
    return float(np.mean(known))
