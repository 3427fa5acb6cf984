"""Features of the moment: sessions, contacts, the calendar; and what stands in where nothing is known."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.features.calendar import CALENDAR_FEATURES, calendar_features
from qiance.features.defaults import Defaults
from qiance.features.exposure import exposure_features
from qiance.features.session import (
    EVENT_CODES,
    GAP_US,
    MAX_EVENTS,
    SESSION_FEATURES,
    Recent,
    no_session,
    session_features,
)

MINUTE = 60_000_000
DAY = 86_400_000_000


def at(*events: tuple[float, str, str | None]) -> Recent:
    return Recent.of([(int(minute * MINUTE), kind, item) for minute, kind, item in events])


def session(recent: Recent | None, minute: float) -> dict[str, float]:
    found = session_features([recent], np.array([int(minute * MINUTE)]))
    return {name.removeprefix("session_"): float(values[0]) for name, values in found.items()}


def test_a_session_is_what_came_since_the_last_long_pause() -> None:
    recent = at(
        (0, "view", "a"), (50, "view", "b"), (60, "cart", "b"), (65, "search", None), (70, "view", "c")
    )
    assert session(recent, 72) == {
        "views": 2.0, "carts": 1.0, "purchases": 0.0, "searches": 1.0, "items": 2.0,
        "minutes": 22.0, "idle_minutes": 2.0,
    }  # fmt: skip


def test_a_session_ends_after_half_an_hour_and_the_future_does_not_count() -> None:
    recent = at((10, "view", "a"), (20, "view", "b"))
    assert session(recent, 15)["views"] == 1.0
    assert session(recent, 49.9)["views"] == 2.0
    assert session(recent, 50.0) == session(None, 50.0)
    assert session(None, 5.0)["idle_minutes"] == 30.0


def test_nobody_on_the_site() -> None:
    found = no_session(3)
    assert list(found) == list(SESSION_FEATURES)
    assert all(len(values) == 3 for values in found.values())
    assert no_session(0)["session_views"].shape == (0,)


events = st.lists(
    st.tuples(
        st.integers(0, 10 * GAP_US), st.sampled_from(sorted(EVENT_CODES)), st.none() | st.sampled_from("abc")
    ),
    max_size=2 * MAX_EVENTS,
)


@given(events, st.integers(0, 10 * GAP_US))
def test_counts_are_those_of_a_plain_loop(found: list[tuple[int, str, str | None]], now: int) -> None:
    kept = sorted((t, EVENT_CODES[kind], item or "") for t, kind, item in found)[-MAX_EVENTS:]
    current: list[tuple[int, int, str]] = []
    edge = now
    for event in reversed([event for event in kept if event[0] <= now]):
        if edge - event[0] >= GAP_US:
            break
        current.append(event)
        edge = event[0]
    result = session_features([Recent.of(found)], np.array([now]))
    for kind, code in EVENT_CODES.items():
        name = "session_searches" if kind == "search" else f"session_{kind}s"
        assert result[name][0] == sum(1 for _, c, _ in current if c == code)
    assert result["session_items"][0] == len({item for _, _, item in current if item})


@given(st.lists(st.integers(0, 40 * DAY), max_size=30), st.integers(0, 40 * DAY))
def test_contacts_are_counted_by_window(contacts: list[int], now: int) -> None:
    found = exposure_features([sorted(contacts)], np.array([now]))
    for days in (1, 7, 28):
        expected = sum(1 for t in contacts if now - days * DAY <= t < now)
        assert found[f"contacts_{days}d"][0] == expected
    assert 0.0 <= found["days_since_contact"][0] <= 28.0


def moment(text: str) -> np.ndarray:
    return np.array([int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)])


def test_the_calendar_knows_weekends_and_holidays() -> None:
    christmas = calendar_features(moment("2017-12-25T15:00"))
    assert (christmas["is_holiday"][0], christmas["days_to_holiday"][0]) == (1.0, 0.0)
    before = calendar_features(moment("2017-12-23T00:00"))
    assert (before["is_weekend"][0], before["days_to_holiday"][0]) == (1.0, 2.0)
    assert calendar_features(moment("2026-02-17T00:00"), "CN")["is_holiday"][0] == 1.0
    assert calendar_features(moment("2026-02-17T00:00"), "US")["is_holiday"][0] == 0.0


def test_the_calendar_is_a_circle_and_has_no_edges() -> None:
    days = calendar_features(np.concatenate([moment("2018-12-31T00:00"), moment("2019-01-01T00:00")]))
    assert abs(days["season_cos"][0] - days["season_cos"][1]) < 0.02
    assert list(calendar_features(np.zeros(0, dtype=np.int64))) == list(CALENDAR_FEATURES)
    assert calendar_features(moment("2018-12-31T00:00"))["days_to_holiday"][0] == 1.0


def test_a_country_without_a_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match="country: 'XX' has no holiday calendar"):
        calendar_features(moment("2018-01-01T00:00"), "XX")


def test_a_gap_gets_the_mean_of_its_group_else_of_everybody() -> None:
    values = {"price": np.array([1.0, 2, 3, 4, 5, 100, np.nan])}
    learned = Defaults.learn(values, ["tea"] * 5 + ["soup"] * 2)
    assert learned.of("tea")["price"] == 3.0
    assert learned.of("soup") == learned.of("never seen") == learned.of() == learned.population
    filled = learned.fill({"price": np.array([np.nan, np.nan, 7.0])}, ["tea", "soup", "tea"])
    np.testing.assert_allclose(filled["price"], [3.0, 115 / 6, 7.0])
    assert Defaults.from_dict(learned.to_dict()) == learned


def test_a_feature_nobody_ever_had_is_zero() -> None:
    learned = Defaults.learn({"stock": np.array([np.nan, np.nan])})
    assert learned.fill({"stock": np.array([np.nan])})["stock"].tolist() == [0.0]
