"""What a trial leaves on disk: its configuration, its curve and the state that it goes on from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

STATE, CURVE, PARAMETERS, ERROR = "state.pt", "curve.json", "parameters.json", "error.txt"
TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class Point:
    """A step of a trial. value: by the sweep's metric on what is held out, None where training diverged.

    reach: how far training has come, in steps of the usual configuration. best: of this and the steps before;
    last: nothing more is to come. started, ended: seconds since the epoch; cpu: seconds of the processor.
    scores: others of the step, by name.
    """

    step: int
    reach: float
    value: float | None
    best: float | None
    last: bool
    started: float
    ended: float
    cpu: float
    scores: Mapping[str, float | None]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Point:
        """From what `plain` gave."""
        own = {field.name for field in fields(cls)}
        scores = {name: value for name, value in plain.items() if name not in own}
        return cls(**{name: value for name, value in plain.items() if name in own}, scores=scores)

    def plain(self) -> dict[str, Any]:
        """As JSON has it: the scores beside the other values."""
        found = asdict(self)
        scores: dict[str, Any] = found.pop("scores")
        return found | scores


def trial_name(model: str, number: int) -> str:
    """As it is called everywhere, e.g. `network-03`."""
    return f"{model}-{number:02d}"


@dataclass(frozen=True)
class Record:
    """The folder of one trial. The curve inside the state is what counts; curve.json is for readers."""

    folder: Path

    @classmethod
    def of(cls, sweep: Path, model: str, number: int) -> Record:
        """Of trial `number` of `model` in the folder of a sweep."""
        return cls(sweep / TRIALS / trial_name(model, number))

    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Note the configuration; harmless to repeat."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(parameters), indent=2) + "\n"
        replace_file(self.folder / PARAMETERS, text.encode())

    def save(self, state: Mapping[str, Any], curve: Sequence[Point]) -> None:
        """Replace state and curve; a kill leaves the one or the other state, never a half."""
        points = [point.plain() for point in curve]
        path = self.folder / STATE
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as stream:
            torch.save({"state": dict(state), "curve": points}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        self.write_curve(curve)

    def load(self) -> tuple[Mapping[str, Any], list[Point]] | None:
        """State and curve as last saved; None where there is no step yet."""
        path = self.folder / STATE
        if not path.exists():
            return None
        found = torch.load(path, weights_only=True)
        return found["state"], [Point.of(point) for point in found["curve"]]

    def write_curve(self, curve: Sequence[Point]) -> None:
        """For those who read along."""
        text = json.dumps([point.plain() for point in curve], allow_nan=False) + "\n"
        replace_file(self.folder / CURVE, text.encode())

    def curve(self) -> list[Point]:
        """The steps so far."""
        path = self.folder / CURVE
        if not path.exists():
            return []
        return [Point.of(point) for point in json.loads(path.read_text(encoding="utf-8"))]

    def write_error(self, text: str) -> None:
        """Why the trial failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / ERROR, (text + "\n").encode())

    def error(self) -> str | None:
        """The last line of why it failed; None where it did not."""
        path = self.folder / ERROR
        if not path.exists():
            return None
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else "unknown"

    def forget_state(self) -> None:
        """A trial that is over goes nowhere: what it would go on from may be large."""
        (self.folder / STATE).unlink(missing_ok=True)


def finite(value: float) -> float | None:
    """None for what is no number."""
    return value if math.isfinite(value) else None


def replace_file(path: Path, content: bytes) -> None:
    """Write under another name and rename, so that nobody reads a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
