"""A dry run over a file: what would be accepted, what quarantined, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qiance.data.faults import TableReport
from qiance.data.mapped import Progress, check_mapped
from qiance.data.mapping import Mapping
from qiance.data.store import write_quarantine

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Outcome of `check_file`.

    table: the counts; faults: every quarantined value, see `FAULT_SCHEMA`.
    """

    table: TableReport
    faults: pa.Table

    @property
    def clean(self) -> bool:
        return self.table.quarantined == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the first faults as examples."""
        return {**self.table.to_dict(), "examples": self.faults.slice(0, EXAMPLES).to_pylist()}


def check_file(
    file: Path, mapping: Mapping, *, quarantine: Path | None = None, progress: Progress | None = None
) -> CheckReport:
    """Check every row of `file` against `mapping` and build nothing.

    quarantine: folder for `<file name>.csv` with the faults. `DataError` if the file is not what it says.
    """
    checked = check_mapped(file, mapping, progress)
    place = write_quarantine(checked.faults, quarantine, file.name) if quarantine else None
    return CheckReport(checked.report(mapping.kind.value, str(file), place), checked.faults)


def render_report(report: CheckReport, console: Console) -> None:
    """The summary that `qiance data check` prints."""
    counts = report.table
    console.print(Text(f"{counts.source} as {counts.table}", style="bold"))
    console.print(
        f"{counts.rows_read:,} rows read, {counts.accepted:,} accepted, {counts.quarantined:,} quarantined"
    )
    if report.clean:
        return
    reasons = Table("field", "reason", "values", title="Why", title_justify="left")
    for fault in counts.faults:
        reasons.add_row(Text(fault.field), fault.reason, f"{fault.count:,}")
    console.print(reasons)
    examples = Table("row", "field", "value", "reason", "detail", title="First faults", title_justify="left")
    for fault in report.faults.slice(0, EXAMPLES).to_pylist():
        cells = (str(fault[name]) for name in ("row", "field", "value", "reason", "detail"))
        examples.add_row(*(Text(cell) for cell in cells))
    console.print(examples)
    if counts.quarantine:
        console.print(Text(f"quarantined rows are in {counts.quarantine}"))
