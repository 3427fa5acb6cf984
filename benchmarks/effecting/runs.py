"""One set, one seed: the response model and its peers learn from the same users, judged on the others."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.effecting.sets import SETS, VALUE_ONLY
from qiance.features.encoder import Encoder
from training.effect.baselines import predictions
from training.effect.split import Split, split_by_unit
from training.effect.width import MIN_GROUP
from training.response.judge import group_intervals
from training.response.members import Inputs, ResponseSettings, fit_network, fit_trees
from training.response.rows import ResponseRows
from training.response.stack import fit_stack, groups_of, segments_of
from training.response.value import fit_value

Floats = NDArray[np.float64]
TEST_SHARE = 0.35  # of the users: more than 500 of them in every set
VALID_SHARE = 0.1  # of the users, for peers that choose when to stop; ours chooses within the rest
DEEP_SCRIPT = Path(__file__).with_name("deep_peer.py")
DEEP_EPOCHS = 30
NAMES = {
    "population mean": "mean",
    "linear regression": "linear",
    "logistic regression": "logistic",
    "64-32-1 network": "mlp_article",
}
LEAVES = (4, 8, 15, 31)


@dataclass(frozen=True)
class Run:
    """What came of one set and seed.

    target, units: `[n]` of the judged rows. said: model → prediction `[n]`; ours is `qiance`. covered, width:
    per group of 500 users or more, its 90 % interval. seconds: of fitting. notes: choices made.
    """

    name: str
    seed: int
    target: Floats
    units: NDArray[np.str_]
    said: Mapping[str, Floats]
    covered: tuple[bool, ...]
    widths: tuple[float, ...]
    seconds: Mapping[str, float]
    notes: Mapping[str, Any]


def split_of(rows: ResponseRows, seed: int) -> Split:
    """Users, not rows, are dealt out."""
    return split_by_unit(rows.units, seed, (1 - TEST_SHARE - VALID_SHARE, VALID_SHARE, TEST_SHARE))


def run(name: str, seed: int, limit: int, members: int, deep: str | None) -> Run:
    """Fit and predict. limit: rows at most; deep: interpreter that has the deep peer, None leaves it out."""
    rows = _limited(SETS[name](), limit, seed)
    split = split_of(rows, seed)
    settings = ResponseSettings.for_rows(len(rows), seed)
    settings = ResponseSettings(members, settings.network, settings.trees, seed)
    if name in VALUE_ONLY:
        return _run_value(name, rows, split, settings)
    return _run_rate(name, rows, split, settings, deep)


def _limited(rows: ResponseRows, limit: int, seed: int) -> ResponseRows:
    if len(rows) <= limit:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit]))


def _run_rate(
    name: str, rows: ResponseRows, split: Split, settings: ResponseSettings, deep: str | None
) -> Run:
    judged, seed = rows.take(split.test), settings.seed
    started = time.perf_counter()
    stack = fit_stack(rows.take(~split.test), settings, lambda _share, _text: None)
    seconds = {"qiance": time.perf_counter() - started}
    draws = stack.predict(judged)
    said = {"qiance": draws.mean(axis=1)}
    for peer, prediction in _baselines(rows, split, seed).items():
        said[peer] = np.clip(prediction, 0.0, 1.0)
    said["lightgbm"], leaves, seconds["lightgbm"] = _lightgbm(rows, split, settings)
    if deep is not None:
        said["deep"], seconds["deep"], _ = run_deep(rows, split, settings, deep)
    groups = [group for group in groups_of(judged, draws, seed) if _users(judged, group) >= MIN_GROUP]
    groups.append(np.arange(len(judged)))
    covered, widths = group_intervals(judged.target, draws, stack, groups, segments_of(judged))
    notes = {"network_weight": stack.scorer.weight, "leaves": stack.leaves, "leaves_lightgbm": leaves}
    found = (tuple(covered), tuple(widths))
    return Run(name, seed, judged.target, judged.units, said, *found, seconds, notes)


def _users(rows: ResponseRows, group: NDArray[np.intp]) -> int:
    return int(np.unique(rows.units[group]).size)


def _baselines(rows: ResponseRows, split: Split, seed: int) -> dict[str, Floats]:
    said = predictions(rows.columns, rows.schema, rows.label, rows.target, split, threads=1, seed=seed)
    return {NAMES[name]: prediction for name, prediction in said.items() if name in NAMES}


def _lightgbm(rows: ResponseRows, split: Split, settings: ResponseSettings) -> tuple[Floats, int, float]:
    """The size of the trees is chosen on the rows that choose when to stop."""
    from qiance.evaluate.prediction import log_loss

    started = time.perf_counter()
    encoder = Encoder.fit(rows.schema, rows.take(split.train).columns, min_count=settings.network.min_count)
    inputs, best = Inputs.of(rows, encoder, settings), (np.inf, 0, None)
    for leaves in LEAVES:
        booster = fit_trees(inputs, split.train, split.valid, leaves, settings.trees, settings.seed)
        loss = log_loss(rows.target[split.valid], booster.predict(inputs.table[split.valid]))
        best = min(best, (loss, leaves, booster), key=lambda one: one[0])
    seconds = time.perf_counter() - started
    assert best[2] is not None, "there are sizes to try"
    return np.asarray(best[2].predict(inputs.table[split.test])), best[1], seconds


def run_deep(
    rows: ResponseRows, split: Split, settings: ResponseSettings, python: str, epochs: int = DEEP_EPOCHS
) -> tuple[Floats, float, int]:
    """The deep peer's prediction of the judged rows, its seconds of training, and the epochs it went."""
    encoder = Encoder.fit(rows.schema, rows.take(split.train).columns, min_count=settings.network.min_count)
    num, cat = encoder.encode(rows.columns)
    part = np.where(split.train, 0, np.where(split.valid, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        sizes: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": settings.network.batch_size,
            "seed": settings.seed,
        }
        np.savez(source, num=num, cat=cat, target=rows.target, part=part, **sizes)
        done = subprocess.run(
            [python, str(DEEP_SCRIPT), str(source), str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"the deep peer ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        with np.load(out, allow_pickle=False) as found:
            prediction = found["prediction"].astype(np.float64)
            return prediction, float(found["seconds"]), int(found["epochs"])


def _run_value(name: str, rows: ResponseRows, split: Split, settings: ResponseSettings) -> Run:
    """How much is spent where something is: errors in minor units, intervals of single households."""
    assert rows.sales is not None, "sets of values have sales"
    learned, judged = rows.take(~split.test), rows.take(split.test & (rows.sales > 0))
    encoder = Encoder.fit(rows.schema, learned.columns, min_count=settings.network.min_count)
    started = time.perf_counter()
    model = fit_value(learned, encoder, settings)
    seconds = time.perf_counter() - started
    found, spent = model.predict(judged.columns), judged.sales
    assert spent is not None
    bought = rows.take(rows.sales > 0)
    assert bought.sales is not None
    own = Split(*(part[rows.sales > 0] for part in (split.train, split.valid, split.test)))
    peers = predictions(
        bought.columns, bought.schema, "sales", bought.sales, own, threads=1, seed=settings.seed
    )
    known = {**NAMES, "LightGBM": "lightgbm"}
    said = {"qiance": found.mean} | {known[peer]: prediction for peer, prediction in peers.items()}
    covered = tuple(bool(one) for one in (found.low <= spent) & (spent <= found.high))
    widths = tuple(float(one) for one in found.high - found.low)
    notes = {"weight": model.weight}
    return Run(name, settings.seed, spent, judged.units, said, covered, widths, {"qiance": seconds}, notes)


def network_speed(
    name: str, python: str | None, limit: int, epochs: int, turns: int
) -> tuple[list[float], list[float]]:
    """Training rows a second of our network (5 heads) and of the deep peer, each over the same rows in turns.

    Both go through the same number of epochs with the same batches on one thread.
    """
    from dataclasses import replace

    rows = _limited(SETS[name](), limit, 0)
    split = split_of(rows, 0)
    settings = ResponseSettings.for_rows(len(rows))
    network = replace(settings.network, epochs=epochs, patience=epochs)
    encoder = Encoder.fit(rows.schema, rows.take(split.train).columns, min_count=network.min_count)
    inputs, ours, deep = Inputs.of(rows, encoder, settings), list[float](), list[float]()
    count = int(split.train.sum()) * epochs
    for _ in range(turns):
        started = time.perf_counter()
        fit_network(inputs, rows.label, split.train, split.valid, network, lambda _metrics: None)
        ours.append(count / (time.perf_counter() - started))
        if python is not None:
            _, seconds, gone = run_deep(rows, split, settings, python, epochs)
            deep.append(count * gone / epochs / seconds)
    return ours, deep
