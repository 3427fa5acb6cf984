"""The page of strategies is made from what a run leaves, whoever writes the words."""

from __future__ import annotations

import re

from benchmarks.copying.strategies import LANGUAGES, N, Shop, page
from qiance.artifacts import EffectModel
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.settings import Settings
from qiance.strategy.propose_request import Known
from tests.serve.built_cases import GUARD, Built


def test_every_strategy_is_shown_with_bound_facts_in_both_languages(built: Built) -> None:
    snapshot = built.snapshot
    model = EffectModel.load(built.workspace.artifact("effect-model", built.model))
    grid = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories)
    predictor = FramePredictor(grid, snapshot.users, snapshot.user_category)
    shop = Shop(Settings(), snapshot, model, Known(snapshot.item["stock"]), predictor, GUARD)
    strategies = shop.strategies(None)
    text = page(shop, {"templates": strategies})
    titles = re.findall(r"^## \d+\. (.+)$", text, re.M)
    assert titles == [strategy.title for strategy in strategies]
    assert 4 <= len(titles) <= N
    rows = re.findall(r"^\| (\w+) \| template \| (.+) \|$", text, re.M)
    assert {language for language, _ in rows} == set(LANGUAGES.values())
    assert len(rows) == sum(len(strategy.actions) for strategy in strategies)
    assert not any("{" in words for _, words in rows), "no slot is left open"
    assert "template: no language model is loaded" in text
