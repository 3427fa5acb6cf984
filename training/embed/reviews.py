"""Fitting sentiment on a shop's own labelled reviews, from table to artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.artifacts.encoder_weights import resolve
from qiance.artifacts.manifest import Artifact
from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.content import contents
from training.embed.encoders import load_encoder
from training.embed.sentiment import fit_sentiment, write_sentiment

Tell = Callable[[float, str], None]
_LABEL = "_positive"


def fit_on_reviews(
    table: pa.Table,
    spec: EmbeddingSpec,
    root: Path,
    limit: int = 50_000,
    seed: int = 0,
    progress: Tell | None = None,
) -> Artifact:
    """Fit on the labelled rows of `table` (at most `limit`, drawn by `seed`) and write `root/sentiment-…`.

    The label is roles.recommended, or roles.rating ≥ positive_from. Raises ValueError for a source without
    labels, or with too few.
    """
    tell = progress or (lambda _done, _what: None)
    rows = labelled(table, spec)
    chosen = np.sort(np.random.default_rng(seed).permutation(rows.num_rows)[:limit])
    rows = rows.take(pa.array(chosen))
    texts = rows["content"].to_pylist()
    tell(0.0, "loading the model")
    weights = resolve(spec.model)
    encoder = load_encoder(spec, weights)
    unique = sorted(set(texts))
    found = encoder.encode(unique, lambda done, what: tell(0.7 * done, what), layers=True)
    if found.layers is None:
        raise ValueError(f"{spec.name}: the source has no labelled review with text")
    place = {text: row for row, text in enumerate(unique)}
    layers = found.layers[[place[text] for text in texts]]
    labels = rows[_LABEL].to_numpy(zero_copy_only=False).astype(bool)
    model, metrics = fit_sentiment(
        texts,
        layers,
        labels,
        rows["key"].to_pylist(),
        weights.fingerprint,
        lambda done, what: tell(0.7 + 0.3 * done, what),
    )
    return write_sentiment(root, model, metrics, spec.name, _fingerprint(texts, labels))


def labelled(table: pa.Table, spec: EmbeddingSpec) -> pa.Table:
    """key, content and `_positive` of the rows that have text and a label."""
    label = spec.roles.recommended or spec.roles.rating
    if label is None:
        raise ValueError(f"{spec.name}.roles: names no label; set recommended (0 or 1) or rating")
    if label not in table.column_names:
        raise ValueError(
            f"{spec.name}.roles: the source has no column {label!r}; it has: {', '.join(table.column_names)}"
        )
    positive = _positive(table[label], spec, label)
    kept = table.append_column(_LABEL, positive).filter(pc.is_valid(positive))
    rows = contents(kept, spec, extra=(_LABEL,))
    return rows.select(["key", "content", _LABEL])


def _positive(column: Any, spec: EmbeddingSpec, label: str) -> Any:
    """Booleans, null where there is no label."""
    try:
        if pa.types.is_boolean(column.type):
            return column
        numbers = column.cast(pa.float64())
    except pa.ArrowException:
        raise ValueError(
            f"{spec.name}.roles: column {label!r} is {column.type}; labels are numbers"
        ) from None
    if spec.roles.recommended is None:
        return pc.greater_equal(numbers, spec.positive_from)
    odd = set(pc.unique(numbers).to_pylist()) - {0.0, 1.0, None}
    if odd:
        raise ValueError(f"{spec.name}.roles.recommended: {label!r} has {sorted(odd)[0]}; it must be 0 or 1")
    return pc.equal(numbers, 1.0)


def _fingerprint(texts: list[str], labels: NDArray[np.bool_]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, labels.tolist(), strict=True):
        digest.update(f"{int(label)}{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]
