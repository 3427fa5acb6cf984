"""The reward model of copy: words, a layer of an encoder and the look of a text, all with linear weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact
from qiance.features.embedding_spec import EmbeddingSpec
from training.copy.calibration import Calibration
from training.copy.features import NAMES, features_of
from training.embed.sentiment import LayerModel, WordModel

KIND = "copy-model"
ARRAYS, WORDS, CARD = "arrays.safetensors", "words.json", "card.json"
VIEWS = ("layer", "words", "shape")
MAX_TOKENS = 128

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CopyModel:
    """layer_number: which layer of the encoder `layer` reads, 0 for the embedding before the first. encoder:
    its fingerprint; model: its name, as `EmbeddingSpec.model`."""

    words: WordModel
    layer: LayerModel
    shape: LayerModel
    layer_number: int
    calibration: Calibration
    encoder: str
    model: str

    def score(self, texts: Sequence[str], layers: NDArray[np.float32]) -> Floats:
        """`[n]`, in logarithms of the click rate; only differences mean something.

        layers: `[n, (L+1)·d]` from `Encoder.encode`.
        """
        return np.asarray(sum(self.parts(texts, layers).values()))

    def parts(self, texts: Sequence[str], layers: NDArray[np.float32]) -> dict[str, Floats]:
        """What each view adds to the score, `[n]` each."""
        return {
            "layer": self.layer.logit(layer_of(layers, self.layer_number, len(self.layer.weight))),
            "words": self.words.logit(texts),
            "shape": self.shape.logit(features_of(texts).astype(np.float32)),
        }


def layer_of(layers: NDArray[np.float32], number: int, width: int) -> NDArray[np.float32]:
    """`[n, width]` of one layer."""
    return layers[:, number * width : (number + 1) * width]


def spec_of(model: str, dimension: int) -> EmbeddingSpec:
    """How the encoder reads a text."""
    return EmbeddingSpec(
        name="copy_text",
        entity="item",
        modality="text",
        model=model,
        columns=("text",),
        dimension=dimension,
        max_tokens=MAX_TOKENS,
        ttl_days=400,
    )


def write_copy(
    root: Path, model: CopyModel, metrics: Mapping[str, float], card: Mapping[str, Any], data_fingerprint: str
) -> Artifact:
    """The artifact `root/copy-model-VERSION`: arrays as safetensors, words and the model card as JSON."""
    from safetensors.numpy import save_file

    arrays = {
        "idf": model.words.idf,
        "word_weight": model.words.weight,
        **{f"layer_{name}": getattr(model.layer, name) for name in ("centre", "scale", "weight")},
        **{f"shape_{name}": getattr(model.shape, name) for name in ("centre", "scale", "weight")},
    }
    contiguous = {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in arrays.items()}
    words = {
        "encoder": model.encoder,
        "model": model.model,
        "layer": model.layer_number,
        "shape": list(NAMES),
        "calibration": asdict(model.calibration),
        "terms": model.words.terms,
    }
    files: dict[str, Callable[[Path], None]] = {
        ARRAYS: lambda path: save_file(contiguous, path),
        WORDS: lambda path: write_json(path, words),
        CARD: lambda path: write_json(path, card),
    }
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        feature_service="copy_text",
        schema_hash=hashlib.sha256(f"{model.encoder} {NAMES}".encode()).hexdigest(),
        data_fingerprint=data_fingerprint,
    )


def load_copy(path: Path) -> CopyModel:
    """Read what `write_copy` wrote; ArtifactError for a damaged artifact, another kind or other features."""
    from safetensors.numpy import load_file

    load_manifest(path, KIND, "qiance train copy")
    arrays = load_file(path / ARRAYS)
    document = json.loads((path / WORDS).read_text(encoding="utf-8"))
    if document["shape"] != list(NAMES):
        raise ArtifactError(f"{path}: reads texts by other features than this version; train it again")
    return CopyModel(
        WordModel(tuple(document["terms"]), arrays["idf"], arrays["word_weight"], 0.0),
        LayerModel(*(arrays[f"layer_{name}"] for name in ("centre", "scale", "weight")), 0.0),
        LayerModel(*(arrays[f"shape_{name}"] for name in ("centre", "scale", "weight")), 0.0),
        int(document["layer"]),
        Calibration(**document["calibration"]),
        document["encoder"],
        document["model"],
    )
