"""A log and policies as the command line names them, made into arrays for off-policy evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.responses import ResponseTable
from qiance.data.roles import MappingKind
from qiance.data.tabular import column_names, read_raw
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.ope import estimate

Floats = NDArray[np.float64]
ROW_ID = "row_id"
HOW = "uniform, best-arm, arm:NAME, column:NAME, or a file with a column per arm"
# One-hot columns per categorical feature; rarer levels share one.
_MOST_LEVELS = 30


@dataclass(frozen=True)
class Given:
    """A log of N rows and K arms, ready to be evaluated.

    keyed: the mapping names the rows, so files of policies must too.
    """

    responses: ResponseTable
    log: BanditLog
    reward: str
    keyed: bool

    @property
    def arms(self) -> tuple[str, ...]:
        return self.responses.arms


def read_log(data: Path, mapping: Path, reward: str | None, quarantine: Path | None = None) -> Given:
    """The mapped log with one of its labels as the reward; the first of conversion, click, sales if None.

    `DataError` where it is no response log, has no arms or no propensities, or lacks the label.
    """
    if not data.exists():
        raise DataError(data, "does not exist", "pass the path of your log with --data")
    rules = load_mapping(mapping)
    if rules.kind is not MappingKind.RESPONSES:
        problem = f"maps {rules.kind.value}, and policies are evaluated on responses"
        raise DataError(mapping, problem, "map one row per decision with `kind: responses`")
    responses = read_mapped(data, rules, quarantine=quarantine).responses
    assert responses is not None, "the kind was checked"
    if not responses.can_compare:
        missing = "arm" if not responses.arms else "propensity"
        problem = f"maps no {missing}, and nothing can be compared without it"
        raise DataError(mapping, problem, f"map columns.{missing}, or set constants.{missing}")
    chosen = reward or next(name for name in ("conversion", "click", "sales") if name in responses.labels)
    if chosen not in responses.labels:
        found = ", ".join(responses.labels)
        raise DataError(mapping, f"has no label {chosen!r}", f"choose --reward among {found}")
    table = responses.table
    units = pc.dictionary_encode(table["unit_id"]).combine_chunks().indices.to_numpy(zero_copy_only=False)
    log = BanditLog(
        action=responses.arm_index(),
        reward=table[chosen].to_numpy().astype(np.float64),
        propensity=table["propensity"].to_numpy(),
        context=_context(responses),
        cluster=units if int(units.max()) + 1 < len(units) else None,
    )
    return Given(responses, log, chosen, ROW_ID in rules.columns)


def policy_of(given: Given, text: str) -> Floats:
    """`[N, K]` probabilities of the policy that `text` names; ValueError says what can be named.

    uniform; best-arm (the arm of the best estimated mean in the other half of the users, for everybody);
    arm:NAME for everybody; column:NAME (the arm that a categorical feature of the log names); or a file.
    """
    kind, _, name = text.partition(":")
    if text == "uniform":
        return np.full((len(given.log), len(given.arms)), 1 / len(given.arms))
    if text == "best-arm":
        return _best_arm(given)
    if kind == "arm" and name:
        return _always(given, np.full(len(given.log), _place(given, name)))
    if kind == "column" and name:
        return _by_column(given, name)
    if Path(text).exists():
        return matrix_of(given, Path(text))
    raise ValueError(f"policy: {text!r} is neither a known policy nor a file; pass {HOW}")


def matrix_of(given: Given, path: Path) -> Floats:
    """`[N, K]` numbers from a CSV, JSON Lines or Parquet file with one column per arm, and `row_id`.

    Without a column `row_id` the rows are those of the log's file, in its order. `DataError` names an arm
    without a column, a value that is no number, and a row that is not there.
    """
    names = column_names(path)
    lacking = [arm for arm in given.arms if arm not in names]
    if lacking:
        raise DataError(path, f"has no column for the arm {lacking[0]!r}", "give it one column per arm")
    if given.keyed and ROW_ID not in names:
        raise DataError(path, "has no column row_id", "the log's rows have ids: name the same ones in row_id")
    wanted = [*given.arms, ROW_ID] if ROW_ID in names else list(given.arms)
    raw = read_raw(path, wanted)
    if raw.faults.num_rows:
        first = raw.faults.slice(0, 1).to_pylist()[0]
        raise DataError(path, f"row {first['row']} cannot be read ({first['reason']})", "export it again")
    ids = raw.table[ROW_ID].cast(pa.string()) if ROW_ID in names else pa.array(raw.rows).cast(pa.string())
    place = pc.index_in(given.responses.table[ROW_ID], value_set=_chunkless(ids))
    if place.null_count:
        lost = given.responses.table[ROW_ID].filter(pc.is_null(place))[0].as_py()
        raise DataError(path, f"has no row for row_id {lost!r} of the log", "give it every row of the log")
    columns = [_numbers(path, raw.table[arm], arm) for arm in given.arms]
    return np.asarray(np.stack(columns, axis=1)[place.to_numpy()])


def _chunkless(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _numbers(path: Path, column: pa.ChunkedArray, arm: str) -> Floats:
    try:
        cast = column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(path, f"column {arm!r} holds no numbers ({error})", "export it again") from None
    return np.asarray(cast.to_numpy(), dtype=np.float64)


def _place(given: Given, name: str) -> int:
    if name not in given.arms:
        known = ", ".join(repr(arm) for arm in given.arms[:20])
        raise ValueError(f"policy: arm {name!r} was never logged; the arms are {known}")
    return given.arms.index(name)


def _always(given: Given, places: NDArray[np.int64]) -> Floats:
    probs = np.zeros((len(given.log), len(given.arms)))
    probs[np.arange(len(places)), places] = 1.0
    return probs


def _by_column(given: Given, name: str) -> Floats:
    if name not in given.responses.categorical:
        known = ", ".join(given.responses.categorical) or "none"
        raise ValueError(f"policy: {name!r} is not a categorical feature of the mapping; there are: {known}")
    named = given.responses.table[name].cast(pa.string())
    places = pc.index_in(named, value_set=pa.array(given.arms, pa.string()))
    if places.null_count:
        row = int(np.flatnonzero(pc.is_null(places).to_numpy())[0])
        raise ValueError(
            f"policy: column {name}, row {row} is {named[row].as_py()!r}, which is no logged arm"
        )
    return _always(given, places.to_numpy().astype(np.int64))


def _best_arm(given: Given) -> Floats:
    """Each half of the units gets the arm that was best in the other: none is judged by its own luck."""
    units = given.log.units()
    codes = np.arange(len(given.log)) if units.codes is None else units.codes
    half = np.random.default_rng(0).permutation(units.count)[codes] % 2
    places = np.zeros(len(given.log), dtype=np.int64)
    for side in (0, 1):
        rows = half != side
        log = BanditLog(given.log.action[rows], given.log.reward[rows], given.log.propensity[rows])
        everyone = np.eye(len(given.arms))
        seen = np.unique(log.action)
        means = [
            estimate(log, np.tile(everyone[arm], (len(log), 1)), estimator="snipw", interval="normal").value
            for arm in seen
        ]
        places[half == side] = seen[int(np.argmax(means))]
    return _always(given, places)


def _context(responses: ResponseTable) -> Floats | None:
    """`[N, d]` numeric features with the missing at their mean, and categorical ones as one-hot columns."""
    columns = []
    for name in responses.numeric:
        values = responses.table[name].to_numpy().astype(np.float64)
        known = np.isfinite(values)
        columns.append(np.where(known, values, values[known].mean() if known.any() else 0.0)[:, None])
    for name in responses.categorical:
        codes = responses.table[name].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)
        levels, counts = np.unique(codes, return_counts=True)
        kept = levels[np.argsort(-counts, kind="stable")[:_MOST_LEVELS]]
        columns.append((codes[:, None] == kept[1:]).astype(np.float64))
    return np.hstack(columns) if columns else None
