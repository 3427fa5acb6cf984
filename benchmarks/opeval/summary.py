"""From the outcomes of the grid to the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.opeval.grid import FORMS, Outcome
from qiance.evaluate.ope import Estimate

# Coverage is promised where the log holds at least so many effective decisions.
LEAST_EFFECTIVE = 100.0


def figures_of(found: Sequence[Outcome]) -> dict[str, Any]:
    """Ours pooled over the grid, against the best fixed estimator of OBP, and by cell."""
    errors = _errors(found, lambda one: one.ours.value)
    cells = _cells(found)
    compared = [one for one in found if one.fixed]
    judged = [cell for cell in cells.values() if cell["effective_sample_size"] >= LEAST_EFFECTIVE]
    figures: dict[str, Any] = {
        "median_rel_error": float(np.median(errors)),
        "p95_rel_error": float(np.quantile(errors, 0.95)),
        "coverage95": _share(found, lambda one: _holds(one.ours, one.truth)),
        "coverage95_min_cell": min((cell["coverage95"] for cell in judged), default=None),
        "judged_cells": len(judged),
        "median_width": float(np.median([one.ours.high - one.ours.low for one in found])),
        "rules": _rules(found),
        **_against(compared),
        "cells": cells,
    }
    return figures


def peer_of(found: Sequence[Outcome]) -> dict[str, Any]:
    """Every fixed estimator of OBP, pooled and by reward model, on the logs that it was asked about."""
    found = [one for one in found if one.fixed]
    by_name: dict[str, Any] = {}
    for name in found[0].fixed:
        by_name[name] = {"all": _spread(found, name)}
        by_name[name] |= {form: _spread([o for o in found if o.cell[2] == form], name) for form in FORMS}
    intervals = [(one.truth, *one.interval) for one in found if one.interval]
    return {
        "estimators": by_name,
        "dr_bootstrap_coverage95": float(np.mean([low <= truth <= high for truth, low, high in intervals])),
        "dr_bootstrap_median_width": float(np.median([high - low for _, low, high in intervals])),
    }


def _against(found: Sequence[Outcome]) -> dict[str, Any]:
    """Ratios to the best fixed estimator, chosen with hindsight over the compared logs; None without OBP."""
    keys = (
        "vs_obp",
        "vs_obp_p95",
        "win_rate",
        "best_fixed",
        "best_fixed_p95",
        "parity_max_abs",
        "width_ratio",
    )
    if not found:
        return dict.fromkeys(keys)
    errors = _errors(found, lambda one: one.ours.value)
    fixed = {name: _errors(found, lambda one, name=name: one.fixed[name]) for name in found[0].fixed}  # type: ignore[misc]
    median = {name: float(np.median(values)) for name, values in fixed.items()}
    tail = {name: float(np.quantile(values, 0.95)) for name, values in fixed.items()}
    best, best_tail = min(median, key=median.__getitem__), min(tail, key=tail.__getitem__)
    widths = [
        (one.ours.high - one.ours.low) / (one.interval[1] - one.interval[0]) for one in found if one.interval
    ]
    return {
        "vs_obp": median[best] / float(np.median(errors)),
        "vs_obp_p95": tail[best_tail] / float(np.quantile(errors, 0.95)),
        "win_rate": float(np.mean(errors <= fixed[best])),
        "best_fixed": best,
        "best_fixed_p95": best_tail,
        "parity_max_abs": max(one.parity for one in found if one.parity is not None),
        "width_ratio": float(np.median(widths)),
    }


def _rules(found: Sequence[Outcome]) -> dict[str, Any]:
    """Ways to choose by the log, ours among them: errors pooled and by reward model."""
    names: dict[str, Callable[[Outcome], float]] = {"auto": lambda one: one.ours.value}
    names |= {rule: lambda one, rule=rule: one.rules[rule] for rule in found[0].rules}  # type: ignore[misc]
    by_rule = {}
    for name, value in names.items():
        by_rule[name] = {"all": _tails(_errors(found, value))}
        for form in FORMS:
            by_rule[name][form] = _tails(_errors([one for one in found if one.cell[2] == form], value))
    return by_rule


def _cells(found: Sequence[Outcome]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for cell in sorted({one.cell for one in found}):
        here = [one for one in found if one.cell == cell]
        errors = _errors(here, lambda one: one.ours.value)
        shares = [dict(one.ours.shares)["dm"] for one in here]
        cells[f"{cell[0]} actions, beta {cell[1]:g}, {cell[2]}"] = {
            **_tails(errors),
            "coverage95": _share(here, lambda one: _holds(one.ours, one.truth)),
            "median_width": float(np.median([one.ours.high - one.ours.low for one in here])),
            "effective_sample_size": float(
                np.median([one.ours.diagnostics.effective_sample_size for one in here])
            ),
            "share_of_model": float(np.median(shares)),
        }
    return cells


def _spread(found: Sequence[Outcome], name: str) -> dict[str, float]:
    return _tails(_errors(found, lambda one: one.fixed[name]))


def _tails(errors: np.ndarray) -> dict[str, float]:
    return {
        "median_rel_error": float(np.median(errors)),
        "p95_rel_error": float(np.quantile(errors, 0.95)),
    }


def _errors(found: Sequence[Outcome], value: Callable[[Outcome], float]) -> np.ndarray:
    return np.array([one.error(value(one)) for one in found])


def _holds(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def _share(found: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return float(np.mean([holds(one) for one in found]))
