"""A sweep in MLflow: one run per trial, with its curve, below one run of the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.registry import experiment_of, log_run, tracking_client
from training.tune.outcome import Outcome
from training.tune.record import Point

EXPERIMENT = "qiance-tune"
_SWEEP, _TRIAL, _PARENT = "qiance.sweep", "qiance.trial", "mlflow.parentRunId"


def _scores(point: Point) -> dict[str, float | None]:
    return {"value": point.value, "best": point.best, **point.scores}


class SweepRun:
    """The run of a sweep; what a kill kept from being logged is logged when the sweep goes on."""

    def __init__(self, tracking_uri: str, sweep: str, name: str, params: Mapping[str, Any]) -> None:
        self._client, self._sweep = tracking_client(tracking_uri), sweep
        self._experiment = experiment_of(self._client, tracking_uri, EXPERIMENT)
        found = [run for run in self._runs() if _TRIAL not in run.data.tags]
        self.id = found[0].info.run_id if found else self._begin(name, {})
        if not found:
            log_run(self._client, self.id, {}, params, ())
        self._logged = self._sound()

    def _runs(self) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{_SWEEP}` = '{self._sweep}'", page_token=token
            )
            found += list(page)
            token = page.token
            if not token:
                return found

    def _begin(self, name: str, tags: Mapping[str, str]) -> str:
        tags = {_SWEEP: self._sweep, **tags}
        return str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _sound(self) -> set[str]:
        """Trials that are logged in full; what a kill left half is deleted."""
        names = set()
        for run in self._runs():
            trial = run.data.tags.get(_TRIAL)
            if trial is None:
                continue
            if run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
            else:
                names.add(trial)
        return names

    def log(self, outcome: Outcome) -> None:
        """The run of a trial that is over; once."""
        if outcome.name in self._logged:
            return
        run = self._begin(outcome.name, {_TRIAL: outcome.name, _PARENT: self.id, "state": outcome.state})
        metrics = {"seconds": outcome.seconds, "steps": float(outcome.steps)}
        if outcome.value is not None:
            metrics["value"] = outcome.value
        curve = [
            {"epoch": point.step}
            | {name: score for name, score in _scores(point).items() if score is not None}
            for point in outcome.curve
        ]
        log_run(self._client, run, metrics, {"model": outcome.model, **outcome.parameters}, curve)
        self._client.set_terminated(run, "FAILED" if outcome.state == "failed" else "FINISHED")
        self._logged.add(outcome.name)

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path] = ()) -> None:
        """What came of the sweep. files: kept with its run; one of the same name is replaced."""
        log_run(self._client, self.id, metrics, {}, ())
        for path in files:
            self._client.log_artifact(self.id, str(path))
        self._client.set_terminated(self.id)
