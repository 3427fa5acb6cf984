"""Readable rules from predicted uplift, and the features that they may name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from offline_cases import age_of, planted, study_of, truth

from qiance.cli.offline.propose import best_rule, level_name, rule_features
from qiance.domain import UserTable
from qiance.strategy.audience import audience_mask


def test_the_rule_finds_whom_an_arm_moves() -> None:
    study = study_of(planted())
    users = rule_features(study)
    assert set(users.columns) == {"age", "city_is_lyon", "city_is_bonn"}
    uplift = truth(age_of(study))[:, 1] - 0.1
    rule = best_rule(users, study.first, uplift[study.first])
    assert rule is not None
    assert [(name, symbol) for name, symbol, _ in rule.conditions] == [("age", "<=")]
    inside = audience_mask(rule, users)
    assert uplift[inside].mean() > 0.19
    assert rule.name.startswith("age up to ")


def test_levels_read_as_yes_or_no() -> None:
    rng = np.random.default_rng(0)
    web = rng.random(2_000) < 0.5
    users = UserTable(
        tuple(map(str, range(2_000))), {"channel_is_web": web.astype(float), "age": rng.normal(size=2_000)}
    )
    rows = np.ones(2_000, dtype=bool)
    rule = best_rule(users, rows, np.where(web, 0.3, 0.1))
    assert rule is not None
    assert rule.conditions == (("channel_is_web", "==", 1.0),)
    assert rule.describe() == "channel_is_web == 1"
    assert rule.name == "channel: web"
    other = best_rule(users, rows, np.where(web, 0.1, 0.3))
    assert other is not None
    assert other.name == "no channel: web"
    np.testing.assert_array_equal(audience_mask(other, users), ~web)


def test_without_a_difference_there_is_no_rule() -> None:
    study = study_of(planted(1_000))
    assert best_rule(rule_features(study), study.first, np.full(int(study.first.sum()), 0.2)) is None


def test_features_of_the_arm_are_not_those_of_a_customer() -> None:
    table = planted(1_000)
    features = pa.table({"arm": table.arms, "city": ["Lyon", "Bonn", "Bonn"]})
    study = study_of(replace(table, arm_features=features, pair_features={"age": np.zeros((1_000, 3))}))
    assert not rule_features(study).columns


def test_long_levels_are_cut_but_never_confused() -> None:
    first = level_name("page", "a-very-long-level-1", {})
    second = level_name("page", "a-very-long-level-2", {first: None})
    assert first == "page_is_a_very_long_"
    assert second == "page_is_a_very_long__2"
    assert level_name("page", "€", {}) == "page_is_blank"
