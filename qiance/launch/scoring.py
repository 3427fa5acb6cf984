"""What scores logged decisions again: the models, item values and snapshot of a workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qiance.artifacts.effect import KIND, EffectModel
from qiance.decide.rescore import Rescorer
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.frames import FrameStore
from qiance.ledger import Ledger
from qiance.workspace import Snapshot, Workspace


class FrameGoneError(ValueError):
    """The item values that decisions were scored with are no longer kept."""


def open_rescorer(workspace: Workspace, ledger: Ledger, dtype: str = "float32") -> Rescorer:
    """Scores decisions of `ledger`; models are loaded when they are first asked for, and kept.

    dtype: precision of the models' products, as `predictor.dtype` of the server that decided.
    """
    try:
        snapshot = Snapshot.load(workspace.snapshot)
    except FileNotFoundError as error:
        raise ValueError(f"workspace: {workspace.root} has no snapshot ({error.filename})") from None
    frames, models = FrameStore(workspace.frames), dict[str, EffectModel]()

    def model(version: str) -> EffectModel:
        if version not in models:
            path = workspace.artifact(KIND, version)
            models[version] = EffectModel.load(path, EFFECT_SCHEMA, dtype=dtype)
        return models[version]

    def items(key: str) -> Mapping[str, Any]:
        try:
            return frames.get(key)
        except KeyError:
            raise FrameGoneError(
                f"items: frame {key} is not in {workspace.frames}; it was pruned, or the workspace is another"
            ) from None

    return Rescorer(
        ledger.candidates, model, items, snapshot.catalogue, snapshot.categories, ledger.candidate_vectors
    )
