"""Planted data whose truth is known, and how tests train on it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from qiance.features.schema import FeatureSchema
from training.effect.fit import Trained, TrainSettings, train_effect
from training.effect.split import Split, split_by_unit

LABELS = ("click", "conversion", "sales", "margin")


@dataclass(frozen=True)
class Planted:
    """n rows drawn from known functions.

    click, conversion: true probabilities `[n]`; sales: true expected minor units `[n]`.
    """

    table: pa.Table
    schema: FeatureSchema
    split: Split
    users: NDArray[np.int64]
    click: NDArray[np.float64]
    conversion: NDArray[np.float64]
    sales: NDArray[np.float64]


def plant(n: int = 12_000, seed: int = 0) -> Planted:
    """Clicks hang on x0·x1, which no linear model sees, on the channel and on the item."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 6))
    channel = random.choice(["email", "display", "mailer"], n)
    item = random.integers(0, 20, n)
    item_effect = np.linspace(-0.6, 0.6, 20)
    click = _sigmoid(-1.4 + 1.2 * x[:, 0] * x[:, 1] + 0.7 * (channel == "email") + item_effect[item])
    bought = _sigmoid(-0.7 + 0.8 * x[:, 2])
    clicked = random.random(n) < click
    converted = clicked & (random.random(n) < bought)
    sales = np.where(converted, np.round(np.exp(6.5 + 0.4 * x[:, 3] + 0.5 * random.normal(size=n))), 0)
    margin = np.where(converted, np.round(0.3 * sales - 150 * (x[:, 4] > 0)), 0)
    x[random.random(n) < 0.1, 5] = np.nan
    columns = {f"x{j}": x[:, j] for j in range(6)}
    columns |= {"channel": channel, "item": item.astype(str)}
    columns |= {"click": clicked, "conversion": converted, "sales": sales, "margin": margin}
    schema = FeatureSchema("planted", tuple(f"x{j}" for j in range(6)), ("channel", "item"))
    users = np.arange(n) // 4
    # The mean of a lognormal: exp(μ + σ²/2).
    expected = click * bought * np.exp(6.5 + 0.4 * x[:, 3] + 0.5**2 / 2)
    split = split_by_unit(users, seed)
    return Planted(pa.table(columns), schema, split, users, click, click * bought, expected)


def fit(planted: Planted, folder: Path, workers: int = 0, **settings: int) -> Trained:
    """Train without Ray unless workers are asked for."""
    return train_effect(
        planted.table,
        planted.schema,
        labels=LABELS,
        split=planted.split,
        settings=TrainSettings(workers=workers, heads=4, **settings),
        out=folder / "artifacts",
        storage=folder / "runs",
        data_fingerprint="planted",
        units=planted.users,
    )


def kill_here(steps: Sequence[int], folder: Path) -> None:
    """From now on this process is killed at gradient step steps[n] of its attempt n; `folder` counts them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    attempt = len(list(folder.glob("killed-*")))
    last = steps[attempt] if attempt < len(steps) else -1
    taken, real = 0, torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: object) -> object:
        nonlocal taken
        if taken == last:
            (folder / f"killed-{attempt}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        taken += 1
        return real(self, *args)

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]


def killed_at(steps: Sequence[int], rank: int, folder: Path) -> Callable[[dict], None]:
    """A training loop for Ray Train whose worker `rank` is killed as `kill_here` says."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it

    def loop(config: dict) -> None:
        import ray.train

        from training.effect.loop import train_loop

        if ray.train.get_context().get_world_rank() == rank:
            kill_here(steps, folder)
        train_loop(config)

    return loop


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-z))


@contextmanager
def listening() -> Iterator[set[tuple[str, str]]]:
    """Collects (process title, address) of every listening socket of our child processes."""
    found: set[tuple[str, str]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            for child in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(child.cmdline())
                    sockets = child.net_connections()
                except psutil.Error:
                    continue
                found.update((title, s.laddr.ip) for s in sockets if s.status == psutil.CONN_LISTEN)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
