"""The batch job on Ray Data: a source table of any size to a feature table, the same here and on a cluster.

1. Ray Data reads the source and prepares contents; rows are spread over buckets by digest, so that equal
   contents meet in one bucket and are embedded once.
2. An actor that has loaded the model once embeds bucket after bucket and writes each result as a finished
   part. A run that was cut off computes only the parts that are missing.
3. Buckets and parts are combined into the feature table.

Memory: one bucket per worker, and one vector per entity in step 3. On a cluster the features folder must be
one that every node sees.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.combine import Combiner
from training.embed.content import check_columns, contents, source_columns
from training.embed.local import Places, Report, Tell, finish, recipe_of
from training.embed.parts import Recipe, distinct, embed_part, part_name, write_whole
from training.embed.weights import ModelUnavailableError

ROWS_PER_PART = 2_048
MAX_PARTS = 1_024
_BATCH = 8_192
_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".jsonl": "read_json", ".json": "read_json"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of some digests, as an Arrow stream file; name: of the finished part that belongs to it."""

    path: Path
    name: str
    distinct: int


def run_job(
    source: Path,
    spec: EmbeddingSpec,
    out: Path,
    as_of: Sequence[datetime],
    *,
    sentiment: Path | None = None,
    progress: Tell | None = None,
) -> Report:
    """Embed the table at `source` (Parquet, CSV or JSON lines; a file or folder) on the running Ray.

    The arguments are those of `training.embed.local.embed_table`; relative paths of images and audio start
    at the source's folder. Raises RuntimeError when Ray is not running.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("Ray is not running: call ray.init before the job, or use embed_table")
    started = time.monotonic()
    tell = progress or (lambda _done, _what: None)
    recipe, places = recipe_of(spec, sentiment), Places(out.resolve(), spec.name)
    combiner = Combiner(spec, as_of)
    places.work.mkdir(parents=True, exist_ok=True)
    rows_folder = Path(tempfile.mkdtemp(prefix="rows-", dir=places.work))
    try:
        tell(0.0, "reading the source")
        rows, kept, buckets = _spread(source, recipe, rows_folder, tell)
        missing = [bucket for bucket in buckets if not _part(places, bucket).exists()]
        _embed(missing, recipe, places, lambda done, what: tell(0.1 + 0.8 * done, what))
        tell(0.9, "combining")
        for bucket in buckets:
            combiner.add(_read_bucket(bucket.path), pq.read_table(_part(places, bucket)))
        counts = Report(
            places.table,
            rows,
            kept,
            sum(bucket.distinct for bucket in buckets),
            sum(bucket.distinct for bucket in missing),
            0,
            0,
            0,
            started,
        )
        return finish(combiner, places, [_part(places, bucket) for bucket in buckets], counts)
    finally:
        shutil.rmtree(rows_folder, ignore_errors=True)


def _part(places: Places, bucket: Bucket) -> Path:
    return places.work / "parts" / bucket.name


def read_source(source: Path, spec: EmbeddingSpec) -> Any:
    """The source as a Ray Dataset of the wanted columns; ValueError names what is missing."""
    import ray.data

    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    if not files or not source.exists():
        raise ValueError(f"source: {str(source)!r} is not there or empty; pass a file or a folder of files")
    reader = _READERS.get(files[0].suffix.lower())
    if reader is None:
        raise ValueError(f"source: {files[0].name!r} is none of {', '.join(_READERS)}; convert it to Parquet")
    if reader == "read_parquet":
        check_columns(pq.read_schema(files[0]), spec)
        return ray.data.read_parquet(str(source), columns=source_columns(spec))
    options = {"lines": True} if reader == "read_json" else {}
    return getattr(ray.data, reader)(str(source), **options)


def _spread(source: Path, recipe: Recipe, folder: Path, tell: Tell) -> tuple[int, int, list[Bucket]]:
    """Rows read, rows with content, and the buckets that those lie in."""
    spec, base = recipe.spec, (source if source.is_dir() else source.parent).resolve()

    def prepare(table: pa.Table) -> pa.Table:
        ready = contents(table, spec, base)
        bucket = np.array([int.from_bytes(d[:4], "big") % MAX_PARTS for d in ready["digest"].to_pylist()])
        ready = ready.append_column("bucket", pa.array(bucket.astype(np.int32)))
        # The first row carries the number read, so that rows without content are counted too.
        read = np.zeros(max(ready.num_rows, 1), dtype=np.int64)
        read[0] = table.num_rows
        if ready.num_rows == 0:
            ready = pa.table(
                {name: pa.nulls(1, ready.schema.field(name).type) for name in ready.column_names}
            )
        return ready.append_column("read", pa.array(read))

    with _PlainErrors():
        data = read_source(source, spec)
        total = data.count()
        count = _number_of_parts(total)
        seen = kept = 0
        with ExitStack() as stack:
            files = _Files(folder, stack)
            prepared = data.map_batches(
                prepare, batch_format="pyarrow", batch_size=_BATCH, zero_copy_batch=True
            )
            for batch in prepared.iter_batches(batch_format="pyarrow", batch_size=None):
                seen += int(np.sum(batch["read"].to_numpy()))
                kept += files.write(batch, count)
                tell(0.1 * seen / max(total, 1), f"{seen:,} of {total:,} rows read")
    fingerprint = recipe.fingerprint()
    return seen, kept, [_bucket(path, fingerprint) for path in sorted(folder.glob("*.arrow"))]


def _number_of_parts(rows: int) -> int:
    """A power of two: parts stay the same when some rows are added."""
    wanted = max(1, math.ceil(rows / ROWS_PER_PART))
    return min(MAX_PARTS, 1 << (wanted - 1).bit_length())


class _Files:
    """One Arrow stream file per bucket, opened when its first row comes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._writers: dict[int, Any] = {}

    def write(self, batch: pa.Table, count: int) -> int:
        """Append each row to its bucket; the number of rows that had content."""
        valid = batch.filter(batch["bucket"].is_valid())
        number = valid["bucket"].to_numpy().astype(np.int64) % count
        rows = valid.select(["key", "at", "digest", "content"])
        for bucket in np.unique(number).tolist():
            part = rows.filter(pa.array(number == bucket))
            self._writer(bucket, part.schema).write_table(part)
        return int(valid.num_rows)

    def _writer(self, bucket: int, schema: pa.Schema) -> Any:
        if bucket not in self._writers:
            path = self._folder / f"{bucket:04d}.arrow"
            self._writers[bucket] = self._stack.enter_context(pa.ipc.new_stream(str(path), schema))
        return self._writers[bucket]


