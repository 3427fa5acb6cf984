"""A response log made ready: what is learned from it, and which half of the units judges which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.responses import ARM, ResponseTable
from qiance.features.schema import FeatureSchema

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_EVENTS = 5  # of each outcome in what a model trains on; fewer say nothing
_TRAIN_SHARE = 0.8  # of a half; the rest of it chooses the epoch


@dataclass(frozen=True)
class Study:
    """N logged rows, split by unit into two halves that judge each other's models.

    rows: `[N]` features, `arm` and labels. labels: those that are learned; primary: the one optimised.
    arms: `[K]` that were logged, control first if there is one. action: `[N]` index into `arms`.
    shares: `[K]` probability of each arm under the logging policy, averaged over rows.
    first: `[N]` rows of the first half. train: `[N]` rows that train the model of their own half.
    cluster: `[N]` unit of each row, None where every row is its own. notes: what was left out, and why.
    """

    responses: ResponseTable
    rows: pa.Table
    schema: FeatureSchema
    labels: tuple[str, ...]
    primary: str
    arms: tuple[str, ...]
    action: NDArray[np.int64]
    shares: Floats
    first: Mask
    train: Mask
    cluster: NDArray[np.int64] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.action.size)

    @property
    def has_control(self) -> bool:
        return self.responses.control_arm is not None

    @property
    def propensity(self) -> Floats:
        """`[N]` of the arm that was shown."""
        return np.asarray(self.responses.table["propensity"].to_numpy(), dtype=np.float64)

    @property
    def cost(self) -> Floats:
        """`[K]` minor units per contact."""
        return np.array([self.responses.arm_cost.get(arm, 0) for arm in self.arms], dtype=np.float64)

    def outcome(self, label: str) -> Floats:
        """`[N]` what came of each row: 0 or 1, or minor units."""
        return np.asarray(self.rows[label].to_numpy(), dtype=np.float64)


def prepare_study(responses: ResponseTable, preferred: Sequence[str], seed: int) -> Study:
    """Halves, features and labels of a log.

    preferred: outcomes to optimise, the first that can be learned is taken.
    `DataError` where no outcome happens often enough to learn from.
    """
    rows, notes = _with_conversion(responses)
    units = responses.table["unit_id"].to_numpy(zero_copy_only=False)
    first, train = _halves(units, seed)
    parts = (train & first, train & ~first)
    labels = _learnable(rows, parts)
    wanted = [label for label in preferred if label in responses.labels]
    primary = next((label for label in wanted if label in labels), None)
    if primary is None:
        raise DataError(responses.report.source, *_too_few(responses))
    if primary != wanted[0]:
        notes.append(f"There are too few of {wanted[0]} to learn from, so {primary} is optimised.")
    notes += [f"There are too few of {name} to learn from." for name in wanted[1:] if name not in labels]
    numeric, blank = _known_numeric(responses, parts)
    notes += [f"Feature {name} has no value in a half and was left out." for name in blank]
    arms, action, missing = _arms(responses)
    if missing:
        notes.append(f"{len(missing)} arms were never shown and cannot be judged: {', '.join(missing[:10])}.")
    codes = np.unique(units.astype(np.str_), return_inverse=True)[1].ravel()
    return Study(
        responses=responses,
        rows=rows,
        schema=FeatureSchema("responses_v1", numeric, (*responses.categorical, ARM)),
        labels=labels,
        primary=primary,
        arms=arms,
        action=action,
        shares=_shares(responses, action, len(arms)),
        first=first,
        train=train,
        cluster=None if codes.max() + 1 == codes.size else codes.astype(np.int64),
        notes=tuple(notes),
    )


def _with_conversion(responses: ResponseTable) -> tuple[pa.Table, list[str]]:
    """Rows in which sales have the conversion that they are learned through."""
    table = responses.table
    if "sales" not in responses.labels or "conversion" in responses.labels:
        return table, []
    ordered = pa.array((table["sales"].to_numpy() > 0).astype(np.int8))
    return table.append_column("conversion", ordered), ["Every row with sales was taken as a conversion."]


def _halves(units: NDArray[np.object_], seed: int) -> tuple[Mask, Mask]:
    """Rows of the first half, and rows that train in their own half; units stay whole in both."""
    from training.effect.split import split_by_unit

    rest = (1 - _TRAIN_SHARE) / 2
    halves = split_by_unit(units, seed, (0.5, 0.25, 0.25))
    return halves.train, split_by_unit(units, seed + 1, (_TRAIN_SHARE, rest, rest)).train


def _learnable(rows: pa.Table, parts: tuple[Mask, Mask]) -> tuple[str, ...]:
    """Labels that happen, and fail to happen, often enough in both halves; sales need conversions."""
    found = []
    for label in ("click", "conversion", "sales"):
        if label not in rows.column_names:
            continue
        happened = rows[label].to_numpy() > 0
        rare = min(min(int(happened[part].sum()), int((~happened[part]).sum())) for part in parts)
        if rare >= MIN_EVENTS and (label != "sales" or "conversion" in found):
            found.append(label)
    return tuple(found)


def _too_few(responses: ResponseTable) -> tuple[str, str]:
    counts = ", ".join(
        f"{int((responses.table[label].to_numpy() > 0).sum())} of {label}" for label in responses.labels
    )
    problem = f"has too few responses to learn from ({counts} in {len(responses)} rows)"
    remedy = (
        f"training on each half of the units takes at least {MIN_EVENTS} rows with a response and as many "
        "without: log more"
    )
    return problem, remedy


def _known_numeric(
    responses: ResponseTable, parts: tuple[Mask, Mask]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = []
    for name in responses.numeric:
        finite = np.isfinite(responses.table[name].to_numpy(zero_copy_only=False).astype(np.float64))
        if all(finite[part].any() for part in parts):
            known.append(name)
    return tuple(known), tuple(name for name in responses.numeric if name not in known)


def _arms(responses: ResponseTable) -> tuple[tuple[str, ...], NDArray[np.int64], tuple[str, ...]]:
    """Arms that were logged, control first; each row's index into them; arms never logged."""
    shown = responses.arm_index()
    counts = np.bincount(shown, minlength=len(responses.arms))
    order = np.argsort([arm != responses.control_arm for arm in responses.arms], kind="stable")
    kept = [int(k) for k in order if counts[k]]
    place = np.full(len(responses.arms), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    missing = tuple(arm for arm, count in zip(responses.arms, counts, strict=True) if not count)
    return tuple(responses.arms[k] for k in kept), place[shown], missing


def _shares(responses: ResponseTable, action: NDArray[np.int64], size: int) -> Floats:
    """Of a randomised log its propensities by arm; else how often each arm was shown."""
    counts = np.bincount(action, minlength=size).astype(np.float64)
    if not responses.randomised:
        return np.asarray(counts / counts.sum(), dtype=np.float64)
    given = np.asarray(responses.table["propensity"].to_numpy(), dtype=np.float64)
    shares = np.bincount(action, weights=given, minlength=size) / counts
    return np.asarray(shares / shares.sum(), dtype=np.float64)
