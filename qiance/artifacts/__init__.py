"""Artifacts: what rooms hand to each other, verified when read; the one loader of effect models."""

from qiance.artifacts.effect import EffectDraws, EffectInfo, EffectModel
from qiance.artifacts.manifest import (
    Artifact,
    ArtifactError,
    Manifest,
    load_manifest,
    manifest_hash,
    write_artifact,
)
from qiance.artifacts.program import export_program, load_program

__all__ = [
    "Artifact",
    "ArtifactError",
    "EffectDraws",
    "EffectInfo",
    "EffectModel",
    "Manifest",
    "export_program",
    "load_manifest",
    "load_program",
    "manifest_hash",
    "write_artifact",
]
