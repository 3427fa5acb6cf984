"""Every log of the grid, estimated by our side and by OBP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from benchmarks.opeval import rules
from benchmarks.opeval.models import fit
from benchmarks.opeval.peer import Obp
from benchmarks.opeval.problem import Floats, Problem, Sample, sample
from qiance.evaluate.ope import BanditLog, Estimate, estimate

BETAS = (-3.0, 0.0, 3.0)
FORMS = ("right", "wrong")


@dataclass(frozen=True)
class Size:
    """Of the grid.

    rows: of a log. seeds: per cell. compared: how many of them OBP estimates too; parity: how many of those
    compare each fixed estimator with ours, but for mrdr, which the two fit in different ways.
    """

    rows: int
    actions: tuple[int, ...]
    seeds: int
    compared: int
    parity: int = 3


@dataclass(frozen=True)
class Outcome:
    """One log under one reward model.

    cell: actions, β, form. ours: the estimate by "auto". fixed: OBP's estimators; rules: other ways to
    choose.
    interval: OBP's bootstrap of DR. parity: largest difference between our fixed estimators and OBP's, mrdr
    left out.
    """

    cell: tuple[int, float, str]
    truth: float
    ours: Estimate
    rules: dict[str, float]
    fixed: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    parity: float | None = None

    def error(self, value: float) -> float:
        """Relative error."""
        return abs(value - self.truth) / abs(self.truth)


def outcomes(size: Size, seed: int, peer: Obp | None) -> Iterator[Outcome]:
    """All logs; a problem (actions, seed) is shared by the three overlaps, a log by the two reward models."""
    for number, actions in product(range(size.seeds), size.actions):
        problem = Problem.draw(actions, seed + number)
        truth = problem.truth()
        for beta in BETAS:
            log = sample(problem, beta, size.rows, seed + number)
            compared = peer is not None and number < size.compared
            forms = (*FORMS, "mrdr") if compared else FORMS
            models = {form: fit(log, form, seed + number) for form in forms}
            if peer and compared:
                peer.ask(log, models)
            found = [_ours(log, models[form], (actions, beta, form), truth) for form in FORMS]
            if not (peer and compared):
                yield from found
                continue
            theirs = peer.answer()
            for one in found:
                exact = number < size.parity
                yield _joined(one, theirs, log, models[one.cell[2]] if exact else None)


def _bandit(log: Sample) -> BanditLog:
    return BanditLog(log.action, log.reward, log.propensity)


def _ours(log: Sample, model: Floats, cell: tuple[int, float, str], truth: float) -> Outcome:
    """No context is handed over: the log, the policy and the reward model are what everyone has."""
    found = estimate(_bandit(log), log.policy, model)
    return Outcome(cell, truth, found, rules.others(_bandit(log), log.policy, model))


def _joined(one: Outcome, theirs: dict[str, Any], log: Sample, model: Floats | None) -> Outcome:
    answer = theirs[one.cell[2]]
    fixed = {**answer["values"], "mrdr": theirs["mrdr"]}
    parity = None if model is None else _parity(log, model, answer["values"])
    low, high = answer["interval"]
    return Outcome(one.cell, one.truth, one.ours, one.rules, fixed, (low, high), parity)


def _parity(log: Sample, model: Floats, values: dict[str, float]) -> float:
    """Largest difference between OBP's fixed estimators `values` and ours on the same model."""
    gaps = []
    for key, value in values.items():
        name, _, rest = key.partition("(")
        parameter = float(rest.rstrip(")")) if rest else None
        ours = estimate(_bandit(log), log.policy, model, name, interval="normal", parameter=parameter)
        gaps.append(abs(ours.value - value))
    return float(np.max(gaps))


def unsupported(size: Size, seed: int) -> dict[str, float]:
    """Share of logs flagged: where a fifth of the actions is never taken, and where all are."""
    flagged: dict[str, list[bool]] = {"hidden": [], "supported": []}
    for number, actions, beta in product(range(max(2, size.seeds // 5)), size.actions, BETAS):
        problem = Problem.draw(actions, seed + number)
        for kind, hidden in (("hidden", 0.2), ("supported", 0.0)):
            log = sample(problem, beta, size.rows, seed + number, hidden)
            health = estimate(_bandit(log), log.policy, estimator="snipw").diagnostics
            flagged[kind].append(any("never logged" in text for text in health.warnings))
    return {
        "flagged": float(np.mean(flagged["hidden"])),
        "false_alarms": float(np.mean(flagged["supported"])),
        "logs": float(len(flagged["hidden"])),
    }
