"""The full grid that a sweep is compared with: every combination of usual values, each trained to its end."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import Args

GRID: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "network": {
        "learning_rate": (0.001, 0.003, 0.01),
        "hidden": ([32], [64, 32], [128, 64]),
        "dropout": (0.0, 0.2),
        "batch_size": (256, 512),
    },
    "trees": {
        "learning_rate": (0.02, 0.05, 0.1),
        "leaves": (4, 8, 16, 32),
        "min_rows": (20, 100),
        "feature_share": (0.5, 0.8),
    },
}
FOLDS = 3


@dataclass(frozen=True)
class Trained:
    """A configuration trained to its end: its best value, and what it cost."""

    value: float
    cpu: float
    steps: int


@dataclass(frozen=True)
class Job:
    """A configuration to train. split: seed of the folds; seed: of training."""

    folder: Path
    split: int
    seed: int
    model: str
    parameters: dict[str, Any]


def run_grid(folder: Path, args: Args, pool: Executor) -> dict[str, dict[str, Trained]]:
    """By model and configuration (as JSON), every combination trained to its end."""
    grid: dict[str, dict[str, Trained]] = {}
    for model, values in GRID.items():
        kept = {
            name: args.pick(smoke=found[:1], quick=found[:2], full=found) for name, found in values.items()
        }
        every = [dict(zip(kept, drawn, strict=True)) for drawn in itertools.product(*kept.values())]
        trained = pool.map(train_one, [Job(folder, args.seed, args.seed, model, one) for one in every])
        grid[model] = {json.dumps(one): found for one, found in zip(every, trained, strict=True)}
    return grid


def best_of(found: Mapping[str, Trained]) -> dict[str, Any]:
    """The configuration with the best value."""
    best: dict[str, Any] = json.loads(min(found, key=lambda name: found[name].value))
    return best


def retrain(
    folder: Path, winners: Mapping[str, dict[str, Any]], seeds: Sequence[int], pool: Executor, split: int
) -> dict[str, list[float]]:
    """By model, the values of a configuration trained with each of the seeds, on the folds of `split`."""
    return {
        model: [
            one.value
            for one in pool.map(train_one, [Job(folder, split, seed, model, best) for seed in seeds])
        ]
        for model, best in winners.items()
    }


def train_one(job: Job) -> Trained:
    """One configuration to its end, by the code of a trial, but not stopped early."""
    from training.response.members import ResponseSettings
    from training.tune.trial import Run
    from training.tune.work import ResponseWorkshop

    base, data = ResponseSettings(seed=job.split), _data(job.folder, job.split)
    network = replace(base.network, seed=base.network.seed + job.seed - job.split)
    workshop = ResponseWorkshop(data, replace(base, seed=job.seed, network=network), "log_loss")
    with tempfile.TemporaryDirectory() as place:
        config = {"model": job.model, "number": 0, "parameters": job.parameters}
        run = Run.begin(workshop, Path(place), "min", config)
        while not run.step().last:
            pass
    workshop.close()
    cpu = sum(point.cpu for point in run.curve)
    best = run.curve[-1].best
    assert best is not None, "it came to a value"
    return Trained(best, cpu, len(run.curve))


@cache
def _data(folder: Path, split: int) -> Any:
    """Rows and folds as the sweep has them; once per process."""
    from qiance.data.mapped import read_mapped
    from qiance.data.mapping import load_mapping
    from training.response.members import ResponseSettings
    from training.response.rows import response_rows
    from training.tune.work import SweepData

    found = read_mapped(folder / "log.csv", load_mapping(folder / "map.yaml")).responses
    assert found is not None, "the mapping is of responses"
    return SweepData.of(response_rows(found), FOLDS, ResponseSettings(seed=split))
