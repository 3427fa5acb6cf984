"""Our values of a day, with the true ones beside them, and what shrinking gains where little is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.allocating import learners
from benchmarks.allocating.choosers import PLAN, Priced, Table
from benchmarks.allocating.day import Day, Log, draw_day, draw_log
from benchmarks.allocating.families import DEPTHS, FAMILIES, Response
from benchmarks.allocating.runner import oracle_value, run_day
from benchmarks.allocating.summary import interval
from training.dose import DoseModel, DoseSettings

UNSHRUNKEN = ("plain_mean", "point_estimate")


def table_of(found: np.ndarray, logged: Log) -> Table:
    """Predictions `[plan + day, 5]` as a chooser takes them."""
    plan = min(PLAN, len(logged.x))
    return Table(found[plan:], found[:plan])


def valued(
    model: DoseModel, logged: Log, day: Day, x: np.ndarray, seed: int, settings: DoseSettings
) -> dict[str, Priced]:
    """The same control on our values, on them without shrinking, and on those of one fit."""
    single = learners.ours(logged, seed, replace(settings, members=1, heads=0))
    tables = {
        "qiance": model.predict(x),
        "plain_mean": model.predict(x, shrunken=False),
        "point_estimate": single.predict(x),
    }
    return {name: Priced(table_of(found, logged), logged, day, ahead=True) for name, found in tables.items()}


def informed(model: DoseModel, logged: Log, day: Day, response: Response, x: np.ndarray) -> dict[str, Priced]:
    """Ours without its look-ahead, and with the true responses."""
    plan = min(PLAN, len(logged.x))
    before = np.zeros(plan, dtype=np.bool_)
    truth = Table(day.response, response(logged.x[:plan], DEPTHS, before))
    return {
        "no_look_ahead": Priced(table_of(model.predict(x), logged), logged, day),
        "known_response": Priced(truth, logged, day, ahead=True),
    }


def small_log(rows: int, arrivals: int, seeds: Sequence[int], settings: DoseSettings) -> dict[str, Any]:
    """With `rows` logged: mean shares of the oracle by family, and what ours has more than the others, over
    families and seeds, with 95 % t intervals."""
    found = {
        name: [_shares(response, seed, rows, arrivals, settings) for seed in seeds]
        for name, response in FAMILIES.items()
    }
    every = [shares for of in found.values() for shares in of]
    gains = {}
    for name in UNSHRUNKEN:
        more = [shares["qiance"] - shares[name] for shares in every]
        gains[f"gain_over_{name}"] = {"value": float(np.mean(more)), **interval(more)}
    families = {
        family: {name: float(np.mean([shares[name] for shares in of])) for name in of[0]}
        for family, of in found.items()
    }
    return {"rows": rows, **gains, "families": families}


def _shares(
    response: Response, seed: int, rows: int, arrivals: int, settings: DoseSettings
) -> Mapping[str, float]:
    logged, day = draw_log(response, rows, seed), draw_day(response, arrivals, seed)
    model = learners.ours(logged, seed, settings)
    choosers = valued(model, logged, day, learners.queries(logged, day.x), seed, settings)
    oracle = oracle_value(day)
    return {name: run_day(day, chooser).value / oracle for name, chooser in choosers.items()}
