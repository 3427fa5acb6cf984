"""What came of the trials: read from the studies and from what each trial left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from training.tune.record import Point, Record, trial_name
from training.tune.search import asked, finished
from training.tune.space import Space


@dataclass(frozen=True)
class Outcome:
    """A trial. state: `done` (went on until it got no better), `stopped` (early), `failed`, or `running`.

    value: the best of its steps, by the metric of the sweep; None where there is none.
    """

    model: str
    number: int
    state: str
    value: float | None
    parameters: Mapping[str, Any]
    curve: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Such as `trees-02`."""
        return trial_name(self.model, self.number)

    @property
    def steps(self) -> int:
        """Epochs, blocks of trees, or iterations."""
        return len(self.curve)

    @property
    def seconds(self) -> float:
        """That its steps took."""
        return sum(point.ended - point.started for point in self.curve)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return self.state != "running"


def outcomes(folder: Path, studies: Mapping[str, optuna.study.Study], space: Space) -> list[Outcome]:
    """Of all trials that were handed out, in the order of their numbers, models by turns."""
    found = [
        _outcome(folder, model, trial, space) for model, study in studies.items() for trial in asked(study)
    ]
    return sorted(found, key=lambda one: one.number)


def _outcome(folder: Path, model: str, trial: optuna.trial.FrozenTrial, space: Space) -> Outcome:
    curve = tuple(Record.of(folder, model, trial.number).curve())
    if trial.state == TrialState.RUNNING:
        state, value = "running", curve[-1].best if curve else None
    elif trial.state == TrialState.COMPLETE:
        state, value = "done" if curve and curve[-1].last else "stopped", trial.value
    else:
        state, value = "failed", None
    return Outcome(model, trial.number, state, value, space.decode(model, trial.params), curve)


def best_of(found: Sequence[Outcome], mode: str) -> dict[str, Outcome]:
    """By model, the trial with the best value; models without one are left out."""
    sign = 1 if mode == "min" else -1
    best: dict[str, Outcome] = {}
    for one in found:
        if not one.is_over or one.value is None:
            continue
        if one.model not in best or sign * one.value < sign * (best[one.model].value or 0.0):
            best[one.model] = one
    return best


def importance(studies: Mapping[str, optuna.study.Study]) -> dict[str, dict[str, float]]:
    """By model, the share of the values' variance that each parameter explains; nothing below 4 trials.

    Source: Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance"
    (2014).
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    found = {}
    for model, study in studies.items():
        values = {trial.value for trial in finished(study) if trial.value is not None}
        if len(values) < 4:
            continue
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        found[model] = {name: float(share) for name, share in shares.items()}
    return found


def efficiency(
    curves: Sequence[Sequence[Point]], cores: int, since: float, until: float = float("inf")
) -> dict[str, float] | None:
    """How busy the cores were, from when each had a trial until there were fewer trials than cores.

    Seconds inside steps ÷ (seconds × cores), and the same of processor seconds. since, until: seconds since
    the epoch, of one process. None where too few trials ran.
    """
    steps = [
        [point for point in curve if point.started >= since and point.ended <= until] for curve in curves
    ]
    steps = [curve for curve in steps if curve]
    if len(steps) < cores:
        return None
    first = sorted(curve[0].started for curve in steps)[cores - 1]
    # After a kill there is no end of the queue: all cores were busy until then.
    last = sorted(curve[-1].ended for curve in steps)[-cores]
    inside = busy = 0.0
    for curve in steps:
        for point in curve:
            part = max(0.0, min(point.ended, last) - max(point.started, first))
            inside += part
            busy += point.cpu * part / max(point.ended - point.started, 1e-9)
    window = (last - first) * cores
    if window <= 0:
        return None
    return {"inside_s": inside, "cpu_s": busy, "window_s": window, "share": inside / window}
