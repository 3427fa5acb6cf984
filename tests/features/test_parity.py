"""The same instant, offline and online: what a model is trained on is what a decision reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qiance.domain import Catalogue, Item
from qiance.features.on_demand import exposure_now
from qiance.features.session import EVENT_CODES, SESSION_FEATURES, Recent, session_features
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
    EventIndex,
)
from qiance.ledger.schema import to_micros
from serve.feature_store import open_reader
from training.featurise import (
    materialise,
    point_in_time,
    sessions_at,
    snapshot_days,
    stage_repository,
    write_feature_tables,
)
from training.live_tables import exposure_table, write_live_tables

START = datetime(2024, 1, 1, tzinfo=UTC)
USERS = tuple(f"u{n}" for n in range(5))
CATEGORIES = ("coffee", "cheese")
CATALOGUE = Catalogue(
    tuple(Item(f"i{n}", f"Item {n}", CATEGORIES[n % 2], "grocery", "National", 300, 200) for n in range(4))
)
# Feast takes a second for each history, so few are tried and a failing one is not made smaller.
QUICK = settings(
    max_examples=6,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Line:
    """A purchase line; several may share a time, a basket or everything."""

    user: int
    item: int
    hour: int
    value: int
    discount: int


lines = st.lists(
    st.builds(
        Line,
        st.integers(0, 3),  # the last user never buys
        st.integers(0, 4),  # item 4 is outside the catalogue
        st.integers(0, 24 * 250),
        st.integers(0, 900),
        st.integers(0, 300),
    ),
    min_size=3,
    max_size=60,
)


def purchases(found: Sequence[Line]) -> pa.Table:
    """In the order of arrival, which is not that of occurrence: late lines come late."""
    return pa.table(
        {
            "event_id": [f"e{n}" for n in range(len(found))],
            "user_id": [USERS[line.user] for line in found],
            "item_id": [f"i{line.item}" for line in found],
            "type": ["purchase"] * len(found),
            "quantity": [1] * len(found),
            "value": [line.value for line in found],
            "discount": [line.discount for line in found],
            "coupon": [0] * len(found),
            "occurred_at": pa.array(
                [START + timedelta(hours=line.hour) for line in found], pa.timestamp("us", "UTC")
            ),
            "basket_id": [f"{line.user}-{line.hour}" for line in found],
        }
    )


def index(found: Sequence[Line]) -> EventIndex:
    known = {f"i{n}": CATEGORIES[n % 2] for n in range(4)} | {"i4": "other"}
    return EventIndex.build(purchases(found), USERS, known, CATALOGUE, CATEGORIES)


@QUICK
@given(lines, st.integers(0, 150))
def test_batch_features_online_are_the_offline_ones(
    tmp_path_factory: pytest.TempPathFactory, found: list[Line], days_later: int
) -> None:
    folder = tmp_path_factory.mktemp("parity")
    events = index(found)
    days = snapshot_days(events) or [float(np.ceil(events.day[-1])) + 1.0]
    write_feature_tables(events, CATALOGUE, days, folder)
    stage_repository(folder)
    newest = datetime.fromtimestamp(days[-1] * 86_400, UTC)
    materialise(folder, newest)
    # At the instant itself, and later: past the TTL of 120 days neither side knows anything.
    at = newest + timedelta(days=days_later)
    pairs = [(user, item) for user in (*USERS, "nobody") for item in CATALOGUE]
    rows = pd.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "item_id": [item.item_id for _, item in pairs],
            "category": [item.category for _, item in pairs],
            "event_timestamp": at,
        }
    )
    offline = point_in_time(folder, rows)
    reader, now = open_reader(folder, 1.0), to_micros(at)
    users = reader.fetch("user_id", rows["user_id"].tolist(), now)
    items = reader.fetch("item_id", rows["item_id"].tolist(), now)
    online = {name: users.block("user_profile").values[name] for name in USER_FEATURES}
    online |= {name: items.block("item_state").values[name] for name in ITEM_FEATURES}
    online |= {name: items.block("item_popularity").values[name] for name in ITEM_POPULARITY_FEATURES}
    matrix = users.matrix("user_category", CATEGORIES).values
    code = np.array([CATEGORIES.index(name) for name in rows["category"]])
    online |= {name: matrix[name][np.arange(len(rows)), code] for name in USER_CATEGORY_FEATURES}
    for name, values in online.items():
        np.testing.assert_array_equal(values, offline[name].to_numpy(), err_msg=name)
    if days_later > 120:
        assert np.isnan(online["price"]).all()


visits = st.lists(
    st.tuples(
        st.integers(0, 2),  # user
        st.integers(0, 180),  # minute of occurrence
        st.integers(0, 40),  # minutes until it is received
        st.sampled_from(sorted(EVENT_CODES)),
        st.none() | st.sampled_from(["i0", "i1"]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged repository whose session table a test overwrites."""
    folder = tmp_path_factory.mktemp("sessions")
    write_live_tables(folder, None, None, {})
    stage_repository(folder)
    return folder


