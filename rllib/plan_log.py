"""The log of a running policy in a planning environment: a row per episode and day, as Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qiance.data.errors import DataError
from rllib.lockstep import Floats, Floats32
from rllib.tasks import Task

Ints = NDArray[np.int64]
EPISODE, DAY, OBSERVATION, DIALS = "episode", "day", "observation", "dials"
PROPENSITY, REWARD, DONE = "propensity", "reward", "done"
COLUMNS = (EPISODE, DAY, OBSERVATION, DIALS, PROPENSITY, REWARD, DONE)
# Of the file, if it was written here: the environment, and how widely the policy explored.
_ENVIRONMENT, _EXPLORE = b"environment", b"explore"
_NEAR = 1e-4  # what an observation may lie outside its space, by rounding


@dataclass(frozen=True, slots=True, eq=False)
class PlanningLog:
    """n episodes of at most T days; what lies beyond `length` is 0 (propensity: 1).

    episode: `[n]` names. observation: `[n, T, d]`, as the environment shows it. dials: `[n, T, k]` numbers as
    drawn, or `[n, T]` choices. propensity: `[n, T]` density of the numbers or probability of the choice.
    reward: `[n, T]`, the environment's unit. length: `[n]` days. explore: as of `rllib.explore.Exploring`,
    None if not known.
    """

    episode: NDArray[Any]
    observation: Floats32
    dials: Floats | Ints
    propensity: Floats
    reward: Floats
    length: Ints
    explore: float | None = None

    def __len__(self) -> int:
        return len(self.episode)

    def take(self, rows: Ints) -> PlanningLog:
        """These episodes."""
        names = ("episode", "observation", "dials", "propensity", "reward", "length")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def inside(self) -> NDArray[np.bool_]:
        """`[n, T]` whether the episode still ran."""
        return np.asarray(np.arange(self.reward.shape[1]) < self.length[:, None])


def write_log(path: Path, log: PlanningLog, task: Task) -> Path:
    """Write `log` to the Parquet file `path`, rows by episode and day, and return it."""
    inside = log.inside()
    rows, days = np.nonzero(inside)
    dials = log.dials[inside]
    columns = {
        EPISODE: pa.array(log.episode[rows].astype(str)),
        DAY: pa.array(days),
        OBSERVATION: _lists(log.observation[inside]),
        DIALS: pa.array(dials) if dials.ndim == 1 else _lists(dials),
        PROPENSITY: pa.array(log.propensity[inside]),
        REWARD: pa.array(log.reward[inside]),
        DONE: pa.array(days == log.length[rows] - 1),
    }
    said = {_ENVIRONMENT: task.name.encode()}
    said |= {} if log.explore is None else {_EXPLORE: str(log.explore).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(said), path, compression="zstd")
    return path


def read_log(path: Path, task: Task) -> PlanningLog:
    """Read a Parquet file, or a folder of them, with the columns `COLUMNS`, rows in any order.

    Episodes must be whole: days 0, 1, …, of which the last and no other is `done`. `DataError` names the
    column, the row (from 0) and the value that is wrong.
    """
    table = _table(path)
    said = table.schema.metadata or {}
    name = said.get(_ENVIRONMENT, task.name.encode()).decode()
    if name != task.name:
        raise DataError(path, f"is a log of the environment {name!r}", f"{task.name!r} needs its own")
    env = task.make(1)
    seen = _matrix(path, table, OBSERVATION, int(np.prod(env.single_observation_space.shape)))
    space = env.single_observation_space
    assert isinstance(space, gymnasium.spaces.Box)
    outside = (seen < space.low - _NEAR) | (seen > space.high + _NEAR)
    _refuse(path, OBSERVATION, seen, outside, "lies outside the environment's space; see its docstring")
    dials, propensity = _dials(path, table, task), _numbers(path, table, PROPENSITY)
    most = 1.0 if dials.ndim == 1 else np.inf
    wrong = (propensity <= 0) | (propensity > most)
    _refuse(path, PROPENSITY, propensity, wrong, "must be above 0, and a probability at most 1")
    values = {OBSERVATION: seen.astype(np.float32), DIALS: dials, PROPENSITY: propensity}
    values[REWARD] = _numbers(path, table, REWARD)
    return _episodes(path, table, values, float(said[_EXPLORE]) if _EXPLORE in said else None)


def _table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(path, "does not exist", "make one with `qiance train planning-log`") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"cannot be read as Parquet ({error})", "export it again") from None
    for name in COLUMNS:
        if name not in table.column_names:
            raise DataError(path, f"has no column {name!r}", f"give it the columns {', '.join(COLUMNS)}")
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise DataError(path, f"{name}: row {row} is missing", "fill it, or leave its episode out")
    if not table.num_rows:
        raise DataError(path, "has no rows", "export it again with at least one episode")
    return table


def _episodes(
    path: Path, table: pa.Table, values: Mapping[str, NDArray[Any]], explore: float | None
) -> PlanningLog:
    """Rows as arrays by episode and day."""
    names, code = np.unique(table[EPISODE].cast(pa.string()).to_numpy().astype(str), return_inverse=True)
    day, done = _whole(path, table, DAY), _flags(path, table, DONE)
    length = np.bincount(code)
    order = np.lexsort((day, code))
    within = np.arange(len(code)) - np.repeat(np.cumsum(length) - length, length)
    place = np.empty_like(within)
    place[order] = within
    _refuse(path, DAY, day, day != place, "must be 0, 1, … in each episode, every day once")
    last = day == length[code] - 1
    _refuse(path, DONE, done, done != last, "must be true on the last day of an episode and on no other")

    def spread(name: str, rest: float) -> NDArray[Any]:
        value = values[name]
        found = np.full((len(names), int(length.max()), *value.shape[1:]), rest, dtype=value.dtype)
        found[code, day] = value
        return found

    arrays = [spread(name, float(name == PROPENSITY)) for name in (OBSERVATION, DIALS, PROPENSITY, REWARD)]
    return PlanningLog(names, *arrays, length=length, explore=explore)


def _dials(path: Path, table: pa.Table, task: Task) -> Floats | Ints:
    if isinstance(task.dials, gymnasium.spaces.Box):
        return _matrix(path, table, DIALS, task.dials.shape[0])
    found, most = _whole(path, table, DIALS), int(task.dials.n) - 1
    _refuse(path, DIALS, found, (found < 0) | (found > most), f"must be a choice, 0 to {most}")
    return found


def _matrix(path: Path, table: pa.Table, name: str, width: int) -> Floats:
    """`[rows, width]` of a column of lists."""
    column = table[name].combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        raise DataError(path, f"{name}: is {column.type}", f"must be a list of {width} numbers in each row")
    lengths = pc.list_value_length(column).to_numpy()
    _refuse(path, name, lengths, lengths != width, f"numbers; the environment has {width}")
    flat = _cast(path, column.flatten(), name, pa.float64()).to_numpy(zero_copy_only=False)
    found = flat.reshape(-1, width)
    _refuse(path, name, found, ~np.isfinite(found), "must be finite")
    return np.asarray(found)


def _numbers(path: Path, table: pa.Table, name: str) -> Floats:
    found = _cast(path, table[name], name, pa.float64()).to_numpy()
    _refuse(path, name, found, ~np.isfinite(found), "must be finite")
    return np.asarray(found)


def _whole(path: Path, table: pa.Table, name: str) -> Ints:
    return np.asarray(_cast(path, table[name], name, pa.int64()).to_numpy())


def _flags(path: Path, table: pa.Table, name: str) -> NDArray[np.bool_]:
    return np.asarray(_cast(path, table[name], name, pa.bool_()).to_numpy())


def _cast(path: Path, values: Any, name: str, kind: pa.DataType) -> Any:
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(path, f"{name}: cannot be read as {kind} ({error})", "export it again") from None


def _refuse(path: Path, name: str, values: NDArray[Any], bad: NDArray[np.bool_], must: str) -> None:
    """`DataError` for the first True of `bad`."""
    if not bad.any():
        return
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"row {place[0]}" + (f", number {place[1]}" if len(place) > 1 else "")
    rows = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    more = f" (and {rows - 1} more rows)" if rows > 1 else ""
    raise DataError(path, f"{name}: {where} is {values[place]}{more}", must)


def _lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
