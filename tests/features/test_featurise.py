"""Feature tables: nothing from the future, no row lost, online equal to offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from qiance.domain import Catalogue, Item
from qiance.features.transforms import (
    ITEM_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
    EventIndex,
    item_features,
    user_category_features,
    user_features,
)
from qiance.ledger.schema import to_micros
from qiance.workspace import Snapshot
from serve.feature_store import open_reader
from training.featurise import (
    materialise,
    point_in_time,
    point_in_time_one,
    snapshot_at,
    snapshot_days,
    stage_repository,
    write_feature_tables,
)

CATEGORIES = ("coffee", "soup")
CATALOGUE = Catalogue(
    tuple(Item(f"i{n}", f"item {n}", CATEGORIES[n % 2], "d", "b", 500, 300) for n in range(4))
)
USERS = tuple(f"u{n}" for n in range(12))
START = datetime(2017, 1, 1, tzinfo=UTC)


def some_events(seed: int = 0, size: int = 900, days: int = 200) -> pa.Table:
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, days * 86_400, size))
    items = rng.integers(0, 5, size)  # item 4 is outside the catalogue
    return pa.table(
        {
            "user_id": [USERS[u] for u in rng.integers(0, 11, size)],  # the last user never buys
            "item_id": [f"i{n}" for n in items],
            "type": ["purchase"] * size,
            "quantity": rng.integers(1, 4, size),
            "value": rng.integers(100, 2_000, size),
            "discount": rng.integers(0, 300, size),
            "occurred_at": pa.array(
                [START + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("us", "UTC")
            ),
            "basket_id": [f"b{n // 3}" for n in range(size)],
        }
    )


def index(events: pa.Table) -> EventIndex:
    known = {f"i{n}": CATEGORIES[n % 2] for n in range(4)} | {"i4": "other"}
    return EventIndex.build(events, USERS, known, CATALOGUE, CATEGORIES)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EventIndex, list[float]]:
    folder = tmp_path_factory.mktemp("features")
    events = index(some_events())
    days = snapshot_days(events)
    write_feature_tables(events, CATALOGUE, days, folder)
    stage_repository(folder)
    return folder, events, days


def brute_force(table: pa.Table, user: str, as_of: datetime) -> dict[str, float]:
    frame = table.to_pandas()
    mine = frame[(frame.user_id == user) & (frame.occurred_at < as_of)]
    window = mine[mine.occurred_at >= as_of - timedelta(days=90)]
    spend, discount = float(window.value.sum()), float(window.discount.sum())
    baskets = float(window.basket_id.nunique())
    return {
        "recency_days": (as_of - mine.occurred_at.max()).total_seconds() / 86_400,
        "baskets_90d": baskets,
        "spend_90d": spend,
        "avg_basket": spend / baskets,
        "discount_share": discount / (spend + discount),
        "tenure_days": (as_of - mine.occurred_at.min()).total_seconds() / 86_400,
    }


def test_user_features_are_what_the_words_say() -> None:
    table = some_events(1)
    # One basket belongs to one user here, as in a shop.
    users = table["user_id"].to_pylist()
    baskets = [f"{user}:{b}" for user, b in zip(users, table["basket_id"].to_pylist(), strict=True)]
    table = table.set_column(table.column_names.index("basket_id"), "basket_id", pa.array(baskets))
    as_of = START + timedelta(days=150)
    found = user_features(index(table), as_of.timestamp() / 86_400)
    for row in (0, 5, 10):
        for name, value in brute_force(table, USERS[row], as_of).items():
            assert found[name][row] == pytest.approx(value, rel=1e-6), name
    assert np.isnan(found["recency_days"][11]), "who never bought has no recency"
    assert found["spend_90d"][11] == 0.0


def test_the_future_changes_nothing() -> None:
    table = some_events(2)
    as_of = (START + timedelta(days=100)).timestamp() / 86_400
    cut = index(table).between(-np.inf, as_of).stop
    past, future = table.slice(0, cut), table.slice(cut)
    rng = np.random.default_rng(0)
    shuffled = future.set_column(2, "type", future["type"])
    for name in ("user_id", "item_id", "value", "discount", "quantity"):
        place = shuffled.column_names.index(name)
        shuffled = shuffled.set_column(place, name, shuffled[name].take(rng.permutation(len(future))))
    other = pa.concat_tables([past, shuffled])
    for make in (user_features, user_category_features, lambda e, t: item_features(e, CATALOGUE, t)):
        before, after = make(index(table), as_of), make(index(other), as_of)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_every_row_keeps_its_place_and_gets_the_last_values(
    staged: tuple[Path, EventIndex, list[float]],
) -> None:
    folder, events, days = staged
    at = [datetime.fromtimestamp(days[2] * 86_400, UTC) + timedelta(days=3)] * 6
    rows = pd.DataFrame(
        {
            # The same user twice at the same instant, an unknown user, one that never bought, no item.
            "user_id": ["u1", "u1", "u2", "nobody", "u11", "u1"],
            "item_id": ["i0", "i3", "i1", "i0", "i2", None],
            "category": ["coffee", "soup", "soup", "coffee", "coffee", None],
            "event_timestamp": at,
        }
    )
    joined = point_in_time(folder, rows)
    assert joined["user_id"].tolist() == rows["user_id"].tolist()
    expected = user_features(events, days[2])
    shares = user_category_features(events, days[2])
    for name in USER_FEATURES:
        assert joined[name][0] == joined[name][1] == joined[name][5] == expected[name][1]
        assert joined[name][2] == expected[name][2]
    assert joined[list(USER_FEATURES)].iloc[3:5].isna().all().all()
    assert joined["category_share"][0] == shares["category_share"][1, 0]
    assert joined["category_share"][1] == shares["category_share"][1, 1]
    assert np.isnan(joined["price"][5])


def test_nothing_is_known_before_it_was(staged: tuple[Path, EventIndex, list[float]]) -> None:
    folder, _, days = staged
    before = datetime.fromtimestamp(days[0] * 86_400, UTC) - timedelta(seconds=1)
    rows = pd.DataFrame(
        {"user_id": ["u1"], "item_id": ["i0"], "category": ["coffee"], "event_timestamp": [before]}
    )
    joined = point_in_time(folder, rows)
    assert joined[[*USER_FEATURES, *USER_CATEGORY_FEATURES, "price"]].isna().all().all()


def test_online_values_are_the_offline_ones(staged: tuple[Path, EventIndex, list[float]]) -> None:
    folder, _, days = staged
    now = datetime.fromtimestamp(days[-1] * 86_400, UTC)
    materialise(folder, now)
    users = ["u1", "u4", "nobody"]
    rows = pd.DataFrame(
        {"user_id": users, "item_id": "i0", "category": "coffee", "event_timestamp": [now] * 3}
    )
    offline = point_in_time(folder, rows)
    fetched = open_reader(folder, 1.0).fetch("user_id", users, to_micros(now))
    found = fetched.block("user_profile").values
    for name in USER_FEATURES:
        np.testing.assert_array_equal(found[name], offline[name].to_numpy(), err_msg=name)
    categories = fetched.matrix("user_category", ["coffee"]).values
    for name in USER_CATEGORY_FEATURES:
        np.testing.assert_array_equal(categories[name][:, 0], offline[name].to_numpy(), err_msg=name)


def test_a_snapshot_comes_back_as_it_was(
    staged: tuple[Path, EventIndex, list[float]], tmp_path: Path
) -> None:
    _, events, days = staged
    snapshot = snapshot_at(events, CATALOGUE, days[-1])
    snapshot.save(tmp_path)
    again = Snapshot.load(tmp_path)
    assert again.catalogue == snapshot.catalogue
    assert again.categories == CATEGORIES
    assert again.users.user_ids == USERS
    assert again.as_of == snapshot.as_of
    for name in USER_CATEGORY_FEATURES:
        np.testing.assert_array_equal(again.user_category[name], snapshot.user_category[name])


def test_a_join_that_cannot_be_made_is_refused_or_empty(
    staged: tuple[Path, EventIndex, list[float]],
) -> None:
    folder, _, days = staged
    now = datetime.fromtimestamp(days[-1] * 86_400, UTC)
    rows = pd.DataFrame({"user_id": ["u1"], "item_id": [None], "event_timestamp": [now]}, index=[7])
    empty = point_in_time_one(folder, rows, "item_v1", ("item_id",))
    assert empty.index.tolist() == [7]
    assert empty[list(ITEM_FEATURES)].isna().all().all()
    with pytest.raises(ValueError, match="rows: column 'category' is missing; user_category_v1 is joined by"):
        point_in_time_one(folder, rows, "user_category_v1", ("user_id", "category"))
    with pytest.raises(ValueError, match="rows: column 'price' is a feature of item_v1; drop it"):
        point_in_time_one(folder, rows.assign(price=1.0), "item_v1", ("item_id",))
