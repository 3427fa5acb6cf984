"""`qiance embeddings`: compute the declared embedding features, and fit review sentiment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from qiance.features.embedding_spec import EmbeddingSpec, find_embedding, load_embeddings

DECLARED = Path(__file__).resolve().parents[2] / "feature_repo" / "embeddings.yaml"
# From here on the batch job on Ray Data pays for the start of Ray.
SMALL_BYTES = 8 << 20

app = typer.Typer(
    help="Embeddings of text, images and audio, and review sentiment, as feature tables.",
    no_args_is_help=True,
)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML of the declared embeddings.", show_default=False)
]
SourceOption = Annotated[
    Path, typer.Option("--source", "-s", help="Table with the declared columns: Parquet, CSV, JSON lines.")
]
NameOption = Annotated[str, typer.Option("--name", "-n", help="Which of the declared embeddings.")]


@app.callback()
def embeddings() -> None:
    """Embeddings of text, images and audio, and review sentiment, as feature tables."""


@app.command("list")
def list_declared(config: ConfigOption = DECLARED) -> None:
    """Show the declared embeddings: view, entity, columns, model and size."""
    from rich.console import Console
    from rich.table import Column, Table

    heads = ("name", "entity", "modality", "columns", "model", "dimension", "scores")
    table = Table(*(Column(head, overflow="fold") for head in heads), box=None)
    for spec in load_embeddings(config):
        columns, scores = ", ".join(spec.columns), ", ".join(spec.scores)
        row = (spec.name, spec.entity, spec.modality, columns, spec.model, str(spec.dimension), scores)
        table.add_row(*row)
    Console().print(table)


@app.command()
def run(
    source: SourceOption,
    name: NameOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Features folder; writes data/NAME.parquet in it.")
    ],
    config: ConfigOption = DECLARED,
    as_of: Annotated[
        list[str] | None,
        typer.Option(
            "--as-of", help="Instant with offset, e.g. 2025-01-31T00:00:00+00:00; repeatable (default: now)."
        ),
    ] = None,
    sentiment: Annotated[
        Path | None, typer.Option(help="Sentiment artifact, where the embedding declares scores.")
    ] = None,
    on_ray: Annotated[
        bool | None,
        typer.Option("--ray/--in-process", help="Where it runs (default: Ray Data for sources over 8 MiB)."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to use instead of one of our own.")
    ] = None,
) -> None:
    """Compute one declared embedding for the table SOURCE.

    A run that was cut off goes on from its finished parts. Rows after --as-of do not count for it.
    """
    spec, instants = find_embedding(load_embeddings(config), name), _instants(as_of)
    on_cluster = _is_large(source) if on_ray is None else on_ray
    report = _with_bar(
        f"embedding {name}",
        lambda tell: (_on_ray if on_cluster else _here)(
            source, spec, out, instants, sentiment, tell, address
        ),
    )
    typer.echo(
        f"{report.rows:,} rows, {report.rows - report.with_content:,} without content, {report.distinct:,} "
        f"different contents, {report.embedded:,} of them embedded now"
    )
    if report.undated:
        typer.echo(f"{report.undated:,} rows have no time and were left out")
    if report.bad:
        typer.echo(f"{report.bad:,} rows cannot be read: {report.quarantine}")
    typer.echo(f"{report.lines:,} lines in {report.table} after {report.seconds:.1f} s")


@app.command("fit-sentiment")
def fit(
    source: SourceOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that artifacts are kept in.")],
    name: NameOption = "item_reviews",
    config: ConfigOption = DECLARED,
    limit: Annotated[int, typer.Option(min=100, help="Fit on at most so many reviews, at random.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Seed of that choice.")] = 0,
) -> None:
    """Fit review sentiment on labelled reviews (roles.recommended or roles.rating of the YAML)."""
    from training.embed.reviews import fit_on_reviews

    spec = find_embedding(load_embeddings(config), name)
    table = _table(source)
    artifact = _with_bar(
        "fitting sentiment", lambda tell: fit_on_reviews(table, spec, out, limit, seed, progress=tell)
    )
    found = artifact.manifest.metrics
    typer.echo(
        f"{found['reviews']:,.0f} reviews, {found['positive']:.1%} positive; held out by product: "
        f"AUC {found['auc_blend']:.4f} (words alone {found['auc_words']:.4f}), log loss "
        f"{found['log_loss_blend']:.4f} ({found['log_loss_words']:.4f})"
    )
    typer.echo(str(artifact.path))


def _with_bar(what: str, work: Callable[[Callable[[float, str], None]], Any]) -> Any:
    from rich.console import Console

    from qiance.cli.stages import Stages

    with Stages(Console()).stage(what) as stage:
        return work(stage.tell)


def _instants(given: list[str] | None) -> list[datetime]:
    if not given:
        return [datetime.now(UTC)]
    found = []
    for text in given:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"--as-of: {text!r} is no ISO 8601 instant; write 2025-01-31T00:00:00+00:00"
            ) from None
        if at.tzinfo is None:
            raise ValueError(f"--as-of: {text!r} has no offset; write {at.isoformat()}+00:00 for UTC")
        found.append(at)
    return found


def _is_large(source: Path) -> bool:
    return source.is_dir() or (source.exists() and source.stat().st_size > SMALL_BYTES)


def _table(source: Path) -> Any:
    """The whole file as an Arrow table."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if not source.exists():
        raise ValueError(f"--source: {str(source)!r} is not there; pass a Parquet, CSV or JSON-lines file")
    kind = source.suffix.lower()
    readers = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".json": pyarrow.json.read_json,
    }
    if source.is_dir() or kind == ".parquet":
        return pyarrow.parquet.read_table(source)
    if kind not in readers:
        raise ValueError(f"--source: {source.name!r} is no .parquet, .csv or .jsonl; convert it to Parquet")
    return readers[kind](source)


def _here(
    source: Path,
    spec: EmbeddingSpec,
    out: Path,
    instants: list[datetime],
    sentiment: Path | None,
    tell: Callable[[float, str], None],
    _address: str | None,
) -> Any:
    from training.embed.local import embed_table

    base = source if source.is_dir() else source.parent
    return embed_table(_table(source), spec, out, instants, sentiment=sentiment, base=base, progress=tell)


def _on_ray(
    source: Path,
    spec: EmbeddingSpec,
    out: Path,
    instants: list[datetime],
    sentiment: Path | None,
    tell: Callable[[float, str], None],
    address: str | None,
) -> Any:
    from serve.launch import LocalCluster
    from training.embed.job import run_job

    with _cluster(LocalCluster, address):
        return run_job(source, spec, out, instants, sentiment=sentiment, progress=tell)


def _cluster(local: Any, address: str | None) -> AbstractContextManager[Any]:
    """A cluster of our own, the one at `address`, or the one that this process is already in."""
    import importlib

    if importlib.import_module("ray").is_initialized():
        return nullcontext()
    found: AbstractContextManager[Any] = local(address=address)
    return found
