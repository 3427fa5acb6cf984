"""Rows of a source table as contents to embed: key, time, digest, content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qiance.features.embedding_spec import EmbeddingSpec

DIGEST_BYTES = 16
BETWEEN = ". "
_WHEN = pa.timestamp("us", "UTC")


def contents(
    table: pa.Table, spec: EmbeddingSpec, base: Path = Path(), extra: Sequence[str] = ()
) -> pa.Table:
    """`table` as key, at, digest, content; a row without key or content has none and is left out.

    Text columns are trimmed and joined by ". ", the empty ones skipped. content is text for text and for
    paths, bytes for bytes; digest `[16 bytes]` is equal for equal contents. base: where relative paths of
    images and audio start. extra: columns that go along. Raises
    ValueError for a missing column or one of a type that does not fit.
    """
    check_columns(table.schema, spec)
    content = _texts(table, spec) if spec.modality == "text" else _media(table, spec, base)
    key, at = _text(table, spec.source_key, f"{spec.name}.roles.key"), _times(table, spec)
    along = {name: table[name] for name in extra}
    rows = pa.table({"key": key.cast(pa.string()), "at": at, "content": content, **along})
    rows = rows.filter(pc.and_(pc.is_valid(rows["key"]), pc.is_valid(rows["content"])))
    digests = [_digest(value, spec) for value in rows["content"].to_pylist()]
    return rows.append_column("digest", pa.array(digests, pa.binary(DIGEST_BYTES)))


def check_columns(schema: pa.Schema, spec: EmbeddingSpec) -> None:
    """ValueError that names the first column that `spec` wants and the source lacks."""
    wanted = [("roles.key", spec.source_key), *(("columns", name) for name in spec.columns)]
    wanted += [(f"roles.{role}", name) for role, name in spec.roles if name and role == "at"]
    for field, name in wanted:
        if name not in schema.names:
            raise ValueError(
                f"{spec.name}.{field}: the source has no column {name!r}; it has: "
                f"{', '.join(schema.names[:40])}; mend the name in the YAML or the source"
            )


def source_columns(spec: EmbeddingSpec) -> list[str]:
    """The columns that `contents` reads."""
    wanted = [spec.source_key, *spec.columns, *([spec.roles.at] if spec.roles.at else [])]
    return list(dict.fromkeys(wanted))


def _text(table: pa.Table, name: str, field: str) -> Any:
    """Trimmed text of a column, the empty ones null."""
    column = table[name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise ValueError(f"{field}: column {name!r} is {column.type}; it must be text or a number")
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)


def _texts(table: pa.Table, spec: EmbeddingSpec) -> Any:
    # pc.binary_join_element_wise drops rows that are null throughout, so rows are joined here.
    parts = [_text(table, name, f"{spec.name}.columns").to_pylist() for name in spec.columns]
    joined = [BETWEEN.join(filter(None, row)) or None for row in zip(*parts, strict=True)]
    return pa.array(joined, pa.large_string())


def _media(table: pa.Table, spec: EmbeddingSpec, base: Path) -> Any:
    """Bytes as they are, or paths made absolute."""
    name = spec.columns[0]
    column = table[name].combine_chunks()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        filled = column.cast(pa.large_binary())
        return pc.if_else(pc.equal(pc.binary_length(filled), 0), pa.scalar(None, pa.large_binary()), filled)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(
            f"{spec.name}.columns: column {name!r} is {column.type}; it must hold bytes or paths"
        )
    paths = _text(table, name, f"{spec.name}.columns").to_pylist()
    return pa.array([p and str((base / Path(p).expanduser()).resolve()) for p in paths], pa.large_string())


def _times(table: pa.Table, spec: EmbeddingSpec) -> Any:
    """When each row was written, UTC; null throughout where no column says so."""
    name = spec.roles.at
    if name is None:
        return pa.nulls(table.num_rows, _WHEN)
    column = table[name].combine_chunks()
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return pc.assume_timezone(pc.cast(column, pa.timestamp("us")), "UTC")
        if pa.types.is_timestamp(column.type) and column.type.tz is None:
            return pc.assume_timezone(column.cast(pa.timestamp("us"), safe=False), "UTC")
        return column.cast(_WHEN, safe=False)
    except pa.ArrowException as error:
        raise ValueError(
            f"{spec.name}.roles.at: column {name!r} cannot be read as times ({error}); "
            "use timestamps or ISO text"
        ) from None


def _digest(content: str | bytes, spec: EmbeddingSpec) -> bytes:
    """Of the text, the bytes, or the file at a path: a changed file is embedded again."""
    if isinstance(content, bytes):
        raw = content
    elif spec.modality == "text":
        raw = content.encode()
    else:
        try:
            raw = Path(content).read_bytes()
        except OSError:
            raw = content.encode()  # the reader says later what is wrong with it
    return hashlib.sha256(raw).digest()[:DIGEST_BYTES]
