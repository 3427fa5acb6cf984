"""Trains the effect model on Ray Train and writes it as an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from numpy.typing import ArrayLike

from qiance.artifacts import Artifact, write_artifact
from qiance.artifacts.effect import KIND
from qiance.features.encoder import COMPONENTS
from qiance.features.schema import FeatureSchema
from training.effect.calibrate import SegmentCalibration, segment_feature
from training.effect.export import effect_files
from training.effect.judge import Judged, judge
from training.effect.loop import best_of, train_here
from training.effect.network import EffectNetwork, NetworkConfig
from training.effect.prepared import Prepared, prepare
from training.effect.ray_run import run_ray_train, tell_epoch
from training.effect.runs import ROWS, open_run
from training.effect.split import Split


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
    checkpoint_steps: gradient steps after which a checkpoint is written, beside one after each epoch; what
        a killed worker has to do again.
    calibrate_by: categorical feature by whose values calibration differs; None takes the arm, or the first.
    negative_ratio: training rows without a response that are kept for each with one, and predictions are
        corrected for it; None keeps all. See `training.effect.sampling`.
    weight_decay: of AdamW. dropout: share of the trunk's hidden values set to 0. embedding: widest vector
        that a category gets. text_components: numbers that the words' vector is read by; 0 leaves it out.
    """

    epochs: int = 40
    batch_size: int = 512
    learning_rate: float = 1e-3
    heads: int = 8
    hidden: tuple[int, ...] = (64, 32)
    workers: int = 1
    patience: int = 3
    threads: int = 1
    seed: int = 0
    min_count: int = 5
    checkpoint_steps: int = 1_000
    calibrate_by: str | None = None
    negative_ratio: float | None = None
    weight_decay: float = 0.1
    dropout: float = 0.1
    embedding: int = 16
    text_components: int = COMPONENTS

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"settings.workers: {self.workers} is negative")
        for name in (
            "epochs", "batch_size", "heads", "patience", "threads", "min_count", "checkpoint_steps",
            "embedding",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"settings.{name}: {getattr(self, name)} is not positive")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"settings.learning_rate: {self.learning_rate} is outside (0, 1)")
        if self.negative_ratio is not None and not self.negative_ratio > 0:
            raise ValueError(f"settings.negative_ratio: {self.negative_ratio} is not positive")
        if self.text_components < 0:
            raise ValueError(f"settings.text_components: {self.text_components} is negative")
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
    segments: calibration of the test rows by segment, before and after it was corrected.
    """

    artifact: Artifact
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]
    segments: tuple[SegmentCalibration, ...]


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
    out: folder that the artifact is written to. storage: folder for runs and their checkpoints, seen by all
        nodes; the same call after a crash goes on from the last one, to the same model.
    units: id per row, `[n]`; rows of one unit share their bootstrap weight, so that intervals are
        honest about few users with many rows. Without it each row is its own unit.
    groups: columns whose values are groups that intervals must cover, beside the categorical features.
    progress: called with a fraction and a sentence.
    Ray must be running unless settings.workers is 0. Raises ValueError for bad labels, columns or split;
    RuntimeError without Ray, or while the same training runs in another process.
    """
    chosen = settings or TrainSettings()
    tell = progress or (lambda share, text: None)
    started = time.monotonic()
    if len(split) != table.num_rows:
        raise ValueError(f"split: has {len(split)} rows where the table has {table.num_rows}")
    tell(0.0, f"encoding {table.num_rows:,} rows of {len(schema.names)} features")
    feature = segment_feature(schema, chosen.calibrate_by)
    rows = prepare(
        table,
        schema,
        labels,
        split,
        units,
        groups,
        heads=chosen.heads,
        hidden=chosen.hidden,
        dropout=chosen.dropout,
        embedding=chosen.embedding,
        min_count=chosen.min_count,
        components=chosen.text_components,
        negative_ratio=chosen.negative_ratio,
        seed=chosen.seed,
    )
    config, arrays = _loop_config(rows.config, chosen), rows.arrays(chosen.heads, chosen.seed)
    with open_run(storage, config, arrays) as run:
        state, history = _run({**config, "data": str(run / ROWS)}, run, chosen, tell)
    tell(0.9, "calibrating, fitting interval widths and scoring the test rows")
    network = _network(rows, state)
    judged = judge(network, rows, split, feature, chosen.seed)
    metrics = judged.metrics | _run_metrics(history, rows, split, time.monotonic() - started)
    artifact = _write(network, rows, judged, metrics, out, data_fingerprint, parents)
    tell(1.0, f"effect model {artifact.version} written")
    return Trained(artifact, metrics, tuple(history), judged.segments)


def _run(
    config: dict[str, Any], run: Path, settings: TrainSettings, tell: Callable[[float, str], None]
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    if settings.workers:
        return best_of(run_ray_train(config, run, settings.workers, tell))
    return train_here(config, lambda row: tell_epoch(row, settings.epochs, tell), run)


def _loop_config(config: NetworkConfig, settings: TrainSettings) -> dict[str, Any]:
    return {**asdict(settings), "network": config.to_dict()}


def _network(rows: Prepared, state: Mapping[str, torch.Tensor]) -> EffectNetwork:
    network = EffectNetwork(rows.config)
    network.load_state_dict(state)
    if rows.sampling is not None:
        rows.sampling.correct(network)
    return network.eval()


def _run_metrics(
    history: Sequence[Mapping[str, float]], rows: Prepared, split: Split, seconds: float
) -> dict[str, float]:
    best = min(history, key=lambda row: row["valid_loss"])
    return {
        "best_epoch": best["epoch"],
        "epochs": float(len(history)),
        "valid_loss": best["valid_loss"],
        "train_rows": float(rows.fitted.sum()),
        "negatives_kept": 1.0 if rows.sampling is None else rows.sampling.share,
        "test_rows": float(split.test.sum()),
        "seconds": round(seconds, 2),
    }


def _write(
    network: EffectNetwork,
    rows: Prepared,
    judged: Judged,
    metrics: Mapping[str, float],
    out: Path,
    data_fingerprint: str,
    parents: Sequence[str],
) -> Artifact:
    schema, width = rows.encoder.schema, judged.width
    some = rows.num[:64], rows.cat[:64]
    return write_artifact(
        out,
        KIND,
        effect_files(
            network, rows.encoder, *some, width.scale, width.scales, judged.calibration, width.served
        ),
        metrics=metrics,
        parents=parents,
        feature_service=schema.service,
        schema_hash=schema.hash,
        data_fingerprint=data_fingerprint,
    )
