"""Packed rows: what goes in comes out, the newer row stays, and what is deleted is gone from the file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.packed import RowLayout, times_of
from qiance.features.partition import Partition, cut, mark_of, pack
from qiance.features.rows import (
    RedisRows,
    Row,
    Rows,
    RowsUnavailableError,
    SqliteRows,
    field_of,
    partition_of,
    redis_options,
)
from tests.features.redis_server import RedisServer

LAYOUT = RowLayout.of(
    "v",
    [
        ("a", "Float64"),
        ("b", "Int64"),
        ("flag", "Bool"),
        ("name", "String"),
        ("vector", "Array(Float32)"),
        ("times", "Array(Int64)"),
        ("items", "Array(String)"),
        ("raw", "Bytes"),
    ],
)
times = st.integers(-(2**52), 2**52)
values = st.fixed_dictionaries(
    {
        "a": st.none() | st.floats(allow_nan=False),
        "b": st.none() | st.integers(-(2**62), 2**62),
        "flag": st.none() | st.integers(0, 1),
        "name": st.none() | st.text(),
        "vector": st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=5),
        "times": st.none() | st.lists(st.integers(-(2**62), 2**62), max_size=5),
        "items": st.none() | st.lists(st.text(), max_size=5),
        "raw": st.none() | st.binary(max_size=9),
    }
)


@given(times, times, values)
def test_a_row_comes_back_as_it_was(event: int, created: int, row: dict[str, object]) -> None:
    packed = LAYOUT.pack(event, created, row)
    found = LAYOUT.unpack(packed)
    assert found is not None
    plain = {k: list(v) if isinstance(v, tuple | np.ndarray) else v for k, v in found.items()}
    assert plain == row
    assert times_of(packed) == (event, created)


@given(st.lists(values, min_size=1, max_size=4))
def test_columns_say_what_the_rows_say(rows: list[dict[str, object]]) -> None:
    packed = [LAYOUT.pack(7, 8, row) for row in rows]
    numbers = LAYOUT.numbers(LAYOUT.records(packed))
    for column, (name, _) in enumerate(LAYOUT.fixed):
        expected = [float("nan") if row[name] is None else float(row[name]) for row in rows]  # type: ignore[arg-type]
        np.testing.assert_array_equal(numbers[:, column], expected)
    for name, _ in LAYOUT.variable:
        found = [list(v) if isinstance(v, tuple | np.ndarray) else v for v in LAYOUT.lists(packed, name)]
        assert found == [row[name] for row in rows]


def test_a_row_of_another_definition_is_not_read() -> None:
    other = RowLayout.of("v", [("a", "Float64"), ("c", "Float64")])
    assert other.unpack(LAYOUT.pack(1, 1, {"a": 1.0})) is None


words = st.text(st.characters(exclude_characters="\x00\x1e", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(words, st.binary(max_size=40), max_size=8), words)
def test_a_partition_comes_back_as_it_was(rows: dict[str, bytes], other: str) -> None:
    found = Partition(pack(rows))
    assert dict(found) == rows
    assert len(found) == len(rows)
    assert found.get(other) == rows.get(other)
    assert (other in found) == (other in rows)


def test_a_partition_refuses_a_name_that_it_could_not_tell_apart() -> None:
    for name in ("a\x00b", "a\x1eb"):
        with pytest.raises(ValueError, match="holds 1E or NUL"):
            pack({name: b""})


def test_a_name_that_only_a_row_holds_is_not_found() -> None:
    packed = pack({"v": mark_of("w") + b"0000000000000001" + mark_of("w")})
    assert cut([packed, packed, b""], [mark_of("w"), mark_of("v"), mark_of("v")])[::2] == [None, None]


@pytest.fixture(params=["sqlite", "redis"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rows]:
    if request.param == "sqlite":
        store: Rows = SqliteRows(tmp_path / "online.db", "shop")
        store.create()  # type: ignore[attr-defined]
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        store = RedisRows(server.connection, "shop", timeout_s=2.0)
    yield store
    store.close()


def one(value: float, event: int, created: int = 0, user: str = "u1", view: str = "v") -> Row:
    layout = RowLayout.of(view, [("a", "Float64")])
    return Row(partition_of("user_id", user), field_of(view), layout.pack(event, created, {"a": value}))


def stored(rows: Rows, user: str = "u1", view: str = "v") -> float | None:
    (partition,) = rows.get([partition_of("user_id", user)])
    packed = Partition(partition).get(view)
    return None if packed is None else RowLayout.of(view, [("a", "Float64")]).unpack(packed)["a"]  # type: ignore[index, return-value]


@settings(max_examples=30, deadline=None)
@given(writes=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=8))
def test_the_newest_row_stays_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]]
) -> None:
    store = SqliteRows(tmp_path_factory.mktemp("rows") / "online.db", "shop")
    store.create()
    for value, (event, created) in enumerate(writes):
        store.put([one(float(value), event, created)])
    newest = max(writes)
    last = max(n for n, write in enumerate(writes) if write == newest)
    assert stored(store) == float(last)
    store.close()


def test_older_rows_change_nothing(rows: Rows) -> None:
    rows.put([one(1.0, event=10, created=5)])
    rows.put([one(2.0, event=9, created=9)])  # late
    rows.put([one(3.0, event=10, created=4)])  # computed earlier
    assert stored(rows) == 1.0
    rows.put([one(4.0, event=10, created=5)])
    rows.put([one(5.0, event=-3, created=0, user="u2")])  # before 1970
    rows.put([one(6.0, event=-2, created=0, user="u2")])
    assert (stored(rows), stored(rows, "u2")) == (4.0, 6.0)


def test_partitions_come_in_the_order_asked_for(rows: Rows) -> None:
    rows.put([one(float(n), 1, user=f"u{n}") for n in range(1_200)])
    wanted = [f"u{n}" for n in (1_100, 3, 5_000, 3)]
    found = rows.get([partition_of("user_id", user) for user in wanted])
    values = [
        RowLayout.of("v", [("a", "Float64")]).unpack(Partition(p)["v"])["a"] if p else None for p in found
    ]  # type: ignore[index]
    assert values == [1_100.0, 3.0, None, 3.0]


def test_delete_takes_all_rows_of_one_entity_and_no_other(rows: Rows) -> None:
    rows.put([one(1.0, 1), one(2.0, 1, view="w"), one(3.0, 1, user="u11")])
    assert rows.delete(partition_of("user_id", "u1")) == 2
    assert (stored(rows), stored(rows, view="w"), stored(rows, "u11")) == (None, None, 3.0)
    assert rows.delete(partition_of("user_id", "u1")) == 0


def test_delete_view_leaves_views_of_a_like_name(rows: Rows) -> None:
    rows.put([one(1.0, 1, view="v"), one(2.0, 1, view="v2"), one(3.0, 1, view="w")])
    pair = RowLayout.of("v", [("a", "Float64")])
    rows.put([Row("user_id=u1", field_of("v", [("category", "tea")]), pair.pack(1, 1, {"a": 9.0}))])
    rows.delete_view("v")
    (partition,) = rows.get(["user_id=u1"])
    assert sorted(Partition(partition)) == ["v2", "w"]


def test_a_value_of_another_version_is_empty_and_is_written_anew(rows: Rows) -> None:
    rows.put([one(1.0, 1)])
    other = b"\x00\x01" + rows.get(["user_id=u1"])[0][2:]
    if isinstance(rows, SqliteRows):
        rows._connection().execute("UPDATE partitions_shop SET value = ?", [other])
    else:
        rows._redis.set("shop:user_id=u1", other)  # type: ignore[attr-defined]
    assert dict(Partition(*rows.get(["user_id=u1"]))) == {}
    rows.put([one(2.0, 1)])
    assert stored(rows) == 2.0


def test_a_number_and_a_text_are_two_entities() -> None:
    assert partition_of("user_id", "7") != partition_of("user_id", 7)


def test_what_is_deleted_leaves_no_byte_behind(tmp_path: Path) -> None:
    file = tmp_path / "online.db"
    store = SqliteRows(file, "shop")
    store.create()
    layout = RowLayout.of("v", [("words", "String")])
    for n in range(300):
        packed = layout.pack(1, 1, {"words": f"planted-{n:04d}-" * 20})
        store.put([Row(f"user_id=person-{n:04d}", "v", packed)])
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"planted-0123" in everything
    assert b"person-0123" in everything
    store.delete("user_id=person-0123")
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"planted-0123" not in left
    assert b"person-0123" not in left
    assert b"planted-0124" in left
    store.close()


def test_many_threads_read_while_one_writes(tmp_path: Path) -> None:
    store = SqliteRows(tmp_path / "online.db", "shop")
    store.create()
    store.put([one(0.0, 0)])
    seen: list[float] = []
    failed: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(100):
                value = stored(store)
                assert value is not None
                seen.append(value)
        except Exception as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    for n in range(1, 60):
        store.put([one(float(n), n)])
    for thread in readers:
        thread.join()
    assert not failed
    assert len(seen) == 400
    assert stored(store) == 59.0
    store.close()


def test_a_redis_that_is_gone_is_told_in_time(redis_server: RedisServer) -> None:
    store = RedisRows(redis_server.connection, "shop", timeout_s=0.05)
    store.put([one(1.0, 1)])
    redis_server.kill()
    with pytest.raises(RowsUnavailableError, match="Redis does not answer"):
        store.get(["user_id=u1"])
    redis_server.start()
    assert stored(store) == 1.0
    store.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost", "connection_string: 'localhost' is not host:port"),
        ("${QIANCE_REDIS}", "is not host:port"),
        ("h:1,pasword=x", "connection_string: 'pasword' is none of db, username, password"),
        ("h:1,db=one", "connection_string: the value of 'db' cannot be read"),
        ("h:1,ssl=maybe", "the value of 'ssl' cannot be read"),
    ],
)
def test_a_connection_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("$", r"\$").replace("{", r"\{")):
        redis_options(text)


def test_a_password_is_never_repeated() -> None:
    with pytest.raises(ValueError, match="db") as caught:
        redis_options("h:1,password=geheim,db=x")
    assert "geheim" not in str(caught.value)


def test_redis_options() -> None:
    found = redis_options("h:6380,db=2,password=a=b,ssl=true")
    assert found == {"host": "h", "port": 6380, "db": 2, "password": "a=b", "ssl": True}
