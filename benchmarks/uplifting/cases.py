"""The e-mail test: its users, splits of them, and the same users with planted effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT
from benchmarks.uplifting.planted import ARMS, plant
from qiance.artifacts.uplift import linear_inputs
from qiance.data.hillstrom import read_hillstrom
from qiance.evaluate.bandit_log import BanditLog
from qiance.features.encoder import Encoder
from training.response.rows import ResponseRows, response_rows
from training.uplift.propensity import of_known
from training.uplift.rows import UpliftRows

PLACES = (
    ROOT / ".bench" / "uplift" / "hillstrom.csv.gz",
    ROOT.parent / "shared" / "data" / "hillstrom" / "hillstrom.csv.gz",
)
TEST_SHARE = 0.5

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """One split. arm, outcome: `[N]` of all users; share: `[K]` propensity of each of `ARMS`.

    truth: `[N, K]` planted effects, None where they are not known.
    """

    name: str
    train: Rows
    test: Rows
    arm: Rows
    outcome: Floats
    share: Floats
    seed: int
    truth: Floats | None = None

    def log(self) -> BanditLog:
        """The test rows."""
        arm = self.arm[self.test]
        return BanditLog(arm, self.outcome[self.test], self.share[arm])


@dataclass(frozen=True)
class Users:
    """N users of the test. own: features and visits; arm: `[N]` as it was; matrix: `[N, F]` for the peers."""

    own: ResponseRows
    arm: Rows
    matrix: Floats

    def __len__(self) -> int:
        return len(self.own)

    def columns(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Features of some of them."""
        return {name: values[rows] for name, values in self.own.columns.items()}

    def rows(self, case: Case) -> UpliftRows:
        """All users with the arms and outcomes of `case`."""
        propensity = case.share[case.arm]
        overlap = of_known(ARMS, case.arm, propensity)
        own = replace(self.own, target=case.outcome)
        return UpliftRows(own, ARMS, 0, case.arm, propensity, overlap)

    def split(self, seed: int) -> tuple[Rows, Rows]:
        """Train and test rows, at random."""
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(len(self) * (1 - TEST_SHARE))
        return np.sort(order[:cut]), np.sort(order[cut:])

    def real(self, seed: int) -> Case:
        """Visits as they were."""
        share = np.full(len(ARMS), 1 / len(ARMS))
        return Case(f"visit-{seed:03}", *self.split(seed), self.arm, self.own.target, share, seed)

    def planted(self, family: str, seed: int) -> Case:
        """Visits drawn from known chances, arms at random."""
        found = plant(self.own.columns, family, targeted=False, seed=seed)
        share = np.full(len(ARMS), 1 / len(ARMS))
        name = f"{family}-{seed:03}"
        return Case(name, *self.split(seed), found.arm, found.outcome, share, seed, found.effect)


def find_data() -> Path | None:
    """The test's CSV where it is kept, None where it is not there."""
    return next((place for place in PLACES if place.exists()), None)


def read_users(path: Path, limit: int, seed: int) -> Users:
    """At most `limit` of them, at random."""
    table = read_hillstrom(path)
    own = response_rows(replace(table, arms=()), "click")
    order = np.array([ARMS.index(name) for name in table.arms])
    arm = order[table.arm_index()]
    some = np.sort(np.random.default_rng(seed).permutation(len(own))[:limit])
    own = own.take(some)
    encoder = Encoder.fit(own.schema, own.columns)
    matrix = linear_inputs(encoder, *encoder.encode(own.columns))[:, 1:]
    return Users(own, arm[some], matrix)
