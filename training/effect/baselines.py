"""What the effect model must beat: the mean, two simple models that are often proposed, two strong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.artifacts import EffectModel
from qiance.evaluate.prediction import CalibrationRow, calibration_table
from qiance.features.encoder import Encoder
from qiance.features.schema import Columns, FeatureSchema
from training.effect.labels import read_labels
from training.effect.linear import fit_linear
from training.effect.scores import PROBABILITIES, task_scores
from training.effect.split import Mask, Split

Floats = NDArray[np.float64]
# One-hot columns per categorical feature, most frequent values first.
_MAX_LEVELS = 32
_CLIPPED = "not a probability model: clipped to [0, 1] for log loss, NE and calibration"


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model's scores on the test rows.

    log_loss, ne, auc, ece and calibration are None or empty where the label is money, ne and auc also
    where the test rows hold one class only. mse, rmse: in (squared) units of the label.
    """

    name: str
    label: str
    log_loss: float | None
    ne: float | None
    auc: float | None
    rmse: float
    mse: float
    ece: float | None
    n_test: int
    calibration: tuple[CalibrationRow, ...]
    note: str


@dataclass(frozen=True)
class _Data:
    """One label with the inputs in the forms that the models want; rows are those of the table.

    raw: numbers in their own units (NaN → mean), missing indicators, one-hot levels, `[n, d]`.
    codes: numbers with NaN and category codes, for trees, `[n, f]`.
    """

    label: str
    target: Floats
    names: tuple[str, ...]
    raw: Floats
    codes: Floats
    num_numeric: int
    split: Split
    threads: int
    seed: int

    @property
    def is_binary(self) -> bool:
        return self.label in PROBABILITIES

    def standardised(self) -> NDArray[np.float32]:
        """`raw` with mean 0 and deviation 1 on the training rows, cut to ±8."""
        train = self.raw[self.split.train]
        std = train.std(axis=0)
        scaled = (self.raw - train.mean(axis=0)) / np.where(std > 1e-12, std, 1.0)
        return np.clip(scaled, -8, 8).astype(np.float32)


def compare(
    table: pa.Table,
    schema: FeatureSchema,
    label: str,
    split: Split,
    model: EffectModel | None = None,
    *,
    threads: int = 1,
    seed: int = 0,
) -> list[ModelScore]:
    """Train every baseline on the training rows and score all on the test rows.

    label: click, conversion, sales or margin; the last two need conversion in the table as well.
    model: scored beside the baselines; None leaves it out.
    Raises ValueError for a label that the table or the model does not have.
    """
    needed = [label] if label in PROBABILITIES else ["conversion", label]
    target = read_labels(table, needed)[label]
    if model is not None and label not in model.tasks:
        raise ValueError(f"label {label!r}: the effect model was trained on {', '.join(model.tasks)}")
    columns = schema.columns(table)
    data = _prepare(columns, schema, label, target, split, threads, seed)
    scores = [_score(data, *found) for found in _fits(data)]
    if model is not None:
        scores.append(_score(data, *_effect(columns, label, split.test, model)))
    return scores


def predictions(
    columns: Columns,
    schema: FeatureSchema,
    label: str,
    target: Floats,
    split: Split,
    *,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Floats]:
    """What every baseline says of the test rows, by its name: target `[n]` in units of the label."""
    data = _prepare(columns, schema, label, target, split, threads, seed)
    return {name: prediction for name, prediction, _ in _fits(data)}


def _fits(data: _Data) -> Iterator[tuple[str, Floats, str]]:
    models: list[Callable[[_Data], tuple[str, Floats, str]]] = [_mean, _linear, _network, _lightgbm]
    if data.is_binary:
        models.insert(3, _logistic)
    return (fit(data) for fit in models)


def _prepare(
    columns: Columns,
    schema: FeatureSchema,
    label: str,
    target: Floats,
    split: Split,
    threads: int,
    seed: int,
) -> _Data:
    encoder = Encoder.fit(schema, {name: values[split.train] for name, values in columns.items()})
    num, cat = encoder.encode(columns)
    k = len(schema.numeric)
    numeric = np.empty((len(num), k))
    for place, name in enumerate(schema.numeric):
        numeric[:, place] = columns[name]
    numeric[~np.isfinite(numeric)] = np.nan
    means = np.array([code.mean for code in encoder.numeric])
    blocks = [np.where(np.isnan(numeric), means, numeric), num[:, k:].astype(np.float64)]
    names = list(encoder.num_names)
    for place, name in enumerate(schema.categorical):
        words = encoder.vocabularies[place][:_MAX_LEVELS]
        blocks.append((cat[:, [place]] == np.arange(1, len(words) + 1)).astype(np.float64))
        names += [f"{name}={word}" for word in words]
    texts = num[:, encoder.vectors_from :].astype(np.float64)
    codes = np.hstack([numeric, texts, cat.astype(np.float64)])
    k += texts.shape[1]
    return _Data(label, target, tuple(names), np.hstack(blocks), codes, k, split, threads, seed)


