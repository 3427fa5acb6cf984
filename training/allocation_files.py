"""Offers in files that do not fit into memory: spread by user on disk, then allocated over Ray Data.

1. Pieces of the files are checked, each by itself, and their rows go into buckets by user.
2. Each bucket becomes a file with a row per user (`qiance.allocate.offers.batch_of`).
3. `allocate_dataset` searches the prices over these, and one more pass writes the choices.

Between the steps there are files, in a folder beside the output, which the nodes of a cluster must see.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from qiance.allocate.ask import Tally, check_named, chosen_rows, limits_of
from qiance.allocate.limits import Budget
from qiance.allocate.memory import Tell
from qiance.allocate.offers import (
    KEY,
    Batch,
    Catalogue,
    batch_of,
    columns_of,
    in_words_of_the_spec,
    typed_rows,
    users_of,
)
from qiance.allocate.spec import AllocationSpec
from qiance.allocate.writing import ChoiceWriter
from qiance.data.errors import DataError
from qiance.data.files import FileFormat, format_of
from qiance.data.schema import RawTable
from qiance.data.tabular import parquet_columns, require_columns
from training.allocation import ChunkedAllocation, Rows, allocate_dataset
from training.preprocess.streaming import Stream, streaming

PIECE_ROWS, BUCKET_ROWS, GROUP_ROWS = 2_000_000, 2_000_000, 65_536
_CSV_BYTES = 40  # of a row, to guess how many there are
_OFFER = " of offer "
_SHIFT = 2**32  # keys of a bucket begin at its number times this
# Where each step begins and ends on the bar, by what they take of the time.
_SPREAD, _WIDE, _SEARCH, _WRITE = (0.0, 0.2), (0.2, 0.35), (0.35, 0.9), (0.9, 1.0)


def allocate_files(
    source: Path,
    spec: AllocationSpec,
    out: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    tell: Tell | None = None,
    bucket_rows: int = BUCKET_ROWS,
    batch_rows: int | None = None,
) -> tuple[ChunkedAllocation, Tally]:
    """Allocate the offers in `source`, a CSV or Parquet file or a folder of them, and write the choices.

    workers: CPUs of Ray where it is started here; address: of a running cluster. bucket_rows: rows that are
    sorted at a time; batch_rows: users that are allocated at a time, None: those of a block. ValueError,
    `DataError` and InfeasibleError as in memory; a frequency cap is refused.
    """
    told = tell or (lambda _share, _text: None)
    if spec.frequency_cap is not None:
        raise ValueError(
            "frequency_cap: cannot be kept with --distributed, where rows of a user may lie in two batches; "
            "leave it out, or allocate in memory"
        )
    files, kind = _files(source, spec)
    with _scratch(out) as folder, streaming(workers, address) as stream:
        buckets = max(sum(_rows_in(path) for path in files) // bucket_rows, 1)
        spread = _Spread(spec, str(folder), buckets)
        pieces = [piece for path in files for piece in _pieces(path)]
        pieces = [{**piece, "number": number} for number, piece in enumerate(pieces)]
        parts = list(_step(stream, spread, pieces, _SPREAD, "reading", told))
        catalogue = Catalogue.joined([Catalogue.from_plain(part) for part in parts])
        check_named(spec, catalogue)
        numbers = sorted({int(path.name) for path in (folder / "rows").iterdir()})
        wide = _Wide(spec, catalogue, str(folder))
        list(_step(stream, wide, numbers, _WIDE, "sorting by user", told))
        return _allocate(folder, spec, catalogue, users_of(kind), out, batch_rows, told)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.resolve().parent) as folder:
        yield Path(folder)


def _step(
    stream: Stream, work: Any, pieces: list[Any], span: tuple[float, float], what: str, tell: Tell
) -> Iterator[Any]:
    begin, end = span
    for number, made in enumerate(stream(work, pieces), 1):
        tell(begin + (end - begin) * number / len(pieces), f"{what}: {number} of {len(pieces)}")
        yield made


def _files(source: Path, spec: AllocationSpec) -> tuple[list[Path], Any]:
    """The files, and the type of their users; `DataError` where they cannot be used."""
    if not source.exists():
        raise DataError(source, "does not exist", "pass the path of a CSV or Parquet file, or of a folder")
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name[0] not in "._")
        if not files:
            raise DataError(source, "holds no files", "pass a folder with CSV or Parquet files")
    kinds = {str(kind): kind for kind in [_users_in(path, spec) for path in files]}
    if len(kinds) > 1:
        raise DataError(source, f"has users of several types: {', '.join(kinds)}", "write them all as one")
    return files, next(iter(kinds.values()))


def _users_in(path: Path, spec: AllocationSpec) -> Any:
    wanted = [column.source for column in columns_of(spec)]
    try:
        if _is_parquet(path, spec):
            schema = pq.read_schema(path)
            parquet_columns(path, schema, wanted)
            return schema.field(spec.columns.user).type
        with _csv(path, spec, wanted) as reader:
            require_columns(path, reader.schema.names, wanted)
    except DataError as error:
        raise in_words_of_the_spec(error) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from None
    return pa.string()


def _broken(path: Path, error: Exception) -> DataError:
    said = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return DataError(path, f"cannot be read ({said})", "write it again, or correct file in the spec")


def _is_parquet(path: Path, spec: AllocationSpec) -> bool:
    found = format_of(path, spec.file.format)
    if found is FileFormat.JSONL:
        raise DataError(path, "is JSON lines, which --distributed does not read", "write it as Parquet")
    return found is FileFormat.PARQUET


def _csv(path: Path, spec: AllocationSpec, wanted: list[str]) -> Any:
    return pacsv.open_csv(
        path,
        read_options=pacsv.ReadOptions(block_size=16 << 20, encoding=spec.file.encoding),
        parse_options=pacsv.ParseOptions(delimiter=spec.file.delimiter),
        convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string())),
    )


def _rows_in(path: Path) -> int:
    """About how many rows."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowException:
        return path.stat().st_size // _CSV_BYTES


