"""The log that proposals are learned from: strategies that were tried, their costs, and what they brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qiance.artifacts.manifest import file_hash
from qiance.data.errors import DataError
from qiance.data.tabular import column_names, read_raw
from qiance.domain import Objective
from qiance.proposer.proposer import PREFIX
from qiance.proposer.vector import COLUMNS, KINDS, SHARES, Floats, Ints, Vectors

REQUIRED = ("segment", *COLUMNS, "users", "cost")
LEAST = 30


@dataclass(frozen=True)
class StrategyLog:
    """n trials of strategies on groups of users.

    segment: `[n]` names; names: F features of segments; features: `[n, F]`. users: `[n]` in the group. cost:
    `[n]` minor units, contacts and discounts of the group together. outcomes: by goal, `[n]` what the group
    brought more than as many users left alone: counts, or minor units; margin is after cost.
    """

    segment: NDArray[np.str_]
    names: tuple[str, ...]
    features: Floats
    vectors: Vectors
    users: Ints
    cost: Floats
    outcomes: Mapping[Objective, Floats]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def segments(self) -> dict[str, Floats]:
        """The features `[F]` of each segment: the mean of its rows."""
        return {
            str(name): self.features[self.segment == name].mean(axis=0) for name in np.unique(self.segment)
        }

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> StrategyLog:
        """The trials by mask or index."""
        return StrategyLog(
            self.segment[rows],
            self.names,
            self.features[rows],
            self.vectors.take(rows),
            self.users[rows],
            self.cost[rows],
            {goal: values[rows] for goal, values in self.outcomes.items()},
            self.fingerprint,
        )


def read_log(path: Path) -> StrategyLog:
    """Read CSV, JSON lines or Parquet; see docs/proposer.md for its columns.

    DataError names the column, row and value that cannot be used.
    """
    if not path.is_file():
        raise DataError(path, "does not exist", "pass the path of your log of strategies with --data")
    present = column_names(path)
    features = [name for name in present if name.startswith(PREFIX)]
    goals = [goal.value for goal in Objective if goal.value in present]
    raw = read_raw(path, [*REQUIRED, *features, *goals])
    if raw.faults.num_rows:
        row = raw.faults.slice(0, 1).to_pylist()[0]["row"]
        raise DataError(path, f"row {row} cannot be read", "correct the row")
    return from_frame(raw.table.to_pandas(), path, file_hash(path))


def from_frame(frame: pd.DataFrame, source: Path | str, fingerprint: str = "") -> StrategyLog:
    """From columns `REQUIRED`, `segment_…`, and at least one of the goals."""
    goals = [goal for goal in Objective if goal.value in frame]
    names = tuple(name for name in frame if name.startswith(PREFIX))
    if not goals or not names:
        missing = f"of a feature ({PREFIX}…)" if goals else f"of an outcome ({', '.join(Objective)})"
        raise DataError(source, f"has no column {missing}", "add one")
    if len(frame) < LEAST:
        raise DataError(source, f"has {len(frame)} trials", f"log at least {LEAST}")
    numbers = {
        name: _numbers(frame, name, source)
        for name in (*COLUMNS[1:], "users", "cost", *names, *(goal.value for goal in goals))
    }
    for name, least in (("users", 1.0), ("cost", 0.0)):
        bad = numbers[name] < least
        if bad.any():
            raise DataError(source, f"{name}: {_first(numbers[name], bad)} is below {least:g}", "correct it")
    try:
        vectors = _vectors(frame, numbers)
    except ValueError as error:
        raise DataError(source, str(error), "correct the row") from None
    return StrategyLog(
        frame["segment"].astype(str).to_numpy(dtype=np.str_),
        names,
        np.stack([numbers[name] for name in names], axis=1),
        vectors,
        numbers["users"].astype(np.int64),
        numbers["cost"],
        {goal: numbers[goal.value] for goal in goals},
        fingerprint,
    )


def to_frame(log: StrategyLog) -> pd.DataFrame:
    """Inverse of `from_frame`."""
    v = log.vectors
    columns = {
        "segment": log.segment,
        **{name: log.features[:, k] for k, name in enumerate(log.names)},
        "offer_kind": [KINDS[code].value for code in v.kind],
        "depth": v.depth,
        "threshold": v.threshold,
        **{name: v.shares[:, k] for k, name in enumerate(SHARES)},
        "start_day": v.start,
        "days": v.days,
        "users": log.users,
        "cost": log.cost,
        **{goal.value: values for goal, values in log.outcomes.items()},
    }
    return pd.DataFrame(columns)


def _vectors(frame: pd.DataFrame, numbers: Mapping[str, Floats]) -> Vectors:
    codes = {kind.value: code for code, kind in enumerate(KINDS)}
    kind = frame["offer_kind"].astype(str).map(codes).to_numpy(dtype=np.float64)
    if np.isnan(kind).any():
        found = _first(frame["offer_kind"].to_numpy(), np.isnan(kind))
        raise ValueError(f"offer_kind: {found} is not one of {', '.join(codes)}")
    shares = np.stack([numbers[name] for name in SHARES], axis=1)
    total = shares.sum(axis=1, keepdims=True)
    # Shares written with few digits do not sum to 1 exactly.
    shares = np.where(np.abs(total - 1) < 0.01, shares / np.where(total > 0, total, 1), shares)
    whole = {name: numbers[name].astype(np.int64) for name in ("threshold", "start_day", "days")}
    return Vectors(
        kind.astype(np.int64), numbers["depth"], whole["threshold"], shares, whole["start_day"], whole["days"]
    )


def _numbers(frame: pd.DataFrame, name: str, source: Path | str) -> Floats:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(source, f"{name}: {_first(frame[name].to_numpy(), bad)} is no number", "correct it")
    return values


def _first(values: NDArray[np.generic], bad: NDArray[np.bool_]) -> str:
    row = int(np.flatnonzero(bad)[0])
    return f"{values[row]!s} in row {row + 1}"
