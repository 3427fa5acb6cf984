"""What a job leaves behind to tell what became of every row, and the manifest that makes a repeat free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qiance.data.faults import FaultCount, Reason, TableReport
from qiance.data.store import fingerprint_file
from training.preprocess.plan import FilePlan
from training.preprocess.work import read_marker

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PreprocessReport:
    """Outcome of `preprocess`.

    files: one report per input file, rows_read = accepted + quarantined; items: of the items file.
    erased: accepted events left out because their user was erased; rows: of each feature table.
    instants: of the snapshots; resumed: fragments and buckets that an earlier run had finished.
    unchanged: nothing was done, for the same input had been read with the same settings.
    """

    files: tuple[TableReport, ...]
    items: TableReport
    erased: int
    rows: dict[str, int]
    instants: tuple[datetime, ...]
    resumed: int = 0
    unchanged: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_read(self) -> int:
        return sum(file.rows_read for file in self.files)

    @property
    def accepted(self) -> int:
        return sum(file.accepted for file in self.files)

    @property
    def quarantined(self) -> int:
        return sum(file.quarantined for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "files": [file.to_dict() for file in self.files],
            "items": self.items.to_dict(),
            "instants": [instant.isoformat() for instant in self.instants],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessReport:
        """The inverse of `to_dict`."""
        given = {
            "files": tuple(TableReport.from_dict(file) for file in data["files"]),
            "items": TableReport.from_dict(data["items"]),
            "instants": tuple(datetime.fromisoformat(text) for text in data["instants"]),
        }
        return cls(**{**data, **given})


def file_report(
    plan: FilePlan, summaries: list[dict[str, Any]], repeats: int, key: Sequence[str], place: str | None
) -> TableReport:
    """The counts of one file; summaries: of its fragments, repeats: its events that had come before."""
    counts: Counter[tuple[str, str]] = Counter()
    for summary in summaries:
        counts.update({(name, reason): count for name, reason, count in summary["faults"]})
    if repeats:
        counts[("+".join(key), Reason.DUPLICATE_KEY.value)] += repeats
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    quarantined = sum(summary["quarantined"] for summary in summaries) + repeats
    accepted = sum(summary["good"] for summary in summaries) - repeats
    assert accepted + quarantined == plan.rows, "every row is accepted or quarantined"
    faults = tuple(FaultCount(name, reason, count) for (name, reason), count in ordered)
    return TableReport("events", plan.name, plan.rows, accepted, quarantined, faults, place)


def recorded(out: Path, settings: dict[str, Any]) -> PreprocessReport | None:
    """The report of an earlier run with these settings and inputs, if its files are all as it left them."""
    manifest = read_marker(out / MANIFEST)
    try:
        if manifest is None or manifest["report"]["settings"] != settings:
            return None
        if any(fingerprint_file(out / name) != sha for name, sha in manifest["files"].items()):
            return None
        return replace(PreprocessReport.from_dict(manifest["report"]), unchanged=True, resumed=0)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a manifest that cannot be trusted: do it again
