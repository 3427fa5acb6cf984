"""The slate: the best sum there is, nothing that loses, not all of one kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.strategy.slate import rank_slate

ITEMS = st.lists(st.tuples(st.integers(-5, 20), st.sampled_from("abc")), min_size=1, max_size=7)


def worth(places: tuple[int, ...], value: np.ndarray, kind: list[str], diversity: float) -> float:
    """Of a slate, the better item of a kind counted first."""
    total, turns = 0.0, dict.fromkeys(kind, 0)
    for place in sorted(places, key=lambda n: -value[n]):
        total += value[place] * (1.0 - diversity) ** turns[kind[place]]
        turns[kind[place]] += 1
    return total


@given(ITEMS, st.integers(1, 4), st.floats(0.0, 0.9))
def test_no_slate_is_worth_more(items: list[tuple[int, str]], count: int, diversity: float) -> None:
    value, kind = np.array([float(v) for v, _ in items]), [k for _, k in items]
    found = rank_slate(value, kind, count, diversity)
    places = range(len(items))
    best = max(
        worth(slate, value, kind, diversity)
        for size in range(count + 1)
        for slate in itertools.combinations(places, size)
    )
    assert sum(gain for _, gain in found) == pytest.approx(best)
    assert worth(tuple(place for place, _ in found), value, kind, diversity) == pytest.approx(best)
    assert all(value[place] > 0 for place, _ in found)
    gains = [gain for _, gain in found]
    assert gains == sorted(gains, reverse=True)


def test_another_kind_comes_before_more_of_the_same() -> None:
    value, kind = np.array([10.0, 9.0, 8.0]), ["coffee", "coffee", "tea"]
    assert [place for place, _ in rank_slate(value, kind, 3, 0.3)] == [0, 2, 1]
    assert [place for place, _ in rank_slate(value, kind, 3, 0.0)] == [0, 1, 2]
    assert rank_slate(np.array([-1.0, 0.0]), ["a", "b"], 2) == []


@pytest.mark.parametrize(
    ("count", "diversity", "message"), [(0, 0.3, "count: 0 items"), (1, 1.0, r"diversity: 1.0 is outside")]
)
def test_numbers_out_of_range_are_refused(count: int, diversity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_slate(np.array([1.0]), ["a"], count, diversity)
