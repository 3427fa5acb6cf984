"""Artifacts: content-addressed directories through which the rooms hand over models.

A directory is written under a temporary name, its `manifest.json` last, and renamed; it is never
edited afterwards. The manifest holds a SHA-256 per file, because object stores have no rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"


class ArtifactError(ValueError):
    """An artifact is damaged, incomplete, or not what the caller expects."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and where it came from.

    kind: e.g. `effect-model`.
    version: first 16 hex digits of a SHA-256 over kind, files, schema, data and parents: equal content
        has an equal version, whenever and wherever it was made.
    created_at: ISO 8601, UTC. git_revision: of the code that wrote it, None outside a checkout.
    data_fingerprint: of the data it was made from. parents: versions of artifacts it builds on.
    files: relative path → SHA-256 (hex).
    """

    kind: str
    version: str
    created_at: str
    git_revision: str | None
    data_fingerprint: str
    feature_service: str
    schema_hash: str
    metrics: Mapping[str, float]
    parents: tuple[str, ...]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest = field(repr=False)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest file, which fixes every file below it."""
        return manifest_hash(self.path)


def write_artifact(
    root: Path,
    kind: str,
    files: Mapping[str, Callable[[Path], None]],
    *,
    metrics: Mapping[str, float],
    parents: Sequence[str] = (),
    feature_service: str,
    schema_hash: str,
    data_fingerprint: str,
) -> Artifact:
    """Write `root/kind-version`, or return the equal one that is already there.

    files: relative path → function that writes the file (or folder) at the path it is given.
    Raises ArtifactError for a path that leaves the artifact, and when no file is written.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=root))
    try:
        for name, write in files.items():
            target = staging / _checked(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target)
        identity: dict[str, Any] = {
            "kind": kind,
            "data_fingerprint": data_fingerprint,
            "feature_service": feature_service,
            "schema_hash": schema_hash,
            "parents": list(parents),
            "files": _hashes(staging, kind),
        }
        version = hashlib.sha256(_canonical(identity)).hexdigest()[:16]
        final = root / f"{kind}-{version}"
        if final.exists():
            return Artifact(final, load_manifest(final))
        record = identity | {
            "version": version,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": git_revision(),
            "metrics": dict(metrics),
        }
        _write_durably(staging / MANIFEST, _canonical(record))
        staging.chmod(0o755)
        _rename(staging, final)
        return Artifact(final, load_manifest(final))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_manifest(path: Path, kind: str | None = None, made_by: str = "") -> Manifest:
    """Read the manifest at `path` and verify every file against it.

    kind: that the caller can use, None for any; made_by: the command that makes those. Raises ArtifactError
    for another kind, and naming the file that is missing, changed, or not listed.
    """
    source = path / MANIFEST
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
        record["parents"] = tuple(record["parents"])
        manifest = Manifest(**record)
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: has no {MANIFEST}; it is no artifact or was not written to the end"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{source}: cannot be read as a manifest ({error}); fetch the artifact again"
        ) from None
    if kind is not None and manifest.kind != kind:
        whose = f" of `{made_by}`" if made_by else ""
        raise ArtifactError(f"{path}: is of kind {manifest.kind!r}; pass a {kind!r}{whose}")
    _verify(path, manifest)
    return manifest


def manifest_hash(path: Path) -> str:
    """SHA-256 (hex) of the manifest file of the artifact at `path`."""
    return file_hash(path / MANIFEST)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_revision() -> str | None:
    """Commit of the checkout that this code runs from, with `+` if it was changed since; None without one."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _verify(path: Path, manifest: Manifest) -> None:
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {MANIFEST}
    unlisted = sorted(present - set(manifest.files))
    if unlisted:
        raise ArtifactError(
            f"{path}: file {unlisted[0]!r} is not in the manifest; artifacts are never edited"
        )
    for name, expected in manifest.files.items():
        target = path / _checked(name)
        if not target.is_file():
            raise ArtifactError(f"{path}: file {name!r} is missing; fetch the artifact again")
        found = file_hash(target)
        if found != expected:
            raise ArtifactError(
                f"{path}: file {name!r} was changed (SHA-256 {found[:12]}… where the manifest has "
                f"{expected[:12]}…); fetch the artifact again"
            )


def _checked(name: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or name == MANIFEST or "\\" in name:
        raise ArtifactError(f"file {name!r}: is not a plain path inside the artifact")
    return name


def _hashes(staging: Path, kind: str) -> dict[str, str]:
    found = {
        p.relative_to(staging).as_posix(): file_hash(p) for p in sorted(staging.rglob("*")) if p.is_file()
    }
    if not found:
        raise ArtifactError(f"artifact of kind {kind!r}: no file was written")
    return found


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _rename(staging: Path, final: Path) -> None:
    try:
        staging.rename(final)
    except OSError:
        # Another process wrote the same content in the meantime: its copy is as good as ours.
        if not (final / MANIFEST).exists():
            raise
