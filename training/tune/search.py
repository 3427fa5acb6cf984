"""Which configuration is tried next: Optuna's studies in a database, asked and told by Ray Tune.

Ray's own `OptunaSearch` keeps the trials in flight in memory and in a pickle that is written every few
seconds, next to a JSON file that is not replaced at once; what a kill leaves of them may be half written, and
trials that began and ended since are lost. Here every draw and every result is a transaction of the study in
SQLite, and a trial that was in flight is handed out again under its number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from training.tune.gaussian import SeededGaussian
from training.tune.space import Space
from training.tune.trial import VALUE

STUDY = "study.db"
Key = tuple[str, int]  # model, number


def open_studies(
    folder: Path, space: Space, mode: str, seed: int, trials: int
) -> dict[str, optuna.study.Study]:
    """One study per model, in the database of the sweep; made where there is none.

    The first trials of each are the default configurations, if the space holds them.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STUDY).resolve()}")
    startup = max(4, min(10, trials // (4 * len(space.models))))
    direction = "minimize" if mode == "min" else "maximize"
    studies = {}
    for place, model in enumerate(space.models):
        sampler = SeededGaussian(seed * 2 + place, startup)
        study = optuna.create_study(
            storage=storage, study_name=model, sampler=sampler, direction=direction, load_if_exists=True
        )
        if not study.trials:
            for drawn in space.defaults(model):
                study.enqueue_trial(drawn)
        studies[model] = study
    return studies


class StudySearch(Searcher):
    """Hands out trials: first those in flight when the sweep was stopped, then new ones by turns.

    trials: most of them in all. shares: by model, its part of them. A configuration is `{model, number,
    parameters}`.
    """

    def __init__(
        self,
        studies: Mapping[str, optuna.study.Study],
        space: Space,
        mode: str,
        trials: int,
        shares: Mapping[str, int],
    ) -> None:
        super().__init__(metric=VALUE, mode=mode)
        self._studies, self._space, self._trials, self._shares = studies, space, trials, shares
        self._unfinished = [
            (model, trial.number)
            for model, study in studies.items()
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]
        self.given: dict[str, Key] = {}  # by Tune's id of the trial

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of Tune's trial `trial_id`."""
        if self._unfinished:
            model, number = self._unfinished.pop(0)
            drawn = whole_draw(self._studies[model], number, self._space.distributions(model))
        else:
            counts = {model: len(asked(study)) for model, study in self._studies.items()}
            if sum(counts.values()) >= self._trials:
                return Searcher.FINISHED
            model = min(counts, key=lambda name: counts[name] / self._shares[name])
            trial = self._studies[model].ask(fixed_distributions=self._space.distributions(model))
            number, drawn = trial.number, trial.params
        self.given[trial_id] = (model, number)
        return {"model": model, "number": number, "parameters": self._space.decode(model, drawn)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study; a trial without a finite value has failed."""
        model, number = self.given[trial_id]
        value = None if error or not result else result.get(VALUE)
        if value is None or value in (float("inf"), float("-inf")):
            self._studies[model].tell(number, state=TrialState.FAIL)
        else:
            self._studies[model].tell(number, float(value))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes a pickle of itself when it begins, which nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the database holds the state at all times."""
        Path(checkpoint_path).write_text("the studies are the state\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def whole_draw(
    study: optuna.study.Study, number: int, distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Parameters of a trial; what a kill left undrawn is drawn now."""
    stored = study.get_trials(deepcopy=False)[number]
    if stored.params.keys() >= distributions.keys():
        return stored.params
    trial = optuna.trial.Trial(study, stored._trial_id)
    # As `Study.ask` draws; what is there already is given back.
    return {name: trial._suggest(name, one) for name, one in distributions.items()}


def asked(study: optuna.study.Study) -> list[FrozenTrial]:
    """Trials that were handed out, whatever became of them."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def finished(study: optuna.study.Study) -> list[FrozenTrial]:
    """Trials that are over."""
    return [trial for trial in asked(study) if trial.state.is_finished()]