def _pieces(path: Path) -> list[dict[str, Any]]:
    """Row groups of a Parquet file, some together; a CSV file is one piece."""
    try:
        found = pq.read_metadata(path)
    except pa.ArrowException:
        return [{"path": str(path), "groups": None, "first": 1}]
    pieces, groups, rows, first, after = list[dict[str, Any]](), list[int](), 0, 1, 1
    for group in range(found.num_row_groups):
        groups.append(group)
        rows += found.row_group(group).num_rows
        after += found.row_group(group).num_rows
        if rows >= PIECE_ROWS or group == found.num_row_groups - 1:
            pieces.append({"path": str(path), "groups": groups, "first": first})
            groups, rows, first = [], 0, after
    return pieces


@dataclass(frozen=True)
class _Spread:
    """Checks a piece and writes its rows into buckets; what it returns is its catalogue."""

    spec: AllocationSpec
    folder: str
    buckets: int

    def __call__(self, piece: dict[str, Any]) -> dict[str, Any]:
        path, writers = Path(piece["path"]), dict[int, Any]()
        found = list[Catalogue]()
        # The same name when Ray runs a piece again whose process died.
        name = f"{piece['number']}.parquet"
        try:
            for table in self._tables(path, piece):
                found.append(Catalogue.of(table, self.spec))
                self._write(table, writers, name)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _broken(path, error) from None
        finally:
            for writer in writers.values():
                writer.close()
        if not found:
            raise DataError(path, "has no rows", "leave the file out, or export it again")
        return Catalogue.joined(found).plain()

    def _tables(self, path: Path, piece: dict[str, Any]) -> Iterator[pa.Table]:
        wanted = list(dict.fromkeys(column.source for column in columns_of(self.spec)))
        first = piece["first"]
        if piece["groups"] is None:
            reader = _csv(path, self.spec, wanted)
            batches = (batch.select(wanted) for batch in reader)
        else:
            batches = pq.ParquetFile(path).iter_batches(
                batch_size=500_000, row_groups=piece["groups"], columns=wanted
            )
        for batch in batches:
            if batch.num_rows:
                raw = RawTable.of(pa.Table.from_batches([batch])).starting_at(first)
                yield typed_rows(raw, self.spec, path)
                first += batch.num_rows

    def _write(self, table: pa.Table, writers: dict[int, Any], name: str) -> None:
        users = table["user"].to_numpy()
        bucket = (pd.util.hash_array(users, categorize=True) % self.buckets).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self.buckets + 1))
        for number in np.unique(bucket).tolist():
            part = table.take(pa.array(order[ends[number] : ends[number + 1]]))
            if number not in writers:
                place = Path(self.folder) / "rows" / str(number)
                place.mkdir(parents=True, exist_ok=True)
                writers[number] = pq.ParquetWriter(place / name, part.schema, compression="zstd")
            writers[number].write_table(part)


