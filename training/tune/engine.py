"""Any sweep from its inputs to its results; killed at any moment, it goes on where it was."""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.data.errors import DataError
from training.environment import unless_set
from training.preprocess.streaming import ray_for
from training.tune.experiment import Experiment
from training.tune.outcome import Outcome, best_of, importance, outcomes
from training.tune.record import TRIALS, Record, replace_file

INPUTS, LOCK, TABLE, TRACKING = "inputs.json", ".sweep.lock", "trials.csv", "mlflow.db"
_FAILURES = 2  # restarts of a trial whose process died
# Tune takes these from the environment only. Its loggers would write what the records hold already; its
# handler of Ctrl-C would end the trials first, where a kill is no loss; the new output prints at verbosity 0.
_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class SweepResult:
    """trials: all that were handed out. best: by model. importance: by model and parameter, shares of 1.

    before: trials that an earlier process
    had handed out. default: by model, the trial of the default configuration.
    """

    trials: tuple[Outcome, ...]
    best: Mapping[str, Outcome]
    default: Mapping[str, Outcome]
    importance: Mapping[str, Mapping[str, float]]
    before: int


def run_experiment(
    experiment: Experiment,
    inputs: Mapping[str, Any],
    out: Path,
    *,
    name: str,
    params: Mapping[str, Any],
    finish: Callable[[SweepResult, Tell], Sequence[Path]],
    resume: bool = False,
    tracking_uri: str | None = None,
    tell: Tell | None = None,
) -> SweepResult:
    """Run the trials that are missing, write their table, let `finish` write the rest, and log to MLflow.

    inputs: what must be equal for a sweep to go on. finish: returns what it wrote. name, params: of its
    MLflow run. tracking_uri: of MLflow, by default a SQLite file in `out`. `DataError` where `out` holds a
    sweep over something else; RuntimeError where no trial came to a value.
    """
    from mlflow.exceptions import MlflowException

    from training.tune.search import open_studies
    from training.tune.tracking import SweepRun

    told, space = tell or (lambda _share, _text: None), experiment.space
    with only_one(out):
        sweep_id = open_sweep(inputs, out, resume)
        studies = open_studies(out, space, experiment.mode, experiment.seed, experiment.trials)
        uri = tracking_uri or f"sqlite:///{(out / TRACKING).resolve()}"
        before = len(outcomes(out, studies, space))
        runs = SweepRun(uri, sweep_id, f"{name} {sweep_id[:8]}", params)

        def log(model: str, number: int) -> None:
            found = outcomes(out, {model: studies[model]}, space)
            with suppress(MlflowException):  # a server that is away for a while: made up for at the end
                runs.log(next(one for one in found if one.number == number))

        run_trials(experiment, out, studies, log, lambda share, text: told(0.97 * share, text))
        told(0.97, "writing the results")
        found = tuple(outcomes(out, studies, space))
        best = best_of(found, experiment.mode)
        default = {one.model: one for one in found if one.number == 0 and space.defaults(one.model)}
        result = SweepResult(found, best, default, importance(studies), before)
        over = [one for one in found if one.is_over]
        _require_best(out, result, over)
        write_table(out / TABLE, found)
        files = [*finish(result, told), out / TABLE]
        for one in over:
            runs.log(one)
            Record.of(out, one.model, one.number).forget_state()
        runs.finish({f"best_{model}": one.value or 0.0 for model, one in best.items()}, files)
    told(1.0, f"{len(found)} trials")
    return result


def _require_best(out: Path, result: SweepResult, over: Sequence[Outcome]) -> None:
    if result.best:
        return
    reasons = [Record.of(out, one.model, one.number).error() for one in over]
    why = next((reason for reason in reasons if reason), "training diverged in all")
    raise RuntimeError(
        f"no trial of {len(over)} came to a value ({why}); change the space, use another --out"
    )


def write_table(path: Path, trials: Sequence[Outcome]) -> None:
    """A line per trial (CSV)."""
    names = list(dict.fromkeys(f"{one.model}.{name}" for one in trials for name in one.parameters))
    heads = ["trial", "model", "state", "value", "steps", "seconds", *names]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, heads, restval="")
        writer.writeheader()
        for one in trials:
            row = {f"{one.model}.{name}": value for name, value in one.parameters.items()}
            value = "" if one.value is None else f"{one.value:.6f}"
            figures = {"value": value, "steps": one.steps, "seconds": f"{one.seconds:.2f}"}
            writer.writerow({"trial": one.name, "model": one.model, "state": one.state, **figures, **row})


