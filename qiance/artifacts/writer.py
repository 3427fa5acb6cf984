"""A tuned writer: the low-rank adapter that a language model is loaded with, as an artifact."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, load_manifest, write_artifact

KIND = "writer"
# peft's own names, so that other programs can load the folder too.
FILES = ("adapter_config.json", "adapter_model.safetensors")
ABOUT, CARD = "writer.json", "card.json"


@dataclass(frozen=True, slots=True)
class WriterAdapter:
    """folder: holds peft's files. base: name of the model that it was tuned on; languages: it was tuned to
    write, without examples in the prompt. version: of the artifact."""

    folder: Path
    base: str
    languages: frozenset[str]
    version: str


def write_writer(
    root: Path,
    adapter: Path,
    base: str,
    languages: frozenset[str],
    card: Mapping[str, Any],
    metrics: Mapping[str, float],
    data_fingerprint: str,
) -> Artifact:
    """The artifact `root/writer-VERSION` of the peft folder `adapter`."""
    about = {"base": base, "languages": sorted(languages)}
    files = {name: _copied(adapter / name) for name in FILES}
    return write_artifact(
        root,
        KIND,
        {
            **files,
            ABOUT: lambda path: write_json(path, about),
            CARD: lambda path: write_json(path, card),
        },
        metrics=metrics,
        feature_service="copy_text",
        schema_hash=hashlib.sha256(json.dumps(about).encode()).hexdigest(),
        data_fingerprint=data_fingerprint,
    )


def _copied(source: Path) -> Any:
    return lambda path: shutil.copyfile(source, path)


def load_writer(path: Path) -> WriterAdapter:
    """Check and describe what `write_writer` wrote; ArtifactError for another kind or a damaged one."""
    manifest = load_manifest(path, KIND, "qiance train writer")
    about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    return WriterAdapter(path, about["base"], frozenset(about["languages"]), manifest.version)