@dataclass(frozen=True)
class _Wide:
    """Makes a row per user of a bucket; what it returns is how many."""

    spec: AllocationSpec
    catalogue: Catalogue
    folder: str

    def __call__(self, number: int) -> int:
        place, wide = Path(self.folder) / "rows" / str(number), Path(self.folder) / "wide"
        path, part = wide / f"{number}.parquet", wide / f".{number}.part"
        if path.exists():  # by a process that died before it could say so
            return int(pq.read_metadata(path).num_rows)
        wide.mkdir(exist_ok=True)
        table = pa.concat_tables(pq.read_table(path) for path in sorted(place.iterdir()))
        batch = batch_of(table.unify_dictionaries(), self.spec, self.catalogue, number * _SHIFT)
        pq.write_table(pa.table(_flat(batch)), part, compression="zstd", row_group_size=GROUP_ROWS)
        part.replace(path)
        shutil.rmtree(place, ignore_errors=True)
        return len(batch[KEY])


def _flat(batch: Batch) -> Batch:
    """A column per offer instead of matrices, which Ray Data reads as objects."""
    columns = {name: values for name, values in batch.items() if values.ndim == 1}
    for name, values in batch.items():
        if values.ndim == 2:
            columns |= {f"{name}{_OFFER}{place}": values[:, place] for place in range(values.shape[1])}
    return columns


def _matrices(columns: Batch) -> Batch:
    """The inverse of `_flat`."""
    batch, parts = Batch(), dict[str, list[np.ndarray]]()
    for name, values in columns.items():
        matrix, found, _ = name.rpartition(_OFFER)
        if found:
            parts.setdefault(matrix, []).append(values)
        else:
            batch[name] = values
    return batch | {name: np.stack(values, axis=1) for name, values in parts.items()}


def _allocate(
    folder: Path,
    spec: AllocationSpec,
    catalogue: Catalogue,
    users: Any,
    out: Path,
    batch_rows: int | None,
    tell: Tell,
) -> tuple[ChunkedAllocation, Tally]:
    import ray

    dataset = ray.data.read_parquet(str(folder / "wide"))
    begin, end = _SEARCH

    def to_rows(columns: Batch) -> Rows:
        batch = _matrices(columns)
        limits = [Budget(batch["cost"], spec.budget), *limits_of(spec, catalogue, batch)]
        return Rows(batch["value"], limits, batch["admissible"])

    found = allocate_dataset(
        dataset.drop_columns(["user"]),
        to_rows,
        KEY,
        batch_rows,
        lambda share, text: tell(begin + (end - begin) * share, text),
    )

    def choose(columns: Batch) -> pa.Table:
        return chosen_rows(catalogue, _matrices(columns), found.choose(columns), users)

    tally, rows = Tally(), dataset.count()
    chosen = dataset.map_batches(choose, batch_format="numpy", batch_size=batch_rows)
    with ChoiceWriter(out) as writer:
        for table in chosen.iter_batches(batch_format="pyarrow", batch_size=None):
            writer.write(table)
            tally.add(table)
            tell(_WRITE[0] + (_WRITE[1] - _WRITE[0]) * tally.rows / rows, f"writing {tally.rows:,} choices")
    return found, tally
