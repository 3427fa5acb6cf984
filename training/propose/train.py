"""From a log of strategies to a folder with a proposer and its figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact
from qiance.artifacts.proposer import write_proposer
from qiance.proposer.outcome import COST
from qiance.proposer.proposer import Proposer
from qiance.proposer.vector import COLUMNS
from training.propose.fit import ProposerSettings, Tell, fit_proposer
from training.propose.log import StrategyLog
from training.propose.outcome import fit_outcomes

METRICS = "metrics.json"
FOLDS = 5


@dataclass(frozen=True)
class TrainedProposer:
    """The artifact, the proposer, and what metrics.json holds."""

    artifact: Artifact
    proposer: Proposer
    metrics: Mapping[str, Any]


def train_proposer(
    log: StrategyLog, out: Path, settings: ProposerSettings | None = None, tell: Tell | None = None
) -> TrainedProposer:
    """Fit on the whole log, judge the outcome model by cross-validation, write artifact and metrics.json."""
    chosen, told = settings or ProposerSettings(), tell or (lambda _share, _text: None)
    started = time.monotonic()
    told(0.0, "cross-validating what outcomes are expected")
    explained = cross_validated(log, chosen.vae.seed)
    fitted = fit_proposer(log, chosen, lambda share, text: told(0.2 + 0.79 * share, text))
    proposer = Proposer(fitted, log.names, log.segments, chosen.asked)
    figures = {
        "valid_loss": fitted.vae.best["valid_loss"],
        "epochs": float(len(fitted.vae.history)),
        **{f"r2_{name}": value for name, value in explained.items()},
    }
    card = model_card(log, chosen, figures)
    out.mkdir(parents=True, exist_ok=True)
    artifact = write_proposer(out, proposer, figures, card, log.fingerprint)
    metrics = {
        **figures,
        "model": artifact.path.name,
        "card": card,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"proposer {artifact.version} written")
    return TrainedProposer(artifact, proposer, metrics)


def cross_validated(log: StrategyLog, seed: int) -> dict[str, float]:
    """By goal and for the cost: 1 − squared error ÷ variance of values per user, on trials left out.

    Below 1 for a perfect model too, since what small groups bring is noisy.
    """
    fold = np.random.default_rng([seed, 5]).permutation(len(log)) % FOLDS
    observed = {goal.value: values / log.users for goal, values in log.outcomes.items()}
    observed[COST] = log.cost / log.users
    guessed = {name: np.empty(len(log)) for name in observed}
    for k in range(FOLDS):
        held = fold == k
        model, part = fit_outcomes(log.take(~held)), log.take(held)
        for goal in log.outcomes:
            found = model.expect(part.features, part.vectors, goal)
            guessed[goal.value][held], guessed[COST][held] = found.value, found.cost
    return {name: _explained(observed[name], guessed[name], log.users) for name in observed}


def _explained(observed: np.ndarray, guessed: np.ndarray, users: np.ndarray) -> float:
    mean = np.average(observed, weights=users)
    around = float(np.average((observed - mean) ** 2, weights=users))
    return 1.0 - float(np.average((observed - guessed) ** 2, weights=users)) / around if around > 0 else 0.0


def model_card(log: StrategyLog, settings: ProposerSettings, figures: Mapping[str, float]) -> dict[str, Any]:
    """What the model is, what it learned from and what it is not for."""
    return {
        "purpose": "proposes offers, channel mixes and timing for a segment, a goal and a budget per member",
        "data": {
            "fingerprint": log.fingerprint,
            "trials": len(log),
            "segments": len(log.segments),
            "users": int(log.users.sum()),
            "columns": list(COLUMNS),
            "features": list(log.names),
            "goals": [goal.value for goal in log.outcomes],
        },
        "method": {
            "generator": "conditional variational autoencoder",
            "outcomes": "Bayesian ridge regression on products of features",
            "settings": asdict(settings),
        },
        "figures": dict(figures),
        "limits": [
            "knows what was tried: no offer is deeper and no period longer than in the log",
            "trials that were not assigned at random teach it who got them, not what they did",
            "what is expected of the best proposal is too high on average, since it was chosen for it",
        ],
    }
