"""From a purchase log to a folder with a judged customer model and a forecast per customer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from qiance.artifacts import Artifact, write_artifact
from qiance.artifacts.customers import INFO, KIND, PROCESS, CustomerInfo, trees_file, write_process
from qiance.artifacts.json_file import write_json
from qiance.customers.features import NAMES
from qiance.customers.forecast import Forecast
from qiance.customers.history import history_of
from qiance.customers.table import write_forecast
from qiance.data.errors import DataError
from qiance.data.purchases import PurchaseLog
from qiance.features.schema import FeatureSchema
from training.customers.fit import Fitted, Tell, conformal_level, fit_customers
from training.customers.judge import Said, intervals, past_rate, score
from training.customers.outcome import Outcome, outcome_of
from training.customers.settings import CustomerSettings, Period

METRICS, CUSTOMERS, HOLDOUT = "metrics.json", "customers.csv", "holdout.csv"
MIN_HORIZON = 7
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCHEMA = FeatureSchema("customers_v1", NAMES, ())


@dataclass(frozen=True)
class Judged:
    """A model fitted at the cutoff of `period`, what it said, what came, and how good that was."""

    period: Period
    fitted: Fitted
    forecast: Forecast
    outcome: Outcome
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class TrainedCustomers:
    """The artifact, how it was judged, the forecast from the end of the log, and what metrics.json holds."""

    artifact: Artifact
    judged: Judged
    forecast: Forecast
    metrics: Mapping[str, Any]


def train_customers(
    log: PurchaseLog,
    out: Path,
    *,
    horizon: int = 90,
    cutoff: int | None = None,
    settings: CustomerSettings | None = None,
    tell: Tell | None = None,
) -> TrainedCustomers:
    """Judge a model of what came before `cutoff` on the `horizon` days from it; fit one on the whole log.

    cutoff: day since 1970; None: `horizon` days before the log ends. DataError for a log that is too short.
    """
    chosen, told = settings or CustomerSettings(), tell or (lambda _share, _text: None)
    started = time.monotonic()
    period = holdout_period(log, horizon, cutoff)
    judged = judge(log, period, chosen, lambda share, text: told(0.5 * share, f"judging: {text}"))
    end = log.end_day
    fitted = fit_customers(log, end, horizon, chosen, lambda share, text: told(0.5 + 0.45 * share, text))
    fitted = _widened(fitted, judged, log)
    told(0.95, "writing")
    out.mkdir(parents=True, exist_ok=True)
    artifact = write_customers(log, end, fitted, judged.metrics, out)
    forecast = fitted.scorer.predict(log, end)
    write_forecast(out / CUSTOMERS, forecast, log.currency)
    write_forecast(out / HOLDOUT, judged.forecast, log.currency, asdict(judged.outcome))
    metrics = _report(log, judged, fitted, artifact, chosen, time.monotonic() - started)
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"customer model {artifact.version} written")
    return TrainedCustomers(artifact, judged, forecast, metrics)


def holdout_period(log: PurchaseLog, horizon: int, cutoff: int | None) -> Period:
    """The period that judges; DataError where the log does not reach to its end or has nothing before it."""
    if horizon < MIN_HORIZON:
        raise ValueError(f"horizon: {horizon} days is below {MIN_HORIZON}; choose a longer one")
    if not len(log):
        raise DataError(log.source, "has no purchase", "map rows of purchases")
    chosen = log.end_day - horizon if cutoff is None else cutoff
    if chosen + horizon > log.end_day:
        left = log.end_day - chosen
        problem = (
            f"ends {max(left, 0)} days after the cutoff {day_text(chosen)}; the horizon is {horizon} days"
        )
        raise DataError(log.source, problem, "choose an earlier --cutoff or a shorter --horizon")
    if chosen <= log.first_day:
        problem = f"covers {log.end_day - log.first_day} days, none of them before {day_text(chosen)}"
        raise DataError(log.source, problem, "choose a later --cutoff or a shorter --horizon")
    return Period(chosen, horizon)


def judge(log: PurchaseLog, period: Period, settings: CustomerSettings, tell: Tell) -> Judged:
    """Fit at the cutoff and compare with what came; beside it the process without trees and the past rate."""
    fitted = fit_customers(log, period.cutoff, period.horizon, settings, tell)
    forecast = fitted.scorer.predict(log, period.cutoff)
    outcome = outcome_of(log, forecast.user_ids, period)
    metrics = score(Said.of(forecast), outcome) | intervals(forecast, outcome)
    process = replace(fitted.scorer, trees={}).predict(log, period.cutoff)
    history = history_of(log, period.cutoff, fitted.scorer.span)
    baselines = {
        "buying process alone": score(Said.of(process), outcome),
        "past rate": score(past_rate(history, period.horizon), outcome),
    }
    return Judged(period, fitted, forecast, outcome, metrics, baselines)


def _widened(fitted: Fitted, judged: Judged, log: PurchaseLog) -> Fitted:
    """With the level that the judged period, as long as the horizon, asked for."""
    draws = judged.fitted.scorer.draws(log, judged.period.cutoff)
    level = max(fitted.scorer.forecaster.level, conformal_level(draws, judged.outcome.value))
    forecaster = replace(fitted.scorer.forecaster, level=level)
    return replace(fitted, scorer=replace(fitted.scorer, forecaster=forecaster))


def write_customers(
    log: PurchaseLog, cutoff: int, fitted: Fitted, metrics: Mapping[str, float], out: Path
) -> Artifact:
    """The artifact of kind `customer-model`."""
    scorer = fitted.scorer
    info = CustomerInfo(
        horizon=scorer.forecaster.horizon,
        span=scorer.span,
        cutoff=cutoff,
        level=scorer.forecaster.level,
        members={task: len(boosters) for task, boosters in scorer.trees.items()},
        currency=log.currency,
        spend=scorer.forecaster.spend.to_dict(),
    )
    files: dict[str, Callable[[Path], None]] = {
        PROCESS: partial(write_process, scorer.forecaster.process),
        INFO: lambda path: _write_text(json.dumps(info.to_dict()), path),
    }
    for task, boosters in scorer.trees.items():
        for member, booster in enumerate(boosters):
            files[trees_file(task, member)] = partial(_write_text, booster.model_to_string())
    return write_artifact(
        out,
        KIND,
        files,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        feature_service=SCHEMA.service,
        schema_hash=SCHEMA.hash,
        data_fingerprint=log.fingerprint,
    )


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _report(
    log: PurchaseLog,
    judged: Judged,
    fitted: Fitted,
    artifact: Artifact,
    settings: CustomerSettings,
    seconds: float,
) -> dict[str, Any]:
    period = judged.period
    return {
        **judged.metrics,
        "horizon_days": period.horizon,
        "holdout": {
            "from": day_text(period.cutoff),
            "until": day_text(period.cutoff + period.horizon),
            "customers": len(judged.forecast),
            "learned_from": _periods(judged.fitted),
        },
        "baselines": {name: dict(figures) for name, figures in judged.baselines.items()},
        "customers": len(log.user_ids),
        "purchases": len(log),
        "currency": log.currency,
        "value_unit": f"minor units of {log.currency}",
        "log": {"from": day_text(log.first_day), "until": day_text(log.end_day)},
        "learned_from": _periods(fitted),
        "value_interval_level": fitted.scorer.forecaster.level,
        "trees": {task: list(rounds) for task, rounds in fitted.rounds.items()},
        "model": artifact.path.name,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
    }


def _periods(fitted: Fitted) -> list[dict[str, Any]]:
    return [{"cutoff": day_text(one.cutoff), "horizon_days": one.horizon} for one in fitted.periods]


def day_text(day: int) -> str:
    """A day since 1970 as YYYY-MM-DD."""
    return f"{_EPOCH + timedelta(days=day):%Y-%m-%d}"
