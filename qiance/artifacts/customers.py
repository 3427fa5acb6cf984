"""The customer model: next purchase, churn and value of every customer, from a purchase log.

A buying process says how likely each history is under every pair of buying and leaving rates; boosted trees,
fitted where the process had to predict what is known now, correct its chance of a purchase and its count; a
gamma regression says what a purchase is worth. U users.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest
from qiance.customers.features import features_of, start_of
from qiance.customers.forecast import Corrected, Forecast, Forecaster, joined
from qiance.customers.history import History, history_of
from qiance.customers.process import BuyingProcess, Posterior
from qiance.customers.spend import SpendModel
from qiance.data.errors import DataError
from qiance.data.purchases import PurchaseLog

KIND = "customer-model"
INFO, PROCESS = "customers.json", "process.npz"
TASKS = ("none", "excess")
_CHUNK = 4_096
_LEAST, _MOST = 1e-4, 0.98  # of the excess, the latter as a share of the days

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CustomerInfo:
    """horizon: days. span: days of history that it was fitted on. cutoff: the day (since 1970) it was fitted
    at.
    level: see `Forecaster`. members: boosters of each task, 0 where the process was left as it is. currency:
    of all values."""

    horizon: int
    span: float
    cutoff: int
    level: float
    members: Mapping[str, int]
    currency: str
    spend: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class CustomerScorer:
    """Fitted parts, the same in training and in serving. trees: task → K boosters, none for the process
    alone."""

    forecaster: Forecaster
    span: float
    trees: Mapping[str, Sequence[Any]]

    def predict(self, log: PurchaseLog, cutoff: int) -> Forecast:
        """Of everybody who bought before day `cutoff`; DataError if nobody did."""
        return joined([self.forecaster.forecast(*known) for known in self._known(log, cutoff)])

    def draws(self, log: PurchaseLog, cutoff: int) -> Floats:
        """`[U, M]` values that each customer may spend, equally likely; see `Forecaster`."""
        return np.concatenate([self.forecaster.draws(*known)[0] for known in self._known(log, cutoff)])

    def _known(self, log: PurchaseLog, cutoff: int) -> Iterator[tuple[History, Posterior, Corrected]]:
        history = history_of(log, cutoff, self.span)
        for low in range(0, len(history), _CHUNK):
            some = history.take(slice(low, low + _CHUNK))
            posterior = self.forecaster.process.posterior(some)
            yield some, posterior, self._corrected(some, posterior)

    def _corrected(self, history: History, posterior: Posterior) -> Corrected:
        start, count = start_of(self.forecaster.process, posterior, self.forecaster.horizon)
        inputs = features_of(history, start, count, self.forecaster.spend, self.forecaster.horizon)
        none, excess = (getattr(start, task) + raw_mean(self.trees.get(task, ()), inputs) for task in TASKS)
        return corrected_of(none, excess, self.forecaster.horizon)


def corrected_of(none: Floats, excess: Floats, horizon: int) -> Corrected:
    """From the logit of no purchase and the logarithm of the excess, `[U]` each; a day has one purchase at
    most."""
    most = max(_MOST * (horizon - 1), _LEAST)
    return Corrected(np.asarray(expit(none)), np.clip(np.exp(excess), _LEAST, most))


def raw_mean(boosters: Sequence[Any], inputs: Floats) -> Floats:
    """`[U]` what the boosters add to the score, on average; 0 without any."""
    if not boosters:
        return np.zeros(len(inputs))
    return np.asarray(np.mean([one.predict(inputs, raw_score=True) for one in boosters], axis=0))


class CustomerModel:
    """A loaded customer model; `predict` may be called from several threads."""

    def __init__(self, artifact: Artifact, info: CustomerInfo, scorer: CustomerScorer) -> None:
        self.artifact, self.info, self._scorer = artifact, info, scorer

    @classmethod
    def load(cls, path: Path) -> CustomerModel:
        """Load and verify the artifact at `path`; ArtifactError for a damaged one or another kind."""
        import lightgbm

        manifest = load_manifest(path, KIND, "qiance train customers")
        info = CustomerInfo(**json.loads((path / INFO).read_text(encoding="utf-8")))
        trees = {
            task: [lightgbm.Booster(model_file=path / trees_file(task, k)) for k in range(info.members[task])]
            for task in TASKS
        }
        forecaster = Forecaster(
            read_process(path / PROCESS), SpendModel.from_dict(info.spend), info.horizon, info.level
        )
        return cls(Artifact(path, manifest), info, CustomerScorer(forecaster, info.span, trees))

    @property
    def version(self) -> str:
        return self.artifact.version

    def predict(self, log: PurchaseLog, cutoff: int | None = None) -> Forecast:
        """What each customer does in the `horizon` days from `cutoff` (days since 1970; None: the log's end).

        log: whole histories of the customers asked about; nobody else's matter. DataError for another
        currency, or when nobody had bought.
        """
        if log.currency != self.info.currency:
            problem = f"is in {log.currency}, and the model was trained on {self.info.currency}"
            raise DataError(log.source, problem, "use the mapping that the model was trained with")
        return self._scorer.predict(log, log.end_day if cutoff is None else cutoff)


def write_process(process: BuyingProcess, path: Path) -> None:
    """Arrays by numpy, nothing pickled."""
    with path.open("wb") as stream:
        np.savez(stream, rate=process.rate, dropout=process.dropout, weight=process.weight)


def read_process(path: Path) -> BuyingProcess:
    """The inverse of `write_process`; ArtifactError for arrays that are none."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return BuyingProcess(found["rate"], found["dropout"], found["weight"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: holds no buying process ({error})") from None


def trees_file(task: str, member: int) -> str:
    """Name of the file of a booster."""
    return f"trees-{task}-{member}.txt"
