"""The whole job: plan, check, features of each bucket, finish; every step goes on where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from qiance.data.errors import DataError
from qiance.data.faults import TableReport
from qiance.data.items import read_items
from qiance.data.mapping import Mapping
from qiance.data.roles import MappingKind
from qiance.data.store import fingerprint_file, write_json, write_quarantine
from qiance.features.events import DAY_US, ItemTable
from training.preprocess.buckets import BucketJob, save_items
from training.preprocess.check import CheckJob, refuse_file
from training.preprocess.erased import Drop
from training.preprocess.finish import FinishJob, finish_order, write_faults
from training.preprocess.plan import FilePlan, Planner, fingerprint
from training.preprocess.report import MANIFEST, PreprocessReport, file_report, recorded
from training.preprocess.streaming import Stream, streaming
from training.preprocess.tables import TABLES, instants, moment
from training.preprocess.work import CODE, Work, digest, read_marker

QUARANTINE = "quarantine"
WORK = ".work"
FRAGMENT_BYTES = 8 << 20
BUCKET_ROWS = 200_000
MAX_INSTANTS = 2_000
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".pq")
Progress = Callable[[float, str], None]
# Where each step begins and ends on the bar, by what they take of the time.
_READ, _PLAN, _CHECK, _BUCKETS, _FINISH = (0.0, 0.03), (0.03, 0.08), (0.08, 0.68), (0.68, 0.94), (0.94, 1.0)


def preprocess(
    source: Path,
    mapping: Mapping,
    items: Path,
    out: Path,
    *,
    every: int = 28,
    since: datetime | None = None,
    drop: Drop | None = None,
    workers: int | None = None,
    address: str | None = None,
    keep: bool = False,
    fragment_bytes: int = FRAGMENT_BYTES,
    bucket_rows: int = BUCKET_ROWS,
    progress: Progress | None = None,
) -> PreprocessReport:
    """Feature tables under `out`/data from the event files `source` (a file or a folder), see docs/data.md.

    every: days between snapshots; since: no snapshot before it. drop: events that are left out, such as
    `ErasedBefore`. workers, address: see `streaming`. keep: leave the checked events in `out`/.work, so that
    another file in the folder costs only its own check; they are the users' raw events.
    fragment_bytes and bucket_rows bound what a worker holds; a single user's events must fit in memory.
    Stopped at any point, the next call goes on with what is finished. `DataError` for a file that is refused.
    """
    if mapping.kind is not MappingKind.EVENTS:
        raise ValueError(f"mapping: kind is {mapping.kind.value}; features are built from kind: events")
    for name, value in (("every", every), ("fragment_bytes", fragment_bytes), ("bucket_rows", bucket_rows)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    out = out.resolve()
    if source.is_dir() and out.is_relative_to(source.resolve()):
        raise ValueError(f"out: {out} is inside the folder of events; its tables would be read as events")
    work = Work(out / WORK)
    with work.locked(), streaming(workers, address) as stream:
        shelf = read_items(items)
        place = f"{QUARANTINE}/items.csv" if shelf.checked.faults.num_rows else None
        report = shelf.checked.report("items", items.name, place)
        settings = {"every": every, "since": since and since.isoformat(), "drop": drop and drop.fingerprint}
        run = _Run(source, mapping, shelf.items, report, out, work, stream, settings, progress or _silent)
        done = run.go(drop, since, fragment_bytes, bucket_rows, fingerprint_file(items))
        write_quarantine(shelf.checked.faults, out / QUARANTINE, "items")
    if not keep:
        shutil.rmtree(work.root, ignore_errors=True)
    return done


def _silent(_fraction: float, _what: str) -> None:
    return None


@dataclass(frozen=True)
class _Run:
    source: Path
    mapping: Mapping
    items: ItemTable
    items_report: TableReport
    out: Path
    work: Work
    stream: Stream
    settings: dict[str, Any]
    tell: Progress

    def go(
        self,
        drop: Drop | None,
        since: datetime | None,
        fragment_bytes: int,
        bucket_rows: int,
        items_print: str,
    ) -> PreprocessReport:
        planner = Planner(self.work, self.mapping, fragment_bytes)
        files = self._fingerprints()
        settings = {
            "reader": f"preprocess/{CODE}",
            "mapping": self.mapping.model_dump(mode="json"),
            "items": items_print,
            "sources": {name: sha for name, _, sha in files},
            "sizes": [fragment_bytes, bucket_rows],
            **self.settings,
        }
        if (before := recorded(self.out, settings)) is not None:
            self.tell(1.0, "already read")
            return before
        (self.out / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.out / QUARANTINE, ignore_errors=True)
        plans = self._plan(planner, files)
        buckets = num_buckets(sum(plan.rows for plan in plans), bucket_rows)
        # The plan has what the fragments hold; the rest of what their sections depend on is here.
        key = digest(CODE, self.mapping.model_dump(mode="json"), buckets, self.settings["drop"])
        check = CheckJob(plans, self.mapping, self.work.checked(key), buckets, drop)
        summaries, resumed = self._check(planner, check)
        job, found, again = self._buckets(check, since, items_print)
        report = self._finish(plans, summaries, job, found)
        report = replace(report, settings=settings, resumed=resumed + again)
        files = [f"data/{name}.parquet" for name in TABLES]
        files += [file.quarantine for file in report.files if file.quarantine]
        prints = {name: fingerprint_file(self.out / name) for name in files}
        write_json({"files": prints, "report": report.to_dict()}, self.out / MANIFEST)
        self.tell(1.0, "done")
        return report

    def _fingerprints(self) -> list[list[str]]:
        """Name, path and SHA-256 of each file, in order."""
        base = self.source if self.source.is_dir() else self.source.parent
        pieces = [(name, str((base / name).resolve())) for name in list_files(self.source)]
        return sorted(self._steps(fingerprint, pieces, _READ, "reading files"))

    def _plan(self, planner: Planner, files: list[list[str]]) -> tuple[FilePlan, ...]:
        made = self._steps(planner, files, _PLAN, "cutting files")
        return tuple(sorted(map(FilePlan.from_dict, made), key=lambda plan: plan.name))

    def _check(self, planner: Planner, job: CheckJob) -> tuple[list[list[dict[str, Any]]], int]:
        """What came of each fragment of each file, and how many had been checked before."""
        job.folder.mkdir(parents=True, exist_ok=True)
        pieces = [(f, n) for f, plan in enumerate(job.plans) for n in range(len(plan.fragments))]
        todo = [piece for piece in pieces if not self._marker(job, piece).is_file()]
        lost = {
            (job.plans[f].name, job.plans[f].source, job.plans[f].fingerprint)
            for f, n in todo
            if not Path(job.plans[f].fragments[n].path).is_file()
        }
        if lost:  # unpacked copies that an earlier run removed
            list(self.stream(replace(planner, again=True), sorted(lost)))
        for _ in self._steps(job, todo, _CHECK, "checking rows"):
            pass
        summaries: list[list[dict[str, Any]]] = [[] for _ in job.plans]
        for piece in pieces:
            marker = read_marker(self._marker(job, piece))
            assert marker is not None, "a checked fragment has a marker"
            summaries[piece[0]].append(marker)
        for plan, found in zip(job.plans, summaries, strict=True):
            refuse_file(plan, job.wanted, found)
        shutil.rmtree(self.work.unpacked, ignore_errors=True)
        return summaries, len(pieces) - len(todo)

    def _marker(self, job: CheckJob, piece: Sequence[int]) -> Path:
        return job.folder / f"{job.plans[piece[0]].fragments[piece[1]].name}.json"

    def _buckets(
        self, check: CheckJob, since: datetime | None, items_print: str
    ) -> tuple[BucketJob, list[dict[str, Any]], int]:
        """Parts of every bucket. The instants follow from the events without repeats, which the first pass
        finds: where a repeat alone had stretched the range, the parts are made again for the right one.
        """
        days = self._days(check, since)
        while True:
            job = self._bucket_job(check, days, items_print)
            todo = [b for b in range(job.num_buckets) if not (job.folder / f"{b:06d}.json").is_file()]
            for _ in self._steps(job, todo, _BUCKETS, "computing features"):
                pass
            found = [read_marker(job.folder / f"{b:06d}.json") or {} for b in range(job.num_buckets)]
            right = self._range(found, since)
            if right == job.days:
                self.work.keep_only(check.folder, job.folder)
                return job, found, job.num_buckets - len(todo)
            days = right

    def _bucket_job(self, check: CheckJob, days: tuple[float, ...], items_print: str) -> BucketJob:
        fragments = tuple((f.name, n) for n, plan in enumerate(check.plans) for f in plan.fragments)
        folder = self.work.parts(digest(check.folder.name, fragments, days, items_print))
        folder.mkdir(parents=True, exist_ok=True)
        items = folder / "items.parquet"
        if not items.is_file():
            save_items(self.items, items)
        names = tuple(plan.name for plan in check.plans)
        key = self.mapping.key or ("event_id",)
        return BucketJob(check.folder, fragments, names, key, items, days, check.num_buckets, folder)

    def _days(self, check: CheckJob, since: datetime | None) -> tuple[float, ...]:
        """Instants of what the fragments hold, repeats included."""
        found = [
            read_marker(self._marker(check, (f, n))) or {}
            for f, plan in enumerate(check.plans)
            for n in range(len(plan.fragments))
        ]
        return self._range(found, since)

    def _range(self, found: list[dict[str, Any]], since: datetime | None) -> tuple[float, ...]:
        first = [part["first"] for part in found if part["first"] is not None]
        last = [part["last"] for part in found if part["last"] is not None]
        if not first:
            raise DataError(
                self.source, "has no purchase", "map columns.type, or set constants.type: purchase"
            )
        days = instants(min(first), max(last), self.settings["every"])
        if since is not None:
            start = since.timestamp() * 1e6 / DAY_US
            days = [day for day in days if day >= start]
        if not 0 < len(days) <= MAX_INSTANTS:
            span = f"{moment(min(first)):%Y-%m-%d} to {moment(max(last)):%Y-%m-%d}"
            remedy = "set --every or --since" if days else "set --since to an earlier day"
            raise DataError(self.source, f"has purchases from {span}: {len(days)} snapshots", remedy)
        return tuple(days)

    def _finish(
        self,
        plans: tuple[FilePlan, ...],
        summaries: list[list[dict[str, Any]]],
        job: BucketJob,
        found: list[dict[str, Any]],
    ) -> PreprocessReport:
        market = tuple(tuple(tuple(sums) for sums in part["market"]) for part in found)
        finish = FinishJob(job.folder, job.num_buckets, job.days, job.items, market, self.out / "data")
        rows: dict[str, int] = {}
        for made in self._steps(finish, finish_order(), _FINISH, "writing tables"):
            rows.update(made)
        repeats = np.sum([part["repeats"] for part in found], axis=0).tolist()
        reports = []
        for number, plan in enumerate(plans):
            name = f"{QUARANTINE}/{plan.name.replace('/', '__')}.csv"
            fragments = [fragment.name for fragment in plan.fragments]
            written = write_faults(
                self.out / name, job.checked, fragments, job.folder, job.num_buckets, number
            )
            place = name if written else None
            reports.append(file_report(plan, summaries[number], repeats[number], job.key, place))
        erased = sum(summary["erased"] for parts in summaries for summary in parts)
        moments = tuple(moment(day) for day in job.days)
        return PreprocessReport(tuple(reports), self.items_report, erased, rows, moments)

    def _steps(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], span: tuple[float, float], what: str
    ) -> Iterator[Any]:
        start, end = span
        self.tell(start, what)
        for number, made in enumerate(self.stream(work, pieces), 1):
            self.tell(start + (end - start) * number / len(pieces), f"{what}: {number} of {len(pieces)}")
            yield made


def list_files(source: Path) -> list[str]:
    """Names of the event files below a folder, in order, or of the file itself; `DataError` if none."""
    if not source.is_dir():
        return [source.name]
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    wanted = [
        p for p in paths if (Path(p.stem).suffix if p.suffix == ".gz" else p.suffix).lower() in SUFFIXES
    ]
    names = [p.as_posix() for p in wanted if not any(part.startswith((".", "_")) for part in p.parts)]
    if not names:
        raise DataError(source, "holds no event file", f"put files there that end in {', '.join(SUFFIXES)}")
    return names


def num_buckets(rows: int, bucket_rows: int) -> int:
    """Buckets of at most about `bucket_rows` events: a power of 2, so that it rarely changes as logs grow."""
    return 1 << max(-(-rows // bucket_rows) - 1, 0).bit_length()
