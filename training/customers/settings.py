"""Settings of the customer model, and the earlier cutoffs that it learns from."""

from __future__ import annotations

from dataclasses import dataclass, field

from qiance.data.errors import DataError
from qiance.data.purchases import PurchaseLog

_PARTS = (1.0, 0.75, 0.5)  # of the longest horizon that the log can show, one cutoff each
_STEPS = (1.0, 1.5, 2.0)  # horizons back from the end, where the log is long
_LONG = 4  # horizons that make a log long
MIN_DAYS = 7  # of an earlier horizon


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """rates, dropouts: points of the grid on each axis, evenly spread by logarithm; turns of EM. More turns
    follow the sample's own noise: stopping early is what keeps the distribution smooth."""

    rates: int = 26
    dropouts: int = 14
    turns: int = 200


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """Of LightGBM. Few large leaves: the process has said most of what there is. threads that wait for each
    other on busy cores lose more than a second one gains."""

    rounds: int = 1_500
    learning_rate: float = 0.03
    leaves: int = 8
    min_rows: int = 200
    row_share: float = 0.7
    feature_share: float = 0.6
    shrinkage: float = 10.0
    patience: int = 60
    threads: int = 1


@dataclass(frozen=True, slots=True)
class CustomerSettings:
    """members: K boosters per task, each without the customers that choose when it stops. seed: with equal
    data, the same model."""

    process: ProcessSettings = field(default_factory=ProcessSettings)
    trees: TreeSettings = field(default_factory=TreeSettings)
    members: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"members: {self.members} is below 2: no customer could be held out")


@dataclass(frozen=True, slots=True)
class Period:
    """What lies before day `cutoff` is known, what happens in the `horizon` days from it is to be
    predicted."""

    cutoff: int
    horizon: int


def earlier_periods(log: PurchaseLog, cutoff: int, horizon: int) -> tuple[Period, ...]:
    """Periods that end by `cutoff`, so that their outcomes are known then.

    Where the log before it has four horizons or more, three with the horizon itself. Where it is shorter, the
    horizons are as long a part of their history as `horizon` is of the whole, and parts of that: a buying
    process has no scale of its own. DataError for a log that is too short.
    """
    span = cutoff - log.first_day
    if span >= _LONG * horizon:
        periods = tuple(Period(cutoff - round(step * horizon), horizon) for step in _STEPS)
    else:
        longest = span * horizon / (span + horizon)
        periods = tuple(
            Period(cutoff - round(part * longest), max(round(part * longest), 1)) for part in _PARTS
        )
    if periods[-1].horizon < MIN_DAYS:
        problem = f"has {span} days of purchases before the cutoff, too few for a horizon of {horizon} days"
        raise DataError(log.source, problem, "give a longer log, a later cutoff or another horizon")
    return periods
