"""Early stopping: asynchronous successive halving, each model among its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from training.tune.experiment import Halving
from training.tune.record import Point
from training.tune.trial import REACH, VALUE, tell_tune


class HalvingByModel(FIFOScheduler):
    """ASHA per model: an epoch of a network and a block of trees are no match for each other.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020).
    """

    def __init__(self, halving: Mapping[str, Halving], mode: str) -> None:
        super().__init__()
        self._mode = mode
        self._by_model = {
            model: ASHAScheduler(
                time_attr=REACH,
                metric=VALUE,
                mode=mode,
                max_t=one.steps,
                grace_period=min(one.grace, one.steps),
                reduction_factor=one.factor,
                stop_last_trials=False,  # a trial knows its own end
            )
            for model, one in halving.items()
        }
        self._before: dict[tuple[str, int], Sequence[Point]] = {}

    def remember(
        self,
        over: Mapping[tuple[str, int], Sequence[Point]],
        open_: Mapping[tuple[str, int], Sequence[Point]],
    ) -> None:
        """Fill the rungs with trials of an earlier process, by (model, number).

        over: those that have ended. open_: those that go on, past rungs that they have been judged at.
        """
        for (model, number), curve in over.items():
            stand_in = SimpleNamespace(trial_id=f"{model}/{number}")
            self._by_model[model].on_trial_add(None, stand_in)
            self._replay(model, stand_in, curve)
        self._before = dict(open_)

    def _replay(self, model: str, trial: Any, curve: Sequence[Point]) -> None:
        for point in curve:
            self._by_model[model].on_trial_result(None, trial, tell_tune(point, self._mode))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins, or goes on where it was."""
        model, number = trial.config["model"], trial.config["number"]
        self._by_model[model].on_trial_add(tune_controller, trial)
        self._replay(model, trial, self._before.pop((model, number), ()))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or go on."""
        scheduler = self._by_model[trial.config["model"]]
        decision: str = scheduler.on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial ended by itself."""
        self._by_model[trial.config["model"]].on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial was taken away."""
        self._by_model[trial.config["model"]].on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """For Tune's log."""
        return "; ".join(f"{model}: {one.debug_string()}" for model, one in self._by_model.items())
