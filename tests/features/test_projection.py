"""Vectors as a few numbers: the same in training, in a file and in serving, whatever stands beside a text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.encoder import Encoder
from qiance.features.projection import Projection, pack_vector, read_vectors, unpack_vector, vector_column
from qiance.features.schema import FeatureSchema

SCHEMA = FeatureSchema("s", ("a",), vectors=("v",))


def texts(count: int, width: int = 6, seed: int = 0) -> list[bytes]:
    return [pack_vector(row) for row in np.random.default_rng(seed).normal(size=(count, width))]


def column(values: list[bytes | None]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


@given(st.lists(st.integers(-1, 7), max_size=40), st.integers(0, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_projection_hangs_on_the_texts_alone(rows: list[int], most: int, seed: int) -> None:
    known = texts(8, seed=seed)
    given = column([None if row < 0 else known[row] for row in rows])
    found = Projection.fit(given, most)
    shuffled = given[np.random.default_rng(seed).permutation(len(given))]
    assert Projection.fit(shuffled, most) == found
    assert found.width <= min(most, max(len({row for row in rows if row >= 0}) - 1, 0))
    numbers = found(given)
    assert numbers.shape == (len(rows), found.width)
    assert not numbers[[row < 0 for row in rows]].any(), "without a vector a text is a usual one"
    alone = [found(given[n : n + 1]).tobytes() for n in range(len(rows))]
    assert alone == [row.tobytes() for row in numbers], "bit for bit, whatever stands beside it"
    again = Projection.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again(given).tobytes() == numbers.tobytes()


def test_all_components_keep_the_distances_up_to_one_factor() -> None:
    known = texts(5)
    given = column(known)
    vectors, numbers = np.array([unpack_vector(one) for one in known]), Projection.fit(given, 9)(given)
    before, after = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (vectors, numbers))
    apart = ~np.eye(5, dtype=bool)
    ratio = after[apart] / before[apart]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert np.abs(numbers.std(axis=0)).argmax() == 0, "what varies most comes first"


def test_a_text_far_outside_counts_as_the_outermost_one() -> None:
    known = texts(6)
    found = Projection.fit(column(known), 2)
    inside = found(column(known))
    wild = found(column([pack_vector(1e6 * unpack_vector(one)) for one in known]))
    assert (wild >= inside.min(axis=0)).all()
    assert (wild <= inside.max(axis=0)).all()


def test_vectors_of_two_lengths_are_refused() -> None:
    mixed = column([*texts(2, 6), *texts(2, 5)])
    with pytest.raises(ValueError, match=r"have \[5, 6\] numbers; use one encoder"):
        Projection.fit(mixed, 4)
    with pytest.raises(ValueError, match="has 5 numbers where the model was trained on 6"):
        Projection.fit(column(texts(4, 6)), 4)(column(texts(1, 5)))


def test_a_table_holds_each_text_once_and_gives_it_back(tmp_path: Path) -> None:
    known = texts(3, width=384)
    given = column([known[n % 3] if n % 5 else None for n in range(900)])
    table = pa.table({"v": vector_column(given)})
    more = pa.table({"v": vector_column(column([*known[:1], None]))})
    joined = pa.concat_tables([table, more]).combine_chunks()
    assert joined.nbytes < 20_000
    pq.write_table(joined, tmp_path / "t.parquet")
    for found in (joined, pq.read_table(tmp_path / "t.parquet")):
        assert read_vectors(found["v"]).tolist() == [*given, known[0], None]
    assert read_vectors(pa.chunked_array([pa.nulls(2)])).tolist() == [None, None]


def test_an_encoder_with_vectors_survives_its_file_and_misses_none_silently() -> None:
    known = texts(6)
    columns = {"a": np.array([1.0, 2.0, np.nan, 4.0] * 6), "v": column([*known, None, *known[:5]] * 2)}
    encoder = Encoder.fit(SCHEMA, columns, components=3)
    assert encoder.num_names == ("a", "a is missing", "v component 1", "v component 2", "v component 3")
    assert encoder.num_width == 5
    again = Encoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again.encode(columns)[0].tobytes() == encoder.encode(columns)[0].tobytes()
    with pytest.raises(ValueError, match="column 'v' is missing; the model reads words by their vectors"):
        encoder.encode({"a": columns["a"]})


@pytest.mark.parametrize("components", [0, 3])
def test_a_log_without_vectors_gives_a_model_without(components: int) -> None:
    columns = {"a": np.array([1.0, 2.0])}
    for one in (columns, {**columns, "v": column([None, None])}):
        encoder = Encoder.fit(SCHEMA, one, components=components)
        assert not encoder.reads_vectors
        assert encoder.encode(one)[0].shape == (2, 1)


def test_schemas_without_vectors_hash_as_before() -> None:
    plain = FeatureSchema("s", ("a",), ("c",))
    assert plain.to_dict() == {"service": "s", "numeric": ["a"], "categorical": ["c"]}
    assert FeatureSchema.from_dict(SCHEMA.to_dict()) == SCHEMA
    assert SCHEMA.diff(FeatureSchema("s", ("a",))) == ["vector feature 'v' is missing"]
