"""The declared embeddings: what is read, what is refused and in which words."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qiance.features.embedding_spec import EmbeddingSpec, find_embedding, load_embeddings

DECLARED = Path(__file__).resolve().parents[2] / "feature_repo" / "embeddings.yaml"
ENTRY: dict[str, Any] = {
    "name": "item_text",
    "entity": "item",
    "modality": "text",
    "columns": ["title"],
    "dimension": 384,
    "ttl_days": 30,
}


def written(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "embeddings.yaml"
    path.write_text(yaml.safe_dump({"embeddings": list(entries)}))
    return path


def test_the_declared_ones_are_read() -> None:
    specs = load_embeddings(DECLARED)
    assert [spec.name for spec in specs] == ["item_text", "item_reviews", "user_search"]
    text, reviews, search = specs
    assert (text.model, text.dimension, text.pooling) == ("embedded", 384, "mean")
    assert (text.key_column, text.source_key) == ("item_id", "item_id")
    assert reviews.scores == ("sentiment_mean", "sentiment_n")
    assert (search.key_column, search.window_days, search.half_life_days) == ("user_id", 90, 14)


def test_a_key_of_another_name_keeps_the_tables_own(tmp_path: Path) -> None:
    (spec,) = load_embeddings(written(tmp_path, ENTRY | {"roles": {"key": "sku"}}))
    assert (spec.source_key, spec.key_column) == ("sku", "item_id")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensions": 3}, r"embeddings\[item_text\]\.dimensions: is no key"),
        ({"dimension": 0}, r"embeddings\[item_text\]\.dimension: .*greater than or equal to 1 \(got 0\)"),
        ({"name": "Item Text"}, r"\.name: String should match"),
        ({"entity": "shop"}, r"\.entity: Input should be 'user' or 'item' \(got 'shop'\)"),
        ({"columns": []}, r"\.columns: "),
        ({"columns": ["title", "title"]}, r"has a column twice"),
        ({"modality": "image"}, r"model: 'embedded' reads text only"),
        (
            {"modality": "audio", "model": "m", "columns": ["a", "b"]},
            r"name the one column with path or bytes",
        ),
        ({"scores": ["sentiment_mean"]}, r"set combine: mean"),
        ({"scores": ["joy"], "combine": "mean"}, r"\.scores\.0: Input should be 'sentiment_mean'"),
        ({"combine": "mean", "window_days": 3}, r"window_days: needs the time of a row; set roles.at"),
        ({"half_life_days": 3, "roles": {"at": "t"}}, r"half_life_days: one row per entity has no window"),
        ({"roles": {"rating": "r", "recommended": "q"}}, r"recommended and rating are both given"),
        ({"ttl_days": float("inf")}, r"\.ttl_days: "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_embeddings(written(tmp_path, ENTRY | change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a", "holds no keys"),
        (b"embeddings: [", "is not YAML"),
        (b"\xff\xfe\xfa", "is not UTF-8"),
        (b"embeddings:\n- nonsense", r"embeddings\[0\]: "),
        (b"other: []", "embeddings: is missing"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "embeddings.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_embeddings(path)


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read .*; pass the path of a YAML file"):
        load_embeddings(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="'item_text' is there twice"):
        load_embeddings(written(tmp_path, ENTRY, ENTRY))
    specs = load_embeddings(written(tmp_path, ENTRY))
    assert find_embedding(specs, "item_text") is specs[0]
    with pytest.raises(ValueError, match="no embedding 'item' is declared; there are: item_text"):
        find_embedding(specs, "item")


@given(
    st.dictionaries(
        st.sampled_from([*EmbeddingSpec.model_fields, "other"]),
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=2),
    )
)
def test_anything_else_is_a_value_error_or_a_spec(entry: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), entry)
        with contextlib.suppress(ValueError):
            assert [spec.name for spec in load_embeddings(path)] == [entry.get("name")]
