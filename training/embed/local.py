"""Embedding a table in this process, for some thousand rows; the job on Ray Data shares its steps."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qiance.artifacts.encoder_weights import resolve
from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.combine import Combiner
from training.embed.content import contents
from training.embed.parts import Recipe, distinct, embed_part, part_name, write_whole

Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    table: file written; rows: of the source; with_content: of them; distinct: different contents;
    embedded: of them computed now, the others came from finished parts; undated: rows left out for want
    of a time; bad: rows whose content cannot be read, listed in `quarantine`; lines: of the table.
    """

    table: Path
    rows: int
    with_content: int
    distinct: int
    embedded: int
    undated: int
    bad: int
    lines: int
    seconds: float
    quarantine: Path | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of one embedding lie under the features folder `out`."""

    out: Path
    name: str

    @property
    def table(self) -> Path:
        return self.out / "data" / f"{self.name}.parquet"

    @property
    def work(self) -> Path:
        """Finished parts, kept so that a run goes on where another was cut off."""
        return self.out / "embed" / self.name

    @property
    def quarantine(self) -> Path:
        return self.work / "quarantine.csv"


def recipe_of(spec: EmbeddingSpec, sentiment: Path | None) -> Recipe:
    """Weights found and checked; ValueError where the scores and the sentiment artifact do not agree."""
    if spec.scores and sentiment is None:
        raise ValueError(
            f"{spec.name}.scores: {list(spec.scores)} need a sentiment artifact; run `qiance embeddings "
            f"fit-sentiment --name {spec.name}` on labelled reviews and pass it as --sentiment"
        )
    return Recipe(spec, resolve(spec.model), sentiment if spec.scores else None)


def embed_table(
    table: pa.Table,
    spec: EmbeddingSpec,
    out: Path,
    as_of: datetime | Sequence[datetime],
    *,
    sentiment: Path | None = None,
    base: Path = Path(),
    progress: Tell | None = None,
) -> Report:
    """Embed `table` here and write `out/data/NAME.parquet`.

    as_of: instants with an offset; the table gets a line per entity and instant. sentiment: artifact, where
    `spec.scores` are asked for. base: where relative paths of images and audio start.
    Raises ValueError for what is wrong with source or YAML, ModelUnavailableError for the weights.
    """
    started = time.monotonic()
    tell = progress or (lambda _done, _what: None)
    tell(0.0, "loading the model")
    recipe, places = recipe_of(spec, sentiment), Places(out, spec.name)
    combiner = Combiner(spec, [as_of] if isinstance(as_of, datetime) else as_of)
    rows = contents(table, spec, base)
    unique = distinct(rows)
    path = places.work / "parts" / part_name(recipe.fingerprint(), unique["digest"])
    embedded = 0 if path.exists() else unique.num_rows
    if embedded or not path.exists():
        encoder, scorer = recipe.load()
        write_whole(embed_part(unique, encoder, scorer, lambda d, w: tell(0.1 + 0.8 * d, w)), path)
    part = pq.read_table(path)
    combiner.add(rows, part)
    tell(0.95, "writing the table")
    counts = Report(places.table, table.num_rows, rows.num_rows, unique.num_rows, embedded, 0, 0, 0, started)
    return finish(combiner, places, [path], counts)


def embed_items(
    features: Path,
    items: pa.Table,
    spec: EmbeddingSpec,
    as_of: datetime | Sequence[datetime],
    progress: Tell | None = None,
) -> Report:
    """The catalogue's embeddings for the features folder of a run; see `embed_table`."""
    return embed_table(items, spec, features, as_of, progress=progress)


def finish(combiner: Combiner, places: Places, parts: Sequence[Path], counts: Report) -> Report:
    """Write table and quarantine, drop parts of earlier runs; `counts.seconds` holds when it started."""
    table = combiner.table(datetime.now(UTC))
    write_whole(table, places.table)
    bad = len(combiner.bad)
    _write_quarantine(places.quarantine, combiner.spec.source_key, combiner.bad)
    kept = {path.name for path in parts}
    for path in (places.work / "parts").glob("part-*.parquet"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    return replace(
        counts,
        undated=combiner.undated,
        bad=bad,
        lines=table.num_rows,
        seconds=time.monotonic() - counts.seconds,
        quarantine=places.quarantine if bad else None,
    )


def _write_quarantine(path: Path, key: str, bad: Sequence[tuple[str, str]]) -> None:
    """A CSV of every row whose content could not be read; no file when there are none."""
    path.unlink(missing_ok=True)
    if bad:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([(key, "reason"), *sorted(bad)])
