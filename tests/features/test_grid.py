"""Users × actions encoded in parts equal what encoding every row gives, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Catalogue,
    Channel,
    Creative,
    Item,
    Offer,
    OfferKind,
    StrategyKind,
)
from qiance.features.columns import EFFECT_SCHEMA, ITEM_COLUMNS, USER_COLUMNS, ActionColumns, assemble
from qiance.features.encoder import Encoder, NumericCode
from qiance.features.grid import EncodedGrid
from qiance.features.projection import Projection, pack_vector
from qiance.features.schema import FeatureSchema
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import UserRows
from qiance.features.words import creative_text

CATEGORIES = ("coffee", "cheese", "soup")
CHANNELS = (Channel.EMAIL, Channel.PUSH, Channel.MAILER)
# Two items of a category that no user has a column for.
ITEM_CATEGORIES = (*CATEGORIES, "unheard", "unheard", "none")


def catalogue() -> Catalogue:
    return Catalogue(
        tuple(
            Item(f"i{n}", f"{c} {n}", c, "grocery", "National", 400 + 50 * n, 200)
            for n, c in enumerate(ITEM_CATEGORIES)
        )
    )


VECTORS = np.array([pack_vector(row) for row in np.random.default_rng(1).normal(size=(5, 6))], dtype=object)


def action(number: int, random: np.random.Generator) -> Action:
    """Any action: with or without an item, an offer, words."""
    depth = float(random.choice([0.0, 0.1, 0.25]))
    item = None if random.random() < 0.2 else f"i{random.integers(len(ITEM_CATEGORIES))}"
    channel = CHANNELS[number % 3]
    words = Creative(channel, "zh", "好{product}" * (number % 3), "Take it!" * (number % 2), "Shop now")
    return Action(
        f"a{number}",
        "s",
        StrategyKind.AD,
        item,
        Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        None if random.random() < 0.2 else words,
        channel,
        int(random.integers(0, 60)),
    )


def users(count: int, random: np.random.Generator, odd: bool = True) -> UserRows:
    """Random users; odd ones have gaps and infinities."""

    def values(*shape: int) -> np.ndarray:
        drawn = random.gamma(1.0, 30.0, shape)
        if odd:
            drawn[random.random(shape) < 0.2] = np.nan
            drawn[random.random(shape) < 0.02] = np.inf
        return drawn

    columns = {name: values(count) for name in USER_COLUMNS}
    category = {name: values(count, len(CATEGORIES)) for name in USER_CATEGORY_FEATURES}
    return UserRows(columns, category, random.integers(0, 9, count).astype(np.float64))


def item_values(random: np.random.Generator) -> dict[str, np.ndarray]:
    found = {name: random.gamma(1.0, 30.0, len(ITEM_CATEGORIES)) for name in ITEM_COLUMNS}
    found["price"][2] = found["units_28d"][3] = np.nan
    return found


def encoder(random: np.random.Generator, schema: FeatureSchema = EFFECT_SCHEMA) -> Encoder:
    """Some features have a flag for gaps, some never varied."""
    codes = [
        NumericCode(float(random.normal(20, 9)), float(random.choice([0.0, 3.0, 40.0])), bool(flag))
        for flag in random.random(len(schema.numeric)) < 0.5
    ]
    words = {"channel": ("email", "mailer"), "category": ("soup", "coffee", "none")}
    projections = tuple(Projection.fit(VECTORS, 3) for _ in schema.vectors)
    return Encoder(schema, tuple(codes), tuple(words[name] for name in schema.categorical), projections)


def every_row(
    rows: UserRows, item: Mapping[str, np.ndarray], actions: ActionColumns, categories: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of every user × action, spelled out: `[U·A]`."""
    u, a = (x.ravel() for x in np.indices((len(rows), len(actions.channel))))
    row, category = actions.item_row[a], actions.category[a]
    code = np.array([list(categories).index(c) if c in categories else -1 for c in category], dtype=np.int64)
    return assemble(
        user={name: values[u] for name, values in rows.columns.items()},
        item={name: np.where(row >= 0, values[row], np.nan) for name, values in item.items()},
        user_category={
            name: np.where(code >= 0, values[u, code], np.nan) for name, values in rows.user_category.items()
        },
        actions=actions.columns(a),
        contacts_7d=rows.contacts_7d[u],
    )


@given(st.integers(0, 4), st.integers(0, 9), st.booleans(), st.integers(0, 9999))
@settings(deadline=None, max_examples=150)
def test_parts_equal_the_whole(count: int, offered: int, odd: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    offers = [*(action(n, random) for n in range(offered)), CONTROL_ACTION]
    texts = {creative_text(a.creative) for a in offers if a.creative}
    vectors = {text: random.choice(VECTORS) for text in sorted(texts)}
    parts = ActionColumns.build(offers, catalogue().index, ITEM_CATEGORIES, vectors)
    item, rows, code = item_values(random), users(count, random, odd), encoder(random)
    grid = EncodedGrid(code, parts, item, {c: n for n, c in enumerate(CATEGORIES)})
    num, cat = grid.rows(rows)
    expected_num, expected_cat = code.encode(every_row(rows, item, parts, CATEGORIES))
    assert num.dtype == np.float32
    assert num.tobytes() == expected_num.tobytes()
    assert cat.tobytes() == expected_cat.tobytes()


def test_a_model_of_fewer_features_in_another_order() -> None:
    random = np.random.default_rng(0)
    schema = FeatureSchema("own", ("price", "contacts_7d", "category_share", "recency_days"), ("category",))
    offers = [*(action(n, random) for n in range(6)), CONTROL_ACTION]
    parts = ActionColumns.build(offers, catalogue().index, ITEM_CATEGORIES)
    item, rows, code = item_values(random), users(3, random), encoder(random, schema)
    num, cat = EncodedGrid(code, parts, item, {c: n for n, c in enumerate(CATEGORIES)}).rows(rows)
    expected_num, expected_cat = code.encode(every_row(rows, item, parts, CATEGORIES))
    np.testing.assert_array_equal(num, expected_num)
    np.testing.assert_array_equal(cat, expected_cat)


def test_a_model_of_unknown_features_is_refused() -> None:
    random = np.random.default_rng(0)
    code = encoder(random, FeatureSchema("own", ("price", "weather"), ("channel",)))
    parts = ActionColumns.build([CONTROL_ACTION], catalogue().index, ITEM_CATEGORIES)
    with pytest.raises(ValueError, match="reads 'weather', which no decision knows"):
        EncodedGrid(code, parts, item_values(random), {})
