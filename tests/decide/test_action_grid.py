"""The grid of a decision: its numbers are the model's, whatever is encoded ahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qiance.artifacts import EffectModel, write_artifact
from qiance.artifacts.effect import KIND, TASKS, EffectDraws
from qiance.decide.predictor import ActionGrid, GridPredictor, discount_of
from qiance.decide.unknown import Blind, Unknown
from qiance.domain import (
    Action,
    Catalogue,
    Channel,
    Creative,
    Item,
    Offer,
    OfferKind,
    StrategyKind,
)
from qiance.features.columns import EFFECT_SCHEMA, ITEM_COLUMNS, USER_COLUMNS
from qiance.features.encoder import Encoder, NumericCode
from qiance.features.grid import GridColumns
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import UserRows, pack_all, unpack
from training.effect.export import effect_files
from training.effect.network import EffectNetwork, NetworkConfig

CATEGORIES = ("coffee", "cheese")
CATALOGUE = Catalogue(
    tuple(Item(f"i{n}", f"item {n}", c, "grocery", "National", 400, 200) for n, c in enumerate(CATEGORIES))
)
ITEMS = {name: np.array([30.0, 50.0]) for name in ITEM_COLUMNS}


def action(number: int, depth: float = 0.0, cost: int = 7) -> Action:
    channel = (Channel.EMAIL, Channel.MAILER)[number % 2]
    return Action(
        f"a{number}",
        "s",
        StrategyKind.AD,
        f"i{number % 2}",
        Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        Creative(channel, "en", "A good {product}", "Take it", "Shop now"),
        channel,
        cost,
    )


class Linear:
    """A model that can be worked out by hand: heads that differ by a factor, all features count."""

    def __init__(self, heads: int = 3) -> None:
        codes = tuple(NumericCode(10.0, 20.0, name == "recency_days") for name in EFFECT_SCHEMA.numeric)
        self.encoder = Encoder(EFFECT_SCHEMA, codes, (("email", "mailer"), CATEGORIES))
        self.factors = np.arange(1, heads + 1, dtype=np.float32) / heads
        self.weights = np.random.default_rng(0).normal(size=self.encoder.num_width).astype(np.float32)
        self.calls = 0

    def scales_of(self, cat: np.ndarray) -> np.ndarray:
        """Mails are less sure than e-mails."""
        return np.where(cat[:, 0] == 2, 2.5, 1.5)

    def prepare(self, num: np.ndarray, cat: np.ndarray, columns: GridColumns) -> None:
        """It takes whole rows only, as models of before do."""

    def predict_encoded(self, num: np.ndarray, cat: np.ndarray) -> EffectDraws:
        self.calls += 1
        raw = num @ self.weights + cat.sum(axis=1)
        click = 1 / (1 + np.exp(-raw[:, None] * self.factors))
        draws = (click, click * 0.5, raw[:, None] * self.factors + 90, raw[:, None] * self.factors)
        return EffectDraws(*(d.astype(np.float32) for d in draws))


def users(count: int, seed: int = 0) -> UserRows:
    random = np.random.default_rng(seed)
    columns = {name: random.gamma(1.0, 20.0, count) for name in USER_COLUMNS}
    columns["recency_days"][::2] = np.nan
    known = random.random((count, len(CATEGORIES))) < 0.5
    pairs = {name: np.where(known, random.gamma(1.0, 5.0), np.nan) for name in USER_CATEGORY_FEATURES}
    return UserRows(columns, pairs, random.integers(0, 4, count).astype(np.float64))


def test_value_is_the_mean_uplift_and_cost_what_is_given_away() -> None:
    actions = [action(0), action(1, depth=0.25), action(2, depth=0.1, cost=0)]
    grid = ActionGrid(Linear(), CATALOGUE, actions, ITEMS, CATEGORIES)
    scores = grid.score(users(4))
    assert scores.value.dtype == scores.cost.dtype == np.float32
    assert scores.value.shape == scores.cost.shape == (4, 3)
    np.testing.assert_allclose(scores.value, scores.prediction.uplift().mean(axis=2), rtol=1e-5, atol=1e-4)
    given = [discount_of(a, CATALOGUE) for a in actions]
    assert given == [0, 100, 40]
    expected = np.array([7, 7, 0]) + scores.prediction.conversion.mean(axis=2) * given
    np.testing.assert_allclose(scores.cost, expected, rtol=1e-6)
    assert len({len(set(row)) for row in scores.value.tolist()}) == 1, "every action has a value of its own"


def test_users_are_scored_alike_alone_and_together() -> None:
    actions = [action(n, depth=0.1 * (n % 3)) for n in range(5)]
    model = Linear()
    grid = ActionGrid(model, CATALOGUE, actions, ITEMS, CATEGORIES)
    many = users(6)
    together = grid.score(many)
    assert model.calls == 1
    for u in range(6):
        alone = UserRows(
            {name: values[u : u + 1] for name, values in many.columns.items()},
            {name: values[u : u + 1] for name, values in many.user_category.items()},
            many.contacts_7d[u : u + 1],
        )
        np.testing.assert_allclose(grid.score(alone).value[0], together.value[u], rtol=1e-5, atol=1e-4)


def test_a_row_that_was_logged_scores_the_same() -> None:
    grid = ActionGrid(Linear(), CATALOGUE, [action(0), action(1, 0.2)], ITEMS, CATEGORIES)
    given = users(3)
    again = grid.score(unpack(pack_all(given)))
    np.testing.assert_array_equal(again.value, grid.score(given).value)


def test_the_effect_of_one_action_is_the_summary_of_that_user() -> None:
    grid = ActionGrid(Linear(), CATALOGUE, [action(0), action(1, 0.2)], ITEMS, CATEGORIES)
    scores = grid.score(users(3))
    one = np.array([False, True, False])
    found, expected = scores.effect(1, 1), scores.prediction.summarise(1, one)
    for name in ("ctr", "cvr", "sales", "margin", "uplift"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert [mine.value, mine.low, mine.high] == pytest.approx([theirs.value, theirs.low, theirs.high])
        assert mine.low < mine.value < mine.high
    assert found.uplift.value == pytest.approx(float(scores.value[1, 1]), rel=1e-5)


def test_each_action_has_the_width_of_its_segment() -> None:
    grid = ActionGrid(Linear(), CATALOGUE, [action(0), action(1)], ITEMS, CATEGORIES)
    prediction = grid.score(users(3)).prediction
    plain = replace(prediction, width_scale=1.0)
    for number, scale in ((0, 1.5), (1, 2.5)):
        for own, bare in (
            (prediction.effect_on(1, number), plain.effect_on(1, number)),
            (prediction.summarise(number), plain.summarise(number)),
        ):
            widths = [one.margin.high - one.margin.low for one in (own, bare)]
            assert widths[0] == pytest.approx(scale * widths[1], rel=1e-5)


def test_one_head_has_no_spread() -> None:
    effect = ActionGrid(Linear(1), CATALOGUE, [action(0)], ITEMS, CATEGORIES).score(users(1)).effect(0, 0)
    assert effect.margin.low == effect.margin.value == effect.margin.high


def test_without_actions_there_is_nothing_to_score() -> None:
    scores = ActionGrid(Linear(), CATALOGUE, [], ITEMS, CATEGORIES).score(users(2))
    assert scores.value.shape == scores.cost.shape == (2, 0)
    assert scores.prediction.control_margin.shape == (2, 3)


def test_an_unknown_item_is_refused() -> None:
    lost = Action("a", "s", StrategyKind.AD, "gone", Offer(), None, Channel.EMAIL)
    with pytest.raises(ValueError, match="item_id: 'gone' of action 'a' is unknown"):
        ActionGrid(Linear(), CATALOGUE, [lost], ITEMS, CATEGORIES)


def test_the_predictor_of_proposers_gives_the_same() -> None:
    actions, asked = [action(0), action(1, 0.2)], users(3)
    prediction, cost = GridPredictor(Linear(), CATALOGUE, ITEMS, CATEGORIES).predict(asked, actions)
    scores = ActionGrid(Linear(), CATALOGUE, actions, ITEMS, CATEGORIES).score(asked)
    assert cost.dtype == np.float64
    np.testing.assert_array_equal(cost, scores.cost)
    np.testing.assert_array_equal(prediction.margin, scores.prediction.margin)


class Rows:
    """A model that is made to score whole rows."""

    def __init__(self, model: EffectModel) -> None:
        self.scales_of, self.encoder = model.scales_of, model.encoder
        self.predict_encoded = model.predict_encoded

    def prepare(self, num: np.ndarray, cat: np.ndarray, columns: GridColumns) -> None:
        """None, as of models of before."""


@pytest.mark.parametrize("count", [1, 7])
def test_a_trained_model_scores_in_parts_what_it_scores_in_rows(tmp_path: Path, count: int) -> None:
    code = Linear().encoder
    rates = {"click": 0.1, "conversion": 0.02}
    config = NetworkConfig(
        code.num_width, code.cardinalities, TASKS, True, 4, (16, 8), rates, 900.0, 90.0, 50.0
    )
    torch.manual_seed(0)
    num, cat = np.zeros((8, code.num_width), dtype=np.float32), np.zeros((8, 2), dtype=np.int64)
    files = effect_files(EffectNetwork(config).eval(), code, num, cat, 1.0, {})
    about = {"feature_service": EFFECT_SCHEMA.service, "schema_hash": EFFECT_SCHEMA.hash}
    path = write_artifact(tmp_path, KIND, files, metrics={}, data_fingerprint="d", **about).path
    model = EffectModel.load(path, EFFECT_SCHEMA)
    actions = [action(n, depth=0.1 * (n % 3), cost=n) for n in range(600)]
    parts = ActionGrid(model, CATALOGUE, actions, ITEMS, CATEGORIES).score(users(count))
    rows = ActionGrid(Rows(model), CATALOGUE, actions, ITEMS, CATEGORIES).score(users(count))
    for mine, theirs in (
        (parts.value, rows.value),
        (parts.cost, rows.cost),
        (parts.prediction.sales, rows.prediction.sales),
        (parts.prediction.control_margin, rows.prediction.control_margin),
    ):
        assert mine.shape == theirs.shape
        assert mine.dtype == np.float32
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert parts.effect(count - 1, 599).sales.value == pytest.approx(
        float(parts.prediction.sales[count - 1, 599].mean())
    )


def test_means_are_those_of_the_effects() -> None:
    prediction = (
        ActionGrid(Linear(), CATALOGUE, [action(0), action(1, 0.2)], ITEMS, CATEGORIES)
        .score(users(6))
        .prediction
    )
    means, errors = prediction.moments()
    assert means.shape == (5, 6, 2)
    effect = prediction.effect_on(4, 1)
    told = [getattr(effect, name).value for name in ("ctr", "cvr", "sales", "margin", "uplift")]
    np.testing.assert_allclose(means[:, 4, 1], told, rtol=1e-4, atol=1e-3)
    half = effect.margin.high - effect.margin.value
    assert half == pytest.approx(2.92 * np.sqrt(errors[3, 4, 1]), rel=1e-3), (
        "Student t, two degrees of freedom"
    )


def test_what_is_not_known_widens_what_is_said_and_moves_nothing() -> None:
    grid = ActionGrid(Linear(), CATALOGUE, [action(0), action(1, 0.2)], ITEMS, CATEGORIES)
    unknown = Unknown.of(grid, users(200, seed=1))
    scored = grid.score(users(3)).prediction
    blind = Blind(unknown, np.array([False, True, False]), np.array([False, True]))
    assert blind.variance([0, 2], [0, 0]) is None, "all is known there"
    variance = blind.variance([0, 1, 0, 1], [0, 0, 1, 1])
    assert variance is not None
    means, _ = scored.moments()
    assert (variance[:, 0] == 0).all()
    np.testing.assert_allclose(variance[:, 3], variance[:, 1] * 0 + unknown.user[:, 1] + unknown.item)
    plain = scored.effects_on([0, 1], [0, 0])
    wide = scored.effects_on([0, 1], [0, 0], unknown=variance[:, :2])
    assert wide[0] == plain[0]
    assert wide[1].sales.value == plain[1].sales.value == pytest.approx(means[2, 1, 0], rel=1e-4)
    half = wide[1].sales.high - wide[1].sales.value
    before = plain[1].sales.high - plain[1].sales.value
    assert half == pytest.approx(np.hypot(before, 1.6449 * np.sqrt(unknown.user[2, 0])), rel=1e-3)


def test_one_item_tells_nothing_of_what_another_would_be() -> None:
    grid = ActionGrid(Linear(), CATALOGUE, [action(0), action(2, 0.2)], ITEMS, CATEGORIES)
    assert (Unknown.of(grid, users(20)).item == 0).all()
