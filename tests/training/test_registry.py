"""The registry: aliases name verified artifacts only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qiance.artifacts import Artifact, ArtifactError, write_artifact
from training.registry import CHALLENGER, CHAMPION, current, promote, register


def _artifact(folder: Path, content: str) -> Artifact:
    return write_artifact(
        folder,
        "effect-model",
        {"weights.txt": lambda path: path.write_text(content) and None},
        metrics={"auc": 0.7},
        feature_service="s",
        schema_hash="h",
        data_fingerprint=content,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """A workspace with spaces in its name, holding two registered versions."""
    folder = tmp_path_factory.mktemp("work space")
    uri = f"sqlite:///{folder}/mlflow.db"
    assert current(uri, "effect") is None
    versions = []
    for content in ("one", "two"):
        history = [{"epoch": 0, "valid_loss": 0.5}, {"epoch": 1, "valid_loss": 0.4}]
        metrics = {"auc": 0.7, "ne": float("nan")}
        artifact = _artifact(folder / "artifacts", content)
        versions.append(
            register(artifact, uri, "effect", metrics=metrics, params={"heads": 8}, history=history)
        )
    return folder, uri, versions[0], versions[1]


def test_the_newest_is_challenger_and_nobody_champion(workspace: tuple[Path, str, str, str]) -> None:
    _, uri, first, second = workspace
    assert first != second
    assert current(uri, "effect", "nobody") is None
    found = current(uri, "effect", CHALLENGER)
    assert found is not None
    assert found.version == second
    assert (found.path / "weights.txt").read_text() == "two"


def test_promotion_moves_the_alias(workspace: tuple[Path, str, str, str]) -> None:
    _, uri, first, second = workspace
    for version in (first, second, first):
        promoted = promote(uri, "effect", version)
        assert current(uri, "effect", CHAMPION) == promoted
        assert promoted.version == version


def test_metrics_params_and_history_are_kept(workspace: tuple[Path, str, str, str]) -> None:
    from mlflow.tracking import MlflowClient

    folder, uri, first, _ = workspace
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(client.get_model_version("effect", first).run_id)
    assert run.data.metrics["auc"] == 0.7
    assert "ne" not in run.data.metrics
    assert run.data.params == {"heads": "8"}
    steps = client.get_metric_history(run.info.run_id, "history/valid_loss")
    assert [(m.step, m.value) for m in steps] == [(0, 0.5), (1, 0.4)]
    assert str(folder).replace(" ", "%20") in run.info.artifact_uri


def test_unknown_versions_are_refused(workspace: tuple[Path, str, str, str]) -> None:
    _, uri, _, _ = workspace
    with pytest.raises(ValueError, match="version '99' is not registered"):
        promote(uri, "effect", "99")


def test_changed_files_are_neither_promoted_nor_served(workspace: tuple[Path, str, str, str]) -> None:
    folder, uri, _, _ = workspace
    artifact = _artifact(folder / "artifacts", "three")
    version = register(artifact, uri, "other", metrics={})
    (artifact.path / "weights.txt").write_text("tampered")
    with pytest.raises(ArtifactError, match=r"file 'weights.txt' was changed"):
        promote(uri, "other", version)
    with pytest.raises(ArtifactError, match=r"file 'weights.txt' was changed"):
        current(uri, "other", CHALLENGER)


def test_a_rewritten_manifest_is_found_too(workspace: tuple[Path, str, str, str]) -> None:
    folder, uri, _, _ = workspace
    artifact = _artifact(folder / "artifacts", "four")
    register(artifact, uri, "rewritten", metrics={})
    manifest = artifact.path / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"created_at": "2020-01-01T00:00:00+00:00"}))
    with pytest.raises(ArtifactError, match="was registered with"):
        current(uri, "rewritten", CHALLENGER)