def open_sweep(inputs: Mapping[str, Any], out: Path, resume: bool) -> str:
    """Id of the sweep in `out`, new or as it was before.

    `DataError` where another sweep is there, or none although `resume` asks for one.
    """
    path = out / INPUTS
    if not path.exists():
        if resume:
            raise DataError(out, "holds no sweep that could go on", "leave out --resume to begin one")
        if (out / TRIALS).exists():
            raise DataError(out, f"has {TRIALS}/ but no {INPUTS}", "use another --out, or remove that folder")
        fresh = {"id": uuid.uuid4().hex, **inputs}
        replace_file(path, (json.dumps(fresh, indent=2, ensure_ascii=False) + "\n").encode())
        return str(fresh["id"])
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(inputs)))
    differ = [name for name in now if before.get(name) != now[name]]
    if differ:
        said = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now[name])}" for name in differ)
        remedy = "give what it began with, or another --out for a new sweep"
        raise DataError(out, f"holds a sweep over something else: {said}", remedy)
    return str(before["id"])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Nobody else sweeps in `out` meanwhile; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(out, "has a sweep running", "wait for it, or use another --out") from None
        yield


def run_trials(
    experiment: Experiment, out: Path, studies: Mapping[str, Any], log: Callable[[str, int], None], tell: Tell
) -> None:
    """Run until as many trials are over as were asked for; returns at once where they are.

    log: called with model and number of a trial that is over. tell: with the share done and a sentence.
    """
    from training.tune.search import finished

    missing = experiment.trials - sum(len(finished(study)) for study in studies.values())
    if missing <= 0:
        return
    tell(0.0, "starting Ray")
    with _ray(experiment) as cores:
        _fit(experiment, out, studies, log, tell, missing, cores)


def _fit(
    experiment: Experiment,
    out: Path,
    studies: Mapping[str, Any],
    log: Callable[[str, int], None],
    tell: Tell,
    missing: int,
    cores: int,
) -> None:
    import ray
    from ray import tune

    from training.tune.progress import SweepCallback
    from training.tune.search import StudySearch
    from training.tune.trial import SweepTrial

    def failed(model: str, number: int, error: str) -> None:
        Record.of(out, model, number).write_error(error)

    search = StudySearch(studies, experiment.space, experiment.mode, experiment.trials, experiment.shares)
    trainable = tune.with_parameters(
        SweepTrial, workshop=experiment.workshop(), sweep=str(out.resolve()), mode=experiment.mode
    )
    with tempfile.TemporaryDirectory(prefix="qiance-tune-") as scratch, unless_set(_TUNE):
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_scheduler(experiment, out, studies),
                num_samples=missing,
                reuse_actors=True,
                # A limit makes Tune ask late and start an actor anew for every trial: only where it binds.
                max_concurrent_trials=cores if cores < ray.cluster_resources()["CPU"] else None,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,  # nothing in it is needed: studies and records are the state
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=_FAILURES),
                callbacks=[SweepCallback(search, studies, experiment, log, failed, tell)],
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors go to the trials' records
        tuner.fit()


def _scheduler(experiment: Experiment, out: Path, studies: Mapping[str, Any]) -> Any:
    from training.tune.search import asked
    from training.tune.stopping import HalvingByModel

    halving = {model: experiment.halving[model] for model in studies}
    scheduler = HalvingByModel(halving, experiment.mode)
    curves: dict[bool, dict[tuple[str, int], Any]] = {True: {}, False: {}}
    for model, study in studies.items():
        for trial in asked(study):
            over = trial.state.is_finished()
            curves[over][model, trial.number] = Record.of(out, model, trial.number).curve()
    scheduler.remember(curves[True], curves[False])
    return scheduler


@contextmanager
def _ray(experiment: Experiment) -> Iterator[int]:
    """Yields how many trials may run at a time."""
    with ray_for(experiment.workers, experiment.address):
        import ray

        yield experiment.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