def _score(data: _Data, name: str, prediction: Floats, note: str) -> ModelScore:
    """prediction: of the test rows."""
    truth = data.target[data.split.test]
    found = {
        key.removeprefix(f"{data.label}_"): value
        for key, value in task_scores(data.label, truth, prediction).items()
    }
    table = calibration_table(truth, np.clip(prediction, 0, 1)) if data.is_binary else []
    return ModelScore(
        name=name,
        label=data.label,
        log_loss=found.get("log_loss"),
        ne=found.get("ne"),
        auc=found.get("auc"),
        rmse=found["rmse"],
        mse=found["mse"],
        ece=found.get("ece"),
        n_test=truth.size,
        calibration=tuple(table),
        note=note,
    )


def _mean(data: _Data) -> tuple[str, Floats, str]:
    mean = float(data.target[data.split.train].mean())
    return "population mean", np.full(int(data.split.test.sum()), mean), f"{mean:.4g} for everybody"


def _linear(data: _Data) -> tuple[str, Floats, str]:
    train, test = data.split.train, data.split.test
    fit = fit_linear(data.label, data.names, data.raw[train], data.target[train])
    clipped = f"; {_CLIPPED}" if data.is_binary else ""
    note = f"{fit.formula()}; training MSE {fit.mse:.4g}, RMSE {fit.rmse:.4g}{clipped}"
    return "linear regression", fit.predict(data.raw[test]), note


def _network(data: _Data) -> tuple[str, Floats, str]:
    """64-32-1, ReLU, Adam, squared error, 10 epochs; money is standardised so that Adam can reach it."""
    import torch
    from torch import nn

    torch.set_num_threads(data.threads)
    inputs = torch.from_numpy(data.standardised())
    train = torch.from_numpy(np.flatnonzero(data.split.train))
    centre, scale = 0.0, 1.0
    if not data.is_binary:
        values = data.target[data.split.train]
        centre, scale = float(values.mean()), float(values.std()) or 1.0
    target = torch.from_numpy((data.target - centre) / scale).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        model = nn.Sequential(
            nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(10):
            for batch in train[torch.randperm(len(train))].split(128):
                loss = nn.functional.mse_loss(model(inputs[batch]).squeeze(1), target[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    with torch.inference_mode():
        output = model(inputs[torch.from_numpy(data.split.test)]).squeeze(1).numpy()
    note = "ReLU, Adam, squared error, 10 epochs" + (f"; {_CLIPPED}" if data.is_binary else "")
    return "64-32-1 network", output.astype(np.float64) * scale + centre, note


def _logistic(data: _Data) -> tuple[str, Floats, str]:
    from sklearn.linear_model import LogisticRegression

    inputs, train, test = data.standardised(), data.split.train, data.split.test
    model = LogisticRegression(max_iter=300).fit(inputs[train], data.target[train])
    return "logistic regression", model.predict_proba(inputs[test])[:, 1], "L2 penalty, C = 1"


def _lightgbm(data: _Data) -> tuple[str, Floats, str]:
    """At most 500 trees of 15 leaves, learning rate 0.05, stopped on the validation rows."""
    import lightgbm

    train, valid, test = data.split.train, data.split.valid, data.split.test
    params: dict[str, Any] = {
        "objective": "binary" if data.is_binary else "regression",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 50,
        "num_threads": data.threads,
        "seed": data.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    # Feature names may hold signs that LightGBM refuses; columns are numbered instead.
    categorical = list(range(data.num_numeric, data.codes.shape[1]))
    rows = _dataset(lightgbm, data, train, categorical)
    stop = lightgbm.early_stopping(30, verbose=False)
    booster = lightgbm.train(
        params, rows, 500, valid_sets=[_dataset(lightgbm, data, valid, categorical, rows)], callbacks=[stop]
    )
    prediction = np.asarray(booster.predict(data.codes[test], num_iteration=booster.best_iteration))
    return "LightGBM", prediction, f"{booster.best_iteration} trees of 15 leaves, early stopping"


def _dataset(lightgbm: Any, data: _Data, mask: Mask, categorical: list[int], like: Any = None) -> Any:
    return lightgbm.Dataset(
        data.codes[mask], data.target[mask], categorical_feature=categorical, reference=like
    )


def _effect(columns: Columns, label: str, test: Mask, model: EffectModel) -> tuple[str, Floats, str]:
    draws = getattr(model.predict({name: values[test] for name, values in columns.items()}), label)
    note = f"mean of {model.heads} bootstrap heads, version {model.version}"
    return "effect model", draws.mean(axis=1, dtype=np.float64), note
