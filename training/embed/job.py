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

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from qiance.artifacts.encoder_weights import ModelUnavailableError
from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.combine import Combiner
from training.embed.local import Places, Report, Tell, finish, recipe_of
from training.embed.parts import Recipe, distinct, embed_part, part_name, write_whole
from training.embed.spread import quiet_data, read_bucket, spread


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
        with quiet_data():
            tell(0.0, "reading the source")
            rows, kept, files = spread(source, spec, rows_folder, lambda done, what: tell(0.1 * done, what))
            buckets = [_bucket(path, recipe.fingerprint()) for path in files]
            missing = [bucket for bucket in buckets if not _part(places, bucket).exists()]
            _embed(missing, recipe, places, lambda done, what: tell(0.1 + 0.8 * done, what))
        tell(0.9, "combining")
        for bucket in buckets:
            combiner.add(read_bucket(bucket.path), pq.read_table(_part(places, bucket)))
        different, computed = (sum(b.distinct for b in some) for some in (buckets, missing))
        counts = Report(places.table, rows, kept, different, computed, 0, 0, 0, started)
        return finish(combiner, places, [_part(places, bucket) for bucket in buckets], counts)
    finally:
        shutil.rmtree(rows_folder, ignore_errors=True)


def _bucket(path: Path, fingerprint: str) -> Bucket:
    unique = distinct(read_bucket(path))
    return Bucket(path, part_name(fingerprint, unique["digest"]), unique.num_rows)


def _part(places: Places, bucket: Bucket) -> Path:
    return places.work / "parts" / bucket.name


class PartActor:
    """Holds the model and turns buckets into finished parts; the model is loaded with the first one.

    What is wrong with model or YAML comes back as data: Ray would wrap an exception beyond recognition.
    """

    def __init__(self, recipe: Recipe, folder: str) -> None:
        self._recipe, self._folder = recipe, Path(folder)
        self._loaded: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One bucket: path and name in, number of distinct contents out."""
        done, wrong, weights = 0, "", False
        try:
            done = self._embed(Path(batch["path"][0]), str(batch["name"][0]))
        except (ValueError, ModelUnavailableError) as error:
            wrong, weights = str(error), isinstance(error, ModelUnavailableError)
        return {"distinct": np.array([done]), "wrong": np.array([wrong]), "weights": np.array([weights])}

    def _embed(self, path: Path, name: str) -> int:
        if self._loaded is None:
            import torch

            torch.set_num_threads(max(1, int(self._recipe.spec.compute.cpus)))
            self._loaded = self._recipe.load()
        part = distinct(read_bucket(path))
        write_whole(embed_part(part, *self._loaded), self._folder / name)
        return part.num_rows


def _embed(missing: Sequence[Bucket], recipe: Recipe, places: Places, tell: Tell) -> None:
    """Compute the missing parts on actors; each is on disk as soon as it is done."""
    import ray.data

    if not missing:
        return
    compute = recipe.spec.compute
    items = [{"path": str(bucket.path), "name": bucket.name} for bucket in missing]
    total, done = sum(bucket.distinct for bucket in missing), 0
    (places.work / "parts").mkdir(exist_ok=True)
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
        if row["wrong"]:
            raise (ModelUnavailableError if row["weights"] else ValueError)(row["wrong"])
        done += int(row["distinct"])
        tell(done / total, f"{done:,} of {total:,} embedded")
