"""The registry: aliases name verified artifacts only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qiance.artifacts import Artifact, ArtifactError, write_artifact
from training.registry import (
    CHALLENGER,
    CHAMPION,
    changes,
    current,
    find,
    make_champion,
    previous_champion,
    register,
    versions,
)


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


def _promote(uri: str, name: str, version: str) -> None:
    make_champion(uri, find(uri, name, version), by="ann", reason="because")


def test_promotion_moves_the_alias_and_says_who_and_why(workspace: tuple[Path, str, str, str]) -> None:
    _, uri, first, second = workspace
    for version in (first, second, first):
        _promote(uri, "effect", version)
        found = current(uri, "effect", CHAMPION)
        assert found is not None
        assert found.version == version
    assert [(c.version, c.by, c.reason) for c in changes(uri, "effect")] == [
        (version, "ann", "because") for version in (first, second, first)
    ]
    with pytest.raises(ValueError, match="by and reason: must not be empty"):
        make_champion(uri, find(uri, "effect", second), by=" ", reason="because")


def test_rolling_back_goes_back_one_champion_at_a_time(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    numbers = [register(_artifact(tmp_path, name), uri, "line", metrics={}) for name in "abc"]
    with pytest.raises(ValueError, match="has no champion"):
        previous_champion(uri, "line")
    for number in numbers:
        _promote(uri, "line", number)
    seen = []
    for _ in range(2):
        back = previous_champion(uri, "line")
        make_champion(uri, back, by="ann", reason="back", action="rollback")
        seen.append(back.version)
    assert seen == [numbers[1], numbers[0]]
    with pytest.raises(ValueError, match="is its first champion"):
        previous_champion(uri, "line")
    _promote(uri, "line", numbers[2])
    assert previous_champion(uri, "line").version == numbers[0]


def test_versions_are_found_by_number_content_and_alias(workspace: tuple[Path, str, str, str]) -> None:
    _, uri, first, second = workspace
    newest, oldest = versions(uri, "effect")
    assert (newest.version, oldest.version) == (second, first)
    assert newest.kind == "effect-model"
    assert newest.metrics["auc"] == 0.7
    for which in (second, newest.artifact_version, CHALLENGER):
        assert find(uri, "effect", which).version == second


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
        find(uri, "effect", "99")
    with pytest.raises(ValueError, match="nothing is registered under this name"):
        find(uri, "nobody", "1")


def test_changed_files_are_neither_promoted_nor_served(workspace: tuple[Path, str, str, str]) -> None:
    folder, uri, _, _ = workspace
    artifact = _artifact(folder / "artifacts", "three")
    version = register(artifact, uri, "other", metrics={})
    (artifact.path / "weights.txt").write_text("tampered")
    with pytest.raises(ArtifactError, match=r"file 'weights.txt' was changed"):
        _promote(uri, "other", version)
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
