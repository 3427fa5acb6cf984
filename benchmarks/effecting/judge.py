"""Figures from the runs: scores by model, and the paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.effecting.runs import Run
from qiance.evaluate.prediction import EPSILON, auc, ece, ece_floor, normalised_entropy, rmse

Floats = NDArray[np.float64]
PEERS = ("mean", "linear", "logistic", "mlp_article", "lightgbm", "deep")
DRAWS = 1_000
OURS = "qiance"


@dataclass(frozen=True, slots=True)
class Difference:
    """NE of ours less that of a peer, below 0 where ours is better, with the 95 % interval over users."""

    value: float
    low: float
    high: float
    drawn: Floats


def rate_figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over the seeds of ours on one set of yes-or-no outcomes."""
    said = [run.said[OURS] for run in runs]
    eces = [ece(run.target, p) for run, p in zip(runs, said, strict=True)]
    floors = [ece_floor(p) for p in said]
    return {
        **_scores(runs, OURS),
        "ece": float(np.mean(eces)),
        "ece_floor": float(np.mean(floors)),
        "ece_below_floor": float(np.mean(np.array(eces) <= np.array(floors))),
        "coverage90_group": float(np.mean(_joined([run.covered for run in runs]))),
        "width90_group": float(np.mean(_joined([run.widths for run in runs]))),
        "groups": sum(len(run.covered) for run in runs),
        "fit_s": float(np.median([run.seconds[OURS] for run in runs])),
    }


def value_figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over the seeds on a set of values; money in minor units."""
    return {
        **_money(runs, OURS),
        "coverage90_row": float(np.mean(_joined([run.covered for run in runs]))),
        "width90_row": float(np.mean(_joined([run.widths for run in runs]))),
        "purchases": int(np.mean([run.target.size for run in runs])),
        "fit_s": float(np.median([run.seconds[OURS] for run in runs])),
    }


def peer_figures(runs: Sequence[Run], is_value: bool) -> dict[str, dict[str, float]]:
    """The same scores of every peer that was run."""
    scores = _money if is_value else _scores
    return {peer: scores(runs, peer) for peer in PEERS if peer in runs[0].said}


def best_peer(peers: Mapping[str, Mapping[str, float]]) -> str:
    """The peer with the least mean NE."""
    return min(peers, key=lambda name: peers[name]["ne"])


def difference(runs: Sequence[Run], peer: str, seed: int) -> Difference:
    """Users are drawn anew, each with all of its rows in all seeds, for ours and the peer alike."""
    units, place = np.unique(np.concatenate([run.units for run in runs]), return_inverse=True)
    entropy = [_log_losses(run.target, np.full(run.target.size, run.target.mean())) for run in runs]
    gap = [_log_losses(run.target, run.said[OURS]) - _log_losses(run.target, run.said[peer]) for run in runs]
    by_unit = np.stack([np.bincount(place, np.concatenate(part)) for part in (gap, entropy)])
    random = np.random.default_rng(seed)
    drawn = np.array([_ratio(by_unit, random.poisson(1.0, len(units))) for _ in range(DRAWS)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Difference(_ratio(by_unit, np.ones(len(units))), float(low), float(high), drawn)


def pooled(differences: Sequence[Difference]) -> dict[str, float]:
    """Mean over the sets, whose users are drawn independently."""
    drawn = np.mean([one.drawn for one in differences], axis=0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "value": float(np.mean([one.value for one in differences])),
        "low": float(low),
        "high": float(high),
    }


def _ratio(by_unit: NDArray[np.number], weights: NDArray[np.number]) -> float:
    gap, entropy = by_unit @ weights
    return float(gap / entropy)


def _log_losses(target: Floats, p: Floats) -> Floats:
    cut = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(-(target * np.log(cut) + (1 - target) * np.log1p(-cut)))


def _scores(runs: Sequence[Run], model: str) -> dict[str, float]:
    return {
        "auc": float(np.mean([auc(run.target, run.said[model]) for run in runs])),
        "ne": float(np.mean([normalised_entropy(run.target, run.said[model]) for run in runs])),
    }


def _money(runs: Sequence[Run], model: str) -> dict[str, float]:
    said = [(run.target, run.said[model]) for run in runs]
    return {
        "rmse": float(np.mean([rmse(target, p) for target, p in said])),
        "mae": float(np.mean([np.abs(target - p).mean() for target, p in said])),
        "bias": float(np.mean([p.sum() / target.sum() - 1 for target, p in said])),
    }


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for part in parts for one in part]
