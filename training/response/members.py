"""The two kinds of model that a response model is made of, each fitted with rows that choose when to stop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts.trees import tree_inputs
from qiance.features.encoder import Encoder
from training.effect.fit import TrainSettings
from training.effect.labels import network_config
from training.effect.loop import train_here
from training.effect.network import EffectNetwork, NetworkConfig
from training.effect.randomness import poisson_weights
from training.effect.served import ServedNetwork
from training.response.rows import Mask, ResponseRows

Floats = NDArray[np.float64]
Epochs = Callable[[dict[str, float]], None]
_CHUNK = 8_192


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """Boosted trees. rounds: most trees; patience: trees without a better log loss before it stops.

    leaves: sizes of a tree, tried from the first until the log loss on held-out rows rises: small trees suit
    weak signals, large ones many interactions. row_share, feature_share: drawn anew for each tree. l2:
    penalty on the values of leaves. threads: of LightGBM; threads that wait for each other on busy cores lose
    more than a second one gains.
    """

    rounds: int = 3_000
    learning_rate: float = 0.05
    leaves: tuple[int, ...] = (4, 8, 16, 32, 64)
    min_rows: int = 50
    row_share: float = 0.8
    feature_share: float = 0.7
    patience: int = 50
    threads: int = 1
    l2: float = 0.0


def _network_settings(rows: int = 0) -> TrainSettings:
    """Logs are smaller than what a loop collects: larger steps, and more epochs at most.

    A batch grows with the log, so that an epoch is some forty steps: on 45,000 rows of Hillstrom, 1,024 rows
    a batch learn as well as 256 do (normalised entropy 0.9603 and 0.9607) in less than half of the time.
    """
    batch = min(1_024, max(256, rows // 40))
    return TrainSettings(epochs=30, batch_size=batch, learning_rate=3e-3, patience=4, heads=5)


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """members: K, each trained without one of as many folds. seed: with equal data, the same model."""

    members: int = 5
    network: TrainSettings = field(default_factory=_network_settings)
    trees: TreeSettings = field(default_factory=TreeSettings)
    seed: int = 0

    @classmethod
    def for_rows(cls, rows: int, seed: int = 0) -> ResponseSettings:
        """The defaults for a log of so many rows."""
        return cls(network=_network_settings(rows), seed=seed)

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"members: {self.members} is below 2: rows could not be held out")


@dataclass(frozen=True)
class Inputs:
    """Encoded rows: num, cat for networks; table, codes for trees (see `tree_inputs`); outcome, weights."""

    encoder: Encoder
    num: NDArray[np.float32]
    cat: NDArray[np.int64]
    table: Floats
    codes: list[int]
    target: Floats
    weights: NDArray[np.uint8]

    @classmethod
    def of(cls, rows: ResponseRows, encoder: Encoder, settings: ResponseSettings) -> Inputs:
        """weights are the bootstrap's, shared by the rows of a unit."""
        num, cat = encoder.encode(rows.columns)
        table = tree_inputs(encoder.schema, rows.columns, cat)
        codes = list(range(table.shape[1] - cat.shape[1], table.shape[1]))
        weights = poisson_weights(rows.units, settings.network.heads, settings.seed)
        return cls(encoder, num, cat, table, codes, rows.target, weights)


def fit_trees(
    inputs: Inputs, train: Mask, choose: Mask, leaves: int, settings: TreeSettings, seed: int
) -> Any:
    """A LightGBM booster with trees of `leaves`, cut at its best round on the rows `choose`."""
    import lightgbm

    rows = _dataset(inputs, train)
    stop = lightgbm.early_stopping(settings.patience, verbose=False)
    found = lightgbm.train(
        tree_params(leaves, settings, seed),
        rows,
        settings.rounds,
        valid_sets=[_dataset(inputs, choose, like=rows)],
        callbacks=[stop],
    )
    return cut_booster(found, found.best_iteration)


