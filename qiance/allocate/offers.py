"""A table of offers, a row per user and offer, as the allocator takes it: checked, then as matrices.

`typed_rows` checks a table, `Catalogue` says what the rows name, and `batch_of` spreads them: a row of the
problem is a user, or a user on a day, and a column an offer; column 0 is doing nothing. All of them work on
parts of a table too, so that one that is too large for memory goes the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.allocate.spec import AllocationSpec
from qiance.data.convert import Column, Kind
from qiance.data.errors import DataError
from qiance.data.faults import Reason
from qiance.data.schema import RawTable, check_table
from qiance.data.tabular import read_raw

Batch = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]
ROW, FILE = "row", "file"  # where a row was read
KEY = "key"
_DETAIL = (Reason.MISSING, Reason.NOT_A_NUMBER, Reason.TOO_LONG, Reason.BROKEN_LINE)


def read_rows(path: Path, spec: AllocationSpec) -> tuple[pa.Table, Any]:
    """The typed rows of a file, and the type of its column of users; `DataError` for what cannot be used."""
    wanted = list(dict.fromkeys(column.source for column in columns_of(spec)))
    try:
        raw = read_raw(path, wanted, spec.file.text())
    except DataError as error:
        raise in_words_of_the_spec(error) from None
    return typed_rows(raw, spec, path), raw.table.schema.field(spec.columns.user).type


def users_of(kind: Any) -> Any:
    """The type that users are written with: whole numbers stay such, all else is text."""
    return kind if pa.types.is_integer(kind) else pa.string()


def in_words_of_the_spec(error: DataError) -> DataError:
    """Readers of files name the mapping, which has the same keys."""
    return DataError(error.source, error.problem, error.remedy.replace("in the mapping", "in the spec"))


def columns_of(spec: AllocationSpec) -> list[Column]:
    """How each column that the spec needs is read."""
    names, decimal = spec.columns, spec.file.decimal

    def text(name: str, source: str, required: bool = True) -> Column:
        return Column(name, source, Kind.STRING, required)

    def number(name: str, source: str, least: float | None = None) -> Column:
        return Column(name, source, Kind.NUMBER, minimum=least, decimal=decimal)

    found = [text("user", names.user), text("offer", names.offer)]
    found += [number("value", names.value), number("cost", names.cost, 0.0)]
    if names.day is not None:
        found.append(text("day", names.day))
    for one in spec.budgets:
        found.append(number(cost_of(one.name), one.cost or names.cost, 0.0))
        if one.column is not None:
            found.append(text(_filter_of(one.name), one.column, required=False))
    found += [text(segment(column), column) for column in spec.segments()]
    if spec.stock is not None and spec.stock.column is not None:
        found.append(text("stock", spec.stock.column))
    if spec.margin_floor is not None:
        found += [number("margin", spec.margin_floor.margin), number("sales", spec.margin_floor.sales)]
    if spec.depth_fairness is not None and spec.depth_fairness.depth is not None:
        found.append(number("depth", spec.depth_fairness.depth, 0.0))
    if spec.frequency_cap is not None:
        found.append(text("person", spec.frequency_cap.column or names.user))
    return found


def cost_of(budget: str) -> str:
    """Name of the cost of a further budget in a batch."""
    return f"cost of {budget}"


def segment(column: str) -> str:
    """Name of a segment column in a batch."""
    return f"segment {column}"


def _filter_of(budget: str) -> str:
    return f"rows of {budget}"


def typed_rows(raw: RawTable, spec: AllocationSpec, path: Path | str) -> pa.Table:
    """Typed columns, with the place of each row; `DataError` names the first row that is wrong."""
    columns = columns_of(spec)
    checked = check_table(raw, columns)
    if checked.faults.num_rows:
        first = checked.faults.slice(0, 1).to_pylist()[0]
        others = len(pc.unique(checked.faults["row"])) - 1
        raise DataError(path, _said(first, others), "correct it in the file, or leave the row out")
    table = checked.table
    for one in spec.budgets:
        if one.column is not None:
            mine = pc.fill_null(
                pc.is_in(table[_filter_of(one.name)], pa.array(one.values, pa.string())), False
            )
            cost = pc.if_else(mine, table[cost_of(one.name)], 0.0)
            table = table.drop_columns([_filter_of(one.name), cost_of(one.name)])
            table = table.append_column(cost_of(one.name), cost)
    table = table.append_column(ROW, pa.array(checked.rows))
    table = table.append_column(FILE, pa.repeat(pa.scalar(str(path)), table.num_rows).dictionary_encode())
    _refuse_dear_control(table, spec)
    return table


def _said(fault: dict[str, Any], others: int) -> str:
    reason = str(fault["reason"])
    words = reason.replace("_", " ")
    if reason == Reason.BELOW_MINIMUM:
        words = "is below 0"
    elif fault["detail"] and reason in _DETAIL:
        words = f"{words} ({fault['detail']})"
    more = f" ({others:,} rows more have mistakes)" if others else ""
    return f"row {fault['row']}, column {fault['field']}: {fault['value']!r}: {words}{more}"


def _refuse_dear_control(table: pa.Table, spec: AllocationSpec) -> None:
    costs = ["cost", *(cost_of(one.name) for one in spec.budgets)]
    control = pc.equal(table["offer"], spec.control)
    for name in costs:
        dear = _bools(pc.and_(control, pc.greater(table[name], 0.0)))
        if dear.any():
            row = int(np.flatnonzero(dear)[0])
            problem = f"{spec.control!r} means doing nothing, and its {name} is {table[name][row].as_py():g}"
            raise refused(table, row, problem, "make it 0, or set control to another name")


def refused(table: pa.Table, row: int, problem: str, remedy: str) -> DataError:
    """What is wrong in a row of typed rows, with its place in the file."""
    return DataError(table[FILE][row].as_py(), f"row {table[ROW][row].as_py()}: {problem}", remedy)


@dataclass(frozen=True)
class Catalogue:
    """What rows name, each sorted. segments: by column; stock, depth: of each offer, where rows say it."""

    offers: tuple[str, ...]
    days: tuple[str, ...] = ()
    segments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stock: dict[str, str] = field(default_factory=dict)
    depth: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, spec: AllocationSpec) -> Catalogue:
        """Of typed rows; `DataError` where an offer has two stocks or depths."""
        names = table.column_names
        return cls(
            offers=tuple(one for one in _values(table["offer"]) if one != spec.control),
            days=_values(table["day"]) if "day" in names else (),
            segments={column: _values(table[segment(column)]) for column in spec.segments()},
            stock=_by_offer(table, "stock", spec) if "stock" in names else {},
            depth=_by_offer(table, "depth", spec) if "depth" in names else {},
        )

    @classmethod
    def joined(cls, parts: Sequence[Catalogue]) -> Catalogue:
        """Of all parts of a table; `DataError` where an offer has two stocks or depths."""
        return cls(
            offers=_union(part.offers for part in parts),
            days=_union(part.days for part in parts),
            segments={
                column: _union(part.segments[column] for part in parts) for column in parts[0].segments
            },
            stock=_agreed("stock", [part.stock for part in parts]),
            depth=_agreed("depth", [part.depth for part in parts]),
        )

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Catalogue:
        """From what `plain` gave."""
        lists = {name: tuple(plain[name]) for name in ("offers", "days")}
        segments = {column: tuple(values) for column, values in plain["segments"].items()}
        return cls(**lists, segments=segments, stock=plain["stock"], depth=plain["depth"])


def _values(column: Any) -> tuple[str, ...]:
    return tuple(sorted(pc.unique(column).to_pylist()))


def _union(parts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({one for part in parts for one in part}))


def _by_offer(table: pa.Table, name: str, spec: AllocationSpec) -> dict[str, Any]:
    """What each offer's rows say, all of them the same; doing nothing has neither stock nor depth."""
    offers = table["offer"].combine_chunks().dictionary_encode()
    codes, named = offers.indices.to_numpy(), offers.dictionary.to_pylist()
    said, first = table[name].to_numpy(), _firsts(codes.astype(np.int64), len(named))
    other = np.flatnonzero((said != said[first[codes]]) & _bools(pc.not_equal(table["offer"], spec.control)))
    if other.size:
        row, before = int(other[0]), int(first[codes[other[0]]])
        problem = (
            f"offer {named[codes[row]]!r} has {name} {said[row]} here and {said[before]} in row "
            f"{table[ROW][before].as_py()}"
        )
        raise refused(table, row, problem, "give an offer one of them")
    found = dict(zip(named, said[first].tolist(), strict=True))
    return {one: of for one, of in found.items() if one != spec.control}


