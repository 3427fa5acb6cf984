"""Churn, next purchase, count and value of customers on a later period, beside the models of `lifetimes`."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.buying.logs import Case, cdnow, journey_or_none, planted
from benchmarks.harness import PeerEnvironment, emit, log, parse, peer_environment
from qiance.customers.history import history_of
from qiance.data.purchases import PurchaseLog
from qiance.evaluate.prediction import auc
from training.customers.fit import fit_customers
from training.customers.judge import Said, concordance, intervals, past_rate, score
from training.customers.outcome import Outcome, outcome_of
from training.customers.settings import CustomerSettings, Period

SCRIPT = Path(__file__).parent / "buying" / "lifetimes_models.py"
REQUIREMENTS = (
    "lifetimes==0.11.3",
    *("numpy==1.26.4", "pandas==2.1.4", "scipy==1.11.4", "autograd==1.6.2", "dill==0.3.8"),
)
MODELS = ("bg_nbd", "mbg_nbd", "pareto_nbd")
PARTS = ("churn", "purchases", "value", "purchases_median", "value_median", "within")
HIGHER = ("churn_auc", "next_purchase_c")
COMPARED = (
    *HIGHER,
    *("churn_log_loss", "churn_brier", "next_purchase_ibs"),
    *("count_mae", "count_mae_median", "count_rmse", "value_mae", "value_mae_median", "value_rmse"),
)
DRAWS = 1_000
_SAMPLED = 400  # draws for figures that take n log n


@dataclass(frozen=True)
class Measured:
    """Our forecasts by seed, theirs by model, and what came."""

    ours: list[Said]
    covers: list[dict[str, float]]
    theirs: dict[str, Said]
    naive: Said
    outcome: Outcome


def measure(case: Case, seeds: Sequence[int], peers: PeerEnvironment) -> Measured:
    """Everybody knows what came before the cutoff, and nothing else."""
    period = Period(case.cutoff, case.horizon)
    known = case.log.before(case.cutoff)
    outcome = outcome_of(case.log, known.user_ids, period)
    ours, covers = [], []
    for seed in seeds:
        fitted = fit_customers(
            known, case.cutoff, case.horizon, CustomerSettings(seed=seed), lambda _share, _text: None
        )
        forecast = fitted.scorer.predict(known, case.cutoff)
        ours.append(Said.of(forecast))
        covers.append(intervals(forecast, outcome))
        log(f"  seed {seed}: churn AUC {auc(outcome.churned, forecast.churn):.4f}")
    history = history_of(known, case.cutoff, case.cutoff - known.first_day)
    theirs = _lifetimes(known, case, peers.python) if peers.python else {}
    return Measured(ours, covers, theirs, past_rate(history, case.horizon), outcome)


def _lifetimes(known: PurchaseLog, case: Case, python: Path) -> dict[str, Said]:
    history = history_of(known, case.cutoff, case.cutoff - known.first_day)
    total, repeats = history.mean_value * history.bought, history.repeats
    with np.errstate(invalid="ignore", divide="ignore"):
        spend = np.where(repeats > 0, (total - history.first_value) / repeats, np.nan)
    with tempfile.TemporaryDirectory(prefix="qiance-lifetimes-") as name:
        source, target = Path(name) / "in.npz", Path(name) / "out.npz"
        np.savez(source, repeats=repeats, last=history.last, age=history.age, spend=spend)
        command = [str(python), str(SCRIPT), str(source), str(case.horizon), str(target)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with np.load(target, allow_pickle=False) as found:
            return {
                model: Said(**{part: np.clip(found[f"{model}_{part}"], 0, None) for part in PARTS})
                for model in MODELS
            }


def _figures(measured: Measured, said: Said) -> dict[str, float]:
    bounded = replace(said, churn=np.clip(said.churn, 0, 1))
    return score(bounded, measured.outcome)


Statistic = Callable[[np.ndarray], float]


def _statistics(said: Said, outcome: Outcome) -> dict[str, Statistic]:
    """Each compared figure as a function of the rows that a bootstrap drew."""
    chance, churned = np.clip(said.churn, 1e-15, 1 - 1e-15), outcome.churned
    found: dict[str, Statistic] = {"churn_auc": lambda rows: auc(churned[rows], chance[rows])}
    losses = {
        "churn_log_loss": -np.log(np.where(churned > 0, chance, 1 - chance)),
        "churn_brier": (churned - chance) ** 2,
        "count_mae": np.abs(said.purchases - outcome.count),
    }
    if said.purchases_median is not None:
        losses["count_mae_median"] = np.abs(said.purchases_median - outcome.count)
    if said.value is not None:
        losses["value_mae"] = np.abs(said.value - outcome.value)
    if said.value_median is not None:
        losses["value_mae_median"] = np.abs(said.value_median - outcome.value)
    if said.within is not None:
        days = said.within.shape[1]
        came = outcome.next_day[:, None] <= np.arange(1, days + 1)
        losses["next_purchase_ibs"] = np.mean((came - said.within) ** 2, axis=1)
        late, time = (1 - said.within).sum(axis=1), np.minimum(outcome.next_day, days + 1)
        found["next_purchase_c"] = lambda rows: concordance(time[rows], late[rows])
    found |= {name: partial(_mean, loss) for name, loss in losses.items()}
    squares = {"count_rmse": (said.purchases - outcome.count) ** 2}
    if said.value is not None:
        squares["value_rmse"] = (said.value - outcome.value) ** 2
    return found | {name: partial(_root_mean, square) for name, square in squares.items()}


def _mean(loss: np.ndarray, rows: np.ndarray) -> float:
    return float(loss[rows].mean())


def _root_mean(square: np.ndarray, rows: np.ndarray) -> float:
    return math.sqrt(_mean(square, rows))


def compare(measured: Measured, seed: int) -> dict[str, Any]:
    """Per figure: the best model of lifetimes, and our gain over it with a 95 % interval of paired draws.

    Ours is the mean over the seeds of the figure; a gain above 0 is ours being better.
    """
    if not measured.theirs:
        return {}
    mine = [_statistics(said, measured.outcome) for said in measured.ours]
    theirs = {name: _statistics(said, measured.outcome) for name, said in measured.theirs.items()}
    everybody = np.arange(len(measured.outcome.count))
    result: dict[str, Any] = {}
    for figure in COMPARED:
        sign = 1.0 if figure in HIGHER else -1.0
        alone = {name: own[figure](everybody) for name, own in theirs.items()}
        best = max(alone, key=lambda name: sign * alone[name])
        ours = float(np.mean([own[figure](everybody) for own in mine]))
        random = np.random.default_rng(seed)
        gains = []
        for _ in range(_SAMPLED if figure in HIGHER else DRAWS):
            rows = random.integers(0, len(everybody), len(everybody))
            own = np.mean([one[figure](rows) for one in mine])
            gains.append(sign * (own - theirs[best][figure](rows)))
        low, high = np.quantile(gains, [0.025, 0.975])
        ratio = ours / alone[best] if figure in HIGHER else alone[best] / ours
        result[f"vs_lifetimes_{figure}"] = ratio
        gain = sign * (ours - alone[best])
        result[f"gain_{figure}"] = {"best": best, "gain": gain, "low": low, "high": high}
    return result


def _summary(measured: Measured) -> dict[str, float]:
    """Means over the seeds."""
    found = [_figures(measured, said) | own for said, own in zip(measured.ours, measured.covers, strict=True)]
    figures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    spread = {
        f"{name}_seed_sd": float(np.std([one[name] for one in found]))
        for name in ("churn_auc", "churn_log_loss")
    }
    return figures | spread


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on CDNOW and on The Complete Journey, and print the figures."""
    args = parse(argv, "Churn, next purchase and value of customers, beside the models of lifetimes.")
    seeds = [args.seed + n for n in range(args.pick(smoke=1, quick=1, full=3))]
    most = args.pick(smoke=600, quick=3_000, full=None)
    missing: dict[str, str] = {}
    if str(args.mode) == "smoke":
        peers, cases = PeerEnvironment(None, "not installed by --smoke"), [planted(600, args.seed)]
    else:
        peers = peer_environment("customers", REQUIREMENTS)
        cases = _cases(peers, missing)
    figures: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for case in (one.some(most, args.seed) for one in cases):
        log(f"{case.name}: {case.note}")
        measured = measure(case, seeds, peers)
        figures[case.name] = _summary(measured) | compare(measured, args.seed)
        for name, said in {**measured.theirs, "past_rate": measured.naive}.items():
            beside[f"{name}.{case.name}"] = _figures(measured, said)
    if not peers.python:
        missing["lifetimes"], beside["lifetimes"] = peers.reason, None
    top = next(iter(figures))
    first: Mapping[str, Any] = {k: v for k, v in figures[top].items() if not isinstance(v, dict)}
    protocol = {
        "seeds": len(seeds),
        "logs": {case.name: case.note for case in cases},
        "top_level": f"figures of {top}",
        "value_unit": "cents",
        "lifetimes": "0.11.3, time in weeks, no penalty; value by Gamma-Gamma; medians by simulation",
        "interval": f"95 % by {DRAWS:,} paired bootstrap draws of customers ({_SAMPLED} for AUC and C)",
        "missing": missing,
    }
    emit("customers", args, {**first, **figures}, beside, protocol)


def _cases(peers: PeerEnvironment, missing: dict[str, str]) -> list[Case]:
    cases = []
    if peers.python:
        found = sorted(peers.python.parent.parent.glob("lib/python3*/site-packages/lifetimes/datasets"))
        cases.append(cdnow(found[0]))
    else:
        missing["cdnow"] = "its file comes with the package lifetimes"
    case, reason = journey_or_none()
    if case is None:
        missing["journey"] = reason
    else:
        cases.append(case)
    if not cases:
        raise SystemExit(f"no purchase log is to be had: {missing}")
    return cases


if __name__ == "__main__":
    main()
