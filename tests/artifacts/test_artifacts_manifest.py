"""Artifacts: equal content has an equal version, and nothing that was changed is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qiance.artifacts import Artifact, ArtifactError, load_manifest, manifest_hash, write_artifact


def _text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


def _write(root: Path, content: str = "weights", **changes: object) -> Artifact:
    settings: dict[str, object] = {
        "metrics": {"auc": 0.7},
        "feature_service": "decisions",
        "schema_hash": "abc",
        "data_fingerprint": "rows",
        "parents": ("older",),
    }
    files = {"model.bin": _text(content), "folder/tokens.json": _text("{}")}
    return write_artifact(root, "effect-model", files, **settings | changes)  # type: ignore[arg-type]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    artifact = _write(tmp_path)
    manifest = load_manifest(artifact.path)
    assert manifest == artifact.manifest
    assert artifact.path.name == f"effect-model-{artifact.version}"
    assert set(manifest.files) == {"model.bin", "folder/tokens.json"}
    assert manifest.parents == ("older",)
    assert manifest.created_at.endswith("+00:00")
    assert len(manifest_hash(artifact.path)) == 64
    assert [p.name for p in tmp_path.iterdir()] == [artifact.path.name]


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    first, elsewhere = _write(tmp_path / "a"), _write(tmp_path / "b", metrics={"auc": 0.9})
    assert first.version == elsewhere.version
    others = [
        _write(tmp_path / "a", content="other weights"),
        _write(tmp_path / "a", data_fingerprint="other rows"),
        _write(tmp_path / "a", schema_hash="def"),
        _write(tmp_path / "a", parents=()),
    ]
    assert len({first.version, *(other.version for other in others)}) == 5


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    first = _write(tmp_path)
    assert _write(tmp_path, metrics={"auc": 0.1}) == first
    assert manifest_hash(first.path) == first.hash


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_artifact(
            tmp_path,
            "effect-model",
            {"model.bin": fail},
            metrics={},
            feature_service="s",
            schema_hash="h",
            data_fingerprint="d",
        )
    assert list(tmp_path.iterdir()) == []


def _damage(path: Path, fault: str) -> None:
    manifest = path / "manifest.json"
    record = json.loads(manifest.read_text())
    if fault == "changed":
        (path / "model.bin").write_text("other")
    elif fault == "missing":
        (path / "folder/tokens.json").unlink()
    elif fault == "added":
        (path / "late.txt").write_text("x")
    elif fault == "no manifest":
        manifest.unlink()
    elif fault == "broken":
        manifest.write_text(manifest.read_text()[:-20])
    elif fault == "list":
        manifest.write_text("[]")
    elif fault == "unknown key":
        manifest.write_text(json.dumps(record | {"owner": "me"}))
    elif fault == "leaves":
        manifest.write_text(json.dumps(record | {"files": record["files"] | {"../other": "0"}}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("changed", "file 'model.bin' was changed"),
        ("missing", "file 'folder/tokens.json' is missing"),
        ("added", "file 'late.txt' is not in the manifest"),
        ("no manifest", "has no manifest.json"),
        ("broken", "cannot be read as a manifest"),
        ("list", "cannot be read as a manifest"),
        ("unknown key", "cannot be read as a manifest"),
        ("leaves", "file '../other': is not a plain path"),
    ],
)
def test_damage_is_named(tmp_path: Path, fault: str, message: str) -> None:
    artifact = _write(tmp_path)
    _damage(artifact.path, fault)
    with pytest.raises(ArtifactError, match=message):
        load_manifest(artifact.path)


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b", "manifest.json", ""])
def test_files_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is not a plain path inside the artifact"):
        write_artifact(
            tmp_path,
            "effect-model",
            {name: _text("x")},
            metrics={},
            feature_service="s",
            schema_hash="h",
            data_fingerprint="d",
        )


def test_an_artifact_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file was written"):
        write_artifact(
            tmp_path,
            "effect-model",
            {},
            metrics={},
            feature_service="s",
            schema_hash="h",
            data_fingerprint="d",
        )
