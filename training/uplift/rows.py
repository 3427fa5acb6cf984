"""Rows of a log with arms as arrays, with the propensity of the arm that each was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.responses import ResponseTable
from qiance.evaluate.bandit_log import BanditLog
from training.response.rows import ResponseRows, response_rows
from training.uplift.propensity import Overlap, estimate_propensity, of_known, of_shares

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

MIN_ROWS = 100  # of each arm, and MIN_EVENTS of the rarer outcome in each: of fewer no effect is claimed
MIN_EVENTS = 20


@dataclass(frozen=True)
class UpliftRows:
    """N rows. rows: features (without the arm), outcome, units. arms: A names; control: number of one.

    arm: `[N]` number of the arm given; propensity: `[N]` with which it was, in (0, 1]; overlap says where it
    comes from.
    """

    rows: ResponseRows
    arms: tuple[str, ...]
    control: int
    arm: NDArray[np.int64]
    propensity: Floats
    overlap: Overlap

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def target(self) -> Floats:
        """`[N]` outcome, 0 or 1."""
        return self.rows.target

    @property
    def treatments(self) -> tuple[int, ...]:
        """Numbers of the arms that are not control."""
        return tuple(k for k in range(len(self.arms)) if k != self.control)

    def take(self, rows: Mask | NDArray[np.intp]) -> UpliftRows:
        """Some of the rows."""
        return replace(self, rows=self.rows.take(rows), arm=self.arm[rows], propensity=self.propensity[rows])

    def log(self) -> BanditLog:
        """As off-policy evaluation reads it."""
        return BanditLog(self.arm, self.target, self.propensity, cluster=self.rows.units)


def uplift_rows(
    responses: ResponseTable, label: str | None = None, control: str | None = None, seed: int = 0
) -> UpliftRows:
    """Check the log; without logged propensities a randomised log has the shares of arms, another estimates.

    label: click or conversion, by default conversion where it is mapped; control: by default the mapping's.
    `DataError` names what is missing: arms, control, outcomes in an arm, overlap.
    """
    source = responses.report.source
    if len(responses.arms) < 2:
        found = f"only the arm {responses.arms[0]!r}" if responses.arms else "no arm"
        raise DataError(source, f"has {found}", "uplift compares arms: map columns.arm, with two or more")
    name = control or responses.control_arm
    if name is None:
        arms = ", ".join(responses.arms)
        raise DataError(
            source, "names no control", f"set control in the mapping, or --control, to one of: {arms}"
        )
    if name not in responses.arms:
        raise DataError(source, f"has no arm {name!r}", f"use one of: {', '.join(responses.arms)}")
    rows = response_rows(replace(responses, arms=()), label)
    arm = responses.arm_index()
    _check_arms(rows, responses.arms, arm)
    logged = responses.table["propensity"].to_numpy(zero_copy_only=False).astype(np.float64)
    propensity, overlap = _propensity(rows, responses.arms, arm, logged, responses.randomised, seed)
    return UpliftRows(rows, responses.arms, responses.arms.index(name), arm, propensity, overlap)


def _check_arms(rows: ResponseRows, arms: tuple[str, ...], arm: NDArray[Any]) -> None:
    for number, name in enumerate(arms):
        own = rows.target[arm == number]
        rarer = int(min(own.sum(), (1 - own).sum()))
        if len(own) < MIN_ROWS or rarer < MIN_EVENTS:
            raise DataError(
                rows.name,
                f"has {len(own)} rows of arm {name!r}, {rarer} of the rarer outcome of {rows.label}",
                f"log at least {MIN_ROWS} and {MIN_EVENTS} of every arm, or leave the arm out",
            )


def _propensity(
    rows: ResponseRows,
    arms: tuple[str, ...],
    arm: NDArray[np.int64],
    logged: Floats,
    randomised: bool,
    seed: int,
) -> tuple[Floats, Overlap]:
    if np.isnan(logged).all() and randomised:
        return of_shares(arms, arm)
    if np.isnan(logged).all():
        return estimate_propensity(rows, arms, arm, seed)
    bad = ~((logged > 0) & (logged <= 1))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise DataError(
            rows.name,
            f"has the propensity {logged[first]} in row {first} (and {int(bad.sum()) - 1} like it)",
            "log the probability, in (0, 1], with which the row got its arm, for every row or for none",
        )
    return logged, of_known(arms, arm, logged)