@QUICK
@given(visits, st.lists(st.integers(0, 260), min_size=1, max_size=8))
def test_sessions_offline_are_what_was_pushed_online(
    visited: Path, found: list[tuple[int, int, int, str, str | None]], moments: list[int]
) -> None:
    def at(minute: float) -> datetime:
        return START + timedelta(minutes=minute)

    table = pa.table(
        {
            "user_id": [USERS[user] for user, *_ in found],
            "occurred_at": pa.array([at(minute) for _, minute, *_ in found], pa.timestamp("us", "UTC")),
            "received_at": pa.array(
                [at(minute + wait) for _, minute, wait, *_ in found], pa.timestamp("us", "UTC")
            ),
            "type": [kind for *_, kind, _ in found],
            "item_id": pa.array([item for *_, item in found], pa.string()),
        }
    )
    write_live_tables(visited, table, None, {})
    rows = pd.DataFrame(
        [(USERS[user], at(minute)) for minute in moments for user in range(3)],
        columns=["user_id", "event_timestamp"],
    )
    offline = sessions_at(visited, rows)
    for place, (user, moment) in enumerate(rows.itertuples(index=False)):
        # What the pushes had made of the user by then, worked out anew.
        now, name = to_micros(moment.to_pydatetime()), USERS.index(user)
        seen = [
            (to_micros(at(minute)), kind, item)
            for person, minute, wait, kind, item in found
            if person == name and to_micros(at(minute + wait)) <= now
        ]
        received = [
            to_micros(at(minute + wait))
            for person, minute, wait, *_ in found
            if person == name and to_micros(at(minute + wait)) <= now
        ]
        fresh = bool(received) and now - max(received) <= 3_600_000_000
        online = session_features([Recent.of(seen) if fresh else None], np.array([now]))
        for feature in SESSION_FEATURES:
            assert offline[feature][place] == online[feature][0], (feature, user, moment)


def test_the_newest_session_online_is_the_offline_one(tmp_path: Path) -> None:
    at = [START + timedelta(minutes=m) for m in (0, 4, 9)]
    table = pa.table(
        {
            "user_id": ["u0", "u0", "u1"],
            "occurred_at": pa.array(at, pa.timestamp("us", "UTC")),
            "received_at": pa.array(at, pa.timestamp("us", "UTC")),
            "type": ["view", "cart", "search"],
            "item_id": ["i0", "i0", None],
        }
    )
    write_live_tables(tmp_path, table, None, {})
    stage_repository(tmp_path)
    materialise(tmp_path, START + timedelta(minutes=10))
    now = START + timedelta(minutes=12)
    block = (
        open_reader(tmp_path, 1.0).fetch("user_id", ["u0", "u1", "u2"], to_micros(now)).block("user_session")
    )
    assert block.lists["event_types"] == [(0, 1), (3,), None]
    assert block.lists["event_items"] == [("i0", "i0"), ("",), None]
    recent = [Recent(*one) if one[0] else None for one in zip(*block.lists.values(), strict=True)]  # type: ignore[arg-type]
    rows = pd.DataFrame({"user_id": ["u0", "u1", "u2"], "event_timestamp": now})
    offline = sessions_at(tmp_path, rows)
    times = dict(zip(block.lists, block.lists.values(), strict=True))
    assert set(times) == {"event_times", "event_types", "event_items"}
    assert recent[2] is None
    assert offline["session_carts"].tolist() == [1.0, 0.0, 0.0]
    assert offline["session_searches"].tolist() == [0.0, 1.0, 0.0]
    assert offline["session_idle_minutes"].tolist() == [8.0, 3.0, 30.0]


def test_a_decision_does_not_count_its_own_contact() -> None:
    at = [START + timedelta(days=d) for d in (0, 1, 1, 40)]
    decisions = pa.table(
        {
            "user_id": ["u0"] * 4,
            "decided_at": pa.array(at, pa.timestamp("us", "UTC")),
            "action_id": ["a", "a", "control", "b"],
        }
    )
    table = exposure_table(decisions)
    micros = [to_micros(moment) for moment in at]
    assert table["contact_times"].to_pylist() == [[micros[0]], micros[:2], [micros[3]]]
    stamped = table["event_timestamp"].cast(pa.int64()).to_pylist()
    assert stamped == [micros[0] + 1, micros[1] + 1, micros[3] + 1]
    twice = pa.concat_tables([decisions.slice(0, 1), decisions.slice(0, 1)])
    assert exposure_table(twice)["contact_times"].to_pylist() == [[micros[0], micros[0]]]
    frame = pd.DataFrame(
        {"contact_times": [micros[:2], None], "now_us": [to_micros(START + timedelta(days=2)), 0]}
    )
    found = exposure_now(frame)
    assert found["contacts_7d"].tolist() == [2.0, 0.0]
    assert found["contacts_1d"].tolist() == [1.0, 0.0]
