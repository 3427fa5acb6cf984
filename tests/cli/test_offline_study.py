"""What is learned from a log, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from offline_cases import planted, responses_of, study_of

from qiance.data.errors import DataError


def test_units_stay_whole_and_halves_are_about_equal() -> None:
    table = planted(4_000)
    units = np.array([f"u{i // 5}" for i in range(4_000)])
    arm = np.array(table.table["arm"].to_pylist())
    columns = {name: table.table[name] for name in ("age", "click")}
    study = study_of(
        responses_of(arm, table.table["propensity"].to_numpy(), columns, ("click",), units=units)
    )
    for mask in (study.first, study.train):
        assert all(np.unique(part).size == 1 for part in mask.reshape(-1, 5))
    assert 0.4 < study.first.mean() < 0.6
    for half in (study.first, ~study.first):
        assert 0.7 < study.train[half].mean() < 0.9


def test_control_comes_first_and_arms_never_shown_are_named() -> None:
    rng = np.random.default_rng(0)
    arm = rng.choice(["b", "z"], 2_000)
    clicked = pa.array((rng.random(2_000) < 0.3).astype(np.int64))
    table = responses_of(
        arm, np.full(2_000, 0.5), {"click": clicked}, ("click",), control="z", arms=("a", "b", "z")
    )
    study = study_of(table)
    assert study.arms == ("z", "b")
    assert [study.arms[k] for k in study.action] == arm.tolist()
    assert study.has_control
    np.testing.assert_allclose(study.shares, [0.5, 0.5])
    assert "1 arms were never shown and cannot be judged: a." in study.notes


@pytest.mark.parametrize(
    ("labels", "learned", "primary"),
    [
        (("click",), ("click",), "click"),
        (("click", "conversion", "sales"), ("click", "conversion", "sales"), "click"),
        (("sales",), ("conversion", "sales"), "sales"),
    ],
)
def test_what_is_learned(labels: tuple[str, ...], learned: tuple[str, ...], primary: str) -> None:
    study = study_of(planted(labels=labels))
    assert study.labels == learned
    assert study.primary == primary


def test_a_rare_outcome_gives_way_to_the_next_and_says_so() -> None:
    table = planted(2_000, labels=("click", "conversion"))
    rare = np.zeros(2_000, dtype=np.int64)
    rare[:6] = 1
    columns = {"age": table.table["age"], "click": pa.array(rare), "conversion": table.table["conversion"]}
    arm = np.array(table.table["arm"].to_pylist())
    given = table.table["propensity"].to_numpy()
    study = study_of(responses_of(arm, given, columns, ("click", "conversion")))
    assert study.primary == "conversion"
    assert study.labels == ("conversion",)
    assert any("too few of click" in note for note in study.notes)


def test_too_few_responses_are_refused_with_the_remedy() -> None:
    with pytest.raises(
        DataError, match=r"too few responses to learn from \(\d+ of click in 40 rows\).*log more"
    ):
        study_of(planted(40))


def test_a_feature_without_values_is_left_out() -> None:
    table = planted(1_000)
    columns = {"age": pa.nulls(1_000, pa.float64()), "click": table.table["click"]}
    arm = np.array(table.table["arm"].to_pylist())
    study = study_of(responses_of(arm, table.table["propensity"].to_numpy(), columns, ("click",)))
    assert study.schema.names == ("arm",)
    assert "Feature age has no value in a half and was left out." in study.notes