def fit_tree_heads(
    inputs: Inputs, train: Mask, rounds: int, leaves: int, settings: TreeSettings, seed: int
) -> list[Any]:
    """H boosters of `rounds` trees, each on its own bootstrap of the units in `train`."""
    import lightgbm

    heads = list[Any]()
    for head in range(inputs.weights.shape[1]):
        drawn = train & (inputs.weights[:, head] > 0)
        rows = _dataset(inputs, drawn, inputs.weights[drawn, head])
        found = lightgbm.train(tree_params(leaves, settings, seed + head), rows, rounds)
        heads.append(cut_booster(found, rounds))
    return heads


def tree_params(leaves: int, settings: TreeSettings, seed: int) -> dict[str, Any]:
    """LightGBM's own names and values."""
    return {
        "objective": "binary",
        "learning_rate": settings.learning_rate,
        "num_leaves": leaves,
        "min_data_in_leaf": settings.min_rows,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "feature_fraction": settings.feature_share,
        "lambda_l2": settings.l2,
        "num_threads": settings.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _dataset(inputs: Inputs, mask: Mask, weight: Any = None, like: Any = None) -> Any:
    import lightgbm

    table, target = inputs.table[mask], inputs.target[mask]
    return lightgbm.Dataset(table, target, weight=weight, categorical_feature=inputs.codes, reference=like)


def cut_booster(booster: Any, rounds: int) -> Any:
    """Written and read again, it is what will be served: without the rounds after the best."""
    import lightgbm

    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))


def fit_network(
    inputs: Inputs, label: str, train: Mask, choose: Mask, settings: TrainSettings, tell: Epochs
) -> tuple[EffectNetwork, list[dict[str, float]]]:
    """The effect model's network with the one task `label`, at its best epoch on the rows `choose`.

    Also its history, by epoch.
    """
    with tempfile.TemporaryDirectory(prefix="qiance-response-") as folder:
        path = Path(folder) / "rows.npz"
        write_rows(inputs, label, train, choose, path)
        config = loop_config(inputs, label, train, settings, path)
        state, history = train_here(config, tell)
    network = EffectNetwork(NetworkConfig.from_dict(config["network"]))
    network.load_state_dict(state)
    return network.eval(), history


def write_rows(inputs: Inputs, label: str, train: Mask, choose: Mask, path: Path) -> None:
    """The encoded rows as the training loop reads them."""
    arrays: dict[str, NDArray[Any]] = {}
    for part, mask in (("train", train), ("valid", choose)):
        arrays |= {f"{part}_num": inputs.num[mask], f"{part}_cat": inputs.cat[mask]}
        arrays |= {f"{part}_weights": inputs.weights[mask]}
        arrays[f"{part}_{label}"] = inputs.target[mask].astype(np.float32)
    np.savez(path, **arrays)


def loop_config(
    inputs: Inputs, label: str, train: Mask, settings: TrainSettings, data: Path
) -> dict[str, Any]:
    """What `training.effect.loop.fit_network` is called with for the one task `label`."""
    network = network_config(
        inputs.encoder,
        {label: inputs.target},
        train,
        heads=settings.heads,
        hidden=settings.hidden,
        dropout=settings.dropout,
        embedding=settings.embedding,
    )
    return {**asdict(settings), "data": str(data), "network": network.to_dict()}


class Networks(torch.nn.Module):
    """K networks side by side: `[N, Dn]`, `[N, Dc]` → `[N, K, H]` probabilities."""

    def __init__(self, networks: list[EffectNetwork]) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(ServedNetwork(network).eval() for network in networks)

    def forward(self, num: torch.Tensor, cat: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.stack([member(num, cat)[:, :, 0] for member in self.members], dim=1)


@torch.inference_mode()
def run_networks(networks: Networks, num: NDArray[np.float32], cat: NDArray[np.int64]) -> NDArray[np.float32]:
    """`[n, K, H]` for encoded rows."""
    parts = zip(torch.from_numpy(num).split(_CHUNK), torch.from_numpy(cat).split(_CHUNK), strict=True)
    found: NDArray[np.float32] = torch.cat([networks(*part) for part in parts]).numpy()
    return found
