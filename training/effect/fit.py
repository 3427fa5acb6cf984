"""Trains the effect model on Ray Train and writes it as an artifact."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from qiance.artifacts import Artifact, write_artifact
from qiance.artifacts.effect import KIND
from qiance.features.schema import Encoder, FeatureSchema
from training.effect.export import effect_files
from training.effect.labels import network_config, read_labels
from training.effect.loop import train_here
from training.effect.network import EffectNetwork, NetworkConfig
from training.effect.randomness import poisson_weights
from training.effect.ray_run import run_ray_train, tell_epoch
from training.effect.scores import task_scores
from training.effect.served import ServedNetwork
from training.effect.split import Mask, Split
from training.effect.width import Width, coverage, fit_width, make_groups

_CHUNK = 8_192


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of a training run.

    patience: epochs without a better validation loss before it stops.
    heads: bootstrap heads H. hidden: sizes of the trunk. min_count: rows that a category needs.
    workers: Ray Train workers of one CPU each; 0 trains in the calling process, without Ray.
    threads: torch threads per worker; the network is too small to gain from a second one (60,000 rows,
        9 epochs: 2.0 s with one, 1.8 s with two on idle cores), and threads that wait for each other
        on busy cores lose much.
    seed: with equal data and settings, the same seed gives the same model.
    weight_decay: of AdamW. dropout: share of the trunk's hidden values set to 0. embedding: widest vector
        that a category gets.
    """

    epochs: int = 12
    batch_size: int = 512
    learning_rate: float = 1e-3
    heads: int = 8
    hidden: tuple[int, ...] = (64, 32)
    workers: int = 1
    patience: int = 3
    threads: int = 1
    seed: int = 0
    min_count: int = 5
    weight_decay: float = 0.1
    dropout: float = 0.1
    embedding: int = 16

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"settings.workers: {self.workers} is negative")
        for name in ("epochs", "batch_size", "heads", "patience", "threads", "min_count", "embedding"):
            if getattr(self, name) < 1:
                raise ValueError(f"settings.{name}: {getattr(self, name)} is not positive")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"settings.learning_rate: {self.learning_rate} is outside (0, 1)")
        if self.weight_decay < 0:
            raise ValueError(f"settings.weight_decay: {self.weight_decay} is negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"settings.dropout: {self.dropout} is outside [0, 1)")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"settings.hidden: {self.hidden} must be one or more positive sizes")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model.

    metrics: scores on the test rows (`click_auc`, `sales_rmse`, ...), coverage of 90 % intervals of
        group means on test rows (`click_coverage_90`; a rough figure below some 20 groups of 500 rows,
        which all share the luck of one test set), widths, epochs, seconds.
    history: per epoch its number, train_loss and valid_loss.
    """

    artifact: Artifact
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class _Prepared:
    """Rows ready for the network."""

    encoder: Encoder
    config: NetworkConfig
    num: NDArray[np.float32]
    cat: NDArray[np.int64]
    labels: dict[str, NDArray[np.float64]]
    natural: list[NDArray[np.str_]]


def train_effect(
    table: pa.Table,
    schema: FeatureSchema,
    *,
    labels: Sequence[str],
    split: Split,
    settings: TrainSettings | None = None,
    out: Path,
    storage: Path,
    data_fingerprint: str,
    parents: Sequence[str] = (),
    progress: Callable[[float, str], None] | None = None,
    units: ArrayLike | None = None,
    groups: Sequence[str] = (),
) -> Trained:
    """Train on `table`, choose the epoch on the validation rows, judge on the test rows.

    labels: which of click, conversion, sales, margin the table has (columns of those names); the
        others are not learned and are NaN in predictions.
    out: folder that the artifact is written to. storage: folder for Ray Train's runs, seen by all nodes.
    units: id per row, `[n]`; rows of one unit share their bootstrap weight, so that intervals are
        honest about few users with many rows. Without it each row is its own unit.
    groups: columns whose values are groups that intervals must cover, beside the categorical features.
    progress: called with a fraction and a sentence.
    Ray must be running unless settings.workers is 0. Raises ValueError for bad labels, columns or split;
    RuntimeError without Ray.
    """
    chosen = settings or TrainSettings()
    tell = progress or (lambda share, text: None)
    started = time.monotonic()
    if len(split) != table.num_rows:
        raise ValueError(f"split: has {len(split)} rows where the table has {table.num_rows}")
    tell(0.0, f"encoding {table.num_rows:,} rows of {len(schema.names)} features")
    rows = _prepare(table, schema, labels, split, chosen, groups)
    weights = poisson_weights(_unit_ids(units, table.num_rows), chosen.heads, chosen.seed)
    run = storage.resolve() / f"effect-{uuid.uuid4().hex[:12]}"
    run.mkdir(parents=True)
    try:
        data = _write_rows(run / "rows.npz", rows, weights, split)
        state, history = _run(_loop_config(data, rows.config, chosen), run, chosen, tell)
    finally:
        # Only the best weights are kept, in the artifact.
        shutil.rmtree(run, ignore_errors=True)
    tell(0.9, "fitting interval widths and scoring the test rows")
    network = _network(rows.config, state)
    width, metrics = _judge(ServedNetwork(network).eval(), rows, split, chosen)
    metrics |= _run_metrics(history, split, time.monotonic() - started)
    artifact = _write(network, rows, width, metrics, out, data_fingerprint, parents)
    tell(1.0, f"effect model {artifact.version} written")
    return Trained(artifact, metrics, tuple(history))


def _prepare(
    table: pa.Table,
    schema: FeatureSchema,
    labels: Sequence[str],
    split: Split,
    settings: TrainSettings,
    groups: Sequence[str],
) -> _Prepared:
    columns = schema.columns(table)
    found = read_labels(table, labels)
    fitted = {name: values[split.train] for name, values in columns.items()}
    encoder = Encoder.fit(schema, fitted, min_count=settings.min_count)
    num, cat = encoder.encode(columns)
    config = network_config(
        encoder,
        found,
        split.train,
        heads=settings.heads,
        hidden=settings.hidden,
        dropout=settings.dropout,
        embedding=settings.embedding,
    )
    names = dict.fromkeys((*schema.categorical, *groups))
    natural = [np.asarray(table.column(name).to_numpy()).astype(np.str_) for name in names]
    return _Prepared(encoder, config, num, cat, found, natural)


def _unit_ids(units: ArrayLike | None, n: int) -> NDArray[Any]:
    ids = np.arange(n) if units is None else np.asarray(units)
    if ids.shape != (n,):
        raise ValueError(f"units: has shape {ids.shape} where the table has {n} rows")
    return ids


def _write_rows(path: Path, rows: _Prepared, weights: NDArray[np.uint8], split: Split) -> Path:
    arrays: dict[str, NDArray[Any]] = {}
    for part, mask in (("train", split.train), ("valid", split.valid)):
        arrays |= {f"{part}_num": rows.num[mask], f"{part}_cat": rows.cat[mask]}
        arrays[f"{part}_weights"] = weights[mask]
        for task, values in rows.labels.items():
            arrays[f"{part}_{task}"] = values[mask].astype(np.float32)
    np.savez(path, **arrays)
    return path


def _run(
    config: dict[str, Any], run: Path, settings: TrainSettings, tell: Callable[[float, str], None]
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    if settings.workers:
        return run_ray_train(config, run, settings.workers, tell)
    return train_here(config, lambda row: tell_epoch(row, settings.epochs, tell))


def _loop_config(data: Path, config: NetworkConfig, settings: TrainSettings) -> dict[str, Any]:
    return {**asdict(settings), "data": str(data), "network": config.to_dict()}


def _network(config: NetworkConfig, state: Mapping[str, torch.Tensor]) -> EffectNetwork:
    network = EffectNetwork(config)
    network.load_state_dict(state)
    return network.eval()


@torch.inference_mode()
def _draws(served: torch.nn.Module, rows: _Prepared, mask: Mask) -> dict[str, NDArray[np.float32]]:
    """Task → `[n, H]` for the rows of `mask`."""
    num, cat = torch.from_numpy(rows.num[mask]), torch.from_numpy(rows.cat[mask])
    parts = [served(*chunk) for chunk in zip(num.split(_CHUNK), cat.split(_CHUNK), strict=True)]
    output = torch.cat(parts).numpy()
    return {task: output[:, :, place] for place, task in enumerate(rows.config.tasks)}


def _judge(
    served: torch.nn.Module, rows: _Prepared, split: Split, settings: TrainSettings
) -> tuple[Width, dict[str, float]]:
    """Widths from the validation rows; scores and coverage from the test rows."""
    valid, test = _draws(served, rows, split.valid), _draws(served, rows, split.test)
    width = fit_width(valid, _of(rows.labels, split.valid), _groups(valid, rows, split.valid, settings.seed))
    metrics: dict[str, float] = {"width_scale": width.scale}
    truth, groups = _of(rows.labels, split.test), _groups(test, rows, split.test, settings.seed)
    for task, draws in test.items():
        metrics |= task_scores(task, truth[task], draws.mean(axis=1, dtype=np.float64))
        metrics[f"{task}_coverage_90_raw"] = coverage(draws, truth[task], groups, 1.0)
        metrics[f"{task}_coverage_90"] = coverage(draws, truth[task], groups, width.scale)
    return width, metrics


def _groups(
    draws: Mapping[str, NDArray[np.float32]], rows: _Prepared, mask: Mask, seed: int
) -> list[NDArray[np.intp]]:
    means = {task: values.mean(axis=1, dtype=np.float64) for task, values in draws.items()}
    return make_groups(means, [values[mask] for values in rows.natural], seed)


def _of(labels: Mapping[str, NDArray[np.float64]], mask: Mask) -> dict[str, NDArray[np.float64]]:
    return {task: values[mask] for task, values in labels.items()}


def _run_metrics(history: Sequence[Mapping[str, float]], split: Split, seconds: float) -> dict[str, float]:
    best = min(history, key=lambda row: row["valid_loss"])
    return {
        "best_epoch": best["epoch"],
        "epochs": float(len(history)),
        "valid_loss": best["valid_loss"],
        "train_rows": float(split.train.sum()),
        "test_rows": float(split.test.sum()),
        "seconds": round(seconds, 2),
    }


def _write(
    network: EffectNetwork,
    rows: _Prepared,
    width: Width,
    metrics: Mapping[str, float],
    out: Path,
    data_fingerprint: str,
    parents: Sequence[str],
) -> Artifact:
    schema = rows.encoder.schema
    return write_artifact(
        out,
        KIND,
        effect_files(network, rows.encoder, rows.num[:64], rows.cat[:64], width.scale, width.scales),
        metrics=metrics,
        parents=parents,
        feature_service=schema.service,
        schema_hash=schema.hash,
        data_fingerprint=data_fingerprint,
    )