def _firsts(codes: Ints, count: int) -> Ints:
    """`[count]` where each code comes first."""
    first = np.zeros(count, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def _agreed(name: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for part in parts:
        for offer, said in part.items():
            if joined.setdefault(offer, said) != said:
                problem = f"offer {offer!r} has {name} {said} in some rows and {joined[offer]} in others"
                raise DataError("the data", problem, "give an offer one of them")
    return joined


def batch_of(table: pa.Table, spec: AllocationSpec, catalogue: Catalogue, first_key: int = 0) -> Batch:
    """Typed rows as matrices `[U, A]` and vectors `[U]`.

    key: from `first_key`. user: text. day: number in the catalogue. value, cost, costs of further budgets,
    margin and sales: matrices, 0 where there is no row. admissible: where there is one, and column 0. segment
    columns: numbers in the catalogue. person: who shares the cap.
    `DataError` for an offer that a user has twice, and for a user of two segments.
    """
    users = table["user"].combine_chunks().dictionary_encode()
    slot, first = _slots(table, users, catalogue)
    count, actions = len(first), len(catalogue.offers) + 1
    offer = pc.fill_null(pc.index_in(table["offer"], pa.array(catalogue.offers, pa.string())), -1)
    place = slot * actions + offer.to_numpy().astype(np.int64) + 1
    there = np.zeros(count * actions, dtype=np.bool_)
    there[place] = True
    if np.count_nonzero(there) < len(place):
        raise _repeated(table, place)
    admissible = there.reshape(count, actions)
    admissible[:, 0] = True
    batch: Batch = {KEY: np.arange(first_key, first_key + count, dtype=np.int64), "admissible": admissible}
    batch["user"] = table["user"].take(pa.array(first)).to_numpy()
    matrices = ["value", "cost", *(cost_of(one.name) for one in spec.budgets)]
    matrices += [] if spec.margin_floor is None else ["margin", "sales"]
    for name in matrices:
        spread = np.zeros(count * actions)
        spread[place] = table[name].to_numpy()
        batch[name] = spread.reshape(count, actions)
    if "day" in table.column_names:
        batch["day"] = _numbers(table["day"], catalogue.days)[first]
    for column in spec.segments():
        numbers = _numbers(table[segment(column)], catalogue.segments[column])
        batch[segment(column)] = _same(table, slot, first, numbers, segment(column))
    if spec.frequency_cap is not None:
        people = table["person"].combine_chunks().dictionary_encode()
        batch["person"] = _same(table, slot, first, people.indices.to_numpy().astype(np.int64), "person")
    return batch


def _slots(table: pa.Table, users: Any, catalogue: Catalogue) -> tuple[Ints, Ints]:
    """Row of the problem of each row, and the first row of each: users as they come, their days in order."""
    codes = users.indices.to_numpy().astype(np.int64)
    if "day" in table.column_names:
        codes = codes * len(catalogue.days) + _numbers(table["day"], catalogue.days)
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    return codes, _firsts(codes, int(codes.max()) + 1)


def _numbers(column: Any, values: Sequence[str]) -> Ints:
    numbers: Ints = pc.index_in(column, pa.array(values, pa.string())).to_numpy().astype(np.int64)
    return numbers


def _same(table: pa.Table, slot: Ints, first: Ints, numbers: Ints, name: str) -> Ints:
    """`[U]` what all rows of a user say; `DataError` names a user whose rows differ."""
    own = numbers[first]
    other = np.flatnonzero(own[slot] != numbers)
    if other.size:
        row, before = int(other[0]), int(first[slot[other[0]]])
        problem = (
            f"{name} of user {table['user'][row].as_py()!r} is {table[name][row].as_py()!r} here and "
            f"{table[name][before].as_py()!r} in row {table[ROW][before].as_py()}"
        )
        raise refused(table, row, problem, "give all rows of a user the same")
    return own


def _repeated(table: pa.Table, place: Ints) -> DataError:
    order = np.argsort(place, kind="stable")
    again = order[1:][np.diff(place[order]) == 0]
    row = int(again.min())
    before = int(np.flatnonzero(place == place[row])[0])
    day = f" on day {table['day'][row].as_py()!r}" if "day" in table.column_names else ""
    problem = (
        f"user {table['user'][row].as_py()!r} has offer {table['offer'][row].as_py()!r}{day} twice, first in "
        f"row {table[ROW][before].as_py()}"
    )
    hint = "" if day else ", or set columns.day if there is an offer per day"
    return refused(table, row, problem, f"keep one of them{hint}")


def _bools(condition: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = condition.combine_chunks().to_numpy(zero_copy_only=False)
    return found
