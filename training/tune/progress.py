"""Progress of a sweep while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback

from training.tune.experiment import Experiment, better_of
from training.tune.search import StudySearch, finished
from training.tune.trial import VALUE

Tell = Callable[[float, str], None]


class SweepCallback(Callback):
    """Tells trials done, running and stopped, and the best value; logs trials that are over.

    What `log` raises ends the sweep.
    """

    def __init__(
        self,
        search: StudySearch,
        studies: Mapping[str, Any],
        experiment: Experiment,
        log: Callable[[str, int], None],
        failed: Callable[[str, int, str], None],
        tell: Tell,
    ) -> None:
        self._search, self._experiment = search, experiment
        self._log, self._failed, self._tell = log, failed, tell
        self._over = sum(len(finished(study)) for study in studies.values())
        self._stopped, self._running = 0, set[str]()
        values = [trial.value for study in studies.values() for trial in finished(study)]
        self._best: float | None = None
        for value in values:
            self._best = better_of(experiment.mode, value, self._best)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes a pickle of itself when it begins, which nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A slot took it up."""
        self._running.add(trial.trial_id)
        self._say()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A step further."""
        value = result.get(VALUE)
        if value is not None and abs(value) != float("inf"):
            self._best = better_of(self._experiment.mode, value, self._best)
        self._say()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It is over: by itself, or stopped early."""
        self._stopped += not trial.last_result.get("done", False)
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed for good."""
        self._failed(*self._search.given[trial.trial_id], str(trial.get_error()))
        self._end(trial)

    def _end(self, trial: Any) -> None:
        self._running.discard(trial.trial_id)
        self._over += 1
        self._log(*self._search.given[trial.trial_id])
        self._say()

    def _say(self) -> None:
        total, best = self._experiment.trials, self._best
        text = f"{self._over} of {total} trials done, {len(self._running)} running, {self._stopped} stopped"
        if best is not None:
            text += f"; {self._experiment.metric} {best:{self._experiment.spec}}"
        self._tell(min(self._over / total, 1.0), text)
