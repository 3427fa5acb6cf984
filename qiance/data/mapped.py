"""A shop's own file, read by a mapping into the events table or a response table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qiance.data.convert import ARROW_TYPES, Kind, mask
from qiance.data.errors import DataError
from qiance.data.faults import Reason, TableReport
from qiance.data.mapping import Mapping
from qiance.data.purchases import PurchaseLog, purchases_of
from qiance.data.responses import ResponseTable
from qiance.data.roles import ROLES, MappingKind
from qiance.data.schema import Checked, RawTable, check_table, join_key, put_aside
from qiance.data.store import fingerprint_table, write_quarantine
from qiance.data.tabular import read_raw

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction that is done, in [0, 1]."""

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("type", pa.string()),
        ("quantity", pa.int64()),
        ("value", pa.int64()),
        ("discount", pa.int64()),
        ("coupon", pa.int64()),
        ("occurred_at", ARROW_TYPES[Kind.TIMESTAMP]),
        ("basket_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class MappedResult:
    """What a file became: `events` (see `EVENT_SCHEMA`) or `responses`, and the report.

    purchases: by user and day, of a file of purchases or of events.

    faults: every quarantined value, see `FAULT_SCHEMA`.
    """

    report: TableReport
    faults: pa.Table
    events: pa.Table | None = None
    responses: ResponseTable | None = None
    purchases: PurchaseLog | None = None


def check_mapped(file: Path, mapping: Mapping, progress: Progress | None = None) -> Checked:
    """Read `file` and check every row; `DataError` if it is not what it says."""
    tell = progress or (lambda _what, _done: None)
    schema = mapping.checks()
    wanted = tuple(dict.fromkeys(column.source for column in schema))
    tell(f"reading {file.name}", 0.0)
    raw: RawTable = read_raw(file, wanted, mapping.file.text_options())
    tell(f"checking {raw.num_rows} rows", 0.5)
    key = mapping.key or tuple(name for name in ("event_id", "row_id") if name in mapping.columns)
    checked = check_table(raw, schema, key)
    shares = mapping.constants.get("propensity")
    if isinstance(shares, dict):
        known = mask(pc.is_in(checked.table["arm"], value_set=pa.array(list(shares), pa.string())))
        arms = checked.table["arm"]
        detail = "constants.propensity names: " + ", ".join(shares)
        checked = put_aside(checked, ~known, mapping.columns["arm"].column, arms, Reason.NOT_ALLOWED, detail)
    tell("checked", 1.0)
    return checked


def read_mapped(
    file: Path,
    mapping: Mapping,
    *,
    quarantine: Path | None = None,
    progress: Progress | None = None,
    outcomes: bool = True,
) -> MappedResult:
    """Read `file` by `mapping`.

    outcomes: False reads rows whose outcome is to be predicted: no label is read, and any arms will do.
    quarantine: folder for `<file name>.csv` with row, field, value, reason of every bad value; rows are
    never dropped in silence, so without a folder the faults are still in the result and its report.
    A file without one good row is refused with `DataError`.
    """
    if not outcomes:
        known = {name: spec for name, spec in mapping.columns.items() if name != "converted_at"}
        update = {"columns": known, "labels": {}, "control": None, "arm_cost": {}, "log_end": None}
        mapping = mapping.model_copy(update=update)
    checked = check_mapped(file, mapping, progress)
    place = write_quarantine(checked.faults, quarantine, file.name) if quarantine else None
    report = checked.report(mapping.kind.value, str(file), place)
    if not checked.table.num_rows:
        first = checked.faults.slice(0, 1).to_pylist()[0]
        problem = (
            f"all of its {report.rows_read} rows have faults (first: {first['field']} {first['reason']})"
        )
        raise DataError(file, problem, "correct the mapping: `qiance data check` lists the faults")
    if mapping.kind is MappingKind.EVENTS:
        events = events_of(checked, mapping)
        bought = purchases_of(events.filter(pc.equal(events["type"], "purchase")), mapping, str(file))
        return MappedResult(report, checked.faults, events=events, purchases=bought)
    if mapping.kind is MappingKind.PURCHASES:
        bought = purchases_of(checked.table, mapping, str(file))
        return MappedResult(report, checked.faults, purchases=bought)
    return MappedResult(
        report, checked.faults, responses=_responses(file, checked, mapping, report, outcomes)
    )


def events_of(checked: Checked, mapping: Mapping) -> pa.Table:
    """The accepted rows as `EVENT_SCHEMA`, defaults filled in."""
    table, size = checked.table, checked.table.num_rows
    constants = {"type": "purchase", "quantity": 1, "discount": 0, "coupon": 0, **mapping.constants}
    event_id = join_key(table, mapping.key or ("event_id",))

    def column(name: str) -> Any:
        if name not in table.column_names:
            return event_id if name == "basket_id" else pa.repeat(constants[name], size)
        values = table[name].combine_chunks()
        default = event_id if name == "basket_id" else ROLES[MappingKind.EVENTS][name].if_missing
        return values if default is None else pc.coalesce(values, default)

    columns = {name: event_id if name == "event_id" else column(name) for name in EVENT_SCHEMA.names}
    return pa.table(columns).cast(EVENT_SCHEMA)


def _responses(
    file: Path, checked: Checked, mapping: Mapping, report: TableReport, compared: bool
) -> ResponseTable:
    table = checked.table
    row_id = table["row_id"] if "row_id" in table.column_names else pa.array(checked.rows).cast(pa.string())
    unit_id = table["unit_id"] if "unit_id" in table.column_names else row_id
    names = [name for name in ("occurred_at", "converted_at") if name in table.column_names]
    names += [*mapping.features.numeric, *mapping.features.categorical, *mapping.labels]
    columns = {"row_id": row_id, "unit_id": unit_id}
    if "arm" in table.column_names:
        columns |= {"arm": table["arm"], "propensity": _propensity(table, mapping)}
    columns |= {name: _feature(table[name], name, mapping) for name in names}
    full = pa.table(columns)
    arms = sort_arms(pc.unique(full["arm"]).to_pylist()) if "arm" in columns else ()
    if compared:
        _check_arms(file, mapping, arms)
    return ResponseTable(
        name=mapping.name,
        table=full,
        numeric=tuple(mapping.features.numeric),
        categorical=tuple(mapping.features.categorical),
        labels=tuple(name for name in ("click", "conversion", "sales") if name in mapping.labels),
        arms=arms,
        control_arm=mapping.control,
        arm_cost={arm: mapping.arm_cost.get(arm, 0) for arm in arms},
        currency=mapping.currency,
        randomised=mapping.randomised,
        log_end=mapping.log_end,
        report=report,
        fingerprint=fingerprint_table(full),
    )


def _feature(column: Any, name: str, mapping: Mapping) -> Any:
    if name in mapping.features.numeric:
        return column.cast(pa.float64())
    return pc.fill_null(column, 0) if name == "sales" else column


def _propensity(table: pa.Table, mapping: Mapping) -> Any:
    if "propensity" in table.column_names:
        return table["propensity"]
    constant = mapping.constants.get("propensity")
    if constant is None:
        return pa.nulls(table.num_rows, pa.float64())
    if not isinstance(constant, dict):
        return pa.array(np.full(table.num_rows, float(constant)))
    index = pc.index_in(table["arm"], value_set=pa.array(list(constant), pa.string()))
    return pc.take(pa.array([float(share) for share in constant.values()]), index)


def sort_arms(arms: list[str]) -> tuple[str, ...]:
    """Arms in a fixed order: as numbers if all are whole numbers, else by the alphabet."""
    if all(arm.isascii() and arm.isdigit() for arm in arms):
        return tuple(sorted(arms, key=lambda arm: (int(arm), arm)))
    return tuple(sorted(arms))


def _check_arms(file: Path, mapping: Mapping, arms: tuple[str, ...]) -> None:
    found = ", ".join(repr(arm) for arm in arms[:20])
    if len(arms) == 1:
        raise DataError(
            file,
            f"has only the arm {found}",
            "a comparison needs at least two arms; leave columns.arm out to predict alone",
        )
    if mapping.control is not None and mapping.control not in arms:
        raise DataError(file, f"has no arm {mapping.control!r}", f"set control to one of {found}")
    unknown = [arm for arm in mapping.arm_cost if arm not in arms]
    if unknown:
        raise DataError(file, f"has no arm {unknown[0]!r}", f"correct arm_cost; the arms are {found}")
