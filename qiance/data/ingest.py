"""What an ingestion leaves behind: tables, quarantine, and a manifest that makes a repeat free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from qiance.data.faults import TableReport
from qiance.data.schema import Checked
from qiance.data.store import (
    fingerprint_file,
    fingerprint_table,
    write_json,
    write_parquet,
    write_quarantine,
)

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Ingested:
    """Canonical tables by name, and what was left out of them, counted by reason."""

    dataset: str
    tables: Mapping[str, pa.Table]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Outcome of an ingestion.

    tables: one report per source table; rows: rows of each canonical table written.
    fingerprint: SHA-256 over the content of the canonical tables.
    left_out: rows that are sound but have no place in a canonical table, by reason.
    settings: reader, assumptions, and SHA-256 of each source file.
    unchanged: nothing was written, since the same sources had been read before.
    """

    dataset: str
    source: str
    tables: tuple[TableReport, ...]
    rows: dict[str, int]
    fingerprint: str
    left_out: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    unchanged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "tables": [table.to_dict() for table in self.tables]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> IngestReport:
        """The inverse of `to_dict`."""
        return cls(**{**data, "tables": tuple(TableReport.from_dict(table) for table in data["tables"])})


def recorded(out: Path, settings: Mapping[str, Any]) -> IngestReport | None:
    """The report of an earlier ingestion with these settings whose files are all still as written."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["report"]["settings"] != settings:
            return None
        if any(fingerprint_file(out / name) != sha for name, sha in manifest["files"].items()):
            return None
        return replace(IngestReport.from_dict(manifest["report"]), unchanged=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no manifest, or one that cannot be trusted: read again


def save(
    ingested: Ingested, checked: Mapping[str, Checked], out: Path, source: Path, settings: Mapping[str, Any]
) -> IngestReport:
    """Write tables and quarantine, and last the manifest that vouches for them."""
    (out / MANIFEST).unlink(missing_ok=True)
    files = []
    for name, table in ingested.tables.items():
        write_parquet(table, out / f"{name}.parquet")
        files.append(f"{name}.parquet")
    reports = []
    for name, part in checked.items():
        written = write_quarantine(part.faults, out / QUARANTINE, name)
        place = f"{QUARANTINE}/{name}.csv" if written else None
        files += [place] if place else []
        reports.append(part.report(name, str(source / f"{name}.parquet"), place))
    prints = {name: fingerprint_table(table) for name, table in ingested.tables.items()}
    report = IngestReport(
        dataset=ingested.dataset,
        source=str(source),
        tables=tuple(reports),
        rows={name: table.num_rows for name, table in ingested.tables.items()},
        fingerprint=fingerprint_all(prints),
        left_out=dict(ingested.left_out),
        settings=dict(settings),
    )
    hashes = {name: fingerprint_file(out / name) for name in files}
    write_json({"files": hashes, "report": report.to_dict()}, out / MANIFEST)
    return report


def fingerprint_all(prints: Mapping[str, str]) -> str:
    """One SHA-256 over named fingerprints, whatever their order."""
    text = "\n".join(f"{name} {value}" for name, value in sorted(prints.items()))
    return hashlib.sha256(text.encode()).hexdigest()
