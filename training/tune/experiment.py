"""What is swept: the models and their space, how a value counts, and the work of a trial.

`qiance tune` sweeps the response model (`training.tune.work`); the policies of `rllib` come as a workshop
that the command line hands over, for neither room imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from training.tune.space import Space


@dataclass(frozen=True, slots=True)
class Halving:
    """steps: that a trial may take. grace: steps before it may be stopped. factor: of any so many trials that
    reach grace, grace·factor, grace·factor², ... steps, the best goes on. Counted by `Point.reach`."""

    steps: int
    grace: int
    factor: int = 3


class Work(Protocol):
    """One configuration in training; a step is what can be stopped after.

    steps: most of them. patience: steps without a better value before it is done. pace: steps of the usual
    configuration that one step is worth.
    """

    steps: int
    patience: int
    pace: float

    def advance(self, step: int) -> Mapping[str, float]:
        """Train on, and judge: `value` by the sweep's metric, and other scores; NaN where it diverged."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `load` needs: tensors and plain values."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        ...

    def close(self) -> None:
        """Let go of what it holds; called when another trial begins."""
        ...


class Workshop(Protocol):
    """Makes the work of one trial after the other, in the process of the trials; it is sent there whole."""

    def make(self, model: str, parameters: Mapping[str, Any]) -> Work:
        """Untrained. parameters: of the model, as the space names them."""
        ...

    def close(self) -> None:
        """Remove what all trials shared."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A sweep as it is run.

    metric: name of the value. mode: `min` or `max` of it is best. shares: by model, its part of the trials.
    halving: by model. workshop: called once, where trials are missing. workers: trials at a time, by default
    one per CPU. address: of a running Ray cluster that sees the same paths; else Ray is started on this
    machine for the time. spec: how the value is written in progress.
    """

    space: Space
    metric: str
    mode: str
    trials: int
    seed: int
    shares: Mapping[str, int]
    halving: Mapping[str, Halving]
    workshop: Callable[[], Workshop]
    workers: int | None = None
    address: str | None = None
    spec: str = ".4f"


def better_of(mode: str, first: float | None, second: float | None) -> float | None:
    """The better of two values; what is None is worse than anything."""
    known = [value for value in (first, second) if value is not None]
    if not known:
        return None
    return min(known) if mode == "min" else max(known)
