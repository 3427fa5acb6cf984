"""What a trial of the response model does, step by step: an epoch of networks, or a block of trees."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from qiance.evaluate.prediction import auc, log_loss, normalised_entropy
from qiance.features.encoder import Encoder
from training.effect.loop import fit_network, torch_left_alone
from training.effect.network import EffectNetwork, NetworkConfig
from training.effect.workers import Alone
from training.response.config import apply_parameters, check_parameters
from training.response.members import (
    Inputs,
    Networks,
    ResponseSettings,
    TreeSettings,
    loop_config,
    run_networks,
    tree_params,
    write_rows,
)
from training.response.rows import ResponseRows, folds_of, held_out
from training.tune.experiment import Work

Floats = NDArray[np.float64]
BLOCK = 50  # trees of a step: each ends with its state on disk, which takes a tenth as long as 50 trees
METRICS = {"log_loss": log_loss, "auc": auc, "ne": normalised_entropy}
MODES = {"log_loss": "min", "auc": "max", "ne": "min"}


@dataclass(frozen=True)
class SweepData:
    """Encoded rows, and the fold of each row: plain arrays, put into Ray's object store once."""

    inputs: Inputs
    label: str
    fold: NDArray[np.int64]

    @classmethod
    def of(cls, rows: ResponseRows, folds: int, settings: ResponseSettings) -> SweepData:
        """Units whole, and the outcome's rate alike in all folds."""
        encoder = Encoder.fit(rows.schema, rows.columns, min_count=settings.network.min_count)
        inputs = Inputs.of(rows, encoder, settings)
        return cls(inputs, rows.label, folds_of(rows, folds, settings.seed))


class FoldWork(Work):
    """Members side by side, each without one fold, judged on it by `metric`. pace: in steps of the usual
    learning rate.

    What `load` goes on from leads to the same numbers as if there had been no stop.
    """

    pace = 1.0

    def __init__(self, target: Floats, metric: str) -> None:
        self._target, self._metric = target, metric

    def close(self) -> None:
        """It holds memory only."""

    def advance(self, step: int) -> dict[str, float]:
        """See `Work`."""
        return judge(self._metric, self._target, self.unseen(step))

    @abstractmethod
    def unseen(self, step: int) -> Floats:
        """Train on; `[N]` probabilities, of each row by the member that has not seen it."""


class NetworkWork(FoldWork):
    """One network per fold, an epoch at a time by the training loop of the effect model."""

    def __init__(self, data: SweepData, files: list[Path], settings: ResponseSettings, metric: str) -> None:
        super().__init__(data.inputs.target, metric)
        self.steps, self.patience = settings.network.epochs, settings.network.patience
        self._data = data
        self._configs, self._states = [], list[Any]()
        for (train, _), path in zip(held_out(data.fold), files, strict=True):
            # The trial's own patience decides, over all folds.
            config = loop_config(data.inputs, data.label, train, settings.network, path)
            self._configs.append({**config, "patience": self.steps + 1})
            self._states.append(None)

    def unseen(self, step: int) -> Floats:
        """See the class."""
        unseen = np.empty(len(self._data.fold))
        for number, (_, held) in enumerate(held_out(self._data.fold)):
            network = self._epoch(number, step)
            num, cat = self._data.inputs.num[held], self._data.inputs.cat[held]
            unseen[held] = run_networks(Networks([network]), num, cat)[:, 0].mean(axis=1)
        return unseen

    def _epoch(self, number: int, step: int) -> EffectNetwork:
        config = {**self._configs[number], "epochs": step}
        with torch_left_alone():
            state = fit_network(config, Alone(lambda _epoch: None), start=self._states[number])
        self._states[number] = state
        network = EffectNetwork(NetworkConfig.from_dict(config["network"]))
        network.load_state_dict(state["network"])
        return network.eval()

    def state(self) -> dict[str, Any]:
        """See the class."""
        return {"members": self._states}

    def load(self, state: Mapping[str, Any]) -> None:
        """See the class."""
        self._states = list(state["members"])