def _read_bucket(path: Path) -> pa.Table:
    with pa.ipc.open_stream(str(path)) as stream:
        return stream.read_all()


def _bucket(path: Path, fingerprint: str) -> Bucket:
    unique = distinct(_read_bucket(path))
    return Bucket(path, part_name(fingerprint, unique["digest"]), unique.num_rows)


class PartActor:
    """Holds the model and turns buckets into finished parts; the model is loaded with the first one."""

    def __init__(self, recipe: Recipe, folder: str) -> None:
        self._recipe, self._folder = recipe, Path(folder)
        self._loaded: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._loaded is None:
            import torch

            torch.set_num_threads(max(1, int(self._recipe.spec.compute.cpus)))
            self._loaded = self._recipe.load()
        done = []
        for path, name in zip(batch["path"].tolist(), batch["name"].tolist(), strict=True):
            part = distinct(_read_bucket(Path(path)))
            write_whole(embed_part(part, *self._loaded), self._folder / name)
            done.append(part.num_rows)
        return {"distinct": np.array(done)}


def _embed(missing: Sequence[Bucket], recipe: Recipe, places: Places, tell: Tell) -> None:
    """Compute the missing parts on actors; each is on disk as soon as it is done."""
    import ray.data

    if not missing:
        return
    compute = recipe.spec.compute
    items = [{"path": str(bucket.path), "name": bucket.name} for bucket in missing]
    total, done = sum(bucket.distinct for bucket in missing), 0
    (places.work / "parts").mkdir(exist_ok=True)
    with _PlainErrors():
        parts = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PartActor,
            fn_constructor_args=(recipe, str(places.work / "parts")),
            batch_size=1,
            num_cpus=compute.cpus,
            num_gpus=compute.gpus,
            compute=ray.data.ActorPoolStrategy(size=min(compute.workers, len(items))),
        )
        tell(0.0, "loading the model")
        for row in parts.iter_rows():
            done += int(row["distinct"])
            tell(done / total, f"{done:,} of {total:,} embedded")


class _PlainErrors:
    """Lets what was wrong with the data or the model through Ray's wrappers."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        for cause in _causes(error):
            if type(cause) in (ValueError, ModelUnavailableError):
                raise type(cause)(*cause.args) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
