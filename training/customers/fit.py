"""Fits a customer model at a cutoff, from nothing but what came before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.customers import TASKS, CustomerScorer, corrected_of
from qiance.customers.features import Start, features_of, start_of
from qiance.customers.forecast import CONFIDENCE, Forecaster
from qiance.customers.history import History, history_of
from qiance.customers.process import BuyingProcess, Posterior
from qiance.customers.spend import SpendModel
from qiance.data.errors import DataError
from qiance.data.purchases import PurchaseLog
from training.customers.outcome import Outcome, outcome_of
from training.customers.process import fit_process
from training.customers.settings import CustomerSettings, Period, TreeSettings, earlier_periods
from training.customers.spend import credible, regress

Floats = NDArray[np.float64]
Tell = Callable[[float, str], None]
MIN_CUSTOMERS = 50
_MIN_EVENTS = 20  # of either outcome, below which no tree is grown


@dataclass(frozen=True)
class Lesson:
    """An earlier period as training rows: what the process said then, and what came."""

    period: Period
    history: History
    process: BuyingProcess
    posterior: Posterior
    start: Start
    spend: SpendModel
    inputs: Floats
    outcome: Outcome


@dataclass(frozen=True)
class Fitted:
    """scorer: the model. periods: what it learned from. rounds: trees of each booster, by task."""

    scorer: CustomerScorer
    periods: tuple[Period, ...]
    rounds: Mapping[str, tuple[int, ...]]


def fit_customers(
    log: PurchaseLog, cutoff: int, horizon: int, settings: CustomerSettings, tell: Tell
) -> Fitted:
    """The model for the `horizon` days from day `cutoff`. Purchases from it on are not looked at.

    DataError for a log that is too short or has too few customers.
    """
    known = log.before(cutoff)
    if len(known.user_ids) < MIN_CUSTOMERS or len(known) == len(known.user_ids):
        problem = f"has {len(known.user_ids)} customers and {len(known)} days of purchase before the cutoff"
        need = f"{MIN_CUSTOMERS} customers and some that bought twice are needed: log more"
        raise DataError(log.source, problem, need)
    periods = earlier_periods(known, cutoff, horizon)
    lessons = []
    for number, period in enumerate(periods):
        tell(0.1 * number, f"what was known {cutoff - period.cutoff} days before")
        lessons.append(_lesson(known, period, settings))
    tell(0.3, "trees")
    trees, unseen = _fit_trees(known, lessons, settings, lambda share, text: tell(0.3 + 0.5 * share, text))
    tell(0.8, "rates of buying and leaving")
    history = history_of(known, cutoff, cutoff - known.first_day)
    spend = _spend(history, lessons)
    level = _level(lessons[0], unseen, spend)
    forecaster = Forecaster(fit_process(history, settings.process), spend, horizon, level)
    rounds = {task: tuple(one.num_trees() for one in boosters) for task, boosters in trees.items()}
    tell(1.0, "fitted")
    return Fitted(CustomerScorer(forecaster, history.span, trees), periods, rounds)


def _lesson(known: PurchaseLog, period: Period, settings: CustomerSettings) -> Lesson:
    history = history_of(known, period.cutoff, period.cutoff - known.first_day)
    process, spend = fit_process(history, settings.process), credible(history)
    posterior = process.posterior(history)
    start, count = start_of(process, posterior, period.horizon)
    inputs = features_of(history, start, count, spend, period.horizon)
    outcome = outcome_of(known, history.user_ids, period)
    return Lesson(period, history, process, posterior, start, spend, inputs, outcome)


def _spend(history: History, lessons: Sequence[Lesson]) -> SpendModel:
    inputs = [lesson.spend.inputs(lesson.history) for lesson in lessons]
    count, value = ([getattr(lesson.outcome, name) for lesson in lessons] for name in ("count", "value"))
    return regress(credible(history), inputs, count, value)


def _fit_trees(
    known: PurchaseLog, lessons: Sequence[Lesson], settings: CustomerSettings, tell: Tell
) -> tuple[dict[str, list[Any]], dict[str, Floats]]:
    """K boosters per task, and the corrections of the first lesson by boosters that had not seen the
    customer."""
    fold_of = np.random.default_rng(settings.seed).permutation(len(known.user_ids)) % settings.members
    fold = np.concatenate([fold_of[np.searchsorted(known.user_ids, one.history.user_ids)] for one in lessons])
    inputs = np.concatenate([one.inputs for one in lessons])
    count = np.concatenate([one.outcome.count for one in lessons])
    trees, unseen = {}, {}
    for number, task in enumerate(TASKS):
        start = np.concatenate([getattr(one.start, task) for one in lessons])
        target = (count == 0).astype(np.float64) if task == "none" else count - 1
        rows = np.ones(len(count), dtype=np.bool_) if task == "none" else count > 0
        trees[task], moved = [], np.zeros(len(count))
        for member in range(settings.members if _enough(target[rows]) else 0):
            tell((number + member / settings.members) / len(TASKS), f"trees {member + 1}: {task}")
            held = fold == member
            booster = _booster(task, inputs, target, start, rows & ~held, rows & held, settings, member)
            moved[held] = booster.predict(inputs[held], raw_score=True)
            trees[task].append(booster)
        unseen[task] = moved[: len(lessons[0].history)]
    return trees, unseen


def _enough(target: Floats) -> bool:
    return min((target == 0).sum(), (target > 0).sum()) >= _MIN_EVENTS


def _booster(
    task: str,
    inputs: Floats,
    target: Floats,
    start: Floats,
    train: NDArray[np.bool_],
    choose: NDArray[np.bool_],
    settings: CustomerSettings,
    member: int,
) -> Any:
    """Log odds of no purchase, or logarithm of the excess, on top of `start`; cut at its best round."""
    import lightgbm

    objective = "binary" if task == "none" else "poisson"
    rows = lightgbm.Dataset(inputs[train], target[train], init_score=start[train])
    held = lightgbm.Dataset(inputs[choose], target[choose], init_score=start[choose], reference=rows)
    params = _params(settings.trees, settings.seed + member) | {"objective": objective}
    stop = lightgbm.early_stopping(settings.trees.patience, verbose=False)
    found = lightgbm.train(params, rows, settings.trees.rounds, valid_sets=[held], callbacks=[stop])
    # Written and read again, it is what will be served: without the rounds after the best.
    return lightgbm.Booster(model_str=found.model_to_string(num_iteration=found.best_iteration))


def _params(settings: TreeSettings, seed: int) -> dict[str, Any]:
    return {
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.min_rows,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "feature_fraction": settings.feature_share,
        "lambda_l2": settings.shrinkage,
        "num_threads": settings.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _level(lesson: Lesson, unseen: Mapping[str, Floats], spend: SpendModel) -> float:
    """The level at which intervals of value held 90 % of the customers of an earlier period, on rows not
    seen.

    Split conformal on the smallest level that holds each customer (Romano, Patterson and Candès, 2019), by
    trees that had not seen the customer. Not below 90 %: who buys nothing is easily covered, and must not pay
    for others.
    """
    own = replace(lesson.spend, weights=spend.weights)
    forecaster = Forecaster(lesson.process, own, lesson.period.horizon)
    none, excess = (getattr(lesson.start, task) + unseen[task] for task in TASKS)
    corrected = corrected_of(none, excess, lesson.period.horizon)
    draws, _ = forecaster.draws(lesson.history, lesson.posterior, corrected)
    return conformal_level(draws, lesson.outcome.value)


def conformal_level(draws: Floats, value: Floats) -> float:
    """The level of central intervals of `draws` `[U, M]` that held 90 % of `value` `[U]`, in [0.9, 1]."""
    below, upto = (draws < value[:, None]).mean(axis=1), (draws <= value[:, None]).mean(axis=1)
    needed = np.sort(np.maximum(1 - 2 * upto, 2 * below - 1))
    rank = int(np.ceil((len(needed) + 1) * CONFIDENCE)) - 1
    return float(np.clip(needed[min(rank, len(needed) - 1)], CONFIDENCE, 1.0))
