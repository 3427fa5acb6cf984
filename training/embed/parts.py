"""One part of the work, the same in a Ray Data actor and in this process: distinct contents to vectors.

A finished part is a Parquet file named by what went into it, so a run that was cut off goes on from its
finished parts, and a part whose contents, model or settings changed is computed again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.artifacts.encoder_weights import Weights
from qiance.artifacts.encoders import Encoder, Tell
from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.content import DIGEST_BYTES
from training.embed.encoders import load_encoder
from training.embed.sentiment import Sentiment, load_sentiment

# What changes a vector or a score; the rest of a spec may change without anything computed again.
_DECISIVE = ("modality", "dimension", "pooling", "max_tokens")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """What turns contents into vectors; small and plain, so that it travels to actors.

    sentiment: folder of the artifact that scores reviews, None where no score is asked for.
    """

    spec: EmbeddingSpec
    weights: Weights
    sentiment: Path | None = None

    def fingerprint(self) -> str:
        """Changes when a vector or score could."""
        said: list[Any] = [_VERSION, self.weights.fingerprint]
        said += [getattr(self.spec, name) for name in _DECISIVE]
        if self.sentiment is not None:
            from qiance.artifacts.manifest import manifest_hash

            said.append(manifest_hash(self.sentiment))
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def load(self) -> tuple[Encoder, Sentiment | None]:
        """The model, and what scores reviews; on the GPU where the spec asks for one."""
        device = "cuda" if self.spec.compute.gpus > 0 else "cpu"
        encoder = load_encoder(self.spec, self.weights, device)
        return encoder, self.sentiment and load_sentiment(self.sentiment, self.weights)


def distinct(rows: pa.Table) -> pa.Table:
    """digest and content of each different content, in order of digest."""
    first = rows.select(["digest", "content"]).group_by("digest", use_threads=False)
    return first.aggregate([("content", "first")]).rename_columns(["digest", "content"]).sort_by("digest")


def part_name(recipe: str, digests: Any) -> str:
    """File name of the part that holds `digests` (sorted), computed by the recipe of that fingerprint."""
    joined = hashlib.sha256(recipe.encode())
    for digest in digests.to_pylist():
        joined.update(digest)
    return f"part-{joined.hexdigest()[:32]}.parquet"


def embed_part(
    part: pa.Table, encoder: Encoder, sentiment: Sentiment | None, tell: Tell | None = None
) -> pa.Table:
    """digest, embedding `list<float32>`, score, reason (why there is no embedding) of a distinct table.

    score: probability that a review is positive, null without `sentiment`.
    """
    texts = part["content"].to_pylist()
    found = encoder.encode(texts, tell, layers=sentiment is not None)
    scores = np.full(len(texts), np.nan)
    if sentiment is not None and found.layers is not None:
        scores = sentiment.probability(texts, found.layers)
    valid = np.array([row not in found.bad for row in range(len(texts))], dtype=bool)
    return pa.table(
        {
            "digest": part["digest"].cast(pa.binary(DIGEST_BYTES)),
            "embedding": vector_lists(found.vectors, valid),
            "score": pa.array(scores, pa.float64(), from_pandas=True),
            "reason": pa.array([found.bad.get(row) for row in range(len(texts))], pa.string()),
        }
    )


def vector_lists(vectors: np.ndarray, valid: np.ndarray) -> Any:
    """`[n, d]` as `list<float32>`, null where not `valid` `[n]`."""
    n, d = vectors.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * d)
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.astype(np.float32).ravel()))
    return pc.if_else(pa.array(valid), lists, pa.scalar(None, lists.type))


def write_whole(table: pa.Table, path: Path) -> None:
    """Write Parquet under a name of its own, then rename: a file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, staging)
    os.replace(staging, path)
