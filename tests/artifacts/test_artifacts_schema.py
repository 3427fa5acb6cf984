"""Feature schema and encoder: the same row means the same in training and serving."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.encoder import Encoder
from qiance.features.schema import FeatureSchema

SCHEMA = FeatureSchema("s", ("a", "b"), ("c",))


def _columns() -> dict[str, np.ndarray]:
    return {
        "a": np.array([1.0, 2.0, 3.0, np.nan]),
        "b": np.array([5, 5, 5, 5]),
        "c": np.array(["x", "x", "y", None], dtype=object),
    }


def test_the_hash_follows_names_kinds_and_order() -> None:
    others = [
        FeatureSchema("t", ("a", "b"), ("c",)),
        FeatureSchema("s", ("b", "a"), ("c",)),
        FeatureSchema("s", ("a",), ("b", "c")),
        FeatureSchema("s", ("a", "b"), ()),
    ]
    assert len({SCHEMA.hash, *(other.hash for other in others)}) == 5
    assert FeatureSchema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))).hash == SCHEMA.hash
    assert all(SCHEMA.diff(other) for other in others)
    assert SCHEMA.diff(FeatureSchema("s", ("a", "b"), ("c",))) == []


@pytest.mark.parametrize(
    ("numeric", "categorical", "message"),
    [((), (), "has no feature"), (("a", "a"), (), "'a' is listed twice"), (("a",), ("a",), "listed twice")],
)
def test_bad_schemas_are_refused(numeric: tuple, categorical: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSchema("s", numeric, categorical)


def test_numbers_are_standardised_and_gaps_flagged() -> None:
    encoder = Encoder.fit(SCHEMA, _columns(), min_count=1)
    num, cat = encoder.encode(_columns())
    assert encoder.num_names == ("a", "b", "a is missing")
    assert num.dtype == np.float32
    assert cat.dtype == np.int64
    np.testing.assert_allclose(num[:, 0], [-1.2247449, 0, 1.2247449, 0], rtol=1e-6)
    np.testing.assert_array_equal(num[:, 1], 0)
    np.testing.assert_array_equal(num[:, 2], [0, 0, 0, 1])
    np.testing.assert_array_equal(cat[:, 0], [1, 1, 2, 0])


def test_wild_and_unknown_values_are_harmless() -> None:
    encoder = Encoder.fit(SCHEMA, _columns(), min_count=2)
    num, cat = encoder.encode(
        {
            "a": np.array([np.inf, -np.inf, 1e300, -1e300]),
            "b": np.array([np.nan, 5, 5, 5]),
            "c": np.array(["y", "", "x" * 1000, "x"], dtype=object),
        }
    )
    assert np.isfinite(num).all()
    assert np.abs(num).max() <= 8
    np.testing.assert_array_equal(cat[:, 0], [0, 0, 0, 1])


def test_no_rows_encode_to_no_rows() -> None:
    encoder = Encoder.fit(SCHEMA, _columns())
    num, cat = encoder.encode({name: values[:0] for name, values in _columns().items()})
    assert num.shape == (0, 3)
    assert cat.shape == (0, 1)


words = st.one_of(st.none(), st.sampled_from(["x", "y", "z", "长", ""]), st.text(max_size=4))


@given(
    st.lists(st.tuples(st.floats(allow_nan=True, width=32), words), min_size=1, max_size=40),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=80)
def test_the_json_form_encodes_alike_and_row_by_row(rows: list, min_count: int) -> None:
    columns = {
        "a": np.array([0.0, *(number for number, _ in rows)]),
        "c": np.array(["x", *(word for _, word in rows)], dtype=object),
    }
    schema = FeatureSchema("s", ("a",), ("c",))
    encoder = Encoder.fit(schema, columns, min_count=min_count)
    again = Encoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    num, cat = encoder.encode(columns)
    for one, other in zip((num, cat), again.encode(columns), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(num).all()
    assert cat.max() < encoder.cardinalities[0]
    single = encoder.encode({name: values[-1:] for name, values in columns.items()})
    np.testing.assert_array_equal(single[0][0], num[-1])
    np.testing.assert_array_equal(single[1][0], cat[-1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": np.zeros(2), "b": np.zeros(2)}, "column 'c' is missing; feature service 's' delivers it"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.array(["x", "x"])}, "column 'b' has 3 rows"),
        ({"a": np.array(["q"]), "b": np.zeros(1), "c": np.array(["x"])}, "column 'a' is not numeric"),
        (
            {"a": np.array([np.nan]), "b": np.zeros(1), "c": np.array(["x"])},
            "column 'a' has no finite value",
        ),
    ],
)
def test_bad_columns_are_named(columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.fit(SCHEMA, columns)


def test_arrow_columns_become_arrays() -> None:
    words = pa.array(["x", None, "y"]).dictionary_encode()
    table = pa.table({"a": pa.array([1, None, 3]), "b": pa.array([True, False, None]), "c": words})
    columns = SCHEMA.columns(table)
    np.testing.assert_array_equal(columns["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(columns["b"], [1, 0, np.nan])
    assert list(columns["c"]) == ["x", None, "y"]
    with pytest.raises(ValueError, match="column 'b' is missing; the table has a, c"):
        SCHEMA.columns(table.drop_columns(["b"]))
    with pytest.raises(ValueError, match="column 'a' of type string is not numeric"):
        SCHEMA.columns(table.set_column(0, "a", pa.array(["1", "two", "3"])))
