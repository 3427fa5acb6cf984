"""Two effect models, each trained on one half of the units and asked about the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.artifacts.effect import EffectDraws, EffectModel
from qiance.cli.offline.study import Floats, Mask, Study
from qiance.cli.stages import Stage
from qiance.data.responses import ARM
from qiance.settings import Settings
from qiance.workspace import Workspace

Draws = NDArray[np.float32]
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Learned:
    """models: of the first half and of the second. trained, scores: of the first, which the second judges."""

    models: tuple[EffectModel, EffectModel]
    trained: Any
    scores: Sequence[Any]


@dataclass(frozen=True)
class Predictions:
    """What the models say of every row under every arm.

    means: label → `[N, K]`, by the model that has not seen the row's half.
    own: `[n, K]` of the primary label, by the first half's model for its own n rows: rules are made of it.
    base: label → `[m, H]`, by the first half's model for the m rows of the second: under control, or under
        the logging policy where there is no control.
    """

    means: Mapping[str, Floats]
    own: Floats
    base: Mapping[str, Draws]


def train_models(
    workspace: Workspace, study: Study, settings: Settings, stage: Stage, workers: int | None = None
) -> Learned:
    """Train on each half through Ray Train; Ray must be running.

    workers: instead of settings.training.workers; 0 trains in the calling process, without Ray.
    """
    from training.effect.fit import TrainSettings, train_effect
    from training.effect.split import Split

    chosen = TrainSettings(**settings.training.model_dump(), seed=settings.seed)
    chosen = chosen if workers is None else replace(chosen, workers=workers)
    found = []
    for number, half in enumerate((study.first, ~study.first)):
        split = Split(half & study.train, half & ~study.train, ~half)
        trained = train_effect(
            study.rows,
            study.schema,
            labels=study.labels,
            split=split,
            settings=chosen,
            out=workspace.artifacts,
            storage=workspace.root / "training",
            data_fingerprint=study.responses.fingerprint,
            progress=lambda done, what, number=number: stage.tell((number + done) / 2, what),  # type: ignore[misc]
            units=study.responses.table["unit_id"].to_numpy(zero_copy_only=False),
        )
        found.append(trained)
    first, second = (EffectModel.load(t.artifact.path, study.schema) for t in found)
    stage.note(
        f"models {first.version} and {second.version}: {int((study.first & study.train).sum()):,} and "
        f"{int((~study.first & study.train).sum()):,} rows, each judged on the other half"
    )
    for sentence in dict.fromkeys(model.info.width.doubt for model in (first, second)):
        if sentence is not None:
            stage.note(sentence)
    return Learned((first, second), found[0], ())


def compare_models(study: Study, learned: Learned, settings: Settings) -> Sequence[Any]:
    """The first half's model beside the baselines, all trained on that half and judged on the second."""
    from training.effect.baselines import compare
    from training.effect.split import Split

    half = study.first
    split = Split(half & study.train, half & ~study.train, ~half)
    return compare(study.rows, study.schema, study.primary, split, learned.models[0], seed=settings.seed)


def register_model(workspace: Workspace, learned: Learned, name: str, settings: Settings) -> None:
    """Put the first half's model into the registry, as a challenger: nothing of it has been live."""
    from training.registry import register

    register(
        learned.trained.artifact,
        workspace.tracking_url,
        name,
        metrics=learned.trained.metrics,
        params=settings.training.model_dump(mode="json"),
        history=learned.trained.history,
    )


def draws_under(study: Study, model: EffectModel, arm: str, rows: Mask) -> EffectDraws:
    """Predictions for `rows` had all of them been shown `arm`, `[n, H]` per label."""
    return model.predict({name: values[rows] for name, values in _columns(study, arm).items()})


def predict(study: Study, models: tuple[EffectModel, EffectModel], tell: Tell) -> Predictions:
    """Ask both models about every arm."""
    first, second = study.first, ~study.first
    shape = (len(study), len(study.arms))
    means = {label: np.empty(shape) for label in study.labels}
    own = np.empty((int(first.sum()), len(study.arms)))
    weights = np.eye(len(study.arms))[0] if study.has_control else study.shares
    base = {label: np.zeros((int(second.sum()), models[0].heads), np.float32) for label in study.labels}
    for place, arm in enumerate(study.arms):
        tell(place / len(study.arms), f"predicting {arm}")
        columns = _columns(study, arm)
        in_first = {name: values[first] for name, values in columns.items()}
        in_second = {name: values[second] for name, values in columns.items()}
        seen = getattr(models[0].predict(in_first), study.primary)
        own[:, place] = seen.mean(axis=1, dtype=np.float64)
        unseen = models[1].predict(in_first), models[0].predict(in_second)
        for label in study.labels:
            for rows, draws in zip((first, second), unseen, strict=True):
                means[label][rows, place] = getattr(draws, label).mean(axis=1, dtype=np.float64)
            base[label] += np.float32(weights[place]) * getattr(unseen[1], label)
    return Predictions(means, own, base)


def _columns(study: Study, arm: str) -> dict[str, NDArray[Any]]:
    table = study.responses.features_if(arm).append_column(ARM, pa.repeat(arm, len(study)))
    return study.schema.columns(table)
