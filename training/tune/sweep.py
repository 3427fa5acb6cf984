"""A sweep from its inputs to its results; killed at any moment, it goes on where it was."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.data.errors import DataError
from training.preprocess.streaming import ray_for
from training.response.config import ResponseParameters, apply_parameters
from training.response.members import ResponseSettings
from training.response.rows import ResponseRows
from training.tune.record import TRIALS, Record, replace_file
from training.tune.space import Space
from training.tune.work import BLOCK, MODES, SweepData

INPUTS, LOCK = "inputs.json", ".sweep.lock"
# Steps before a trial may be stopped. Small trees are the slowest to learn and often the best in the end, and
# trees end by themselves for less than what a network costs: only what goes on for very long is compared.
GRACE = {"network": 3, "trees": 54}
_FAILURES = 2  # restarts of a trial whose process died
Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """trials: in all, two of three for the trees. folds: of the rows that a trial is judged on.

    workers: trials at a time, by default one per CPU. address: of a running Ray cluster that sees the same
    paths; else Ray is started on this machine for the time.
    """

    trials: int = 16
    metric: str = "log_loss"
    folds: int = 3
    seed: int = 0
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("folds", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")
        if self.metric not in MODES:
            raise ValueError(f"metric: {self.metric!r} is unknown; choose from {', '.join(MODES)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: {self.workers} is below 1; leave it out for one per CPU")


@dataclass(frozen=True)
class Sweep:
    """What a sweep is over. given: parameters of every trial. mapping: hash of what the mapping says."""

    rows: ResponseRows
    space: Space
    settings: SweepSettings
    given: ResponseParameters
    mapping: str

    def base(self) -> ResponseSettings:
        """What the drawn parameters are laid over."""
        return apply_parameters(self.given, ResponseSettings.for_rows(len(self.rows), self.settings.seed))

    def inputs(self) -> dict[str, Any]:
        """What must be equal for a sweep to go on: how many trials, and at a time, may change."""
        return {
            "data": self.rows.fingerprint,
            "mapping": self.mapping,
            "label": self.rows.label,
            "features": list(self.rows.schema.names),
            "space": self.space.plain,
            "config": self.given.model_dump(mode="json", exclude_none=True),
            "metric": self.settings.metric,
            "folds": self.settings.folds,
            "seed": self.settings.seed,
        }


def open_sweep(sweep: Sweep, out: Path, resume: bool) -> str:
    """Id of the sweep in `out`, new or as it was before.

    `DataError` where another sweep is there, or none although `resume` asks for one.
    """
    path = out / INPUTS
    if not path.exists():
        if resume:
            raise DataError(out, "holds no sweep that could go on", "leave out --resume to begin one")
        if (out / TRIALS).exists():
            raise DataError(out, f"has {TRIALS}/ but no {INPUTS}", "use another --out, or remove that folder")
        inputs = {"id": uuid.uuid4().hex, **sweep.inputs()}
        replace_file(path, (json.dumps(inputs, indent=2, ensure_ascii=False) + "\n").encode())
        return str(inputs["id"])
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(sweep.inputs()))
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
    sweep: Sweep, out: Path, studies: Mapping[str, Any], log: Callable[[str, int], None], tell: Tell
) -> None:
    """Run until as many trials are over as were asked for; returns at once where they are.

    log: called with model and number of a trial that is over. tell: with the share done and a sentence.
    """
    from training.tune.search import finished

    missing = sweep.settings.trials - sum(len(finished(study)) for study in studies.values())
    if missing <= 0:
        return
    tell(0.0, "starting Ray")
    with _ray(sweep.settings) as cores:
        _fit(sweep, out, studies, log, tell, missing, cores)


def _fit(
    sweep: Sweep,
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

    settings, base = sweep.settings, sweep.base()

    def failed(model: str, number: int, error: str) -> None:
        Record.of(out, model, number).write_error(error)

    search = StudySearch(studies, sweep.space, settings.metric, settings.trials)
    trainable = tune.with_parameters(
        SweepTrial,
        data=SweepData.of(sweep.rows, settings.folds, base),
        base=base,
        sweep=str(out.resolve()),
        metric=settings.metric,
    )
    with tempfile.TemporaryDirectory(prefix="qiance-tune-") as scratch, _tune_environment():
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_scheduler(sweep, out, studies, base),
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
                callbacks=[SweepCallback(search, studies, settings, log, failed, tell)],
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors go to the trials' records
        tuner.fit()


def _scheduler(sweep: Sweep, out: Path, studies: Mapping[str, Any], base: ResponseSettings) -> Any:
    from training.tune.search import asked
    from training.tune.stopping import Halving, HalvingByModel

    steps = {"network": base.network.epochs, "trees": -(-base.trees.rounds // BLOCK)}
    halving = {model: Halving(steps[model], GRACE[model]) for model in studies}
    scheduler = HalvingByModel(halving, sweep.settings.metric)
    curves: dict[bool, dict[tuple[str, int], Any]] = {True: {}, False: {}}
    for model, study in studies.items():
        for trial in asked(study):
            over = trial.state.is_finished()
            curves[over][model, trial.number] = Record.of(out, model, trial.number).curve()
    scheduler.remember(curves[True], curves[False])
    return scheduler


@contextmanager
def _ray(settings: SweepSettings) -> Iterator[int]:
    """Yields how many trials may run at a time."""
    with ray_for(settings.workers, settings.address):
        import ray

        yield settings.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)


@contextmanager
def _tune_environment() -> Iterator[None]:
    """Tune takes these from the environment only.

    Its loggers would write what the records hold already; its handler of Ctrl-C would end the trials first,
    where a kill is no loss.
    """
    wanted = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints at verbosity 0 too
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
