"""The scores of logged decisions, made again from what they were made of, by any effect model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import ActionGrid, EffectScorer
from qiance.domain import Action, Catalogue, Decision, GridPrediction
from qiance.features import user_row
from qiance.features.user_row import UserRows
from qiance.features.words import Vectors, no_vectors

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
_KEPT = 16  # action grids in memory; decisions of one hour mostly share one


@dataclass(frozen=True)
class Rescored:
    """n decisions over one set of A candidates; prediction: without control, None where there is no other.

    value, cost: `[n, A]` float32, minor units, 0 for control.
    """

    value: Scores
    cost: Scores
    prediction: GridPrediction | None

    @property
    def margin(self) -> Scores:
        """`[n, A]` predicted margin after the contact, of control in column 0, minor units."""
        if self.prediction is None:
            return np.zeros_like(self.value)
        control = self.prediction.control_margin.mean(axis=1, dtype=np.float32)
        return np.asarray(self.value + control[:, None], dtype=np.float32)


class Rescorer:
    """Scores logged decisions of one shop.

    candidates: the actions of a set by its hash; models: the effect model of a version; frames: item values
    by their hash. What they raise for something that is gone is the caller's to tell. catalogue, categories:
    those of the snapshot that the model was served with; vectors: of a set's words as they were read, by the
    set's hash.
    """

    def __init__(
        self,
        candidates: Callable[[str], Sequence[Action]],
        models: Callable[[str], EffectScorer],
        frames: Callable[[str], Mapping[str, Floats]],
        catalogue: Catalogue,
        categories: Sequence[str],
        vectors: Callable[[str], Vectors] = no_vectors,
    ) -> None:
        self.candidates, self._models, self._frames, self._vectors = candidates, models, frames, vectors
        self.catalogue, self._categories = catalogue, tuple(categories)
        self._grids: dict[tuple[str, str, str], ActionGrid] = {}

    def score(self, decisions: Sequence[Decision], model: str | None = None) -> Rescored:
        """Scores of decisions that share candidate set and item values, by their own model or another."""
        first = decisions[0]
        shape = (len(decisions), len(first.candidates))
        value, cost = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        if shape[1] == 1:
            return Rescored(value, cost, None)
        found = self._grid(first, model or first.model_version).score(self._users(decisions))
        value[:, 1:] = found.value
        np.maximum(found.cost, 0.0, out=cost[:, 1:])
        return Rescored(value, cost, found.prediction)

    def _users(self, decisions: Sequence[Decision]) -> UserRows:
        rows = user_row.unpack([decision.user_row for decision in decisions])
        found = next(iter(rows.user_category.values())).shape[1]
        if found != len(self._categories):
            raise ValueError(
                f"user_row: has {found} categories, the snapshot {len(self._categories)}; replay it with the "
                "snapshot that served it"
            )
        return rows

    def _grid(self, decision: Decision, model: str) -> ActionGrid:
        key = model, decision.candidate_set, decision.items
        grid = self._grids.get(key)
        if grid is None:
            while len(self._grids) >= _KEPT:
                del self._grids[next(iter(self._grids))]
            grid = self._grids[key] = ActionGrid(
                self._models(model),
                self.catalogue,
                self.candidates(decision.candidate_set)[1:],
                self._frames(decision.items),
                self._categories,
                self._vectors(decision.candidate_set),
            )
        return grid


def unscored(decision: Decision) -> str:
    """Why the scores of `decision` cannot be made again, or nothing."""
    if not decision.user_row:
        return "no user row is logged: no model scored it, or it was logged before rows were"
    if not decision.items:
        return "the item values that it was scored with were not kept"
    return ""
