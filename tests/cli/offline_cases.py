"""A response log with planted uplift, whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.cli.offline.study import Study, prepare_study
from qiance.data.faults import TableReport
from qiance.data.responses import ResponseTable

ARMS = ("none", "shoes", "hats")
SHARES = (0.2, 0.4, 0.4)
SALES = 4_000


def truth(age: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[n, 3]` click rates: shoes move the young, hats the old, by 20 points."""
    young = age < 40
    return np.stack([np.full(age.size, 0.1), 0.1 + 0.2 * young, 0.1 + 0.2 * ~young], axis=1)


def planted(
    n: int = 6_000, seed: int = 0, control: bool = True, labels: tuple[str, ...] = ("click",)
) -> ResponseTable:
    """Arms drawn with `SHARES`; a click buys for 40.00 half of the time."""
    rng = np.random.default_rng(seed)
    age = np.round(rng.uniform(18, 62, n))
    action = rng.choice(3, n, p=SHARES)
    clicked = rng.random(n) < truth(age)[np.arange(n), action]
    bought = clicked & (rng.random(n) < 0.5)
    values = {"click": clicked, "conversion": bought, "sales": bought * SALES}
    columns = {
        "age": pa.array(age),
        "city": pa.array(rng.choice(["Lyon", "Bonn"], n)),
        **{label: pa.array(values[label].astype(np.int64)) for label in labels},
    }
    return responses_of(
        np.array(ARMS)[action], np.array(SHARES)[action], columns, labels, control="none" if control else None
    )


def responses_of(
    arm: NDArray[np.str_],
    propensity: NDArray[np.float64],
    columns: Mapping[str, pa.Array],
    labels: tuple[str, ...],
    *,
    control: str | None = None,
    units: NDArray[np.str_] | None = None,
    arms: tuple[str, ...] = ARMS,
    randomised: bool = True,
) -> ResponseTable:
    """A response table around `columns`, features and labels."""
    n = arm.size
    ids = np.array([f"r{i}" for i in range(n)])
    table = pa.table(
        {
            "row_id": ids,
            "unit_id": ids if units is None else units,
            "arm": pa.array(arm.astype(object), pa.string()),
            "propensity": propensity,
            **columns,
        }
    )
    return ResponseTable(
        name="planted",
        table=table,
        numeric=tuple(name for name in columns if name == "age"),
        categorical=tuple(name for name in columns if name == "city"),
        labels=labels,
        arms=arms,
        control_arm=control,
        arm_cost={"shoes": 10, "hats": 10},
        currency="EUR",
        randomised=randomised,
        report=TableReport("responses", "planted.csv", n, n, 0),
        fingerprint="planted",
    )


def study_of(responses: ResponseTable, seed: int = 0) -> Study:
    return prepare_study(responses, ("click", "conversion", "sales"), seed)


def age_of(study: Study) -> NDArray[np.float64]:
    return np.asarray(study.rows["age"].to_numpy(), dtype=np.float64)
