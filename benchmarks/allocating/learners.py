"""Predictions of everybody for a day: ours, CausalML's, a response model's, and the article's network."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocating.choosers import PLAN
from benchmarks.allocating.day import Log, floor_mask
from benchmarks.allocating.families import DEPTHS
from training.dose import DoseModel, DoseSettings, fit_dose

Floats = NDArray[np.float64]
Curve = Callable[[Floats], Floats]  # features [n, 8] → purchase probability [n, 5]
PEER = Path(__file__).with_name("causalml_peer.py")


def ours(log: Log, seed: int, settings: DoseSettings) -> DoseModel:
    """The product's model of the response over depth."""
    return fit_dose(log.x, log.level, log.bought, DEPTHS.tolist(), log.propensity, seed, settings)


def response_model(log: Log, seed: int, trees: int) -> Curve:
    """LightGBM on features and depth, as response models are built."""
    import lightgbm

    options = {
        "objective": "binary",
        "learning_rate": 0.06,
        "num_leaves": 8,
        "min_data_in_leaf": 100,
        "lambda_l2": 5.0,
        "num_threads": 1,
        "deterministic": True,
        "seed": seed,
        "verbose": -1,
    }
    data = lightgbm.Dataset(_with_depth(log.x, DEPTHS[log.level]), log.bought)
    booster = lightgbm.train(options, data, trees)
    return lambda x: _by_depth(x, lambda rows: booster.predict(rows, num_threads=1))


def article(log: Log, seed: int, epochs: int) -> Curve:
    """The article's network (64-32-1, ReLU, Adam, mean squared error, 10 epochs of 32 rows, Keras's defaults)
    on standardised features and depth."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    inputs = _with_depth(log.x, DEPTHS[log.level])
    middle, scale = inputs.mean(axis=0), inputs.std(axis=0)
    z = torch.tensor((inputs - middle) / scale, dtype=torch.float32)
    y = torch.tensor(log.bought, dtype=torch.float32)[:, None]
    net = nn.Sequential(nn.Linear(z.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    optimiser = torch.optim.Adam(net.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(z)).split(32):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(z[rows]), y[rows]).backward()
            optimiser.step()

    def predict(rows: Floats) -> Floats:
        with torch.no_grad():
            found = net(torch.tensor((rows - middle) / scale, dtype=torch.float32))
        return np.asarray(found[:, 0].numpy(), dtype=np.float64)

    return lambda x: _by_depth(x, predict)


def causalml(python: Path, log: Log, x: Floats) -> dict[str, Floats]:
    """Purchase probabilities `[n, 5]` of the users in `x` by each of its learners, from its environment."""
    allowed = floor_mask(log.margin)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            source,
            x=log.x,
            level=log.level,
            bought=log.bought,
            propensity=allowed / allowed.sum(axis=1, keepdims=True),
            queries=x,
        )
        command = [str(python), str(PEER), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"causalml: ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        with np.load(target) as found:
            return {name: found[name] for name in found.files}


def queries(log: Log, x: Floats) -> Floats:
    """The plan's rows of the log, then the day's."""
    return np.concatenate([log.x[:PLAN], x])


def _with_depth(x: Floats, depth: Floats) -> Floats:
    return np.column_stack([x, depth])


def _by_depth(x: Floats, predict: Callable[[Floats], Floats]) -> Floats:
    return np.column_stack([predict(_with_depth(x, np.full(len(x), depth))) for depth in DEPTHS])