class TreesWork(FoldWork):
    """Boosted trees per fold, `BLOCK` trees at a time.

    A block is boosted on the scores of those before it, with a seed of its own. So all that a later block
    needs are the scores of all rows, and an interrupted trial comes to the same trees.

    A tree moves the scores by the learning rate, so that half the rate needs twice the trees to come as far
    (Friedman, "Greedy function approximation", 2001): pace is proportional to it. Counted by trees, early
    stopping would prefer whoever takes the largest steps.
    """

    def __init__(self, data: SweepData, settings: ResponseSettings, metric: str) -> None:
        super().__init__(data.inputs.target, metric)
        trees = settings.trees
        self.steps = -(-trees.rounds // BLOCK)
        self.patience = -(-trees.patience // BLOCK)
        self.pace = trees.learning_rate / TreeSettings().learning_rate
        self._data, self._settings = data, settings
        self._folds = list(held_out(data.fold))
        self._sets = [self._dataset(train) for train, _ in self._folds]
        starts = [logit(data.inputs.target[train].mean()) for train, _ in self._folds]
        self._scores = np.repeat(np.array(starts)[:, None], len(data.fold), axis=1)

    def _dataset(self, train: NDArray[np.bool_]) -> Any:
        import lightgbm

        inputs = self._data.inputs
        return lightgbm.Dataset(
            inputs.table[train],
            inputs.target[train],
            categorical_feature=inputs.codes,
            free_raw_data=False,
        )

    def unseen(self, step: int) -> Floats:
        """See the class."""
        import lightgbm

        settings, unseen = self._settings.trees, np.empty(len(self._data.fold))
        for number, (train, held) in enumerate(self._folds):
            rows = self._sets[number].set_init_score(self._scores[number, train])
            seed = (self._settings.seed * 1_009 + number) * 1_000_003 + step
            params = tree_params(settings.leaves[0], settings, seed % 2**31)
            block = lightgbm.train({**params, "boost_from_average": False}, rows, BLOCK)
            self._scores[number] += block.predict(self._data.inputs.table, raw_score=True)
            unseen[held] = expit(self._scores[number, held])
        return unseen

    def state(self) -> dict[str, Any]:
        """See the class."""
        return {"scores": torch.from_numpy(self._scores)}

    def load(self, state: Mapping[str, Any]) -> None:
        """See the class."""
        self._scores = state["scores"].numpy().copy()


class ResponseWorkshop:
    """Makes the work of one trial after the other on the same data; files of networks are written once."""

    def __init__(self, data: SweepData, base: ResponseSettings, metric: str) -> None:
        self._data, self._base, self._metric = data, base, metric
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[Path] = []

    def make(self, model: str, parameters: Mapping[str, Any]) -> FoldWork:
        """Untrained. model: network or trees; parameters: as a configuration file has them."""
        checked = check_parameters({model: dict(parameters)}, "the trial")
        settings = apply_parameters(checked, self._base)
        if model == "trees":
            return TreesWork(self._data, settings, self._metric)
        return NetworkWork(self._data, self._written(), settings, self._metric)

    def _written(self) -> list[Path]:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qiance-tune-")
            for number, (train, held) in enumerate(held_out(self._data.fold)):
                path = Path(self._folder.name) / f"fold-{number}.npz"
                write_rows(self._data.inputs, self._data.label, train, held, path)
                self._files.append(path)
        return self._files

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def judge(metric: str, target: Floats, unseen: Floats) -> dict[str, float]:
    """`value` by the chosen metric, and the others by name; NaN where a probability is none."""
    if not np.isfinite(unseen).all():
        return dict.fromkeys(("value", *METRICS), float("nan"))
    found = {name: float(function(target, unseen)) for name, function in METRICS.items()}
    return {"value": found[metric], **found}
