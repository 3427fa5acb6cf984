"""A trial as Ray Tune runs it: trains step by step, saves after each, goes on from what was saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from training.tune.experiment import Work, Workshop, better_of
from training.tune.record import Point, Record, finite

VALUE, REACH = "value", "reach"  # names that the search and the early stopping read


@dataclass
class Run:
    """One trial: its work, where it stands, and what it leaves on disk."""

    work: Work
    record: Record
    mode: str
    curve: list[Point]

    @classmethod
    def begin(cls, workshop: Workshop, sweep: Path, mode: str, config: Mapping[str, Any]) -> Run:
        """Go on from the trial's folder, or start anew. config: see `training.tune.search`."""
        work = workshop.make(config["model"], config["parameters"])
        record = Record.of(sweep, config["model"], config["number"])
        record.begin(config["parameters"])
        saved = record.load()
        if saved is None:
            return cls(work, record, mode, [])
        work.load(saved[0])
        record.write_curve(saved[1])
        return cls(work, record, mode, saved[1])

    def step(self) -> Point:
        """One step further; a trial that is over says so again."""
        if self.curve and self.curve[-1].last:
            return self.curve[-1]
        started, cpu = time.time(), time.process_time()
        number = len(self.curve) + 1
        found = dict(self.work.advance(number))
        value = finite(found.pop("value"))
        best = better_of(self.mode, value, self.curve[-1].best if self.curve else None)
        scores = {name: finite(score) for name, score in found.items()}
        last = value is None or number >= self.work.steps or self._stale(best) >= self.work.patience
        ended = time.time()
        point = Point(
            step=number, reach=number * self.work.pace, value=value, best=best, last=last,
            started=started, ended=ended, cpu=time.process_time() - cpu, scores=scores,
        )  # fmt: skip
        self.curve.append(point)
        self.record.save(self.work.state(), self.curve)
        return point

    def _stale(self, best: float | None) -> int:
        """Steps since the best, this one included."""
        same = 0
        for point in reversed(self.curve):
            if point.best != best:
                return same
            same += 1
        return max(same - 1, 0)


def tell_tune(point: Point, mode: str) -> dict[str, Any]:
    """A step's result: the best value so far, since it is the best step that would be kept."""
    worst = float("inf") if mode == "min" else float("-inf")
    return {VALUE: worst if point.best is None else point.best, REACH: point.reach, "done": point.last}


class SweepTrial(tune.Trainable):
    """One actor runs many trials: what it has imported and encoded stays."""

    def setup(
        self,
        config: dict[str, Any],
        workshop: Workshop | None = None,
        sweep: str = "",
        mode: str = "",
    ) -> None:
        """workshop: from Ray's object store. sweep: folder that every node sees."""
        assert workshop is not None, "bound by tune.with_parameters"
        self._workshop, self._sweep, self._mode = workshop, Path(sweep), mode
        self._run = Run.begin(self._workshop, self._sweep, self._mode, config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        self._run.work.close()
        self._run = Run.begin(self._workshop, self._sweep, self._mode, new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One step of the work."""
        return tell_tune(self._run.step(), self._mode)

    def cleanup(self) -> None:
        """With the actor."""
        self._run.work.close()
        self._workshop.close()
